"""`Scope`: data that goes along with each event, per context or per unit of work, and a client."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from valued import _events
from valued._changes import REMOVE, Change, Replace, applied, at, merging
from valued._client import Client
from valued._context import (
    Key,
    Layer,
    Lazy,
    Owner,
    Unit,
    UnitLayer,
    checked_lazy,
    held,
    hold,
    leave,
)
from valued._errors import PicklingError
from valued._serializer import Snapshot, merge, normalize, parts_of
from valued._typing import JSONObject, ScopeLike

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import TracebackType

    from valued._typing import Data, Transport

T = TypeVar("T")


class Scope(ScopeLike):
    """Data that goes along with each event that is sent through it.

    *client*: a `Client`, or whatever ``Client`` takes (token or transport). *data* and *fields*:
    the defaults, which every context starts from. Raises what ``Client`` raises, and
    `SerializationError`.

    A change counts in the thread, the asyncio task or the greenlet that makes it, and in tasks
    started from there, until it is changed again; see `nested`. Forks keep it.
    """

    def __init__(
        self, client: Client | Transport | str | None = None, data: Data = None, /, **fields: Any
    ) -> None:
        self._given = client if isinstance(client, Client) else Client(client)
        self._owner = Owner(self._given)
        self._defaults = merge(self._owner.defaults, _events.gather(data, fields))

    # -- data --------------------------------------------------------------------------------------

    def __getitem__(self, key: str | tuple[str, ...]) -> Any:
        """The value at a dotted key, or a sequence of keys; `KeyError` where there is none."""
        parts = parts_of(key)
        value: Any = self._data(only=parts[0])
        for part in parts:
            if not isinstance(value, dict) or part not in value:
                raise KeyError(key)
            value = value[part]
        return copy.deepcopy(value)

    def __setitem__(self, key: str | tuple[str, ...], value: object) -> None:
        """Set the value at a dotted key, or a sequence of keys, in place of what is there."""
        parts = parts_of(key)
        plain = normalize({".".join(parts): value})
        for part in parts:
            plain = plain[part]
        self._change(at(parts, Replace(plain)))

    def __delitem__(self, key: str | tuple[str, ...]) -> None:
        """Remove the value at *key*; `KeyError` where there is none."""
        self[key]
        self._change(at(parts_of(key), REMOVE))

    __iter__ = None  # not by `__getitem__` with 0, 1, 2 …; `to_dict` can be iterated

    def __contains__(self, key: str | tuple[str, ...]) -> bool:
        try:
            self[key]
        except KeyError:
            return False
        return True

    def get(self, key: str | tuple[str, ...], default: Any = None) -> Any:
        """The value at *key*, or *default*."""
        try:
            return self[key]
        except KeyError:
            return default

    @property
    def user(self) -> Any:
        """The user, as data; None where there is none. Assigning replaces it."""
        return self.get("user")

    @user.setter
    def user(self, value: object) -> None:
        self["user"] = value

    @property
    def user_id(self) -> Any:
        """The user's id; None where there is none. Assigning keeps what else is known of it."""
        return self.get("user.id")

    @user_id.setter
    def user_id(self, value: object) -> None:
        self["user.id"] = value

    @property
    def customer(self) -> Any:
        """The customer, as data; None where there is none. Assigning replaces it."""
        return self.get("customer")

    @customer.setter
    def customer(self, value: object) -> None:
        self["customer"] = value

    @property
    def customer_id(self) -> Any:
        """The customer's id; None where there is none. Assigning keeps what else is known of it."""
        return self.get("customer.id")

    @customer_id.setter
    def customer_id(self, value: object) -> None:
        self["customer.id"] = value

    def apply(self, data: Data = None, /, **fields: Any) -> None:
        """Merge *data* and *fields* into what the scope holds; mappings meet, all else replaces."""
        self._change(merging(_events.gather(data, fields)))

    def reset(self) -> None:
        """Fall back to the defaults that the scope was made with."""
        self._change(Replace(self._start()))

    @contextlib.contextmanager
    def nested(self, data: Data = None, /, **fields: Any) -> Iterator[Scope]:
        """A block with *data* and *fields* merged in; what changes inside ends with the block.

        Exceptions included. Yields the scope. Within a unit of work (`isolated`) the block lies
        over the unit's data: what it doesn't set shows the unit's later changes.

        Don't ``yield`` inside it, in a generator that others drive: the block stays open in their
        context until the generator goes on. Use `isolated` there, and enter it for each step.
        """
        key, block = self._key(), object()
        more = _events.gather(data, fields)
        before = held(key)
        if isinstance(before, (Layer, UnitLayer)):
            layer: Layer | UnitLayer = before.nested(more, block)
        else:
            held_now = self._start() if before is None else before
            layer = Layer(merge(held_now, more), before, block)
        hold(key, layer)
        try:
            yield self
        finally:
            # Not by a token: that takes back what the block did to other scopes.
            leave(key, block)

    def isolated(
        self,
        data: Data | Callable[[], object] = None,
        /,
        *,
        lazy: Mapping[str, Callable[[], object]] | None = None,
        **fields: Any,
    ) -> Isolated:
        """A unit of work of its own, such as a request, a task or a job: ``with … :`` enters it.

        It starts with the scope's defaults, and *data* and *fields* merged in; never with what this
        thread held before. What is set within it is seen in all threads and tasks that enter it,
        and ends with it. See `Isolated`.

        *lazy*: functions by the name of their field, such as ``{"user": current_user}``. One is
        called when an event, or a read of the scope, lacks that field: at most once for each event.
        What it returns is kept; None isn't, so it is asked again. What it raises, the event call
        raises. Setting the field, also to None, ends it. *data* may be such a function, too, for a
        whole mapping.

        Raises `ValidationError` and `SerializationError`. Any thread may call.
        """
        key = self._key()
        whole = None
        if data is not None and _is_function(data):
            data, whole = None, data
        more = _events.gather(data, fields)
        start = self._start()
        functions = None if lazy is None else checked_lazy(lazy)
        return Isolated(self, key, merge(start, more) if more else start, functions, whole)

    def to_dict(self) -> JSONObject:
        """What the scope holds in this context, a copy."""
        return copy.deepcopy(dict(self._data()))

    def to_valued_data(self) -> JSONObject:
        """The same for the serializer, which changes nothing: a scope goes where a mapping goes."""
        return self.to_dict()

    # -- events ------------------------------------------------------------------------------------

    def action(self, key: str, data: Data = None, /, **fields: Any) -> None:
        """`Client.action`, with the scope's data below that of the call."""
        self._client().action(key, self._with(data, fields))

    def page_view(self, url: str, data: Data = None, /, **fields: Any) -> None:
        """`Client.page_view`, with the scope's data below that of the call."""
        self._client().page_view(url, self._with(data, fields))

    pageview = page_view

    def sync(self, data: Data = None, /, **fields: Any) -> None:
        """A user sync and a customer sync, each where more is known than an id.

        *data* and *fields* count for this call only. Where one of the two is refused, neither is
        sent.
        """
        known = self._with(data, fields)
        time = {name: known[name] for name in ("occured_at",) if name in known}
        events = [
            {name: known[name], **time}
            for name in ("user", "customer")
            if _says_more_than_an_id(known.get(name))
        ]
        for event in events:
            _events.sync(event)  # raises for either before one is sent
        for event in events:
            self._client().sync(event)

    def sync_user(self, data: Data = None, /, **fields: Any) -> None:
        """`Client.sync_user`, with *data* over the scope's user."""
        self._client().sync_user(self._party("user", data, fields))

    def sync_customer(self, data: Data = None, /, **fields: Any) -> None:
        """`Client.sync_customer`, with *data* over the scope's customer."""
        self._client().sync_customer(self._party("customer", data, fields))

    # -- its own -----------------------------------------------------------------------------------

    def __repr__(self) -> str:
        # Not the data: it is about people, and logs keep it.
        return f"Scope({self._given!r})"

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Its client, its defaults, and what it holds in this context. Raises `PicklingError`."""
        return _restored, (type(self), self._given, dict(self._defaults), dict(self._data()))

    def _client(self) -> Client:
        return self._given

    def _key(self) -> Key:
        """What the data hangs off in the context."""
        return self._owner.key

    def _start(self) -> Snapshot:
        """What each context, and each unit of work, starts with."""
        return self._defaults

    def _data(self, over: JSONObject | None = None, only: str | None = None) -> Snapshot:
        entry = held(self._key())
        if entry is None:
            return self._start()
        return entry if isinstance(entry, Snapshot) else entry.read(over or {}, only)

    def _change(self, change: Change) -> None:
        key = self._key()
        entry = held(key)
        if entry is None or isinstance(entry, Snapshot):
            hold(key, applied(change, self._start() if entry is None else entry))
        else:
            entry.change(key, change)

    def _with(self, data: Data, fields: dict[str, Any]) -> Snapshot:
        more = _events.gather(data, fields)
        return merge(self._data(more), more)

    def _party(self, name: str, data: Data, fields: dict[str, Any]) -> Snapshot:
        if isinstance(data, ScopeLike):
            data = data.to_dict().get(name)
        more = _events.gather(data, fields)
        known = self._data({name: more}, name).get(name)
        return merge(known, more) if isinstance(known, dict) else Snapshot(more)


def _is_function(data: object) -> bool:
    # Not by `callable`: a proxy of a user, such as Werkzeug's, can be called as well.
    return inspect.isroutine(data) or isinstance(data, functools.partial)


def _restored(cls: type[Scope], client: Client, defaults: JSONObject, data: JSONObject) -> Scope:
    scope = cls(client, Snapshot(defaults))
    if data != defaults:
        scope._change(Replace(Snapshot(data)))
    return scope


def _says_more_than_an_id(party: object) -> bool:
    return party is not None and not (isinstance(party, dict) and party.keys() <= {"id"})


class Isolated(Unit):
    """One unit of work, such as a request, a task or a job, with data of its own.

    Made by `Scope.isolated` and `valued.isolated`. Enter it as a block (``with valued.isolated():
    …``), by `entered` or by `run`: as often as you like, in any thread or task, in several at the
    same time. What is set within it is seen wherever it is entered, and nowhere else; a ``nested``
    block in it stays local to its context. Leaving it restores what the context held before. A task
    that goes on after the unit's end keeps the unit's data; a forked child has a copy.
    """

    __slots__ = ("_key", "_scope")

    def __init__(
        self,
        scope: Scope,
        key: Key | None,
        data: Snapshot,
        lazy: Lazy | None = None,
        whole: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(data, lazy, whole)
        self._scope = scope
        self._key = key  # None: there is no client yet, and nothing to isolate

    def __enter__(self) -> Scope:
        return self._enter(self)

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave(self)

    def entered(self) -> AbstractContextManager[Scope]:
        """A block within the unit, which yields the scope: any number of them, anywhere.

        It is left in the context in which it was entered; in another one, leaving changes nothing.
        """
        return _Block(self)

    def run(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call *fn* within the unit, and return what it returns: ``pool.submit(unit.run, fn)``.

        Where that is a coroutine, it runs within the unit, too: ``await unit.run(fn)``.
        """
        with _Block(self):
            result = fn(*args, **kwargs)
        return self._await(result) if inspect.iscoroutine(result) else result  # type: ignore[return-value]

    async def _await(self, coroutine: Awaitable[T]) -> T:
        with _Block(self):
            return await coroutine

    def __repr__(self) -> str:
        # Not the data: it is about people, and logs keep it.
        return f"Isolated({self._scope!r})"

    def __reduce__(self) -> str:
        raise PicklingError(
            "an isolated unit of work stays in its process: hand over scope.to_dict(), "
            "and call valued.isolated(data) in the other one"
        )

    def _enter(self, block: object) -> Scope:
        if self._key is not None:
            hold(self._key, UnitLayer(self, None, held(self._key), block))
        return self._scope

    def _leave(self, block: object) -> None:
        if self._key is not None:
            leave(self._key, block)


class _Block:
    """One block within a unit."""

    __slots__ = ("_unit",)

    def __init__(self, unit: Isolated) -> None:
        self._unit = unit

    def __enter__(self) -> Scope:
        return self._unit._enter(self)  # noqa: SLF001 - they are one idea

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._unit._leave(self)  # noqa: SLF001

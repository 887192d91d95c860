"""`Scope`: data that goes along with each event, per context or unit of work, and a client."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from valued._client import Client
from valued._errors import PicklingError, ValidationError, ValuedError
from valued._events import categories
from valued._events.bad_values import is_a
from valued._events.serializer import Snapshot, merge
from valued._redaction import hide
from valued._scopes.context import (
    Key,
    Layer,
    Owner,
    Replace,
    Unit,
    UnitLayer,
    checked_lazy,
    entry_of,
    leave_block,
    set_entry,
)
from valued._scopes.data import ScopeData
from valued._typing import JSONObject

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import TracebackType

    from valued._typing import BytesTransport, Data, Transport

T = TypeVar("T")


class Scope(ScopeData):
    """Data that goes along with each event that is recorded through it.

    >>> scope = valued.Scope(valued.Client("TOKEN"))
    >>> scope.user_id = 123
    >>> scope.action("report.generated")  # of user 123

    *client*: a `Client`, or what ``Client`` takes first (a token, default ``VALUED_TOKEN``, or a
    transport). *data* and *fields*: the defaults, which every context starts with. Raises what
    ``Client`` raises, and `SerializationError`.

    A change is seen by the thread, asyncio task or greenlet that makes it, and by asyncio tasks
    that are started from it, until it is changed again. It doesn't end with a request or a task:
    use `Scope.nested` or `Scope.isolated` for that. Any thread may call. Forked children start with
    what their parent's thread had.
    """

    def __init__(
        self,
        client: Client | Transport | BytesTransport | str | None = None,
        data: Data = None,
        /,
        **fields: Any,
    ) -> None:
        # Error trackers show the variables of frames that raise; any of these may be a token.
        client, fields = hide(client), {name: hide(value) for name, value in fields.items()}
        self._own = Owner(client if isinstance(client, Client) else Client(client))
        self._own.defaults = merge(self._own.defaults, self._normalize_call(data, fields))

    @contextlib.contextmanager
    def nested(self, data: Data = None, /, **fields: Any) -> Iterator[Scope]:
        """A block in which the scope has *data* and *fields*, too.

        >>> with scope.nested({"customer.id": 12}):
        ...     scope.action("report.generated")  # of customer 12

        *data*: a mapping; dots in keys nest. *fields*: the same by keyword; they take precedence.
        Mappings are merged into what the scope has, all else replaces it. What changes in the block
        ends with it, after an exception, too. Yields the scope. Raises `ValidationError` and
        `SerializationError` (but see the option *invalid*). Any thread may call; other threads
        don't see it.

        In a unit of work (`Scope.isolated`), keys that the block doesn't set show later changes of
        the unit. Don't ``yield`` in the block, in a generator: the block stays open in the context
        of the code that reads the generator, until the generator goes on. Use `Scope.isolated`
        there, and enter the unit for each step.
        """
        owner, block = self._owner(), object()
        key = owner.key
        more = self._normalize_call(data, fields)
        before = entry_of(key)
        if isinstance(before, (Layer, UnitLayer)):
            layer: Layer | UnitLayer = before.nested(more, block)
        else:
            outer = owner.defaults if before is None else before
            layer = Layer(merge(outer, more), before, block)
        set_entry(key, layer)
        try:
            yield self
        finally:
            # Not by a token: that takes back what the block did to other scopes.
            leave_block(key, block)

    def isolated(
        self,
        data: Data | Callable[[], object] = None,
        /,
        *,
        lazy: Mapping[str, Callable[[], object]] | None = None,
        **fields: Any,
    ) -> Isolated:
        """A unit of work of its own, such as a request, a task or a job; ``with`` enters it.

        >>> with scope.isolated({"user.id": 123}):
        ...     scope.action("report.generated")  # of user 123

        It starts with the scope's defaults, and *data* and *fields* merged in, never with what this
        thread held before. What is set in it is seen in all threads and tasks that enter it, and
        ends with it. `Isolated` says how to enter it.

        *lazy*: functions by the name of their field, such as ``{"user": current_user}``. A function
        is called when an event, or a read of the scope, lacks its field, at most once for each
        event. Its result is kept; if it is None, the function is called again next time. An
        exception of the function is raised by the event call, or counted and logged if the option
        *invalid* says so. Setting the field, to None as well, ends this. *data* may be such a
        function, too, which returns a whole mapping.

        Raises `ValidationError` and `SerializationError`. Any thread may call.
        """
        owner = self._owner()
        whole = None
        if data is not None and _is_function(data):
            data, whole = None, data
        more = self._normalize_call(data, fields)
        functions = None
        try:
            functions = None if lazy is None else checked_lazy(lazy)
        except ValidationError as error:
            if not self._tolerates(error):
                raise
        known = merge(owner.defaults, more) if more else owner.defaults
        return Isolated(self, owner.key, Unit(known, functions, whole, self._normalize_call))

    # -- events ------------------------------------------------------------------------------------

    def action(self, key: str, data: Data = None, /, **fields: Any) -> None:
        """Record what a user did: `Client.action`, with the scope's data added.

        *data* and *fields* take precedence over the scope.
        """
        self._record("action", key, data, fields)

    def page_view(self, url: str, data: Data = None, /, **fields: Any) -> None:
        """Record that a user looked at *url*: `Client.page_view`, with the scope's data added.

        *data* and *fields* take precedence over the scope.
        """
        self._record("page_view", url, data, fields)

    pageview = page_view

    def sync(self, data: Data = None, /, **fields: Any) -> None:
        """Send what the scope knows of its user and of its customer: one event for each.

        >>> scope.user = {"id": 123, "name": "Ada"}
        >>> scope.sync()

        A user or a customer of which only the id is known is left out. *data* and *fields* are
        merged in for this call only. If one of the two can't be sent, neither is.
        """
        known = self._with(data, fields)
        if known is None:
            return
        time = {name: known[name] for name in ("occured_at",) if name in known}
        events = [
            {name: known[name], **time}
            for name in ("user", "customer")
            if _says_more_than_an_id(known.get(name))
        ]
        try:
            categories.check_names(known)
            for event in events:
                categories.sync(event)  # raises for either before one is sent
        except ValuedError as error:
            if not self._tolerates(error):
                raise
            return
        for event in events:
            self._owner().client.sync(event)

    def sync_user(self, data: Data = None, /, **fields: Any) -> None:
        """Send what is known of a user: `Client.sync_user`, with *data* over the scope's user."""
        self._sync_party("user", data, fields)

    def sync_customer(self, data: Data = None, /, **fields: Any) -> None:
        """Send what is known of a customer; otherwise like `Scope.sync_user`."""
        self._sync_party("customer", data, fields)

    # -- its own -----------------------------------------------------------------------------------

    def __repr__(self) -> str:
        # Not the data: it is about people, and logs keep it.
        return f"Scope({self._own.client!r})"

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Its client, its defaults, and what it holds in this context. Raises `PicklingError`."""
        own = self._own
        return _restored, (type(self), own.client, dict(own.defaults), dict(self._data()))

    def _owner(self) -> Owner:
        return self._own

    def _with(self, data: Data, fields: dict[str, Any]) -> Snapshot | None:
        """The data of an event; None: it can't be sent, and the client tolerates that."""
        try:
            more = categories.normalize_call(data, fields)
            return merge(self._data(more), more)
        except Exception as error:  # a lazy function's may be any
            if not self._tolerates(error):
                raise
            return None

    def _record(self, call: str, subject: str, data: Data, fields: dict[str, Any]) -> None:
        known = self._with(data, fields)
        if known is not None:
            getattr(self._owner().client, call)(subject, known)

    def _sync_party(self, name: str, data: Data, fields: dict[str, Any]) -> None:
        try:
            data = categories.data_of_party(name, data)
            more = categories.normalize_call(data, fields)
            known = self._data({name: more}, name).get(name)
        except Exception as error:
            if not self._tolerates(error):
                raise
            return
        party = merge(known, more) if isinstance(known, dict) else Snapshot(more)
        getattr(self._owner().client, f"sync_{name}")(party)


def _is_function(data: object) -> bool:
    # Not by `callable`: a proxy of a user, such as Werkzeug's, can be called as well.
    return is_a(data, _FUNCTIONS)


_FUNCTIONS: Final = (
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.MethodWrapperType),
    functools.partial,
)


def _restored(cls: type[Scope], client: Client, defaults: JSONObject, data: JSONObject) -> Scope:
    scope = cls(client, Snapshot(defaults))
    if data != defaults:
        scope._change(Replace(Snapshot(data)))
    return scope


def _says_more_than_an_id(party: object) -> bool:
    return party is not None and not (isinstance(party, dict) and party.keys() <= {"id"})


class Isolated:
    """One unit of work, such as a request, a task or a job, with data of its own.

    >>> unit = valued.isolated({"user.id": 123})
    >>> pool.submit(unit.run, work)   # in a thread
    >>> with unit.entered():          # here
    ...     valued.action("report.generated")

    Made by `valued.isolated` and `Scope.isolated`. Enter it with ``with unit:``, `Isolated.entered`
    or `Isolated.run`, as often as you like, in any thread or task, in several at the same time.
    What is set in it is seen wherever it is entered, and nowhere else; a ``nested`` block in it
    stays local to its context. Leaving it restores what the context held before. A task that goes
    on after the end of the unit keeps the unit's data. A forked child has a copy. It can't be
    pickled (`PicklingError`, which says what to do).
    """

    __slots__ = ("_key", "_scope", "_unit")

    def __init__(self, scope: Scope, key: Key | None, unit: Unit) -> None:
        self._scope = scope
        self._key = key  # None: there is no client yet, and nothing to isolate
        self._unit = unit

    def __enter__(self) -> Scope:
        if self._key is not None:
            set_entry(self._key, UnitLayer(self._unit, None, entry_of(self._key), self))
        return self._scope

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._key is not None:
            leave_block(self._key, self)

    def entered(self) -> AbstractContextManager[Scope]:
        """A block in the unit, which yields the scope: any number of them, in any thread or task.

        It ends in the context in which it was entered. Left in another one, it changes nothing.
        """
        return Isolated(self._scope, self._key, self._unit)  # a block is told by its object

    def run(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call *fn* in the unit, and return its result: ``pool.submit(unit.run, fn)``.

        The coroutine of an async function runs in the unit, too: ``await unit.run(fn)``.
        """
        with self.entered():
            result = fn(*args, **kwargs)
        return self._await(result) if isinstance(result, types.CoroutineType) else result  # type: ignore[return-value]

    async def _await(self, coroutine: Awaitable[T]) -> T:
        with self.entered():
            return await coroutine

    def __repr__(self) -> str:
        # Not the data: it is about people, and logs keep it.
        return f"Isolated({self._scope!r})"

    def __reduce__(self) -> str:
        raise PicklingError(
            "an isolated unit of work stays in its process: hand over scope.to_dict(), "
            "and call valued.isolated(data) in the other one"
        )

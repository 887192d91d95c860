"""`Scope`: data that goes along with each event, per context, and then a client.

What a scope holds sits in one context variable, in a mapping that is never changed but replaced, so
threads, asyncio tasks and greenlets never see each other's. One variable for all scopes: Python
never lets go of a context variable, and applications make scopes by the request.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from valued import _events
from valued._client import Client
from valued._serializer import Snapshot, merge, normalize, parts_of
from valued._typing import JSONObject, ScopeLike

if TYPE_CHECKING:
    from valued._typing import Data, Transport

_Key = weakref.ref[Any]

_current: Final[contextvars.ContextVar[Mapping[_Key, Snapshot]]] = contextvars.ContextVar(
    "valued_scopes"
)
_NOTHING: Final[Mapping[_Key, Snapshot]] = {}


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
        self._defaults = Snapshot(_events.gather(data, fields))
        self._own_key: _Key = weakref.ref(self)

    # -- data --------------------------------------------------------------------------------------

    def __getitem__(self, key: str | tuple[str, ...]) -> Any:
        """The value at a dotted key, or a sequence of keys; `KeyError` where there is none."""
        value: Any = self._data()
        for part in parts_of(key):
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
        self._put(_replaced(self._data(), parts, plain))

    def __delitem__(self, key: str | tuple[str, ...]) -> None:
        """Remove the value at *key*; `KeyError` where there is none."""
        self[key]
        self._put(_removed(self._data(), parts_of(key)))

    #: Not by `__getitem__` with 0, 1, 2 …, as Python would try. `to_dict` can be iterated.
    __iter__ = None

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
        self._put(merge(self._data(), _events.gather(data, fields)))

    def reset(self) -> None:
        """Fall back to the defaults that the scope was made with."""
        self._put(self._defaults)

    @contextlib.contextmanager
    def nested(self, data: Data = None, /, **fields: Any) -> Iterator[Scope]:
        """A block with *data* and *fields* merged in; what changes inside ends with the block.

        Exceptions included. Yields the scope.
        """
        key, before = self._key(), self._data()
        self._put(merge(before, _events.gather(data, fields)))
        try:
            yield self
        finally:
            # Not by a token of the variable: that would take back what the block did to other
            # scopes.
            self._put(before, key)

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

    def _key(self) -> _Key:
        """What the data hangs off in the context."""
        return self._own_key

    def _data(self) -> Snapshot:
        return _current.get(_NOTHING).get(self._key(), self._defaults)

    def _put(self, data: Snapshot, key: _Key | None = None) -> None:
        # The data of scopes that are gone goes with the next change.
        others = {it: held for it, held in _current.get(_NOTHING).items() if it() is not None}
        others[self._key() if key is None else key] = data
        _current.set(others)

    def _with(self, data: Data, fields: dict[str, Any]) -> Snapshot:
        return merge(self._data(), _events.gather(data, fields))

    def _party(self, name: str, data: Data, fields: dict[str, Any]) -> Snapshot:
        if isinstance(data, ScopeLike):
            data = data.to_dict().get(name)
        known = self._data().get(name)
        more = _events.gather(data, fields)
        return merge(known, more) if isinstance(known, dict) else Snapshot(more)


def _restored(cls: type[Scope], client: Client, defaults: JSONObject, data: JSONObject) -> Scope:
    scope = cls(client, Snapshot(defaults))
    if data != defaults:
        scope._put(Snapshot(data))
    return scope


def _says_more_than_an_id(party: object) -> bool:
    return party is not None and not (isinstance(party, dict) and party.keys() <= {"id"})


def _replaced(data: JSONObject, parts: list[str], value: object) -> Snapshot:
    """*data* with *value* at the path, and all beside the path shared."""
    first, *rest = parts
    if rest:
        below = data.get(first)
        value = _replaced(below if isinstance(below, dict) else {}, rest, value)
    return Snapshot({**data, first: value})


def _removed(data: JSONObject, parts: list[str]) -> Snapshot:
    """*data* without what is at the path."""
    first, *rest = parts
    if rest:
        return Snapshot({**data, first: _removed(data[first], rest)})
    return Snapshot({name: value for name, value in data.items() if name != first})

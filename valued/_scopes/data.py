"""The data of a scope: read, set and removed by keys, by attributes, and by live views."""

from __future__ import annotations

import copy
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any, Final, NoReturn

from valued._errors import NotConnectedError, ValidationError, ValuedError
from valued._events.refusals import parties_of
from valued._events.serializer import PARTIES, Snapshot, parts_of
from valued._scopes.context import (
    REMOVE,
    Change,
    Owner,
    Replace,
    UnitLayer,
    applied,
    at,
    entry_of,
    merging,
    set_entry,
)
from valued._typing import JSONObject, ScopeLike

if TYPE_CHECKING:
    from valued._events.refusals import Refusals
    from valued._typing import Data


_NOTHING: Final = object()


class Fields(MutableMapping[str, Any]):
    """A live view of a mapping in a scope, such as its user.

    Reads see what the scope holds now; writes go to the scope. Mappings within it are such views,
    too; lists are copies. ``dict(view)`` is a copy of it.

    It is a view of one user, or customer. Where the scope holds another one by now, in another
    thread or after a unit of work for example, it shows what it saw last, and a write raises
    `ValidationError`.
    """

    __slots__ = ("_party", "_path", "_scope", "_seen")

    def __init__(self, scope: ScopeData, *path: str) -> None:
        self._scope = scope
        self._path = path
        self._party = self._id()
        self._seen: JSONObject = self._read()

    def __getitem__(self, key: str | tuple[str, ...]) -> Any:
        value: Any = self._now()
        try:
            parts = parts_of(key)
        except ValuedError as error:
            if not self._scope._tolerates(error):  # noqa: SLF001 - they are one idea
                raise
            raise KeyError(key) from None
        for part in parts:
            if not isinstance(value, dict) or part not in value:
                raise KeyError(key)
            value = value[part]
        if isinstance(value, dict) and self._is_live():
            return Fields(self._scope, *self._path, *parts)
        return copy.deepcopy(value)

    def __setitem__(self, key: str | tuple[str, ...], value: object) -> None:
        if self._may_write():
            path: Any = (*self._path, key)
            self._scope[path] = value
            self._party, self._seen = self._id(), self._read()

    def __delitem__(self, key: str | tuple[str, ...]) -> None:
        if self._may_write():
            path: Any = (*self._path, key)
            del self._scope[path]
            self._party, self._seen = self._id(), self._read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())

    def __repr__(self) -> str:
        return repr(self._now())

    def __copy__(self) -> JSONObject:
        return dict(self._now())

    def __deepcopy__(self, _memo: object) -> JSONObject:
        return copy.deepcopy(self._now())

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self._now(),)

    def _id(self) -> object:
        return self._scope.get((self._path[0], "id")) if self._path[0] in PARTIES else None

    def _is_live(self) -> bool:
        if self._path[0] not in PARTIES:
            return True
        known = self._id()
        # Without ids, two users can only be told apart by the rest of their data.
        return known == self._party and (known is not None or self._read() == self._seen)

    def _may_write(self) -> bool:
        if self._is_live():
            return True
        name = self._path[0]
        error = ValidationError(
            f"{name}: the scope holds another {name} than the one of this view: read it again, "
            f"as in scope.{name}"
        )
        if not self._scope._tolerates(error):  # noqa: SLF001 - they are one idea
            raise error
        return False

    def _now(self) -> JSONObject:
        if self._is_live():
            self._seen = self._read()
        return self._seen

    def _read(self) -> JSONObject:
        value = self._scope.get(self._path)
        return value if isinstance(value, dict) else {}


def _field(key: str, doc: str) -> Any:
    """An attribute for what a scope has at *key*: a live view, if it is a mapping."""

    def get(scope: ScopeData) -> Any:
        value = scope.get(key)
        return Fields(scope, key) if isinstance(value, dict) else value

    def set_to(scope: ScopeData, value: object) -> None:
        scope[key] = value

    return property(get, set_to, doc=doc)


class ScopeData(ScopeLike):
    """What a scope holds in this context, and how it is changed."""

    user = _field(
        "user",
        """The user, None if there is none: a live mapping. Assigning replaces the user.

        ``scope.user["plan"] = "pro"`` writes to the scope. If the scope has another user by then, a
        write raises `ValidationError`.
        """,
    )
    user_id = _field(
        "user.id",
        """The user's id (an int or a string), None if there is none. Assigning keeps the rest.""",
    )
    customer = _field(
        "customer", """The customer, None if there is none: a live mapping, as `Scope.user`."""
    )
    customer_id = _field(
        "customer.id",
        """The customer's id (an int or a string), None if there is none; as `Scope.user_id`.""",
    )

    @property
    def attributes(self) -> Fields:
        """The attributes, a live mapping: ``scope.attributes["plan"] = "pro"``.

        Assigning replaces all of them.
        """
        return Fields(self, "attributes")

    @attributes.setter
    def attributes(self, value: object) -> None:
        self["attributes"] = value

    def __getitem__(self, key: str | tuple[str, ...]) -> Any:
        """The value at a dotted key, or a sequence of keys. Raises `KeyError` if there is none."""
        value = self.get(key, _NOTHING)
        if value is _NOTHING:
            raise KeyError(key)
        return value

    def __setitem__(self, key: str | tuple[str, ...], value: object) -> None:
        """Set the value at a dotted key, or a sequence of keys; what is there is replaced."""
        try:
            parts = parts_of(key)
            plain: Any = self._normalize_call({".".join(parts): value}, {})
        except ValuedError as error:
            if not self._tolerates(error):
                raise
            for party in parties_of(key):  # the key may have meant another user: forget this one
                self._change({party: Replace(None)})
            return
        path = []
        for part in parts:
            if not isinstance(plain, dict):
                break  # it can't be sent; there is no user now
            if part not in plain:
                return  # it can't be sent, and was left out
            path.append(part)
            plain = plain[part]
        self._change(at(path, Replace(plain)))

    def __delitem__(self, key: str | tuple[str, ...]) -> None:
        """Remove the value at *key*. Raises `KeyError` if there is none."""
        self[key]  # which raises it
        self._change(at(parts_of(key), REMOVE))

    __iter__ = None  # not by `__getitem__` with 0, 1, 2 …; `to_dict` can be iterated

    def __contains__(self, key: str | tuple[str, ...]) -> bool:
        return self.get(key, _NOTHING) is not _NOTHING

    def get(self, key: str | tuple[str, ...], default: Any = None) -> Any:
        """A copy of the value at *key*, such as ``"user.id"``, or *default* if there is none."""
        try:
            parts = parts_of(key)
        except ValuedError as error:
            if not self._tolerates(error):
                raise
            return default
        value: Any = self._read(parts[0])
        for part in parts:
            if not isinstance(value, dict) or part not in value:
                return default
            value = value[part]
        return copy.deepcopy(value)

    def apply(self, data: Data = None, /, **fields: Any) -> None:
        """Merge *data* and *fields* into what the scope has in this context.

        Mappings are merged, all else is replaced. Raises `ValidationError` and
        `SerializationError` (but see the option *invalid*).
        """
        self._change(merging(self._normalize_call(data, fields)))

    def reset(self) -> None:
        """Go back to the defaults: those of the client, and those the scope was made with."""
        self._change(Replace(self._owner().defaults))

    def to_dict(self) -> JSONObject:
        """A copy of what the scope has in this context, a dict."""
        return copy.deepcopy(dict(self._read()))

    def to_valued_data(self) -> JSONObject:
        """The same as `Scope.to_dict`, so that a scope can be given wherever a mapping can."""
        return self.to_dict()

    def __setattr__(self, name: str, value: object) -> None:
        if name[:1] != "_" and not isinstance(getattr(type(self), name, None), property):
            raise AttributeError(_no_attribute(name))
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name, name=name, obj=self)
        raise AttributeError(_no_attribute(name), name=name, obj=self)

    def _owner(self) -> Owner:
        """Its client and its defaults. Raises `NotConnectedError`."""
        raise NotImplementedError  # pragma: no cover - each scope has its own

    def _data(self, over: JSONObject | None = None, only: str | None = None) -> Snapshot:
        owner = self._owner()
        entry = entry_of(owner.key)
        if entry is None:
            return owner.defaults
        return entry if isinstance(entry, Snapshot) else entry.read(over or {}, only)

    def _read(self, only: str | None = None) -> Snapshot:
        """The same, for a read: where a lazy function fails, what is known anyway."""
        try:
            return self._data(only=only)
        except Exception as error:
            if not self._tolerates(error):
                raise
        entry = entry_of(self._owner().key)
        assert isinstance(entry, UnitLayer)  # nothing else calls functions
        return entry.known()

    def _normalize_call(self, data: Data, fields: dict[str, Any]) -> JSONObject:
        refusals: Refusals = self._owner().client._refusals  # noqa: SLF001 - of the same library
        return refusals.normalize_call(data, fields)

    def _tolerates(self, error: Exception) -> bool:
        if isinstance(error, NotConnectedError):
            return False  # there is no client that could
        refusals: Refusals = self._owner().client._refusals  # noqa: SLF001 - as above
        return refusals.tolerates(error)

    def _change(self, change: Change) -> None:
        owner = self._owner()
        entry = entry_of(owner.key)
        if entry is None or isinstance(entry, Snapshot):
            set_entry(owner.key, applied(change, owner.defaults if entry is None else entry))
        else:
            entry.change(owner.key, change)


def _no_attribute(name: str) -> str:
    import difflib  # for a mistake only

    names = ("user", "user_id", "customer", "customer_id", "attributes")
    # Without underscores they are nearer: userid is user_id, not user.
    squeezed = {it.replace("_", ""): it for it in names} | {"id": "user_id"}
    close = difflib.get_close_matches(name.replace("_", "").lower(), squeezed, 1)
    if close:
        return f"a scope has no attribute {name!r}: did you mean scope.{squeezed[close[0]]}?"
    return (
        f"a scope has no attribute {name!r}: it has {', '.join(names)}; "
        f"an attribute of its events is scope.attributes[{name!r}]"
    )

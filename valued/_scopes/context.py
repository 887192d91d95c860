"""The data of scopes in a context: plain data, or a layer over the data of a unit of work.

All of it is in one context variable, in a mapping that is replaced and never changed. So threads,
asyncio tasks and greenlets don't see each other's data. There is one variable for all scopes, since
Python never frees a context variable, and some applications make a scope for each request.

A `Unit` is the one exception: its data is shared by all contexts in which it is entered. Such a
context holds a `UnitLayer`, which reads the unit's data at each use.
"""

from __future__ import annotations

import contextvars
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias, Union

from valued._errors import ValidationError, expected, kind_of
from valued._events.bad_values import is_a
from valued._events.categories import normalize_call
from valued._events.serializer import PARTIES, Snapshot, merge
from valued._process.fork import PerProcess
from valued._typing import JSONObject

#: Weak, so that the data is freed with its scope.
Key: TypeAlias = "weakref.ref[Owner]"
Entry: TypeAlias = Union[Snapshot, "Layer", "UnitLayer"]
Lazy: TypeAlias = Mapping[str, Callable[[], object]]
#: The data and the fields of a call → normalized data, as `normalize_call`.
Normalize: TypeAlias = Callable[[object, dict[str, Any]], JSONObject]

_current: Final[contextvars.ContextVar[Mapping[Key, Entry]]] = contextvars.ContextVar(
    "valued_scopes"
)
_NOTHING: Final[Mapping[Any, Any]] = {}


class Owner:
    """Whose data it is: one for each scope, and for each `connect`. *key*: the key of the data."""

    __slots__ = ("__weakref__", "client", "defaults", "isolates_tasks", "key")

    def __init__(self, client: Any) -> None:  # a `Client`, which is above this module
        options = client._options  # noqa: SLF001 - of the same library
        self.client = client
        self.defaults: Snapshot = options.defaults or Snapshot()
        self.isolates_tasks = options.isolate_tasks
        self.key: Key = weakref.ref(self)


def entry_of(key: Key) -> Entry | None:
    """The entry in this context; None: there is none, so the scope's defaults apply."""
    return _current.get(_NOTHING).get(key)


def set_entry(key: Key, entry: Entry | None) -> None:
    """Set the entry in this context."""
    before = _current.get(_NOTHING)
    # The data of scopes that are gone is removed with the next change.
    entries = {it: entry for it, entry in before.items() if it() is not None}
    if entry is None:
        entries.pop(key, None)
    else:
        entries[key] = entry
    # *before* lives until this is done: code run by its finalization may call this function.
    _current.set(entries)


def leave_block(key: Key, block: object) -> None:
    """Leave *block* in this context. If it isn't open in this context, nothing happens.

    A generator that was dropped ends wherever the garbage collector runs: maybe in the middle of
    another request, whose data it must not change. Up to Python 3.11 that may even be during the
    change of a context variable, and changing one there crashes the interpreter.
    """
    entry = entry_of(key)
    # Inner blocks may still be open, for example those of such a generator.
    while isinstance(entry, (Layer, UnitLayer)):
        if entry.block is block:
            set_entry(key, entry.before)
            return
        entry = entry.before


def begin_task() -> Callable[[], None]:
    """Reset each scope to its defaults; returns a function that restores the data from before.

    Scopes whose client doesn't isolate tasks keep their data.
    """
    before = _current.get(_NOTHING)
    _current.set({key: entry for key, entry in before.items() if _stays(key())})

    def end() -> None:
        entries = {key: entry for key, entry in before.items() if not _stays(key())}
        kept = {key: it for key, it in _current.get(_NOTHING).items() if _stays(key())}
        _current.set(entries | kept)

    return end


def _stays(owner: Owner | None) -> bool:
    return owner is not None and not owner.isolates_tasks


# -- units of work ---------------------------------------------------------------------------------


class Unit:
    """The data of one unit of work, shared by all contexts in which it is entered.

    *lazy*: functions that return a field, called at its first use. *whole*: a function that returns
    a mapping of several fields. *normalize*: what to do with what they return. Any thread may call.
    """

    __slots__ = (
        "_assigned", "_calling", "_lazy", "_normalize", "_whole", "_whole_is_known", "data",
    )  # fmt: skip

    def __init__(
        self,
        data: Snapshot,
        lazy: Lazy | None = None,
        whole: Callable[[], object] | None = None,
        normalize: Normalize = normalize_call,
    ) -> None:
        self.data = data  # replaced under `_lock`, never changed
        self._normalize = normalize
        self._assigned: set[str] = set()  # the fields that were set as a whole
        self._lazy = lazy or _NOTHING
        self._whole = whole
        self._whole_is_known = whole is None
        # Which thread calls which function: a function may record events or read the scope.
        self._calling: set[tuple[object, int]] = set()

    def change(self, change: Change) -> None:
        """Change the data, for all contexts."""
        with _lock.get():
            self.data = applied(change, self.data)
            if isinstance(change, Replace):  # a reset: the unit starts over
                self._assigned.clear()
                self._whole_is_known = self._whole is None
            else:
                for name, below in change.items():
                    if below is REMOVE:
                        self._assigned.discard(name)
                    elif isinstance(below, Replace):
                        self._assigned.add(name)

    def fill(self, data: JSONObject, over: JSONObject, only: str | None = None) -> bool:
        """Call the functions whose fields are missing, and keep what they return.

        *data*: the unit's data as this context sees it. *over*: the data of the call. *only*: the
        one field that is read. Returns whether a function was called.
        """
        called = False
        if not self._whole_is_known:
            called = self._call(self._whole, self._keep_whole)
        for name, function in self._lazy.items():
            if (only is None or name == only) and self._lacks(name, data, over):
                called |= self._call(
                    function,
                    lambda found, name=name: self._keep(name, found),  # type: ignore[misc]
                )
        return called

    def _lacks(self, name: str, data: JSONObject, over: JSONObject) -> bool:
        return self._is_open(name) and all(
            # A mapping without an id, in a call or in a nested block, is merged with the unit's.
            name not in given or _has_no_id(given[name])
            for given in (over, data)
        )

    def _is_open(self, name: str) -> bool:
        """Whether the unit lacks the field, or has only a part of a user, without an id."""
        if name not in self.data:
            return True
        return name in PARTIES and name not in self._assigned and _has_no_id(self.data[name])

    def _call(
        self, function: Callable[[], object] | None, keep: Callable[[object], object]
    ) -> bool:
        call = function, threading.get_ident()
        if function is None or call in self._calling:
            return False
        self._calling.add(call)
        try:
            found = function()
            if found is not None:
                keep(found)
        finally:
            self._calling.discard(call)
        return True

    def _keep(self, name: str, found: object) -> None:
        if name in PARTIES and isinstance(found, Mapping):
            if not found or ("id" in found and found["id"] is None):
                return  # a mapping that means "no user"
            if "id" not in found:
                raise ValidationError(
                    f"{name}: a function returned a mapping without an id: let it return "
                    f"{{'id': 1}}, or None if there is no {name}"
                )
        plain = self._normalize({name: found}, {})
        with _lock.get():
            if self._is_open(name):  # else it was set meanwhile
                self.data = merge(plain, self.data)

    def _keep_whole(self, found: object) -> None:
        plain = self._normalize(found, {})
        with _lock.get():
            self._whole_is_known = True
            # What was set in the unit takes precedence; a user as a whole, so that two users are
            # never mixed.
            plain = {
                name: value
                for name, value in plain.items()
                if name not in PARTIES or self._is_open(name)
            }
            self.data = merge(plain, self.data)


#: Guards the replacement of a unit's data. Re-entrant, as a signal handler may change a scope.
_lock: Final = PerProcess(threading.RLock)


def _has_no_id(value: object) -> bool:
    return isinstance(value, dict) and "id" not in value


def checked_lazy(lazy: object) -> Lazy:
    """A copy of *lazy*. Raises `ValidationError`, which names the field and the fix."""
    if not is_a(lazy, Mapping):
        what = "a mapping of fields to functions, such as {'user': current_user}"
        raise ValidationError(expected("lazy", what, lazy))
    try:
        functions: dict[object, object] = dict(lazy)  # type: ignore[call-overload]
    except Exception as error:
        raise ValidationError("lazy: it can't be read; give a dict") from error
    for name, function in functions.items():
        if type(name) is not str or not name or "." in name:
            said = repr(name) if type(name) is str else kind_of(name)
            raise ValidationError(f"lazy: expected the name of a field, such as 'user', got {said}")
        if not callable(function):
            what = f"a function for {name!r}, such as lambda: {{'id': 1}}"
            raise ValidationError(expected("lazy", what, function))
    return functions  # type: ignore[return-value]


# -- blocks ----------------------------------------------------------------------------------------


class Layer:
    """The data within a ``nested`` block.

    *before*: the entry from before the block. *block*: identifies the block for `leave`.
    """

    __slots__ = ("before", "block", "data")

    def __init__(self, data: Snapshot, before: Entry | None, block: object) -> None:
        self.data = data
        self.before = before
        self.block = block

    def read(self, _over: JSONObject, _only: str | None = None) -> Snapshot:
        """The data."""
        return self.data

    def change(self, key: Key, change: Change) -> None:
        """Make a change that lasts until the block ends."""
        set_entry(key, Layer(applied(change, self.data), self.before, self.block))

    def nested(self, more: JSONObject, block: object) -> Layer:
        """The layer of a block within this one."""
        return Layer(merge(self.data, more), self, block)


class UnitLayer:
    """A unit's data with the changes of ``nested`` blocks; otherwise like `Layer`.

    *changes*: None directly in the unit, where changes go to the unit itself.
    """

    __slots__ = ("before", "block", "changes", "unit")

    def __init__(
        self, unit: Unit, changes: Change | None, before: Entry | None, block: object
    ) -> None:
        self.unit = unit
        self.changes = changes
        self.before = before
        self.block = block

    def read(self, over: JSONObject, only: str | None = None) -> Snapshot:
        """The data as it is now; *over* and *only* as for `Unit.fill`."""
        data = self.known()
        return self.known() if self.unit.fill(data, over, only) else data

    def known(self) -> Snapshot:
        """The data as it is now, without calling functions for missing fields."""
        data = self.unit.data
        return data if self.changes is None else applied(self.changes, data)

    def change(self, key: Key, change: Change) -> None:
        """Make a change from here on: for the whole unit, or for the nested block."""
        if self.changes is not None:
            changes = composed(self.changes, change)
            set_entry(key, UnitLayer(self.unit, changes, self.before, self.block))
            return
        self.unit.change(change)

    def nested(self, more: JSONObject, block: object) -> UnitLayer:
        """The layer of a block within this one."""
        change = merging(more)
        changes = change if self.changes is None else composed(self.changes, change)
        return UnitLayer(self.unit, changes, self, block)


# -- changes, as data ------------------------------------------------------------------------------

# A change is a tree, which can be applied, composed with another one, and applied again later. A
# mapping changes what is below its keys and nothing else; `Replace` replaces what is there with a
# value, and `REMOVE` removes it. No function here changes its arguments.

_MISSING: Final = object()


class Replace:
    """A change that replaces whatever is there with a value."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


#: Removes what is there.
REMOVE: Final = Replace(_MISSING)

Change: TypeAlias = Union[Replace, "dict[str, Change]"]


def merging(data: JSONObject) -> dict[str, Change]:
    """The change that merges *data*: mappings are merged, all else replaces what is there."""
    return {
        name: merging(value) if isinstance(value, dict) else Replace(value)
        for name, value in data.items()
    }


def at(path: Sequence[str], change: Change) -> Change:
    """*change*, moved from the top to *path*."""
    for name in reversed(path):
        change = {name: change}
    return change


def applied(change: Change, data: object) -> Any:
    """*data* with *change* applied."""
    if isinstance(change, Replace):
        return change.value
    result = Snapshot(data if isinstance(data, dict) else {})
    for name, below in change.items():
        value = applied(below, result.get(name))
        if value is _MISSING:
            result.pop(name, None)
        else:
            result[name] = value
    return result


def composed(first: Change, then: Change) -> Change:
    """The change that applies *first*, and after it *then*."""
    if isinstance(then, Replace):
        return then
    if isinstance(first, Replace):
        return Replace(applied(then, first.value))
    result = dict(first)
    for name, change in then.items():
        result[name] = composed(result[name], change) if name in result else change
    return result

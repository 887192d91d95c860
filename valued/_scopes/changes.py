"""Changes to a scope's data, as data: they can be applied, composed, and applied again later.

A change is a tree. A mapping changes what is below its keys and nothing else; `Replace` replaces
whatever is there with a value, and `REMOVE` removes it. No function here changes its arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias, Union

from valued._events.serializer import Snapshot
from valued._typing import JSONObject

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

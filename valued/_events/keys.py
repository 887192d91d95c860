"""Keys: which path a key means, how its value is stored; and the fault that collects the path.

Keys are objects of the application, too, and may raise anything.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Final

from valued._errors import SerializationError
from valued._events.converters import converter_for
from valued._events.values import Unconvertible, class_of, name_of, shown, text_of, translated
from valued._typing import JSONObject

#: The deepest nesting of containers; far beyond any real event, far below Python's own limit.
MAX_DEPTH: Final = 100
#: How many characters of a path errors show.
_LONGEST_PATH: Final = 1_000
#: From 640 digits on, `sys.set_int_max_str_digits` may forbid converting an int to a string.
LONG: Final = 10**600


class Fault(Exception):
    """What is wrong, and where; the path is collected on the way out.

    *summary*: the reason without the message of a foreign exception, where it contains one.
    """

    def __init__(self, reason: str, summary: str = "", *, too_deep: bool = False) -> None:
        self.reason = reason
        self.summary = summary or reason
        self.too_deep = too_deep
        self.steps: list[tuple[str, object]] = []  # innermost first: path part, its container

    def within(self, part: str, container: object) -> None:
        self.steps.append((part, container))

    def error(self) -> SerializationError:
        steps, summary = self.steps[::-1], self.summary
        if self.too_deep:
            steps, summary = _explain_depth(steps, summary)
        path = "".join(part for part, _ in steps).lstrip(".")
        if len(path) > _LONGEST_PATH:
            path = f"{path[:_LONGEST_PATH]}…"
        error = SerializationError(path, summary if self.too_deep else self.reason, summary)
        error.__cause__ = self.__cause__
        return error


def _explain_depth(
    steps: list[tuple[str, object]], reason: str
) -> tuple[list[tuple[str, object]], str]:
    first_seen: dict[int, int] = {}
    for position, (_, container) in enumerate(steps):
        if id(container) in first_seen:
            kind = name_of(type(container))
            return steps[:position], f"circular: this {kind} contains itself; send its id instead"
        first_seen[id(container)] = position
    return (steps if len(steps) <= 4 else [*steps[:4], ("…", None)]), reason


def raised(error: Exception, what: str) -> Fault:
    """*error*, of any class, as a fault; *what* raised it."""
    if type(error) is Fault:
        return error
    if type(error) is Unconvertible:
        fault = Fault(str(error))
        fault.__cause__ = error.__cause__
        return fault
    summary = f"{what} raised {name_of(type(error))}"
    fault = Fault(f"{summary}: {words_of(error)}", summary)
    fault.__cause__ = error
    return fault


def words_of(error: Exception) -> str:
    """The message of *error*, on one line."""
    try:
        return shown(text_of(error), _LONGEST_PATH)
    except Exception:  # noqa: BLE001 - the error's own
        return "its message can't be read"


def too_deep() -> Fault:
    return Fault(f"nesting deeper than {MAX_DEPTH}", too_deep=True)


def whole(value: int) -> int:
    if not -LONG < value < LONG:
        try:
            int.__repr__(value)
        except ValueError:
            raise Fault("an integer is too long for JSON: send it as a string") from None
    return value


def path_of(key: object, depth: int = 0) -> list[str]:
    if isinstance(key, (tuple, list)):
        if depth >= MAX_DEPTH:
            raise too_deep()
        parts: list[str] = []
        for element in key:
            parts += path_of(element, depth + 1)
            if len(parts) > MAX_DEPTH:  # read no further: it may be endless
                raise too_deep()
        if not parts:
            raise Fault("an empty key: name a field")
        return parts
    if isinstance(key, enum.Enum):
        key = key.value
    if isinstance(key, int) and not isinstance(key, bool):
        return [str(whole(int(key)))]
    if not isinstance(key, str):
        if converter_for(class_of(key)) is not translated:
            raise Fault(
                f"a key of type {name_of(type(key))}: keys are strings, such as 'user.id', "
                "or sequences of strings"
            )
        key = translated(key)
    text = text_of(key)
    parts = text.split(".", MAX_DEPTH)  # one more than there may be
    if not all(parts):
        what = "has an empty part between its dots" if text else "is empty"
        raise Fault(f"the key {shown(text)!r} {what}: name a field")
    return parts


def shown_key(key: object) -> str:
    """*key* as part of a path, even if it isn't valid."""
    try:
        return shown(text_of(key) if isinstance(key, str) else ".".join(path_of(key)))
    except Exception:  # noqa: BLE001 - whatever the key raises
        return f"<{name_of(type(key))}>"


def placed(result: JSONObject, key: str, item: Any, depth: int) -> bool:
    """The usual case of `_place`, made fast: a plain value, and no conflict."""
    kind = type(item)
    if not (kind is str or (kind is int and -LONG < item < LONG) or kind is bool or item is None):
        return False
    first, _, leaf = key.partition(".")
    if "." in leaf:
        *path, leaf = key.split(".", MAX_DEPTH)
        if not leaf or "" in path or depth + len(path) >= MAX_DEPTH:
            return False
        place = result
        for part in path:
            place = place.setdefault(part, {})
            if type(place) is not dict:
                return False
    else:  # most have two parts
        if not first or not leaf or depth + 1 >= MAX_DEPTH:
            return False
        if first not in result:
            result[first] = {leaf: item}
            return True
        place = result[first]
        if type(place) is not dict:
            return False
    if type(place.get(leaf)) is dict:
        return False
    place[leaf] = item
    return True


def meet(
    result: JSONObject, more: JSONObject, path: str, refuse: Callable[[Exception], None]
) -> None:
    for key, new in more.items():
        if key not in result:
            result[key] = new
            continue
        old = result[key]
        if isinstance(old, dict) and isinstance(new, dict):
            meet(old, new, f"{path}{key}.", refuse)
        elif isinstance(old, dict) or isinstance(new, dict):
            scalar = new if isinstance(old, dict) else old
            place = shown(f"{path}{key}")
            refuse(
                Fault(f"two keys disagree: {place} is both {type(scalar).__name__} and a mapping")
            )
        else:
            result[key] = new

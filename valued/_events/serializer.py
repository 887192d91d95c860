r"""Any input → a snapshot of plain JSON data: dotted keys nested, deep merges, paths in errors.

The result contains only ``dict`` (with string keys without dots), ``list``, ``str``, ``int``,
``float``, ``bool`` and None. It shares nothing with the input that the caller could change, and is
never changed afterwards: merges build new mappings and share the unchanged parts.

Rules for what JSON lacks: NaN, infinities and bytes are errors; ``Decimal`` becomes a string,
exactly; sets become lists, sorted if possible; a lone surrogate becomes its ``\ud800`` escape.

Reading the application's objects runs their code, which may raise anything, or never end. Whatever
they raise becomes an error of ours that names the path. Only exceptions that end a program, such as
``KeyboardInterrupt``, are passed on.
"""

from __future__ import annotations

import copy
import enum
import json
from collections.abc import Callable
from typing import Any, Final

from valued._errors import SerializationError, name_of, shown
from valued._events.bad_values import (
    MAX_DEPTH,
    BadValue,
    TooDeep,
    as_bad_value,
    class_of,
    message_of,
    qualname_of,
    text_of,
    without_selection,
)
from valued._events.converters import converter_for, no_converter
from valued._events.values import (
    LONG,
    MAX_VALUES,
    NATIVE,
    TOO_MANY,
    fields,
    finite,
    translated,
    whole,
)
from valued._typing import JSONObject

#: Fields of an event that identify a user or a customer. An object there needs a converter that
#: selects what is sent: its fields are about a person, and may include a password's hash.
PARTIES: Final = ("user", "customer")


class Snapshot(JSONObject):
    """Normalized data. `normalize` returns it unchanged, so users must never get one."""

    __slots__ = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> JSONObject:
        # A user may change a copy, so the copy isn't a `Snapshot` any more.
        return {key: copy.deepcopy(value, memo) for key, value in self.items()}


def normalize(value: object) -> Any:
    """*value* as plain JSON data, a snapshot: ``{"user.id": 1}`` gives ``{"user": {"id": 1}}``.

    Raises `SerializationError`, which names the path, for a value without a converter; an object as
    ``user`` or ``customer`` that is neither a mapping nor has a converter of its own (a dataclass,
    too); a converter that raises (its exception is the cause) or returns its own argument; NaN and
    infinities; an int of more digits than Python converts (4,300); bytes; generators; circular
    data; nesting deeper than 100; more than 250,000 values; a key that is not a string or has an
    empty part; and two keys that disagree (``{"user": 5, "user.id": 1}``). Of two keys that name
    the same leaf, the later one counts. It is also raised for whatever the objects' code raises,
    except for exceptions such as ``KeyboardInterrupt``, which are not an ``Exception``. Any thread
    may call; converters run synchronously, on the calling thread.
    """
    if type(value) is Snapshot:
        return value
    try:
        return _plain(value, 0, [0])
    except Exception as error:  # noqa: BLE001 - whatever the objects raise
        bad = as_bad_value(error)
    raise bad.error()


def merge(base: JSONObject, over: JSONObject) -> Snapshot:
    """A new mapping: *base* updated by *over*. Mappings are merged, all else is replaced."""
    merged = Snapshot(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = merge(below, value)
        merged[key] = value
    return merged


def parts_of(key: object) -> list[str]:
    """The path that a key means. Raises `SerializationError` for an invalid key."""
    try:
        return _path_of(key)
    except Exception as error:  # noqa: BLE001 - whatever the key raises
        bad = as_bad_value(error, "the key")
    raise bad.error()


# Compact, since all of it is sent; ASCII, so that its length in bytes is its length in characters.
# The nesting is bounded already, so the encoder needn't check for circular data again.
_encoder: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False)


def _made_once() -> Callable[[Any], str]:
    """`_encoder.encode`, without objects that it makes for each call: a sixth of its time."""
    try:
        chunks = json.encoder.c_make_encoder(  # type: ignore[attr-defined]  # not in typeshed
            None, _encoder.default, json.encoder.encode_basestring_ascii, None,
            ":", ",", False, False, False,  # noqa: FBT003 - `json` calls it in the same way
        )  # fmt: skip
        if "".join(chunks({"probe": [1.5, None]}, 0)) == '{"probe":[1.5,null]}':
            return lambda event: "".join(chunks(event, 0))
    except (AttributeError, TypeError):  # there is no C code, or it has other arguments
        pass
    return _encoder.encode


_encode: Final = _made_once()


def encode(event: JSONObject) -> bytes:
    """Normalized data as JSON. Raises `SerializationError` for data that is not normalized."""
    try:
        return _encode(event).encode("ascii")
    except Exception as error:
        problem, advice = "not plain JSON data", "pass it to valued.normalize first"
        reason = f"{problem} ({message_of(error)}): {advice}"
        raise SerializationError("", reason, f"{problem}: {advice}") from error


# -- values ----------------------------------------------------------------------------------------

# Classes are compared by identity: a metaclass may claim that its classes equal `str`.
# *work* counts the values read in all containers: a small input can contain one of them often.


def _plain(value: Any, depth: int, work: list[int], party: str = "") -> Any:
    """*value* as plain data. *party*: it is this party of an event, the user or the customer."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    if kind is int:
        return whole(value)
    if kind is dict or kind is Snapshot:
        return _mapping(value, depth, work)
    if kind is list or kind is tuple:
        return _sequence(value, depth, work)
    if kind is float:
        return finite(value)
    return _converted(value, depth, work, party)


def _enter(
    container: dict[Any, Any] | list[Any] | tuple[Any, ...], depth: int, work: list[int]
) -> None:
    if depth >= MAX_DEPTH:
        raise TooDeep
    work[0] += len(container)
    if work[0] > MAX_VALUES:
        raise BadValue(TOO_MANY)


def _mapping(value: dict[Any, Any], depth: int, work: list[int]) -> JSONObject:
    _enter(value, depth, work)
    result: JSONObject = {}
    key: object = None
    try:
        # A list, since another thread or a converter may add to the mapping meanwhile.
        for key, item in list(value.items()):
            # Most keys and values need no call; this runs for each value of each event.
            if type(key) is str and key and "." not in key and key not in result:
                kind = type(item)
                if kind is str or (kind is int and -LONG < item < LONG):
                    result[key] = item
                elif kind is dict:
                    result[key] = _mapping(item, depth + 1, work)
                else:
                    party = key if depth == 0 and key in PARTIES else ""
                    result[key] = _plain(item, depth + 1, work, party)
            elif type(key) is not str or not _try_set(result, key, item, depth):
                path = _path_of(key)
                inner = depth + len(path)
                if inner > MAX_DEPTH:
                    raise TooDeep
                _set_path(result, path, _plain(item, inner, work, _party(path, depth)), _raise)
    except Exception as error:  # noqa: BLE001 - whatever a key, a class or a converter raises
        bad = as_bad_value(error)
        bad.within(f".{_shown_key(key)}", value)
        raise bad  # noqa: B904 - it has its cause already
    return result


def _sequence(value: list[Any] | tuple[Any, ...], depth: int, work: list[int]) -> list[Any]:
    _enter(value, depth, work)
    result: list[Any] = []
    try:
        # A copy, as above. One by one: in an error, the length so far is the index.
        for item in list(value):
            result.append(_plain(item, depth + 1, work))  # noqa: PERF401
    except Exception as error:  # noqa: BLE001 - as above
        bad = as_bad_value(error)
        bad.within(f"[{len(result)}]", value)
        raise bad  # noqa: B904 - as above
    return result


def _converted(value: Any, depth: int, work: list[int], party: str) -> Any:
    current = value
    # Bounded: a converter may return an object of the class that it converts, again and again.
    for _ in range(MAX_DEPTH):
        try:
            cls = class_of(current)
            converter = converter_for(cls)
            if party and (converter is fields or converter is no_converter):
                raise BadValue(without_selection(party, current, cls))
            result = converter(current)
        except Exception as error:  # noqa: BLE001 - whatever a converter raises
            # "from", so that the traceback begins in the converter.
            bad = as_bad_value(error, f"the converter for {qualname_of(type(current))}")
            raise bad from bad.__cause__
        if result is current:
            raise BadValue(
                f"the converter for {qualname_of(cls)} returned its own argument: "
                "return the data to send for it"
            )
        if type(result) in NATIVE:
            try:
                return _plain(result, depth, work)
            except BadValue as bad:
                bad.within("", value)  # not a part of the path, but maybe of circular data
                raise
        current = result
    first, last = qualname_of(type(value)), qualname_of(type(current))
    raise BadValue(f"{MAX_DEPTH} converters in a row, from {first} to {last}, returned no data")


def _party(path: list[str], depth: int) -> str:
    return path[0] if depth == 0 and len(path) == 1 and path[0] in PARTIES else ""


# -- keys ------------------------------------------------------------------------------------------


def _path_of(key: object, depth: int = 0) -> list[str]:
    """The path that a key means: the fields' names, from the outermost one in."""
    if type(key) is not str:
        if isinstance(key, (tuple, list)):
            return _path_of_sequence(key, depth)
        if isinstance(key, enum.Enum):
            key = key.value
        if isinstance(key, int) and not isinstance(key, bool):
            return [str(whole(int(key)))]
        if not isinstance(key, str):
            if converter_for(class_of(key)) is not translated:
                raise BadValue(
                    f"a key of type {name_of(type(key))}: keys are strings, such as 'user.id', "
                    "or sequences of strings"
                )
            key = translated(key)
        key = text_of(key)
    path = key.split(".", MAX_DEPTH)  # at most one part more than there may be
    if "" in path:
        what = "has an empty part between its dots" if key else "is empty"
        raise BadValue(f"the key {shown(key)!r} {what}: name a field")
    return path


def _path_of_sequence(key: tuple[Any, ...] | list[Any], depth: int) -> list[str]:
    if depth >= MAX_DEPTH:
        raise TooDeep
    path: list[str] = []
    for element in key:
        path += _path_of(element, depth + 1)
        if len(path) > MAX_DEPTH:  # read no further: it may be endless
            raise TooDeep
    if not path:
        raise BadValue("an empty key: name a field")
    return path


def _shown_key(key: object) -> str:
    """*key* as part of a path, even if it isn't valid."""
    try:
        return shown(text_of(key) if isinstance(key, str) else ".".join(_path_of(key)))
    except Exception:  # noqa: BLE001 - whatever the key raises
        return f"<{name_of(type(key))}>"


def _try_set(result: JSONObject, key: str, item: Any, depth: int) -> bool:
    """`_set_path`, made fast for most keys and values. Returns whether *item* was set."""
    first, _, rest = key.partition(".")
    if not first or not rest or depth + 1 >= MAX_DEPTH:
        return False
    below = result.setdefault(first, {})
    if type(below) is not dict:
        return False
    if "." in rest:  # not for a key of megabytes, which each step would copy
        return len(rest) < 1_000 and _try_set(below, rest, item, depth + 1)
    kind = type(item)
    if rest in below or not (kind is str or (kind is int and -LONG < item < LONG)):
        return False
    below[rest] = item
    return True


def _set_path(
    result: JSONObject, path: list[str], plain: Any, refuse: Callable[[BadValue], None]
) -> None:
    """Set *plain* at *path*, by `merge_into`."""
    for part in reversed(path):
        plain = {part: plain}
    merge_into(result, plain, refuse)


def merge_into(
    result: JSONObject, more: JSONObject, refuse: Callable[[BadValue], None], path: str = ""
) -> None:
    """Merge *more* into *result*; *refuse* gets what the two disagree about."""
    for key, new in more.items():
        old = result.get(key)
        if key not in result or not (isinstance(old, dict) or isinstance(new, dict)):
            result[key] = new
        elif isinstance(old, dict) and isinstance(new, dict):
            merge_into(old, new, refuse, f"{path}{key}.")
        else:
            scalar = type(new if isinstance(old, dict) else old).__name__
            what = f"{shown(path + key)} is both {scalar} and a mapping"
            refuse(BadValue(f"two keys disagree: {what}"))


def _raise(bad: BadValue) -> None:
    raise bad

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

import contextlib
import copy
import json
from collections.abc import Callable
from typing import Any, Final

from valued._errors import SerializationError
from valued._events.converters import converter_for, no_converter
from valued._events.keys import (
    LONG,
    MAX_DEPTH,
    Fault,
    meet,
    path_of,
    placed,
    raised,
    shown_key,
    too_deep,
    whole,
    words_of,
)
from valued._events.values import (
    MAX_VALUES,
    NATIVE,
    TOO_MANY,
    Unconvertible,
    class_of,
    fields,
    finite,
    qualname_of,
)
from valued._typing import JSONObject

#: Fields of an event that identify a user or a customer. An object there needs a converter that
#: selects what is sent: its fields are about a person, and may include a password's hash.
PARTIES: Final = ("user", "customer")
#: What `normalize_leniently` returns if nothing is left.
LEFT_OUT: Final = object()


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
        fault = raised(error, "reading it")
    raise fault.error()


def normalize_leniently(value: object, report: Callable[[SerializationError], object]) -> Any:
    """`normalize` that leaves out what is wrong and keeps the rest; raises nothing.

    In a plain ``dict`` the smallest wrong field is left out. Anything else that is wrong is left
    out as a whole; if that is *value* itself, `LEFT_OUT` is returned. At the end, *report* is
    called with each error; what *report* raises is passed on.
    """
    with contextlib.suppress(SerializationError):
        return normalize(value)
    faults: list[Fault] = []
    plain: Any = LEFT_OUT
    try:
        if type(value) is dict:
            plain = _what_is_left(value, 0, [0], [], faults)
        else:
            plain = _plain(value, 0, [0])
    except Exception as error:  # noqa: BLE001 - as above
        faults.append(raised(error, "reading it"))
    for fault in faults:
        report(fault.error())
    return plain


def refuse_as_party(name: str, value: object) -> None:
    """Raise for an object without a converter that is given as *name*: ``user`` or ``customer``.

    Raises what ``normalize({name: value})`` raises for a dataclass or an unknown class, before any
    converter runs. Does nothing for all other values, right or wrong.
    """
    try:
        cls = class_of(value)
        converter = converter_for(cls)
    except Exception:  # noqa: BLE001 - `normalize` will report it
        return
    if converter is not fields and converter is not no_converter:
        return
    from valued._events import hints

    try:
        fault = Fault(hints.for_party(name, value, cls))
    except Exception as error:  # noqa: BLE001 - raised by the class; it is refused anyway
        fault = raised(error, "reading it")
    fault.within(name, value)
    raise fault.error()


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
        return path_of(key)
    except Exception as error:  # noqa: BLE001 - whatever the key raises
        fault = raised(error, "the key")
    raise fault.error()


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
        advice = "pass it to valued.normalize first"
        raise SerializationError(
            "",
            f"not plain JSON data ({words_of(error)}): {advice}",
            f"not plain JSON data: {advice}",
        ) from error


# Below, classes are compared by identity: a metaclass may claim that its classes equal `str`.
# *work* counts the values read in all containers: a small input can contain one of them often.


def _plain(value: Any, depth: int, work: list[int], party: str = "") -> Any:
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
        raise too_deep()
    work[0] += len(container)
    if work[0] > MAX_VALUES:
        raise Fault(TOO_MANY)


def _mapping(value: dict[Any, Any], depth: int, work: list[int]) -> JSONObject:
    _enter(value, depth, work)
    result: JSONObject = {}
    key: object = None
    try:
        # A list, since another thread or a converter may add to the mapping meanwhile.
        for key, item in list(value.items()):
            if type(key) is str and key and "." not in key and key not in result:
                kind = type(item)
                if (
                    kind is str
                    or kind is bool
                    or item is None
                    or (kind is int and -LONG < item < LONG)
                ):
                    result[key] = item
                elif kind is dict:
                    result[key] = _mapping(item, depth + 1, work)
                else:
                    party = key if depth == 0 and key in PARTIES else ""
                    result[key] = _plain(item, depth + 1, work, party)
            elif type(key) is not str or not placed(result, key, item, depth):
                _place(result, path_of(key), item, depth, work)
    except Exception as error:  # noqa: BLE001 - whatever a key, a class or a converter raises
        fault = raised(error, "reading it")
        fault.within(f".{shown_key(key)}", value)
        raise fault  # noqa: B904 - it has its cause already
    return result


def _sequence(value: list[Any] | tuple[Any, ...], depth: int, work: list[int]) -> list[Any]:
    _enter(value, depth, work)
    result: list[Any] = []
    try:
        # A copy, as above. One by one: in an error, the length so far is the index.
        for item in list(value):
            kind = type(item)
            if kind is str or (kind is int and -LONG < item < LONG):
                result.append(item)
            else:
                result.append(_plain(item, depth + 1, work))
    except Exception as error:  # noqa: BLE001 - as above
        fault = raised(error, "reading it")
        fault.within(f"[{len(result)}]", value)
        raise fault  # noqa: B904 - as above
    return result


def _converted(value: Any, depth: int, work: list[int], party: str) -> Any:
    current = value
    # Bounded: a converter may return an object of the class that it converts, again and again.
    for _ in range(MAX_DEPTH):
        try:
            cls = class_of(current)
            converter = converter_for(cls)
            if party and (converter is fields or converter is no_converter):
                from valued._events import hints

                raise Unconvertible(hints.for_party(party, current, cls))
            result = converter(current)
        except Exception as error:  # noqa: BLE001 - whatever a converter raises
            # "from", so that the traceback begins in the converter.
            fault = raised(error, f"the converter for {qualname_of(type(current))}")
            raise fault from fault.__cause__
        if result is current:
            raise Fault(
                f"the converter for {qualname_of(cls)} returned its own argument: "
                "return the data to send for it"
            )
        if type(result) in NATIVE:
            try:
                return _plain(result, depth, work)
            except Fault as fault:
                fault.within("", value)  # not a part of the path, but maybe of circular data
                raise
        current = result
    raise Fault(
        f"{MAX_DEPTH} converters in a row, from {qualname_of(type(value))} to "
        f"{qualname_of(type(current))}, returned no data"
    )


def _what_is_left(
    data: dict[Any, Any],
    depth: int,
    work: list[int],
    outer: list[tuple[str, object]],
    faults: list[Fault],
) -> JSONObject:
    """*data* without what is wrong in it; *outer*: the path to it, innermost part first."""
    _enter(data, depth, work)
    result: JSONObject = {}
    for key, item in list(data.items()):
        within = [(f".{shown_key(key)}", data), *outer]

        def note(error: Exception, within: list[tuple[str, object]] = within) -> None:
            fault = raised(error, "reading it")
            fault.steps += within
            faults.append(fault)

        try:
            parts = path_of(key)
            inner = depth + len(parts)
            if inner > MAX_DEPTH:
                raise too_deep()
            if any(item is container for _, container in within):
                fault = too_deep()
                fault.within("", item)  # twice in the path now, so the error says "circular"
                raise fault
            if type(item) is dict:
                plain: Any = _what_is_left(item, inner, work, within, faults)
            else:
                plain = _plain(item, inner, work, _party(parts, depth))
        except Exception as error:
            if work[0] > MAX_VALUES:
                raise  # all that follows would fail in the same way
            note(error)
        else:
            for part in reversed(parts):
                plain = {part: plain}
            meet(result, plain, "", note)
    return result


def _place(result: JSONObject, parts: list[str], item: Any, depth: int, work: list[int]) -> None:
    """Store *item* in *result*, at the path of the dotted key."""
    if depth + len(parts) > MAX_DEPTH:
        raise too_deep()
    plain = _plain(item, depth + len(parts), work, _party(parts, depth))
    for part in reversed(parts):
        plain = {part: plain}
    meet(result, plain, "", _raise)


def _party(parts: list[str], depth: int) -> str:
    return parts[0] if depth == 0 and len(parts) == 1 and parts[0] in PARTIES else ""


def _raise(fault: Exception) -> None:
    raise fault

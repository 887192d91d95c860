r"""Any input → a snapshot of plain JSON data: dotted keys nested, deep merges, paths in errors.

What comes out holds only ``dict`` (with text keys without dots), ``list``, ``str``, ``int``,
``float``, ``bool`` and None, shares nothing with the input that the caller could change, and is
never changed afterwards: merges build new mappings and share what they leave as it was.

Rules where JSON has none: NaN, infinities and bytes are errors; ``Decimal`` goes as text, exactly;
sets go as lists, sorted where they can be; a lone surrogate goes as its ``\ud800`` escape.
"""

from __future__ import annotations

import copy
import enum
import json
from collections.abc import Callable
from typing import Any, Final

from valued._converters import NATIVE, Unconvertible, converter_for, finite, text_of
from valued._errors import SerializationError
from valued._typing import JSONObject

#: Containers within containers, at most; far beyond any real event, far below Python's own limit.
MAX_DEPTH: Final = 100


class Snapshot(JSONObject):
    """Normalized data; `normalize` returns it as it is, so a caller must never hold one."""

    __slots__ = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> JSONObject:
        # What a caller gets is theirs to change, and is then normalized no more.
        return {key: copy.deepcopy(value, memo) for key, value in self.items()}


class _Fault(Exception):
    """What is wrong, and, collected on the way out, where."""

    def __init__(self, reason: str, *, too_deep: bool = False) -> None:
        self.reason = reason
        self.too_deep = too_deep
        self.steps: list[tuple[str, object]] = []  # innermost first: path part, its container

    def within(self, part: str, container: object) -> None:
        self.steps.append((part, container))

    def error(self) -> SerializationError:
        steps, reason = self.steps[::-1], self.reason
        if self.too_deep:
            steps, reason = _explain_depth(steps, reason)
        path = "".join(part for part, _ in steps).lstrip(".")
        return SerializationError(path, reason)


def _explain_depth(
    steps: list[tuple[str, object]], reason: str
) -> tuple[list[tuple[str, object]], str]:
    first_seen: dict[int, int] = {}
    for position, (_, container) in enumerate(steps):
        if id(container) in first_seen:
            kind = type(container).__name__
            return steps[:position], f"circular: this {kind} holds itself; send its id in its place"
        first_seen[id(container)] = position
    return [*steps[:4], ("…", None)], reason


def normalize(value: object) -> Any:
    """*value* as plain JSON data, a snapshot: ``{"user.id": 1}`` gives ``{"user": {"id": 1}}``.

    Raises `SerializationError`, which names the path, for a value that no converter covers, a
    converter that raises (its exception is the cause) or returns its own argument, NaN and
    infinities, an int of more digits than Python writes (4,300), bytes, generators, circular data,
    nesting deeper than 100, a key that is no text or has an empty part, and two keys that disagree
    (``{"user": 5, "user.id": 1}``). Of two keys that name the same leaf, the later one counts. Any
    thread may call; converters run in the caller.
    """
    if type(value) is Snapshot:
        return value
    try:
        return _plain(value, 0)
    except _Fault as fault:
        raise fault.error() from fault.__cause__


def merge(base: JSONObject, over: JSONObject) -> Snapshot:
    """A new mapping: *over* laid on *base*. Mappings meet, all else in *base* is replaced."""
    merged = Snapshot(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = merge(below, value)
        merged[key] = value
    return merged


def parts_of(key: object) -> list[str]:
    """The path that a key stands for. Raises `SerializationError` for a key that is none."""
    try:
        return _parts(key)
    except _Fault as fault:
        raise fault.error() from None


# Compact, since all of it travels; ASCII, so that its length in bytes is its length in characters.
# The nesting is bounded already, so the encoder need not look for circles again.
_encoder: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False)


def _made_once() -> Callable[[Any], str]:
    """`_encoder.encode` without what it makes anew for each call, which is a sixth of its time."""
    try:
        chunks = json.encoder.c_make_encoder(  # type: ignore[attr-defined]  # not in typeshed
            None, _encoder.default, json.encoder.encode_basestring_ascii, None,
            ":", ",", False, False, False,  # noqa: FBT003 - so it is called by `json`, too
        )  # fmt: skip
        if "".join(chunks({"probe": [1.5, None]}, 0)) == '{"probe":[1.5,null]}':
            return lambda event: "".join(chunks(event, 0))
    except (AttributeError, TypeError):  # no C code here, or of other arguments
        pass
    return _encoder.encode


_encode: Final = _made_once()


def encode(event: JSONObject) -> bytes:
    """Normalized data as JSON. Raises `SerializationError` for data that is not normalized."""
    try:
        return _encode(event).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise SerializationError(
            "", f"no plain JSON data ({error}): give it to valued.normalize first"
        ) from error


_ATOMS: Final = frozenset({str, bool, type(None)})
#: From 640 digits on, `sys.set_int_max_str_digits` may forbid to write an int.
_LONG: Final = 10**600


def _plain(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is int:
        return _whole(value)
    if kind is dict or kind is Snapshot:
        return _mapping(value, depth)
    if kind is list or kind is tuple:
        return _sequence(value, depth)
    if kind is float:
        try:
            return finite(value)
        except Unconvertible as refusal:
            raise _Fault(str(refusal)) from None
    return _converted(value, depth)


def _whole(value: int) -> int:
    if not -_LONG < value < _LONG:
        try:
            int.__repr__(value)
        except ValueError as error:
            raise _Fault(f"an integer is too long to be written ({error})") from None
    return value


def _mapping(value: dict[Any, Any], depth: int) -> JSONObject:
    if depth >= MAX_DEPTH:
        raise _too_deep()
    result: JSONObject = {}
    key: object = None
    try:
        # A list, since another thread, or a converter, may add to the mapping meanwhile.
        for key, item in list(value.items()):
            if type(key) is str and key and "." not in key and key not in result:
                kind = type(item)
                if kind in _ATOMS or (kind is int and -_LONG < item < _LONG):
                    result[key] = item
                else:
                    result[key] = _plain(item, depth + 1)
            elif type(key) is not str or not _placed(result, key, item, depth):
                _place(result, _parts(key), item, depth)
    except _Fault as fault:
        fault.within(f".{_shown(key)}", value)
        raise
    return result


def _sequence(value: list[Any] | tuple[Any, ...], depth: int) -> list[Any]:
    if depth >= MAX_DEPTH:
        raise _too_deep()
    result: list[Any] = []
    try:
        # A copy, as above. One by one: the length so far is the place of what is wrong.
        for item in list(value):
            kind = type(item)
            if kind in _ATOMS or (kind is int and -_LONG < item < _LONG):
                result.append(item)
            else:
                result.append(_plain(item, depth + 1))
    except _Fault as fault:
        fault.within(f"[{len(result)}]", value)
        raise
    return result


def _converted(value: Any, depth: int) -> Any:
    current = value
    # Bounded: a converter may return an object of the class that it converts, for ever.
    for _ in range(MAX_DEPTH):
        try:
            # `__class__`, as lazy objects and proxies (Django's, Werkzeug's) answer for what they
            # stand for.
            cls = current.__class__
            converter = converter_for(cls)
            result = converter(current)
        except Unconvertible as refusal:
            raise _Fault(str(refusal)) from refusal.__cause__
        except Exception as error:
            raise _Fault(
                f"the converter for {type(current).__qualname__} raised "
                f"{type(error).__name__}: {error}"
            ) from error
        if result is current:
            raise _Fault(
                f"the converter for {cls.__qualname__} returned its own argument: "
                "return the data to send for it"
            )
        if type(result) in NATIVE:
            try:
                return _plain(result, depth)
            except _Fault as fault:
                fault.within("", value)  # no part of the path, but it may be part of a circle
                raise
        current = result
    raise _Fault(
        f"{MAX_DEPTH} converters in a row, from {type(value).__qualname__} to "
        f"{type(current).__qualname__}, led to no data"
    )


def _too_deep() -> _Fault:
    return _Fault(f"nesting deeper than {MAX_DEPTH}", too_deep=True)


def _placed(result: JSONObject, key: str, item: Any, depth: int) -> bool:
    """The usual case of `_place`, without its detours: a plain value, and nothing in its way."""
    kind = type(item)
    if kind not in _ATOMS and not (kind is int and -_LONG < item < _LONG):
        return False
    *path, leaf = key.split(".")
    if not leaf or "" in path or depth + len(path) >= MAX_DEPTH:
        return False
    place = result
    for part in path:
        place = place.setdefault(part, {})
        if type(place) is not dict:
            return False
    if type(place.get(leaf)) is dict:
        return False
    place[leaf] = item
    return True


def _place(result: JSONObject, parts: list[str], item: Any, depth: int) -> None:
    """Put *item* where the dotted key says, among what is in *result*, which is ours to change."""
    if depth + len(parts) > MAX_DEPTH:
        raise _too_deep()
    plain = _plain(item, depth + len(parts))
    for part in reversed(parts):
        plain = {part: plain}
    _meet(result, plain, "")


def _meet(result: JSONObject, more: JSONObject, path: str) -> None:
    for key, new in more.items():
        if key not in result:
            result[key] = new
            continue
        old = result[key]
        if isinstance(old, dict) and isinstance(new, dict):
            _meet(old, new, f"{path}{key}.")
        elif isinstance(old, dict) or isinstance(new, dict):
            scalar = new if isinstance(old, dict) else old
            raise _Fault(
                f"two keys disagree: {path}{key} is both {type(scalar).__name__} and a mapping"
            )
        else:
            result[key] = new


def _parts(key: object) -> list[str]:
    if isinstance(key, (tuple, list)):
        parts = [part for element in key for part in _parts(element)]
        if not parts:
            raise _Fault("an empty key: name a field")
        return parts
    if isinstance(key, enum.Enum):
        key = key.value
    if isinstance(key, int) and not isinstance(key, bool):
        return [str(_whole(int(key)))]
    if not isinstance(key, str):
        raise _Fault(
            f"a key of type {type(key).__name__}: keys are text, such as 'user.id', "
            "or sequences of text"
        )
    text = text_of(key)
    parts = text.split(".")
    if not all(parts):
        what = "has an empty part between its dots" if text else "is empty"
        raise _Fault(f"the key {text!r} {what}: name a field")
    return parts


def _shown(key: object) -> str:
    """*key* as part of a path, also where it can't be one."""
    if isinstance(key, str):
        return text_of(key)
    try:
        return ".".join(_parts(key))
    except _Fault:
        return f"<{type(key).__name__}>"

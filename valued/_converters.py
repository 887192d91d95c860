"""The registry: class → function that turns its objects into something nearer to JSON.

It is `functools.singledispatch`, which finds the most specific class by MRO, abstract base classes
and their virtual subclasses included, caches it, and forgets what it cached on a registration. A
class with a ``to_valued_data`` method counts as registered, at the place in its MRO where the
method is defined; a registration for the same class goes first, so that an application has the
last word about classes that aren't its own.

Registrations are the application's configuration: made at import as a rule, by any thread, and
kept by forked children.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import functools
import math
import numbers
import uuid
from abc import ABC
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Final, TypeVar, overload

from valued._errors import ValidationError

C = TypeVar("C")

#: JSON has a form for these: they are sent as they are, and no converter is asked.
NATIVE: Final = frozenset({str, int, float, bool, type(None), dict, list, tuple})


class Unconvertible(Exception):
    """A converter's refusal; the argument says why, and the serializer where."""


class _HasValuedData(ABC):  # noqa: B024 - it has no subclass but those that it recognizes
    """Every class with a ``to_valued_data`` method."""

    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        return callable(getattr(other, "to_valued_data", None))


def _no_converter(value: object) -> object:
    cls = value.__class__
    if dataclasses.is_dataclass(cls):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(cls)}
    raise Unconvertible(
        f"no converter for {cls.__module__}.{cls.__qualname__}: make one known with "
        f"valued.register({cls.__qualname__}, function), or give the class a to_valued_data() "
        "method"
    )


def _bytes(value: object) -> object:
    raise Unconvertible(
        f"{type(value).__name__} is no text: decode it first, for example with "
        ".decode() or base64.b64encode"
    )


def _text(value: object) -> str:
    # By content: a subclass may print itself otherwise. A proxy is no str, it only says so.
    return str.__str__(value) if issubclass(type(value), str) else str(value)


def _decimal(value: decimal.Decimal) -> str:
    if not value.is_finite():
        raise Unconvertible(f"{value} is no number in JSON: send None in its place")
    return str(value)


def _set(value: Set[Any]) -> list[Any]:
    try:
        return sorted(value)  # the same set gives the same text in every process
    except TypeError:
        return list(value)


_registry: Final = functools.singledispatch(_no_converter)
_BUILT_IN: Final[dict[type, Callable[[Any], object]]] = {
    _HasValuedData: lambda value: value.to_valued_data(),
    str: _text,
    int: int,
    float: float,
    dict: lambda value: dict(value.items()),
    list: list,
    tuple: list,
    numbers.Integral: int,
    numbers.Real: float,
    Mapping: lambda value: dict(value.items()),
    Sequence: list,
    Set: _set,
    enum.Enum: lambda value: value.value,
    uuid.UUID: str,
    decimal.Decimal: _decimal,
    datetime.datetime: lambda value: value.isoformat(),
    datetime.date: lambda value: value.isoformat(),
    datetime.time: lambda value: value.isoformat(),
    bytes: _bytes,
    bytearray: _bytes,
    memoryview: _bytes,
}
for _class, _converter in _BUILT_IN.items():
    _registry.register(_class, _converter)


def converter_for(cls: type) -> Callable[[Any], object]:
    """The converter of the most specific class. Raises `Unconvertible` where two are equally so."""
    try:
        return _registry.dispatch(cls)
    except RuntimeError as error:  # two unrelated abstract base classes match
        raise Unconvertible(
            f"two converters fit {cls.__module__}.{cls.__qualname__} equally well ({error}): "
            f"settle it with valued.register({cls.__qualname__}, function)"
        ) from error


@overload
def register(cls: type[C], converter: Callable[[C], object]) -> Callable[[C], object]: ...


@overload
def register(
    cls: type[C], converter: None = None
) -> Callable[[Callable[[C], object]], Callable[[C], object]]: ...


def register(cls: type[Any], converter: Callable[[Any], object] | None = None) -> Any:
    """Make known how objects of *cls*, and of its subclasses, are sent.

    *converter* takes such an object and returns what to send for it: any data that an event takes,
    objects with converters of their own included. Without *converter* it is a decorator. Returns
    the converter. The latest registration for a class counts.

    Raises `ValidationError` where *cls* is no class, is one that JSON has a form for (``str``,
    ``int``, ``dict`` …), or where *converter* can't be called. Any thread may call; a forked child
    keeps what was registered before the fork.
    """
    if not isinstance(cls, type):
        raise ValidationError(
            f"cls: expected a class, got {type(cls).__name__}; write "
            "valued.register(Location, function) or @valued.register(Location)"
        )
    if cls in NATIVE:
        raise ValidationError(
            f"cls: {cls.__name__} is sent as it is; register a class of your own in its place"
        )
    if converter is None:
        return lambda function: register(cls, function)
    if not callable(converter):
        raise ValidationError(
            f"converter: expected a function of one {cls.__name__}, got {type(converter).__name__}"
        )
    _registry.register(cls, converter)
    return converter


def finite(value: float) -> float:
    """*value* if JSON has a number for it. Raises `Unconvertible`."""
    if math.isfinite(value):
        return value
    raise Unconvertible(f"{value} is no number in JSON: send None in its place")

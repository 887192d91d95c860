"""The registry: class → function that turns its objects into something nearer to JSON.

It is `functools.singledispatch`, which finds the most specific class by MRO, abstract base classes
and their virtual subclasses included, and caches it. A class with a ``to_valued_data`` method
counts as registered, at the place in its MRO where the method is defined; a registration for the
same class goes first, so that an application has the last word about classes that aren't its own.

Registrations are the application's configuration: made at import as a rule, by any thread, and
kept by forked children. A dispatcher is never changed once it is in use: `functools` runs code of
the registered classes while it reads its table, and would cache what another thread had found
before a registration.
"""

from __future__ import annotations

import datetime
import enum
import functools
import math
import numbers
import types
from collections import UserString
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Final, TypeVar, overload

from valued._errors import ValidationError

C = TypeVar("C")
R = TypeVar("R")

#: JSON has a form for these: they are sent as they are, and no converter is asked.
NATIVE: Final = frozenset({str, int, float, bool, type(None), dict, list, tuple})


class Unconvertible(Exception):
    """A converter's refusal; the argument says why, and the serializer where."""


class _Registered:
    """A converter, and the class that it is registered for."""

    __slots__ = ("cls", "convert")

    def __init__(self, cls: type, convert: Callable[[Any], object]) -> None:
        self.cls = cls
        self.convert = convert

    def __call__(self, value: object) -> object:
        return self.convert(value)


def _no_converter(value: object) -> object:
    cls = value.__class__
    raise Unconvertible(
        f"no converter for {cls.__module__}.{cls.__qualname__}: make one known with "
        f"valued.register({cls.__qualname__}, function), or give the class a to_valued_data() "
        "method"
    )


def _by_method(value: Any) -> object:
    return value.to_valued_data()


def _fields(value: Any) -> object:
    import dataclasses  # there already, where there is a dataclass; see `_LATE`

    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value.__class__)}


def _bytes(value: object) -> object:
    raise Unconvertible(
        f"{type(value).__name__} is no text: decode it first, for example with "
        ".decode() or base64.b64encode"
    )


def _generator(value: object) -> object:
    raise Unconvertible("a generator can be read only once: give a list of it, list(…)")


def text_of(value: object) -> str:
    """The content of a text, whose class may print it otherwise, or of a proxy of one."""
    return str.__str__(value) if issubclass(type(value), str) else str(value)


def _decimal(value: Any) -> str:
    if not value.is_finite():
        raise Unconvertible(f"{value} is no number in JSON: send None in its place")
    return str(value)


def _set(value: Set[Any]) -> list[Any]:
    try:
        return sorted(value)  # the same set gives the same text in every process
    except TypeError:
        return list(value)


_BUILT_IN: Final[dict[type, Callable[[Any], object]]] = {
    object: _no_converter,
    # The first six and None as subclasses, and as what proxies say they are.
    str: text_of,
    int: int,
    float: float,
    bool: bool,
    dict: lambda value: dict(value.items()),
    list: list,
    tuple: list,
    type(None): lambda _: None,
    numbers.Integral: int,
    numbers.Real: float,
    UserString: str,
    Mapping: lambda value: dict(value.items()),
    Sequence: list,
    Set: _set,
    enum.Enum: lambda value: value.value,
    datetime.datetime: lambda value: value.isoformat(),
    datetime.date: lambda value: value.isoformat(),
    datetime.time: lambda value: value.isoformat(),
    bytes: _bytes,
    bytearray: _bytes,
    memoryview: _bytes,
    types.GeneratorType: _generator,
}
#: Classes of modules that are not imported for their sake, by module and name: an application that
#: has such an object has imported it, and all others would pay for it.
_LATE: Final[dict[tuple[str, str], Callable[[Any], object]]] = {
    ("uuid", "UUID"): str,
    ("decimal", "Decimal"): _decimal,
}


def _late(cls: type) -> Callable[[Any], object] | None:
    if hasattr(cls, "__dataclass_fields__"):
        return _fields
    names = ((base.__module__, base.__qualname__) for base in cls.__mro__)
    return next((_LATE[name] for name in names if name in _LATE), None)


_entries: Final = {cls: _Registered(cls, convert) for cls, convert in _BUILT_IN.items()}
# Another object after each registration: a dispatcher that was made under an earlier one may miss
# an entry. So threads need no lock.
_version = object()


def _dispatcher() -> tuple[object, Callable[[type], Callable[..., object]]]:
    version = _version  # before the entries, which may be newer than it, but never older
    registry = functools.singledispatch(_entries[object])
    for cls, entry in list(_entries.items()):
        registry.register(cls, entry)
    return version, registry.dispatch


_current = _dispatcher()


def converter_for(cls: type) -> Callable[[Any], object]:
    """The converter of the most specific class. Raises `Unconvertible` where two are equally so."""
    global _current
    version, dispatch = _current
    if version is not _version:
        _current = version, dispatch = _dispatcher()
    home: type | None = None
    if callable(getattr(cls, "to_valued_data", None)):
        home = next((base for base in cls.__mro__ if "to_valued_data" in vars(base)), None)
    try:
        found = dispatch(cls)
    except RuntimeError as error:  # two unrelated abstract base classes match
        if home is not None:
            return _by_method
        raise Unconvertible(
            f"two converters fit {cls.__module__}.{cls.__qualname__} equally well ({error}): "
            f"settle it with valued.register({cls.__qualname__}, function)"
        ) from error
    assert isinstance(found, _Registered)
    if home is not None and _is_nearer(cls, home, found.cls):
        return _by_method
    return (_late(cls) if found.cls is object else None) or found


def _is_nearer(cls: type, home: type, other: type) -> bool:
    """Whether *home* is more specific for *cls* than *other*, which need not be in its MRO."""
    if other in cls.__mro__:
        return cls.__mro__.index(home) < cls.__mro__.index(other)
    return issubclass(home, other)  # so it is the nearer one of the two


@overload
def register(cls: type[C], converter: Callable[[C], R]) -> Callable[[C], R]: ...


@overload
def register(
    cls: type[C], converter: None = None
) -> Callable[[Callable[[C], R]], Callable[[C], R]]: ...


def register(cls: type[Any], converter: Callable[[Any], object] | None = None) -> Any:
    """Make known how objects of *cls*, and of its subclasses, are sent.

    *converter* takes such an object and returns what to send for it: any data that an event takes,
    objects with converters of their own included. Without *converter* it is a decorator. Returns
    the converter. The latest registration for a class counts.

    Raises `ValidationError` where *cls* is no class, is one that JSON has a form for (``str``,
    ``int``, ``dict`` …) or a protocol that ``issubclass`` refuses, or where *converter* can't be
    called. Any thread may call; a forked child keeps what was registered before the fork.
    """
    global _version
    if not issubclass(type(cls), type):  # by its type: up to 3.10, list[int] says it is a class
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
    try:
        issubclass(object, cls)
    except TypeError as error:  # a protocol, for example; each look-up would fail with it
        raise ValidationError(
            f"cls: {cls.__qualname__} can't say what its subclasses are ({error}); "
            "register a class or an abstract base class"
        ) from error
    _entries[cls] = _Registered(cls, converter)
    _version = object()
    return converter


def finite(value: float) -> float:
    """*value* if JSON has a number for it. Raises `Unconvertible`."""
    if math.isfinite(value):
        return value
    raise Unconvertible(f"{value} is no number in JSON: send None in its place")

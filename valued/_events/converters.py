"""The registry: class → function that converts its objects into something nearer to JSON.

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

import functools
from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar, overload

from valued._errors import ValidationError, expected, name_of
from valued._events.bad_values import (
    BadValue,
    by_method_or,
    class_of,
    full_name_of,
    is_class,
    qualname_of,
    registration,
    without_converter,
)
from valued._events.values import BUILT_IN, NATIVE, imported, late

C = TypeVar("C")
R = TypeVar("R")


class _Registered:
    """A converter, and the class that it is registered for."""

    __slots__ = ("cls", "convert")

    def __init__(self, cls: type, convert: Callable[[Any], object]) -> None:
        self.cls = cls
        self.convert = convert


def _by_method(value: Any) -> object:
    return value.to_valued_data()


def no_converter(value: object) -> NoReturn:
    raise BadValue(without_converter(value, class_of(value)))


_BUILT_IN: Final[dict[type, Any]] = {
    cls: _Registered(cls, convert) for cls, convert in [(object, no_converter), *BUILT_IN.items()]
}
# Of the application, by class.
_registered: Final[dict[type, _Registered]] = {}
# Another object after each registration: a dispatcher that was made under an earlier one may miss
# an entry. So threads need no lock.
_version = object()


def _dispatcher() -> tuple[object, Callable[[type], Callable[..., object]]]:
    version = _version  # before the entries, which may be newer than it, but never older
    registry = functools.singledispatch(_BUILT_IN[object])
    late = {cls: _Registered(cls, convert) for cls, convert in imported().items()}
    # A copy, as another thread may register meanwhile.
    for cls, entry in {**_BUILT_IN, **late, **dict(_registered)}.items():
        registry.register(cls, entry)
    return version, registry.dispatch


#: Of the version None, which is no longer the current one: nothing is imported until it is needed.
_current: tuple[object, Callable[[type], Callable[..., object]]] = (None, lambda _cls: no_converter)


def prepare() -> None:
    """Import what converting needs, in the thread that makes a client."""
    converter_for(object)


def converter_for(cls: type) -> Callable[[Any], object]:
    """The converter of the most specific class; `no_converter` where there is none.

    Raises `BadValue` where two are equally specific, and what methods of the class raise.
    """
    global _current
    version, dispatch = _current
    if version is not _version:
        _current = version, dispatch = _dispatcher()
    home: type | None = None
    if callable(getattr(cls, "to_valued_data", None)):
        home = next((base for base in cls.__mro__ if "to_valued_data" in vars(base)), None)
    try:
        found = dispatch(cls)
    except RuntimeError as error:
        if not str(error).startswith("Ambiguous dispatch"):  # what a class was asked, and raised
            raise
        if home is not None:  # two unrelated abstract base classes match
            return _by_method
        raise BadValue(
            f"two converters fit {full_name_of(cls)} equally well: "
            f"{by_method_or(registration(cls, 'str'))}"
        ) from error
    assert isinstance(found, _Registered)
    if home is not None and _is_nearer(cls, home, found.cls):
        return _by_method
    return (late(cls) if found.cls is object else None) or found.convert


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
    """Say how objects of *cls*, and of its subclasses, are sent.

    >>> valued.register(User, lambda user: {"id": user.id, "name": user.name})

    >>> @valued.register(Location)
    ... def location_data(location):
    ...     return {"country": location.country}

    *converter*: a function that gets such an object and returns what to send for it: any data that
    an event takes, objects with converters included. Without it, ``register`` is a decorator.
    Returns the converter. The most specific class counts, and the latest registration of a class.

    A user or a customer that is an object needs such a converter, or a method
    ``to_valued_data(self)``, which returns a mapping: it says what may be sent. The converter of a
    class takes precedence over the class's method.

    Raises `ValidationError` if *cls* is not a class, if JSON has a form for it (``str``, ``int``,
    ``dict`` …), if it is a protocol that ``issubclass`` refuses, or if *converter* can't be called.
    Any thread may call. Forked children keep registrations.
    """
    global _version
    if not is_class(cls):
        raise ValidationError(
            f"{expected('cls', 'a class', cls)}; write "
            "valued.register(Location, function) or @valued.register(Location)"
        )
    try:  # each look-up would fail with what these raise: for a protocol, for example
        issubclass(object, cls)
        hasattr(cls, "__abstractmethods__")
        native = cls in NATIVE
    except Exception as error:
        raise ValidationError(
            f"cls: {qualname_of(cls)} can't say what its subclasses are "
            f"({name_of(type(error))}); register a class or an abstract base class"
        ) from error
    if native:
        raise ValidationError(
            f"cls: {name_of(cls)} is sent as it is; register a class of your own in its place"
        )
    if converter is None:
        return lambda function: register(cls, function)
    if not callable(converter):
        raise ValidationError(expected("converter", f"a function of one {name_of(cls)}", converter))
    _registered[cls] = _Registered(cls, converter)
    _version = object()
    return converter

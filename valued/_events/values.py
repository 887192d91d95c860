"""How instances of Python's own classes and of common libraries are sent; names of classes.

No module is imported here just because one of its classes is listed: an application that has such
an object has imported its module.

The objects belong to the application and may do anything. The serializer, which knows the path,
catches what they raise; this module bounds what they yield.
"""

from __future__ import annotations

import itertools
import math
from collections import UserString
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, Final, NoReturn

#: JSON has a form for these: they are sent unchanged, without a converter.
NATIVE: Final = frozenset({str, int, float, bool, type(None), dict, list, tuple})

#: The most values in one event. This stops an endless iterator or mapping; a real event of this
#: size would have several megabytes.
MAX_VALUES: Final = 250_000
TOO_MANY: Final = f"more than {MAX_VALUES:,} values in one event: send fewer, or their sum"

#: How many characters of a name, a key or a foreign message errors show.
SHOWN: Final = 200


class Unconvertible(Exception):
    """Raised by a converter that refuses a value. The argument says why; the serializer adds where.

    The message contains no value, and nothing derived from one.
    """


def shown(text: str, length: int = SHOWN) -> str:
    """*text* for one log line: at most *length* characters, unprintable ones escaped."""
    if len(text) > length:
        text = f"{text[:length]}…"
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def text_of(value: object) -> str:
    """The content of a string, whose class may override ``__str__``, or of a proxy of one."""
    # `str()` returns what `__str__` returns, which may be an instance of a subclass again.
    return str.__str__(value if issubclass(type(value), str) else str(value))


def is_class(value: object) -> bool:
    # By its type: up to 3.10, list[int] claims to be a class; an object may claim it, too.
    return issubclass(type(value), type)


def class_of(value: object) -> type:
    """The class that *value* claims in ``__class__``, as proxies (Django's, Werkzeug's) do."""
    cls = value.__class__
    return cls if is_class(cls) else type(value)


def is_a(value: object, cls: type | tuple[type, ...]) -> bool:
    """`isinstance` for objects of the application, which may raise in it."""
    try:
        return isinstance(value, cls)
    except Exception:  # noqa: BLE001 - its own
        return False


def name_of(cls: type) -> str:
    """Its ``__name__``, even if its metaclass overrides that."""
    return shown(text_of(type.__dict__["__name__"].__get__(cls)))


def qualname_of(cls: type) -> str:
    return shown(text_of(type.__dict__["__qualname__"].__get__(cls)))


def full_name_of(cls: type) -> str:
    module = type.__dict__["__module__"].__get__(cls)
    return f"{shown(module)}.{qualname_of(cls)}" if type(module) is str else qualname_of(cls)


def bounded(values: Iterable[Any]) -> list[Any]:
    """All of them, as a list. Raises `Unconvertible` if there are too many."""
    items = list(itertools.islice(values, MAX_VALUES + 1))
    if len(items) > MAX_VALUES:
        raise Unconvertible(TOO_MANY)
    return items


def finite(value: float) -> float:
    """*value* if JSON has a number for it. Raises `Unconvertible`."""
    if math.isfinite(value):
        return value
    raise Unconvertible("JSON has no NaN and no infinity: send None instead")


def fields(value: object) -> object:
    """The fields of a dataclass."""
    import dataclasses  # imported already, if there is a dataclass

    # `Any`, since `dataclasses.fields` is typed for callers who know that they have a dataclass.
    described: Any = class_of(value)
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(described)}


def translated(value: object) -> object:
    """A lazy translation as a string, in the current language."""
    return str(value)


def _pairs(value: Mapping[Any, Any]) -> dict[Any, Any]:
    return dict(bounded(value.items()))


def _bytes(value: object) -> NoReturn:
    text = "bytes(value).decode()" if isinstance(value, memoryview) else "value.decode()"
    raise Unconvertible(
        f"{name_of(type(value))} is not a string: send {text} if it contains text, else "
        "base64.b64encode(value).decode()"
    )


def _generator(_: object) -> NoReturn:
    raise Unconvertible("a generator can be read only once: send list(value)")


def _decimal(value: Any) -> str:
    if not value.is_finite():
        raise Unconvertible("JSON has no NaN and no infinity: send None instead")
    return str(value)


def _set(value: Set[Any]) -> list[Any]:
    items = bounded(value)
    try:
        return sorted(items)  # the same set gives the same JSON in every process
    except Exception:  # noqa: BLE001 - whatever its members raise; most have no order
        return items


def _moment(value: Any) -> str:
    text = value.isoformat()
    if not isinstance(text, str):
        raise Unconvertible(f"isoformat() of {qualname_of(type(value))} returned no string")
    text = text_of(text)
    if text == "NaT":  # from pandas: a datetime by its class
        raise Unconvertible("NaT is not a time: send None instead")
    return text


def _duration(value: Any) -> str:
    """In the form of ISO 8601: ``P1DT2H3.5S``, ``-PT1H``."""
    seconds = value.days * 86_400 + value.seconds
    nanoseconds = (seconds * 10**6 + value.microseconds) * 1_000
    return _iso_duration(nanoseconds + getattr(value, "nanoseconds", 0))  # those are pandas' own


def _iso_duration(nanoseconds: int) -> str:
    sign = "-" if nanoseconds < 0 else ""
    seconds, nanoseconds = divmod(abs(nanoseconds), 10**9)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    fraction = f".{nanoseconds:09}".rstrip("0").rstrip(".")
    date = f"{days}D" if days else ""
    time = f"{hours}H" if hours else ""
    time += f"{minutes}M" if minutes else ""
    time += f"{seconds}{fraction}S" if seconds or fraction else ""
    if not date and not time:
        return "PT0S"
    return f"{sign}P{date}T{time}" if time else f"{sign}P{date}"


def _numpy_scalar(value: Any) -> object:
    return value.item()


def _numpy_moment(value: Any) -> object:
    plain = value.item()
    if plain is None:
        raise Unconvertible("NaT is not a time: send None instead")
    return str(value) if type(plain) is int else plain  # an int: finer than Python's own


def _numpy_duration(value: Any) -> object:
    plain = value.item()
    if plain is None:
        raise Unconvertible("NaT is not a duration: send None instead")
    if type(plain) is not int:
        return plain
    if value.dtype.name == "timedelta64[ns]":
        return _iso_duration(plain)
    raise Unconvertible("this numpy.timedelta64 has a unit unknown to timedelta: send str(value)")


def _refuses(reason: str) -> Callable[[Any], NoReturn]:
    def refuse(_: object) -> NoReturn:
        raise Unconvertible(reason)

    return refuse


def _integral(value: Any) -> object:
    # numpy registers its durations as whole numbers.
    duration = getattr(getattr(value, "dtype", None), "kind", "") == "m"
    return _numpy_duration(value) if duration else int(value)


_no_value: Final = _refuses("JSON has no NA: send None instead")
_array: Final = _refuses("an array is sent as a list: send value.tolist()")
_series: Final = _refuses("a Series is sent as a list: send value.tolist()")
_frame: Final = _refuses("a DataFrame is sent as a list: send value.to_dict('records')")

BUILT_IN: Final[dict[type, Callable[[Any], object]]] = {
    # The first seven and None: for subclasses, and for proxies that claim to be one.
    str: text_of,
    int: int,
    float: float,
    bool: bool,
    dict: _pairs,
    list: bounded,
    tuple: bounded,
    type(None): lambda _: None,
    UserString: str,
    Mapping: _pairs,
    Sequence: bounded,
    Set: _set,
    bytes: _bytes,
    bytearray: _bytes,
    memoryview: _bytes,
    type(_ for _ in ()): _generator,
}


def imported() -> dict[type, Callable[[Any], object]]:
    """Converters that need an import: made with a client, else with the first object to convert."""
    import datetime
    import enum
    import numbers

    return {
        numbers.Integral: _integral,
        numbers.Real: float,
        enum.Enum: lambda value: value.value,
        datetime.datetime: _moment,
        datetime.date: _moment,
        datetime.time: _moment,
        datetime.timedelta: _duration,
    }


#: Classes whose modules are not imported here, by module and name.
LATE: Final[dict[tuple[str, str], Callable[[Any], object]]] = {
    ("uuid", "UUID"): str,
    ("decimal", "Decimal"): _decimal,
    ("pathlib", "PurePath"): str,
    ("pathlib._local", "PurePath"): str,  # its name in Python 3.13
    ("ipaddress", "IPv4Address"): str,  # interfaces are subclasses
    ("ipaddress", "IPv6Address"): str,
    ("ipaddress", "IPv4Network"): str,
    ("ipaddress", "IPv6Network"): str,
    ("numpy", "datetime64"): _numpy_moment,
    ("numpy", "generic"): _numpy_scalar,
    ("numpy", "ndarray"): _array,
    ("pandas", "Series"): _series,
    ("pandas.core.series", "Series"): _series,  # their names up to pandas 2
    ("pandas", "DataFrame"): _frame,
    ("pandas.core.frame", "DataFrame"): _frame,
    ("pandas.api.typing", "NAType"): _no_value,
    ("pandas._libs.missing", "NAType"): _no_value,
    ("django.utils.functional", "Promise"): translated,
    ("flask_babel.speaklater", "LazyString"): translated,
    ("babel.support", "LazyProxy"): translated,
}


def late(cls: type) -> Callable[[Any], object] | None:
    """The converter for a class that no registered class covers."""
    if hasattr(cls, "__dataclass_fields__"):
        return fields
    names = ((base.__module__, base.__qualname__) for base in cls.__mro__)
    return next((LATE[name] for name in names if name in LATE), None)

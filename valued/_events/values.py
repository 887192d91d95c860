"""How instances of Python's own classes and of common libraries are sent, and what a time is.

No module is imported here just because one of its classes is listed: an application that has such
an object has imported its module.

The objects belong to the application and may do anything. The serializer, which knows the path,
catches what they raise; this module bounds what they yield.
"""

from __future__ import annotations

import itertools
import math
import re
import time
from collections import UserString
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, Final, NoReturn

from valued._errors import ValidationError, expected, name_of
from valued._events.bad_values import BadValue, class_of, qualname_of, text_of

#: JSON has a form for these: they are sent unchanged, without a converter.
NATIVE: Final = frozenset({str, int, float, bool, type(None), dict, list, tuple})

#: The most values in one event. This stops an endless iterator or mapping; a real event of this
#: size would have several megabytes.
MAX_VALUES: Final = 250_000
#: From 640 digits on, `sys.set_int_max_str_digits` may forbid converting an int to a string.
LONG: Final = 10**600
TOO_MANY: Final = f"more than {MAX_VALUES:,} values in one event: send fewer, or their sum"


def bounded(values: Iterable[Any]) -> list[Any]:
    """All of them, as a list. Raises `BadValue` if there are too many."""
    items = list(itertools.islice(values, MAX_VALUES + 1))
    if len(items) > MAX_VALUES:
        raise BadValue(TOO_MANY)
    return items


def finite(value: float) -> float:
    """*value* if JSON has a number for it. Raises `BadValue`."""
    if math.isfinite(value):
        return value
    raise BadValue("JSON has no NaN and no infinity: send None instead")


def whole(value: int) -> int:
    """*value* if it can be converted to a string. Raises `BadValue`."""
    if not -LONG < value < LONG:
        try:
            int.__repr__(value)
        except ValueError:
            raise BadValue("an integer is too long for JSON: send it as a string") from None
    return value


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
    raise BadValue(
        f"{name_of(type(value))} is not a string: send {text} if it contains text, else "
        "base64.b64encode(value).decode()"
    )


def _generator(_: object) -> NoReturn:
    raise BadValue("a generator can be read only once: send list(value)")


def _decimal(value: Any) -> str:
    if not value.is_finite():
        raise BadValue("JSON has no NaN and no infinity: send None instead")
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
        raise BadValue(f"isoformat() of {qualname_of(type(value))} returned no string")
    text = text_of(text)
    if text == "NaT":  # from pandas: a datetime by its class
        raise BadValue("NaT is not a time: send None instead")
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
    clock = f"{hours}H" if hours else ""
    clock += f"{minutes}M" if minutes else ""
    clock += f"{seconds}{fraction}S" if seconds or fraction else ""
    if not date and not clock:
        return "PT0S"
    return f"{sign}P{date}T{clock}" if clock else f"{sign}P{date}"


def _numpy_scalar(value: Any) -> object:
    return value.item()


def _numpy_moment(value: Any) -> object:
    plain = _numpy_time(value, "a time")
    return str(value) if type(plain) is int else plain  # an int: finer than Python's own


def _numpy_time(value: Any, what: str) -> object:
    plain = value.item()
    if plain is None:
        raise BadValue(f"NaT is not {what}: send None instead")
    return plain


def _numpy_duration(value: Any) -> object:
    plain = _numpy_time(value, "a duration")
    if type(plain) is not int:
        return plain
    if value.dtype.name == "timedelta64[ns]":
        return _iso_duration(plain)
    raise BadValue("this numpy.timedelta64 has a unit unknown to timedelta: send str(value)")


def _refuses(reason: str) -> Callable[[Any], NoReturn]:
    def refuse(_: object) -> NoReturn:
        raise BadValue(reason)

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


# -- ``occured_at`` --------------------------------------------------------------------------------

# Date and time of ISO 8601, as `datetime.isoformat` and JavaScript's `toISOString` write them.
# Not `datetime.fromisoformat`: up to 3.10 it accepts no "Z" and only two lengths of a fraction;
# from 3.14 on it accepts an hour 24.
_TIME: Final = re.compile(
    r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)"
    r"[T ](?P<hour>\d\d):(?P<minute>\d\d)(:(?P<second>\d\d)([.,](?P<fraction>\d+))?)?"
    r"(?P<offset>Z|[+-]([01]\d|2[0-3])(:?[0-5]\d(:?[0-5]\d)?)?)?",
    re.ASCII,
)


def with_offset(given: object) -> str:
    """*given*, unchanged if it has an offset; else as local time, as in ``datetime.astimezone``.

    Raises `ValidationError` if it is not a time.
    """
    match = _TIME.fullmatch(given) if isinstance(given, str) else None
    if match is None:
        what = "a time in ISO 8601, such as '2026-11-23T10:00:00+01:00', or a datetime"
        raise ValidationError(expected("occured_at", what, given))
    import datetime  # imported already, if a client was made

    try:
        year, month, day, hour, minute = map(
            int, match.group("year", "month", "day", "hour", "minute")
        )
        second, microsecond = int(match["second"] or 0), int(f"{match['fraction'] or '':0<6.6}")
        moment = datetime.datetime(year, month, day, hour, minute, second, microsecond)
        return match[0] if match["offset"] else moment.astimezone().isoformat()
    except (ValueError, OverflowError):  # the 31st of February; local time in the year 1
        raise ValidationError(
            "occured_at: there is no such time; give one such as '2026-11-23T10:00:00+01:00', or "
            "a datetime"
        ) from None


_latest: tuple[int, str] = (-1, "")  # the last second that was asked for, and its string


def now() -> str:
    """The time, local, to the second, with its UTC offset: ``2026-11-23T10:00:00+01:00``."""
    global _latest  # one tuple, read and replaced as a whole: threads need no lock
    second = int(time.time())
    latest = _latest
    if latest[0] != second:
        # Not `datetime`: Python 3.13.0 crashes in it while it finalizes objects at shutdown.
        local = time.localtime(second)
        sign, offset = "-" if local.tm_gmtoff < 0 else "+", abs(local.tm_gmtoff)
        text = time.strftime("%Y-%m-%dT%H:%M:%S", local)
        text = f"{text}{sign}{offset // 3600:02}:{offset // 60 % 60:02}"
        _latest = latest = (second, text)
    return latest[1]

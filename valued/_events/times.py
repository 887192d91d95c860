"""``occured_at``: a time in ISO 8601, with its offset from UTC."""

from __future__ import annotations

import re
import time
from typing import Final

from valued._errors import ValidationError

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
        kind = "nothing" if given is None else type(given).__name__
        raise ValidationError(
            "occured_at: expected a time in ISO 8601, such as '2026-11-23T10:00:00+01:00', or a "
            f"datetime, got {kind}"
        )
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

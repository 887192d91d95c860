"""What a program asks for: which records, how many of them, and for how long it waits."""

from __future__ import annotations

import dataclasses
import math
import urllib.parse
from typing import TYPE_CHECKING, Final

from valued._service.history import MOST
from valued._service.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from valued._service.records import Record

#: The longest time that a program can wait, in seconds.
LONGEST_WAIT: Final = 300.0

#: In the order of `Record.names`.
_NAMES: Final = ("category", "key", "user", "customer")

FILTERS: Final = (*_NAMES, "process", "after", "all")


@dataclasses.dataclass(frozen=True)
class Query:
    """See `parsed`. ``everything``: refused requests and repeats, too."""

    wanted: tuple[str | None, ...] = (None, None, None, None)
    process: str | None = None
    after: int = 0
    everything: bool = False
    limit: int | None = None
    n: int = 1
    timeout: float = 10.0

    def matching(self, records: Iterable[Record]) -> list[Record]:
        """Those of *records* that are asked for."""
        return [record for record in records if self._matches(record)]

    def _matches(self, record: Record) -> bool:
        sender = record.sender
        return (
            (self.everything or (record.accepted and record.first is None))
            and all(
                want is None or want == name
                for want, name in zip(self.wanted, record.names, strict=True)
            )
            and self.process in (None, sender.name, str(sender.pid), sender.lane)
        )


def parsed(text: str, names: tuple[str, ...]) -> Query:
    """The query *text* of a URL, which may have *names*; else raises a refusal."""
    given = dict(urllib.parse.parse_qsl(text))
    unknown = [name for name in given if name not in names]
    if unknown:
        raise Refusal(400, f"{unknown[0][:100]}: unknown; there are {', '.join(names)}")
    return Query(
        wanted=tuple(given.get(name) for name in _NAMES),
        process=given.get("process"),
        after=_whole(given, "after", 0, least=0),
        everything=given.get("all", "0") not in ("", "0"),
        limit=_whole(given, "limit", 0, least=1) if "limit" in given else None,
        n=_number(given),
        timeout=_seconds(given, "timeout", 10.0),
    )


def _whole(given: dict[str, str], name: str, default: int, least: int) -> int:
    text = given.get(name, str(default))
    if name not in given:
        return default
    if text.isascii() and text.isdigit() and len(text) < 16 and int(text) >= least:
        return int(text)
    raise Refusal(400, f"{name}: expected a whole number, {least} or more")


def _number(given: dict[str, str]) -> int:
    number = _whole(given, "n", 1, least=1)
    if number <= MOST:
        return number
    raise Refusal(400, f"n: expected {MOST} or less: no more are kept")


def _seconds(given: dict[str, str], name: str, default: float) -> float:
    try:
        seconds = float(given.get(name, default))
    except ValueError:
        seconds = math.nan
    if 0 <= seconds <= LONGEST_WAIT:
        return seconds
    raise Refusal(400, f"{name}: expected seconds, 0 to {LONGEST_WAIT:.0f}")

"""What came of the events: of those whose call returned, which arrived, and under whose name."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

#: Shown for what a kind of case doesn't have.
_NONE = "-"


@dataclasses.dataclass
class Figures:
    """One line of the table."""

    case: str
    asked: int
    recorded: int
    arrived: int
    lost: int
    twice: int
    #: Under another user than the request's, or under none.
    wrong: int
    #: Of nobody, and yet under a user.
    anonymous: int
    #: The events that each process has lost, of those whose call returned.
    lost_by: Counter[int]
    processes: int
    seconds: float = 0.0
    #: Seconds from SIGTERM to the server's end.
    end: float | None = None
    #: What the logs say was not delivered, by process; None: nothing may be lost.
    said_by: dict[int, int] | None = None

    @property
    def said(self) -> int | None:
        return None if self.said_by is None else sum(self.said_by.values())

    @property
    def silent(self) -> int:
        """Lost, and the log of that process doesn't tell."""
        said_by = self.said_by or {}
        return sum(max(0, lost - said_by.get(pid, 0)) for pid, lost in self.lost_by.items())


@dataclasses.dataclass
class Journal:
    """The events whose call returned: by the id of each, who was expected."""

    path: Path

    def notes(self) -> list[dict[str, Any]]:
        # The last line of a process that was killed may be cut off: then its call doesn't count.
        lines = self.path.read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]


def compare(
    case: str, journal: Journal, events: Iterable[dict[str, Any]], expected: dict[str, str | None]
) -> Figures:
    """*expected*: by the request's id, with which those of its events begin, whom it is of."""
    notes = journal.notes()
    arrived = Counter(event["attributes"]["id"] for event in events)
    lost_by = Counter(note["pid"] for note in notes if note["id"] not in arrived)
    whose = [(_expected(event["attributes"], expected), _user(event)) for event in events]
    return Figures(
        case,
        asked=len(expected),
        recorded=len(notes),
        arrived=len(arrived),
        lost=sum(lost_by.values()),
        lost_by=lost_by,
        twice=sum(count - 1 for count in arrived.values()),
        wrong=sum(has != given for given, has in whose if given is not None),
        anonymous=sum(has is not None for given, has in whose if given is None),
        processes=len({note["pid"] for note in notes}),
    )


def _expected(attributes: dict[str, Any], expected: dict[str, str | None]) -> str | None:
    request, _, _ = attributes["id"].partition("-")
    # By what the visitor sent, and not by what the application says that it got.
    assert attributes["expected"] == expected[request]
    return expected[request]


def _user(event: dict[str, Any]) -> str | None:
    return None if "user" not in event else str(event["user"].get("id"))


def table(figures: Iterable[Figures]) -> Iterator[str]:
    """The lines of it."""
    head = ["asked", "recorded", "arrived", "lost", "twice", "wrong", "anonymous", "said"]
    head += ["silent", "processes", "seconds", "end"]
    yield f"{'':54}" + "".join(f"{name:>10}" for name in head)
    for each in figures:
        cells = [
            *(each.asked, each.recorded, each.arrived, each.lost, each.twice, each.wrong),
            *(each.anonymous, _NONE if each.said is None else each.said, each.silent),
            *(each.processes, f"{each.seconds:.1f}"),
            _NONE if each.end is None else f"{each.end:.1f}",
        ]
        yield f"{each.case:54}" + "".join(f"{cell:>10}" for cell in cells)

"""What an outbox holds: accepted events, and which of them were accepted between two marks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from valued._segments import Segment


class Epoch:
    """Events accepted between two marks: how many of them are not settled."""

    __slots__ = ("first", "number", "on_disk", "unsettled")

    def __init__(self, number: int, first: int) -> None:
        self.number = number
        self.first = first  # number of the first event in it
        self.unsettled = 0
        self.on_disk = 0  # of those, how many are not in memory


class Entry:
    """An accepted event."""

    __slots__ = (
        "accepted_at", "attempts", "body", "epoch", "number", "origin", "segment", "written",
    )  # fmt: skip

    epoch: Epoch

    def __init__(self, origin: str, number: int, body: bytes, accepted_at: float) -> None:
        self.origin = origin
        self.number = number  # its place among all that this process has
        #: Its number among those of its origin; another one where this process took it over.
        self.written = number
        self.body = body
        self.accepted_at = accepted_at
        self.attempts = 0
        #: The file that it is in, too; None: it is in memory only.
        self.segment: Segment | None = None

    @property
    def idempotency_key(self) -> str:
        # Not made and kept with each event: the caller would pay for it, and memory.
        return f"{self.origin}-{self.written}"

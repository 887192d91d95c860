"""What an outbox contains: accepted events, and how many were accepted between two flushes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from valued._outbox.segment import Segment


class Epoch:
    """The events accepted between two calls of `Outbox.mark`: how many are not settled."""

    __slots__ = ("first", "number", "on_disk", "unsettled")

    def __init__(self, number: int, first: int) -> None:
        self.number = number
        self.first = first  # number of the first event in it
        self.unsettled = 0
        self.on_disk = 0  # of those, how many are on the disk only


class Entry:
    """An accepted event."""

    __slots__ = (
        "accepted_at", "attempts", "body", "epoch", "number", "origin", "segment", "written",
    )  # fmt: skip

    epoch: Epoch

    def __init__(self, origin: str, number: int, body: bytes, accepted_at: float) -> None:
        self.origin = origin
        self.number = number  # its position among all events of this process
        #: Its number in the files of its origin; differs from `number` if it was adopted.
        self.written = number
        self.body = body
        self.accepted_at = accepted_at
        self.attempts = 0
        #: The file that also contains it; None: it is in memory only.
        self.segment: Segment | None = None

    @property
    def idempotency_key(self) -> str:
        # Not stored with each event: that would cost the caller's time, and memory.
        return f"{self.origin}-{self.written}"

"""An accepted event on its way, and its states."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import weakref

    from valued._delivery.journal import File
    from valued._delivery.runs import Run

# The states of an event: it is in the inbox; it can be taken; it waits until it is due; a worker
# has it; it is settled.
NEW, READY, LATER, TAKEN, SETTLED = "new", "ready", "later", "taken", "settled"


class Entry:
    """An accepted event in memory."""

    __slots__ = (
        "accepted_at", "attempts", "awaited", "body", "due", "file", "number", "order", "run",
        "size", "state",
    )  # fmt: skip

    def __init__(
        self, body: bytes, accepted_at: float, file: File, number: int = 0, size: int = 0
    ) -> None:
        self.body = body
        self.accepted_at = accepted_at
        self.file = file
        self.number = number  # in the file; 0: it is in memory only
        self.size = size  # bytes that are new in the file
        self.state = NEW
        self.order = 0  # in which events were absorbed
        self.attempts = 0
        self.due = 0.0
        self.run: weakref.ref[Run] | None = None
        self.awaited = False  # whether a thread waits for its end

    @property
    def is_stored(self) -> bool:
        """Whether it is on the disk, too."""
        return self.number > 0

    @property
    def idempotency_key(self) -> str:
        """The same for each attempt; no other event of any process has it."""
        return f"{self.file.origin}-{self.number or self.order}"


class Spilled:
    """Says that an event was stored in *file*, and is not in memory."""

    __slots__ = ("file", "size", "state")

    def __init__(self, file: File, size: int) -> None:
        self.file = file
        self.size = size
        self.state = NEW

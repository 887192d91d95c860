"""The counts of one process: what was accepted, what became of it, what is pending."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from valued._delivery.entry import SETTLED
from valued._delivery.journal import HANDED_OVER

if TYPE_CHECKING:
    from valued._delivery.entry import Spilled
    from valued._delivery.journal import File

#: Why events are dropped.
REASONS: Final = ("overflow", "exit", "closed")

#: The same, in addition, for events on the disk: too old; too many bytes; unreadable.
REASONS_ON_DISK: Final = ("age", "size", "damaged")


class Counts:
    """All counts. Those that belong together change in one statement, with the state of the event.

    Call with the queue's lock.
    """

    def __init__(self, *, on_disk: bool) -> None:
        self.accepted = 0
        self.adopted = 0
        self.retried = 0
        self.unsaved = 0  # events that the disk did not take
        self.unsettled = 0  # events in memory, without those in the inbox
        self.bytes = 0  # of these
        self.background = 0  # of these, how many no flush waits for
        self.unread = 0  # events on the disk only, for which flushes wait
        self.unread_background = 0  # and those for which they don't
        self.loaded = 0  # how many events, for which flushes wait, were on the disk only before
        reasons = (*REASONS, *(REASONS_ON_DISK if on_disk else ()))
        self._reasons: Final = reasons
        self.outcomes: Final = dict.fromkeys(("delivered", "failed", HANDED_OVER, *reasons), 0)

    def refuse(self, reason: str) -> None:
        """Count an event as accepted, and as dropped at once."""
        outcomes = self.outcomes
        self.accepted, outcomes[reason] = self.accepted + 1, outcomes[reason] + 1

    def spill(self, entry: Spilled) -> None:
        """An event was accepted that is on the disk only."""
        file, size, outcomes = entry.file, entry.size, self.outcomes
        if reason := file.lost:  # between the write and now
            entry.state, self.accepted, outcomes[reason] = (
                SETTLED, self.accepted + 1, outcomes[reason] + 1
            )  # fmt: skip
        else:
            (
                entry.state, self.accepted, self.unread, file.unread, file.known
            ) = (
                SETTLED, self.accepted + 1, self.unread + 1, file.unread + 1, file.known + size
            )  # fmt: skip

    def book(self, file: File) -> None:
        """Count the events of *file*, which this process has adopted. Call it once."""
        events = file.unread
        mine = events if file.awaited else 0
        self.adopted, self.unread, self.unread_background = (
            self.adopted + events, self.unread + mine, self.unread_background + events - mine
        )  # fmt: skip

    def lose(self, file: File, events: int, reason: str) -> None:
        """So many events of *file* that are on the disk only are settled, for *reason*."""
        self.outcomes[reason] += events
        self.have_read(file, events)

    def have_read(self, file: File, events: int) -> None:
        """So many events of *file* are not on the disk only any more."""
        if file.awaited:
            file.unread, self.unread, self.loaded = (
                file.unread - events, self.unread - events, self.loaded + events
            )  # fmt: skip
        else:
            file.unread, self.unread_background = (
                file.unread - events, self.unread_background - events
            )  # fmt: skip

    def figures(self) -> dict[str, Any]:
        """What `Client.stats` shows."""
        reasons = {reason: self.outcomes[reason] for reason in self._reasons}
        return {
            "accepted": self.accepted,
            "delivered": self.outcomes["delivered"],
            "failed": self.outcomes["failed"],
            "dropped": sum(reasons.values()),
            "pending": self.unsettled + self.unread + self.unread_background,
            "retried": self.retried,
            "dropped_by_reason": reasons,
            "adopted": self.adopted,
            "handed_over": self.outcomes[HANDED_OVER],
            "unsaved": self.unsaved,
        }

"""Accepted events until each is settled, in memory: which are waiting, which are being sent.

A caller only appends to the inbox, which takes no lock. All else happens with the lock, for a few
steps on lists: workers *absorb* the inbox, take events, and settle or postpone them.

Two things may come between any two steps here: an exception (a signal handler that raises, Ctrl-C,
a full stack), and a signal handler that records or flushes while its own thread is in here. No
event may be lost, sent twice or wait for ever because of that. Three rules make it so:

1. The state of an event and all counts change in one statement without a call. No handler runs
   within it.
2. First its state changes, then it is added to its next list, then it is removed from the last one.
   So it may be in a list too often, and never in none. A list that is cleaned passes on what its
   state says.
3. An event that was taken knows the run of the worker that took it, by a weak reference. When that
   run has ended, and the event is not settled, it waits again.
"""

from __future__ import annotations

import collections
import heapq
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

from valued._delivery.entry import LATER, NEW, READY, SETTLED, TAKEN, Entry, Spilled
from valued._delivery.journal import HANDED_OVER
from valued._delivery.runs import is_under_way

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Sequence

    from valued._delivery.journal import Batch, File
    from valued._delivery.runs import Run

#: Bytes of encoded events that may wait in memory: 10,000 events, the default limit, of 6 KB each.
MAX_BYTES: Final = 64 * 1024 * 1024

T = TypeVar("T")

#: Why events are dropped.
REASONS: Final = ("overflow", "exit", "closed")

#: The same, in addition, for events on the disk: too old; too many bytes; unreadable.
REASONS_ON_DISK: Final = ("age", "size", "damaged")


def _first(entries: Sequence[T]) -> T | None:
    """The first one. A signal handler may remove it right after a look whether there is one."""
    try:
        return entries[0]
    except IndexError:
        return None


class Queue:
    """The events of one process, and their counts. Call with the lock, except for `inbox.append`.

    *clock*: `time.monotonic`, or one of a test.
    """

    def __init__(self, clock: Callable[[], float], *, on_disk: bool = False) -> None:
        self._clock = clock
        # Re-entrant: a signal handler may need it while its own thread has it.
        self.lock: Final = threading.RLock()
        #: Notified when an event that is waited for is settled, when something is due earlier than
        #: before, and when there is room.
        self.changed: Final = threading.Condition(self.lock)
        self.inbox: Final[collections.deque[Entry | Spilled]] = collections.deque()
        self._fresh: collections.deque[Entry] = collections.deque()  # untried; others are skipped
        self._again: collections.deque[Entry] = collections.deque()  # to be tried again, now
        self._later: list[tuple[float, int, Entry]] = []  # a heap of the postponed, by due time
        self._taken: dict[Entry, None] = {}
        self._orders = 0
        self.unsettled = 0  # events in memory, without those in the inbox
        self.bytes = 0  # of these
        self.background = 0  # of these, how many no flush waits for
        self.unread = 0  # events on the disk only, for which flushes wait
        self.unread_background = 0  # and those for which they don't
        self.loaded = 0  # how many events, for which flushes wait, were on the disk only before
        self._batch: tuple[File, int] | None = None  # what is being brought in from the disk
        self._in_batch = 0  # how many of its events are
        self.waiting_for_room = 0  # callers
        self.accepted = 0
        self.adopted = 0
        self.retried = 0
        self.unsaved = 0  # events that the disk did not take
        self._on_disk = on_disk
        reasons = (*REASONS, *(REASONS_ON_DISK if on_disk else ()))
        self._reasons: Final = reasons
        self.counts: Final = dict.fromkeys(("delivered", "failed", HANDED_OVER, *reasons), 0)

    # -- accepting ---------------------------------------------------------------------------------

    def absorb(self) -> None:
        """Bring in what callers have put into the inbox."""
        inbox = self.inbox
        while (entry := _first(inbox)) is not None:
            if isinstance(entry, Entry):
                self._absorb(entry)
            elif entry.state is NEW:  # pragma: no branch - an interruption
                self._absorb_spilled(entry)
            if inbox and inbox[0] is entry:  # pragma: no branch - an interruption
                inbox.popleft()

    def _absorb_spilled(self, entry: Spilled) -> None:
        file, size, counts = entry.file, entry.size, self.counts
        if reason := file.lost:  # between the write and now
            entry.state, self.accepted, counts[reason] = (
                SETTLED, self.accepted + 1, counts[reason] + 1
            )  # fmt: skip
        else:
            (
                entry.state, self.accepted, self.unread, file.unread, file.known
            ) = (
                SETTLED, self.accepted + 1, self.unread + 1, file.unread + 1, file.known + size
            )  # fmt: skip

    def _absorb(self, entry: Entry) -> None:
        size, stored, file = len(entry.body), entry.size, entry.file
        unsaved = self._on_disk and not entry.is_stored
        if entry.state is NEW:  # pragma: no branch - an interruption
            (
                entry.state, entry.order, self._orders, self.accepted, self.unsettled,
                self.bytes, self.unsaved, file.unsettled, file.known,
            ) = (
                READY, self._orders + 1, self._orders + 1, self.accepted + 1, self.unsettled + 1,
                self.bytes + size, self.unsaved + unsaved, file.unsettled + 1, file.known + stored,
            )  # fmt: skip
        self._fresh.append(entry)

    def refuse(self, reason: str) -> None:
        """Count an event as accepted, and as dropped at once."""
        counts = self.counts
        self.accepted, counts[reason] = self.accepted + 1, counts[reason] + 1

    def book(self, files: Sequence[File], *, awaited: bool) -> None:
        """Count the events of *files*, which this process has adopted. Call it once."""
        for file in files:
            file.awaited, events = awaited, file.unread
            mine = events if awaited else 0
            self.adopted, self.unread, self.unread_background = (
                self.adopted + events, self.unread + mine, self.unread_background + events - mine
            )  # fmt: skip

    def add_loaded(self, batch: Batch, wall: float) -> None:
        """Bring in what was read from the disk. *wall*: `time.time` now."""
        now, file = self._clock(), batch.file
        background = not file.awaited
        if self._batch != (file, batch.position):  # pragma: no branch - an interruption
            self._batch, self._in_batch = (file, batch.position), 0
        # After an exception the same batch comes once more: go on where it came.
        while self._in_batch < len(batch.events):
            event = batch.events[self._in_batch]
            accepted_at = now - max(0.0, wall - event.accepted)
            entry, size = Entry(event.body, accepted_at, file, event.number), len(event.body)
            self._fresh.append(entry)
            (
                entry.state, entry.order, self._orders, self.unsettled, self.background,
                self.bytes, file.unsettled, self._in_batch,
            ) = (
                READY, self._orders + 1, self._orders + 1, self.unsettled + 1,
                self.background + background, self.bytes + size, file.unsettled + 1,
                self._in_batch + 1,
            )  # fmt: skip
            self._fresh.append(entry)  # once more: a look may have cleaned it away
            self._have_read(file, 1)

    def _have_read(self, file: File, events: int) -> None:
        """So many events of *file* are not on the disk only any more."""
        if file.awaited:
            file.unread, self.unread, self.loaded = (
                file.unread - events, self.unread - events, self.loaded + events
            )  # fmt: skip
        else:
            file.unread, self.unread_background = (
                file.unread - events, self.unread_background - events
            )  # fmt: skip

    def lose(self, file: File, reason: str, events: int) -> None:
        """So many events of *file* that are on the disk only are settled, for *reason*."""
        self.counts[reason] += events
        self._have_read(file, events)
        self.changed.notify_all()

    # -- taking ------------------------------------------------------------------------------------

    def promote(self) -> None:
        """Make ready what is due."""
        now, later = self._clock(), self._later
        while (first := _first(later)) is not None and first[0] <= now:
            self._make_ready(first[2], LATER, due=first[0])
            if later and later[0] is first:  # pragma: no branch - an interruption
                heapq.heappop(later)

    def recover(self) -> None:
        """Make ready what a run took that has ended since, without settling it."""
        for entry in list(self._taken):
            if not is_under_way(entry.run):
                self._make_ready(entry, TAKEN, due=entry.due)
            if entry.state is LATER:  # pragma: no cover - `postpone` was broken off
                heapq.heappush(self._later, (entry.due, entry.order, entry))
            if entry.state is not TAKEN:
                self._taken.pop(entry, None)

    def _make_ready(self, entry: Entry, before: str, *, due: float) -> None:
        if entry.state is before and entry.due == due:
            entry.state = READY
        self._again.append(entry)

    def oldest(self, *, fresh: bool = False) -> Entry | None:
        """The next event that can be taken. *fresh*: rather one that was never tried."""
        queues = (self._fresh, self._again) if fresh else (self._again, self._fresh)
        for queue in queues:
            while (entry := _first(queue)) is not None:
                if entry.state is READY and not (entry.attempts and queue is self._fresh):
                    return entry
                if queue and queue[0] is entry:  # pragma: no branch - an interruption
                    queue.popleft()
        return None

    def take(self, run: weakref.ref[Run], *, fresh: bool = False) -> Entry | None:
        """Take the next event for *run*; None: none is ready. See `oldest`."""
        while (entry := self.oldest(fresh=fresh)) is not None:
            if self.take_this(entry, run):  # pragma: no branch - an interruption
                return entry
        return None

    def take_this(self, entry: Entry, run: weakref.ref[Run]) -> bool:
        """Take *entry* for *run*, if no other run was faster."""
        self._taken[entry] = None
        if entry.state is READY or entry.state is LATER:
            again = entry.attempts > 0
            entry.state, entry.run, entry.attempts, self.retried = (
                TAKEN, run, entry.attempts + 1, self.retried + again
            )  # fmt: skip
            self._taken[entry] = None  # once more: a look may have cleaned it away
            return True
        return False  # pragma: no cover - an interruption

    def postpone(self, entry: Entry, due: float) -> None:
        """Make *entry*, which was taken, ready again at *due*."""
        if entry.state is TAKEN:  # pragma: no branch - an interruption
            entry.state, entry.due = LATER, due
        heapq.heappush(self._later, (due, entry.order, entry))
        self._taken.pop(entry, None)
        if self._later and self._later[0][2] is entry:
            self.changed.notify_all()

    def make_all_due(self) -> None:
        """Make everything postponed ready now."""
        for due, _, entry in sorted(self._later, key=lambda one: one[1]):
            self._make_ready(entry, LATER, due=due)
        self.changed.notify_all()

    def next_due(self) -> float | None:
        """When the next postponed event is due; None: none is postponed."""
        later = self._later
        while (first := _first(later)) is not None:
            due, _, entry = first
            if entry.state is LATER and entry.due == due:
                return due
            if entry.state is READY:  # pragma: no cover - `make_all_due` was broken off
                self._again.append(entry)
            if later and later[0] is first:  # pragma: no branch - an interruption
                heapq.heappop(later)
        return None

    # -- settling ----------------------------------------------------------------------------------

    def settle(self, entry: Entry, outcome: str) -> None:
        """Settle *entry*. *outcome*: ``delivered``, ``failed``, or why it is dropped."""
        size, file, counts = len(entry.body), entry.file, self.counts
        background = not file.awaited
        # What is handed over stays in its file, for other processes.
        kept = outcome == HANDED_OVER
        if entry.state is not SETTLED:
            (
                entry.state, counts[outcome], self.unsettled, self.background, self.bytes,
                file.unsettled,
            ) = (
                SETTLED, counts[outcome] + 1, self.unsettled - 1, self.background - background,
                self.bytes - size, file.unsettled - 1 + kept,
            )  # fmt: skip
        self._taken.pop(entry, None)
        if self.waiting_for_room or entry.awaited:
            self.changed.notify_all()

    # -- looking and waiting -----------------------------------------------------------------------

    def first_in_memory(self) -> Entry | None:
        """The event accepted first of those that no run has taken, and that are not on the disk."""
        head = self.oldest(fresh=True)  # all others that were never tried came after it
        fresh = list(self._fresh) if head and head.number else [head]
        found = [*fresh, *list(self._again), *(entry for _, _, entry in list(self._later))]
        free = [one for one in found if one and one.state in (READY, LATER) and not one.number]
        return min(free, key=lambda entry: entry.order, default=None)

    def waiting(self) -> list[Entry]:
        """Events in memory that no run has taken, due or not, the oldest first."""
        later = sorted((entry for _, _, entry in self._later), key=lambda entry: entry.order)
        found = dict.fromkeys((*later, *list(self._again), *list(self._fresh)))
        return [entry for entry in found if entry.state is READY or entry.state is LATER]

    def sending(self, *, unsaved: bool = False) -> int:
        """How many events are being sent. *unsaved*: only those that are not on the disk."""
        taken = [entry for entry in list(self._taken) if entry.state is TAKEN]
        return sum(not (unsaved and entry.is_stored) for entry in taken)

    def is_waiting(self) -> bool:
        """Whether there is an event in memory that no run has taken."""
        return bool(self.inbox) or self.oldest() is not None or self.next_due() is not None

    def postponed(self) -> int:
        """How many events wait for their retry, or some more."""
        return len(self._later)

    def pending(self) -> int:
        """Events that are not settled, and for which flushes wait."""
        self.absorb()
        return self.unsettled - self.background + self.unread

    def figures(self) -> dict[str, Any]:
        """All counts, of one moment."""
        with self.lock:
            self.absorb()
            counts = self.counts
            reasons = {reason: counts[reason] for reason in self._reasons}
            return {
                "accepted": self.accepted,
                "delivered": counts["delivered"],
                "failed": counts["failed"],
                "dropped": sum(reasons.values()),
                "pending": self.unsettled + self.unread + self.unread_background,
                "retried": self.retried,
                "dropped_by_reason": reasons,
                "adopted": self.adopted,
                "handed_over": counts[HANDED_OVER],
                "unsaved": self.unsaved,
            }

    def checkpoint(self) -> Checkpoint:
        """What a flush waits for that begins now: all events accepted so far."""
        self.absorb()
        entries = [*list(self._taken), *self.waiting()]
        return Checkpoint([one for one in entries if one.file.awaited], self.loaded + self.unread)

    def is_settled(self, checkpoint: Checkpoint) -> bool:
        """Whether all events before *checkpoint* are settled."""
        entries = checkpoint.entries
        while True:
            while entries and entries[-1].state is SETTLED:
                entries.pop()
            if entries:
                return False
            if checkpoint.read >= checkpoint.until:
                return True
            # What was on the disk only is in memory by now, if it isn't settled already.
            following = self.checkpoint()
            entries += following.entries
            checkpoint.read = self.loaded
            if not entries and checkpoint.read < checkpoint.until:
                return False

    def wait(self, checkpoint: Checkpoint, until: float | None) -> None:
        """Wait for the end of an event before *checkpoint*, for something due, or until *until*."""
        if checkpoint.entries:
            checkpoint.entries[-1].awaited = True
        # An exception may have come between the end of an event and the notice of it. So look
        # again from time to time.
        left = LOOK_AGAIN if until is None else min(LOOK_AGAIN, until - self._clock())
        if left > 0:
            self.changed.wait(left)


#: Seconds between two looks of a thread that waits.
LOOK_AGAIN: Final = 0.25


class Checkpoint:
    """What a flush waits for."""

    __slots__ = ("entries", "read", "until")

    def __init__(self, entries: list[Entry], until: int) -> None:
        self.entries = entries  # the last one is waited for first
        self.until = until  # how many events have to be read from the disk, in all
        self.read = 0

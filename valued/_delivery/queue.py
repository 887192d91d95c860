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

from valued._delivery.counts import Counts
from valued._delivery.entry import LATER, NEW, READY, SETTLED, TAKEN, Entry, Spilled, is_under_way
from valued._delivery.journal import HANDED_OVER

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Sequence

    from valued._delivery.entry import Run
    from valued._delivery.journal import Batch, File

#: Bytes of encoded events that may wait in memory: 10,000 events, the default limit, of 6 KB each.
MAX_BYTES: Final = 64 * 1024 * 1024

#: Seconds between two looks of a thread that waits.
LOOK_AGAIN: Final = 0.25

T = TypeVar("T")


def _first(entries: Sequence[T]) -> T | None:
    """The first one. A signal handler may remove it right after a look whether there is one."""
    try:
        return entries[0]
    except IndexError:  # pragma: no cover - in that instant
        return None


class Queue:
    """The events of one process, and their counts. Call with the lock, except for `inbox.append`.

    *clock*: `time.monotonic`, or one of a test.
    """

    def __init__(self, clock: Callable[[], float], *, on_disk: bool = False) -> None:
        self.clock: Final = clock
        # Re-entrant: a signal handler may need it while its own thread has it.
        self.lock: Final = threading.RLock()
        #: Notified when an event that is waited for is settled, when something is due earlier than
        #: before, and when there is room.
        self.changed: Final = threading.Condition(self.lock)
        self.inbox: Final[collections.deque[Entry | Spilled]] = collections.deque()
        self._fresh: collections.deque[Entry] = collections.deque()  # untried; others are skipped
        self._again: collections.deque[Entry] = collections.deque()  # to be tried again, now
        #: A heap of the postponed, by due time.
        self.later: Final[list[tuple[float, int, Entry]]] = []
        self._taken: dict[Entry, None] = {}
        self._orders = 0
        self.counts: Final = Counts(on_disk=on_disk)
        self.waiting_for_room = 0  # callers
        self._batch: tuple[File, int] | None = None  # what is being brought in from the disk
        self._in_batch = 0  # how many of its events are
        self._on_disk = on_disk

    # -- accepting ---------------------------------------------------------------------------------

    def absorb(self) -> None:
        """Bring in what callers have put into the inbox."""
        inbox = self.inbox
        while inbox and (entry := _first(inbox)) is not None:
            if isinstance(entry, Entry):
                self._absorb(entry)
            elif entry.state is NEW:  # pragma: no branch - an interruption
                self.counts.spill(entry)
            if inbox and inbox[0] is entry:  # pragma: no branch - an interruption
                inbox.popleft()

    def _absorb(self, entry: Entry) -> None:
        size, stored, file, counts = len(entry.body), entry.size, entry.file, self.counts
        unsaved = self._on_disk and not entry.is_stored
        if entry.state is NEW:  # pragma: no branch - an interruption
            (
                entry.state, entry.order, self._orders, counts.accepted, counts.unsettled,
                counts.bytes, counts.unsaved, file.unsettled, file.known,
            ) = (
                READY, self._orders + 1, self._orders + 1, counts.accepted + 1,
                counts.unsettled + 1, counts.bytes + size, counts.unsaved + unsaved,
                file.unsettled + 1, file.known + stored,
            )  # fmt: skip
        self._fresh.append(entry)

    def add_loaded(self, batch: Batch, wall: float) -> None:
        """Bring in what was read from the disk. *wall*: `time.time` now."""
        now, file, counts = self.clock(), batch.file, self.counts
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
                entry.state, entry.order, self._orders, counts.unsettled, counts.background,
                counts.bytes, file.unsettled, self._in_batch,
            ) = (
                READY, self._orders + 1, self._orders + 1, counts.unsettled + 1,
                counts.background + background, counts.bytes + size, file.unsettled + 1,
                self._in_batch + 1,
            )  # fmt: skip
            self._fresh.append(entry)  # once more: a look may have cleaned it away
            counts.have_read(file, 1)

    # -- taking ------------------------------------------------------------------------------------

    def promote(self) -> None:
        """Make ready what is due."""
        now, later = self.clock(), self.later
        while later and (first := _first(later)) is not None and first[0] <= now:
            self._make_ready(first[2], LATER, due=first[0])
            if later and later[0] is first:  # pragma: no branch - an interruption
                heapq.heappop(later)

    def recover(self) -> None:
        """Make ready what a run took that has ended since, without settling it."""
        for entry in list(self._taken):
            if not is_under_way(entry.run):
                self._make_ready(entry, TAKEN, due=entry.due)
            if entry.state is LATER:  # pragma: no cover - `postpone` was broken off
                heapq.heappush(self.later, (entry.due, entry.order, entry))
            if entry.state is not TAKEN:
                self._taken.pop(entry, None)

    def _make_ready(self, entry: Entry, before: str, *, due: float) -> None:
        now = self.clock()
        if entry.state is before and entry.due == due:
            entry.state, entry.due = READY, min(due, now)
        self._again.append(entry)

    def oldest(self, *, fresh: bool = False) -> Entry | None:
        """The next event that can be taken. *fresh*: rather one that was never tried."""
        queues = (self._fresh, self._again) if fresh else (self._again, self._fresh)
        for queue in queues:
            while queue and (entry := _first(queue)) is not None:
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
        counts = self.counts
        self._taken[entry] = None
        if entry.state is READY or entry.state is LATER:
            again = entry.attempts > 0
            entry.state, entry.run, entry.attempts, counts.retried = (
                TAKEN, run, entry.attempts + 1, counts.retried + again
            )  # fmt: skip
            self._taken[entry] = None  # once more: a look may have cleaned it away
            return True
        return False  # pragma: no cover - an interruption

    def postpone(self, entry: Entry, due: float) -> None:
        """Make *entry*, which was taken, ready again at *due*."""
        if entry.state is TAKEN:  # pragma: no branch - an interruption
            entry.state, entry.due = LATER, due
        heapq.heappush(self.later, (due, entry.order, entry))
        self._taken.pop(entry, None)
        if self.later and self.later[0][2] is entry:
            self.changed.notify_all()

    def make_all_due(self) -> None:
        """Make everything postponed ready now."""
        for due, _, entry in sorted(self.later, key=lambda one: one[1]):
            self._make_ready(entry, LATER, due=due)
        self.changed.notify_all()

    def next_due(self) -> float | None:
        """When the next postponed event is due; None: none is postponed."""
        later = self.later
        while later and (first := _first(later)) is not None:
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
        outcomes, background = counts.outcomes, not file.awaited
        # What is handed over stays in its file, for other processes.
        kept = outcome == HANDED_OVER
        if entry.state is not SETTLED:
            (
                entry.state, outcomes[outcome], counts.unsettled, counts.background, counts.bytes,
                file.unsettled,
            ) = (
                SETTLED, outcomes[outcome] + 1, counts.unsettled - 1,
                counts.background - background, counts.bytes - size, file.unsettled - 1 + kept,
            )  # fmt: skip
        self._taken.pop(entry, None)
        if self.waiting_for_room or entry.awaited:
            self.changed.notify_all()

    # -- looking -----------------------------------------------------------------------------------

    def first_in_memory(self) -> Entry | None:
        """The event accepted first of those that no run has taken, and that are not on the disk."""
        head = self.oldest(fresh=True)  # all others that were never tried came after it
        fresh = list(self._fresh) if head and head.number else [head]
        found = [*fresh, *list(self._again), *(entry for _, _, entry in list(self.later))]
        free = [one for one in found if one and one.state in (READY, LATER) and not one.number]
        return min(free, key=lambda entry: entry.order, default=None)

    def waiting(self) -> list[Entry]:
        """Events in memory that no run has taken, due or not, the oldest first."""
        later = sorted((entry for _, _, entry in self.later), key=lambda entry: entry.order)
        found = dict.fromkeys((*later, *list(self._again), *list(self._fresh)))
        return [entry for entry in found if entry.state is READY or entry.state is LATER]

    def sending(self, *, unsaved: bool = False) -> int:
        """How many events are being sent. *unsaved*: only those that are not on the disk."""
        taken = [entry for entry in list(self._taken) if entry.state is TAKEN]
        return sum(not (unsaved and entry.is_stored) for entry in taken)

    def pending(self) -> int:
        """Events that are not settled, and for which flushes wait."""
        self.absorb()
        counts = self.counts
        return counts.unsettled - counts.background + counts.unread

    def figures(self) -> dict[str, Any]:
        """All counts, of one moment."""
        with self.lock:
            self.absorb()
            return self.counts.figures()

    def accepted_first(self) -> float | None:
        """When the oldest event in memory that is pending was accepted, by the clock."""
        entries = [*list(self._taken), *self.waiting()]
        return min((entry.accepted_at for entry in entries), default=None)

    def awaited(self) -> list[Entry]:
        """Events in memory for which flushes wait, the ones that go last at the end."""
        entries = [*list(self._taken), *self.waiting()]
        return [entry for entry in entries if entry.file.awaited]


class Checkpoint:
    """What a flush waits for that begins now: all events accepted so far. Call with the lock."""

    __slots__ = ("_entries", "_queue", "_read", "_until")

    def __init__(self, queue: Queue) -> None:
        queue.absorb()
        counts = queue.counts
        self._queue = queue
        self._entries = queue.awaited()  # the last one is waited for first
        self._until = counts.loaded + counts.unread  # so many are read from the disk then
        self._read = 0

    def is_settled(self) -> bool:
        """Whether all of them are settled."""
        entries, queue = self._entries, self._queue
        while True:
            while entries and entries[-1].state is SETTLED:
                entries.pop()
            if entries:
                return False
            if self._read >= self._until:
                return True
            # What was on the disk only is in memory by now, if it isn't settled already.
            queue.absorb()
            entries += queue.awaited()
            self._read = queue.counts.loaded
            if not entries and self._read < self._until:
                return False

    def wait(self, until: float | None) -> None:
        """Wait for the end of one of them, for something that is due, or until *until*."""
        if self._entries:
            self._entries[-1].awaited = True
        # An exception may have come between the end of an event and the notice of it. So look
        # again from time to time.
        left = LOOK_AGAIN if until is None else min(LOOK_AGAIN, until - self._queue.clock())
        self._queue.changed.wait(max(0.0, left))

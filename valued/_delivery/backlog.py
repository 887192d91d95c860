"""Events that are on the disk only, and all I/O of the journal but that of single events.

They are there because memory is full, or because a dead process left them. Workers and the monitor
read them in portions, without the queue's lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from valued._delivery.entry import Role, Run
from valued._delivery.journal import HANDED_OVER
from valued._delivery.queue import LOOK_AGAIN, MAX_BYTES, Queue
from valued._process.clock import CLOCK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from valued._delivery.journal import File, Journal
    from valued._delivery.status import Status
    from valued._options import Options

#: Events, and bytes, that are read from the disk at once.
WINDOW: Final = 500
WINDOW_BYTES: Final = 2 * 1024 * 1024

#: Seconds until the disk is read again, after there was nothing to be read.
READ_AGAIN: Final = 1.0

#: Events that a worker takes over from dead processes at once. What is taken over and not delivered
#: has to be handed back at the end of the process.
TAKEN_OVER_AT_ONCE: Final = 1_000

#: The same for a call of `Client.adopt`, or a few more.
ADOPTED_AT_ONCE: Final = 10_000

#: Seconds that `Backlog.adopt` waits for a worker that reads, or takes over, at this moment.
ADOPT_TIMEOUT: Final = 5.0


class Backlog:
    """What the journal has for this process. Any thread may call, without the queue's lock."""

    def __init__(self, queue: Queue, journal: Journal, status: Status, options: Options) -> None:
        self._queue = queue
        self._status = status
        self.journal: Final = journal
        self._window = max(1, min(WINDOW, options.max_queue))
        self._max_queue = options.max_queue
        self.spilling = False  # whether new events go to the disk only
        # Guarded by the queue's lock.
        self.is_ending = False  # whether the process ends
        self._is_leaving = False  # whether to hand over what is on the disk
        self._loader = Role()
        self._read_again = 0.0

    # -- when, with the lock -----------------------------------------------------------------------

    def next_load(self) -> float | None:
        """When to read events; None: there are none, or no room, or another run reads."""
        counts = self._queue.counts
        unread = counts.unread or (counts.unread_background and not self.is_ending)
        return self._read_again if unread and self._is_free() else None

    def next_task(self) -> float | None:
        """When there is something to write, or to take over; None: never, as things are."""
        stats = None if self.is_ending else self._status.next_due()
        return min((at for at in (stats, self._next_tidying()) if at is not None), default=None)

    def _next_tidying(self) -> float | None:
        """When the journal has something to do; None: nothing, as things are."""
        journal = self.journal
        if not journal.is_untidy() and journal.is_claim_due() and not self._wants_more():
            return None  # workers take over the next portion when they have delivered this one
        return journal.next_due()

    def _wants_more(self) -> bool:
        """Whether to take over events of dead processes: no more than can be delivered soon."""
        counts = self._queue.counts
        return not (self.is_ending or counts.unread or counts.unread_background) and self._is_free()

    def _is_free(self) -> bool:
        """Whether memory has room for a portion, and no other run reads."""
        queue, counts = self._queue, self._queue.counts
        in_memory = counts.unsettled + len(queue.inbox)
        # Events that wait for a retry must not hold up the others, as long as memory is bounded.
        if in_memory >= self._max_queue or counts.bytes >= MAX_BYTES // 2:
            return False
        return in_memory - len(queue.later) <= self._window // 2 and self._loader.is_free()

    def write_stats(self) -> None:
        """Write the stats now, if they have changed: there may be no later opportunity."""
        self._status.tend(now=True)

    # -- reading and taking over -------------------------------------------------------------------

    def tend(self, run: Run) -> None:
        """Do the I/O that is due."""
        journal, queue = self.journal, self._queue
        self._status.tend()
        if not journal.stores:
            return
        if self._is_leaving:
            self._release_if_idle()
        if journal.is_untidy():
            self._lose(journal.maintain())
        with queue.lock:
            queue.absorb()
            moment = self.next_load()
            load = moment is not None and queue.clock() >= moment
            if not queue.counts.unread:
                self.spilling = False
            claim = not load and self._wants_more() and journal.is_claim_due()
            if not (load or claim) or not self._loader.begin(run):
                return
        try:
            if load:
                self._load()
            else:
                self._book(journal.claim(TAKEN_OVER_AT_ONCE), awaited=False)
        finally:
            self._loader.end()

    def _load(self) -> None:
        queue = self._queue
        batch = self.journal.load(self._window, WINDOW_BYTES)
        if batch is None:
            self._read_again = queue.clock() + READ_AGAIN
            return
        with queue.lock:
            queue.add_loaded(batch, CLOCK.wall())
        self.journal.loaded(batch)
        with queue.lock:
            missing = min(batch.missing, batch.file.unread)
            queue.counts.lose(batch.file, missing, "damaged")
            queue.changed.notify_all()

    def adopt(self) -> int:
        """Take over what dead processes left. Returns from how many directories."""
        run, queue, journal = Run(), self._queue, self.journal
        deadline = queue.clock() + ADOPT_TIMEOUT
        with queue.lock:
            # No other thread reads what was taken over before it is counted.
            while not self._loader.begin(run):
                if queue.clock() >= deadline:  # pragma: no cover - the disk hangs
                    return 0
                queue.changed.wait(LOOK_AGAIN)  # pragma: no cover - a worker reads just now
        directories = events = 0
        try:
            while events < ADOPTED_AT_ONCE:  # pragma: no branch - or a break
                files = journal.claim(ADOPTED_AT_ONCE - events)
                events += sum(file.unread for file in files)
                directories += journal.claimed()
                self._book(files, awaited=True)
                if not journal.is_claim_due():
                    break  # there is no more
        finally:
            self._loader.end()
        return directories

    def _book(self, files: Sequence[File], *, awaited: bool) -> None:
        """Count what was taken over. *awaited*: whether flushes wait for it."""
        with self._queue.lock:
            for file in files:
                file.awaited = awaited
                self._queue.counts.book(file)
            self._read_again = 0.0

    def _lose(self, lost: Sequence[tuple[File, str]]) -> None:
        """Settle the events of files that must not be delivered any more."""
        queue = self._queue
        with queue.lock:
            queue.absorb()
            for file, reason in lost:
                queue.counts.lose(file, file.unread, reason)
            queue.changed.notify_all()

    # -- handing over ------------------------------------------------------------------------------

    def hand_back(self) -> None:
        """The process ends: others are to deliver what workers took over by themselves."""
        queue = self._queue
        with queue.lock:
            self.is_ending = True
            for entry in queue.waiting():
                if not entry.file.awaited:
                    queue.settle(entry, HANDED_OVER)

    def release(self) -> None:
        """Hand over to other processes what is on the disk, once none of it is being sent."""
        queue = self._queue
        with queue.lock:
            self._is_leaving = self.journal.stores
            for entry in queue.waiting():
                if entry.is_stored:
                    queue.settle(entry, HANDED_OVER)
        self._release_if_idle()

    def _release_if_idle(self) -> None:
        queue = self._queue
        with queue.lock:
            if not self._is_leaving or queue.sending():
                return
            self._is_leaving = False
        self._lose(self.journal.release())
        with queue.lock:
            self.spilling = False
            for entry in queue.waiting():
                if entry.file.lost:  # pragma: no cover - stored in this instant
                    queue.settle(entry, entry.file.lost)

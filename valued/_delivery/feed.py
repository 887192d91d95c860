"""What workers take events from: the queue, what the journal has on the disk, the circuit breaker.

The I/O of the journal is done here, by workers, without the queue's lock.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Final

from valued._delivery.entry import Entry
from valued._delivery.journal import HANDED_OVER
from valued._delivery.queue import LOOK_AGAIN, MAX_BYTES, Queue
from valued._delivery.runs import Role, Run
from valued._process.clock import CLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from valued._delivery.journal import File, Journal
    from valued._delivery.retry import CircuitBreaker
    from valued._options import Options

#: Events, and bytes, that are read from the disk at once.
WINDOW: Final = 500
WINDOW_BYTES: Final = 2 * 1024 * 1024

#: Seconds until the disk is read again, after there was nothing to be read.
READ_AGAIN: Final = 1.0

#: Events that a worker takes over from dead processes at once. What is taken over and not delivered
#: has to be handed back at the end of the process.
TAKEN_OVER_AT_ONCE: Final = 1_000


#: Seconds that `Feed.adopt` waits for a worker that reads, or takes over, at this moment.
ADOPT_TIMEOUT: Final = 5.0


class Feed:
    """What the workers of one process take from. Methods that say so need the queue's lock."""

    def __init__(
        self,
        queue: Queue,
        breaker: CircuitBreaker,
        journal: Journal,
        options: Options,
        clock: Callable[[], float],
    ) -> None:
        self.queue: Final = queue
        self._breaker = breaker
        self.journal: Final = journal
        self._clock = clock
        self._window = max(1, min(WINDOW, options.max_queue))
        self._max_queue = options.max_queue
        self._max_age = options.outbox_max_age
        self.spilling = False  # whether new events go to the disk only
        # Guarded by the queue's lock.
        self._is_leaving = False  # whether to hand over what is on the disk
        self._is_ending = False  # whether the process ends
        self._loader = Role()
        self._read_again = 0.0
        self._probe: Entry | None = None  # the latest one

    # -- taking ------------------------------------------------------------------------------------

    def take(self, run: weakref.ref[Run]) -> Entry | None:
        """Take the next event that can be sent for *run*; with the lock."""
        queue, breaker, now = self.queue, self._breaker, self._clock()
        queue.absorb()
        if not breaker.allows(now):
            return None
        queue.promote()
        # Probe with an event that was never tried, or a single one would use up its attempts in an
        # outage that many survive with one attempt each.
        entry = queue.take(run, fresh=breaker.is_open)
        if entry is None:
            queue.recover()
            entry = queue.take(run)
        if entry is not None and breaker.is_open:
            self._probe = entry
            breaker.passed(now)
        return entry

    def pass_over(self, entry: Entry) -> None:
        """*entry* is not sent: if it was the probe, allow another one. With the lock."""
        if entry is self._probe:
            self._breaker.returned()

    def reason_to_drop(self, entry: Entry) -> str:
        """Why *entry* must not be sent any more; empty: it is to be sent."""
        if entry.file.lost:
            return entry.file.lost
        if self._is_ending and not entry.file.awaited:  # pragma: no cover - read in this instant
            return HANDED_OVER
        old = entry.is_stored and self._clock() - entry.accepted_at > self._max_age
        return "age" if old else ""

    # -- looking, with the lock --------------------------------------------------------------------

    def has_work(self) -> bool:
        """Whether a worker would find something to do."""
        self.queue.absorb()
        self.queue.promote()
        if not self._breaker.allows(self._clock()):
            return False
        return self.queue.oldest() is not None or self._wants_to_load()

    def ready_since(self) -> float | None:
        """Since when the oldest event waits that could be sent; None: there is none."""
        oldest = self.queue.oldest()
        return None if oldest is None else max(oldest.accepted_at, oldest.due)

    def next_change(self) -> float | None:
        """When something can be sent by time alone; None: time alone changes nothing."""
        queue, probe = self.queue, self._breaker.next_probe()
        if queue.oldest() is not None:
            return probe
        moments = []
        if (due := queue.next_due()) is not None:
            moments.append(due if probe is None else max(due, probe))
        if self._may_load():
            moments.append(max(self._read_again, probe or 0.0))
        return min(moments, default=None)

    def next_task(self) -> float | None:
        """When the journal has something to do; None: nothing, as things are."""
        journal = self.journal
        if not journal.is_untidy() and journal.is_claim_due() and not self._wants_more():
            return None  # workers take over the next portion when they have delivered this one
        return journal.next_due()

    def _wants_more(self) -> bool:
        """Whether to take over events of dead processes: no more than can be delivered soon."""
        queue = self.queue
        if self._is_ending or queue.unread or queue.unread_background:
            return False
        return self._loader.is_free() and self._has_room()

    def _wants_to_load(self) -> bool:
        return self._may_load() and self._clock() >= self._read_again

    def _may_load(self) -> bool:
        """Whether there is something to read, room for it, and no other run that reads."""
        queue = self.queue
        unread = queue.unread or (queue.unread_background and not self._is_ending)
        return bool(unread) and self._loader.is_free() and self._has_room()

    def _has_room(self) -> bool:
        queue = self.queue
        in_memory = queue.unsettled + len(queue.inbox)
        # Events that wait for a retry must not hold up the others, as long as memory is bounded.
        if in_memory >= self._max_queue or queue.bytes >= MAX_BYTES // 2:
            return False
        return in_memory - queue.postponed() <= self._window // 2

    # -- the journal -------------------------------------------------------------------------------

    def tend(self, run: Run) -> None:
        """Do the I/O of the journal that is due."""
        journal = self.journal
        if not journal.stores:
            return
        if self._is_leaving:
            self._release_if_idle()
        if journal.is_untidy():
            self.lose(journal.maintain())
        with self.queue.lock:
            self.queue.absorb()
            load = self._wants_to_load()
            if not self.queue.unread:
                self.spilling = False
            claim = not load and self._wants_more() and journal.is_claim_due()
            if not (load or claim) or not self._loader.begin(run):
                return
        try:
            if load:
                self._load()
            else:
                self.book(journal.claim(TAKEN_OVER_AT_ONCE), awaited=False)
        finally:
            self._loader.end()

    def _load(self) -> None:
        queue = self.queue
        batch = self.journal.load(self._window, WINDOW_BYTES)
        if batch is None:
            self._read_again = self._clock() + READ_AGAIN
            return
        with queue.lock:
            queue.add_loaded(batch, CLOCK.wall())
        self.journal.loaded(batch)
        with queue.lock:
            if missing := min(batch.missing, batch.file.unread):
                queue.lose(batch.file, "damaged", missing)
            queue.changed.notify_all()

    def adopt(self, most: int) -> int:
        """Take over *most* events, or a few more. Returns from how many directories."""
        run, queue = Run(), self.queue
        deadline = self._clock() + ADOPT_TIMEOUT
        with queue.lock:
            # No other thread reads what was taken over before it is counted.
            while not self._loader.begin(run):
                if self._clock() >= deadline:  # pragma: no cover - the disk hangs
                    return 0
                queue.changed.wait(LOOK_AGAIN)  # pragma: no cover - a worker reads just now
        directories = events = 0
        try:
            while events < most:  # pragma: no branch - or a break
                files = self.journal.claim(most - events)
                events += sum(file.unread for file in files)
                directories += self.journal.claimed()
                self.book(files, awaited=True)
                if not self.journal.is_claim_due():
                    break  # there is no more
        finally:
            self._loader.end()
        return directories

    def book(self, files: Sequence[File], *, awaited: bool) -> None:
        """Count what was taken over. *awaited*: whether flushes wait for it."""
        with self.queue.lock:
            self.queue.book(files, awaited=awaited)
            self._read_again = 0.0

    def lose(self, lost: Sequence[tuple[File, str]]) -> None:
        """Settle the events of files that must not be delivered any more."""
        with self.queue.lock:
            self.queue.absorb()
            for file, reason in lost:
                if file.unread:
                    self.queue.lose(file, reason, file.unread)

    def hand_back(self) -> None:
        """The process ends: others are to deliver what workers took over by themselves."""
        queue = self.queue
        with queue.lock:
            self._is_ending = True
            for entry in queue.waiting():
                if not entry.file.awaited:
                    queue.settle(entry, HANDED_OVER)

    def release(self) -> None:
        """Hand over to other processes what is on the disk, once none of it is being sent."""
        queue = self.queue
        with queue.lock:
            self._is_leaving = self.journal.stores
            for entry in queue.waiting():
                if entry.is_stored:
                    queue.settle(entry, HANDED_OVER)
        self._release_if_idle()

    def _release_if_idle(self) -> None:
        queue = self.queue
        with queue.lock:
            if not self._is_leaving or queue.sending():
                return
            self._is_leaving = False
        self.lose(self.journal.release())
        with queue.lock:
            self.spilling = False
            for entry in queue.waiting():
                if entry.file.lost:  # pragma: no cover - stored in this instant
                    queue.settle(entry, entry.file.lost)

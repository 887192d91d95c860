"""Whether there is room for a new event, and what becomes of it if there is none."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Final

from valued._delivery.entry import Entry, Run, Spilled
from valued._delivery.journal import NoFile
from valued._delivery.queue import MAX_BYTES

if TYPE_CHECKING:
    from valued._delivery.attempt import Attempts
    from valued._delivery.feed import Feed
    from valued._delivery.journal import File, Journal
    from valued._options import Options

#: Events in the inbox before a caller brings them in. Until then their bytes are not counted. It
#: takes about a millisecond, so a call in a hundred would be too many: workers do it more often.
LONG_INBOX: Final = 1_000

#: Bytes of an event that is counted at once: a few of those matter.
LARGE: Final = 64 * 1024


class Admission:
    """Puts new events into the inbox. Any thread may call, without the queue's lock."""

    def __init__(self, feed: Feed, attempts: Attempts, journal: Journal, options: Options) -> None:
        self._feed = feed
        self._queue = feed.queue
        self._inbox = feed.queue.inbox
        self._counts = feed.queue.counts
        self._clock = feed.queue.clock
        self._attempts = attempts
        self._append = journal.append if journal.stores else None
        self._memory: Final[File] = NoFile()
        self._max_queue = options.max_queue
        self._overflow = options.overflow
        self._timeout = options.timeout

    def admit(self, body: bytes) -> None:
        """Accept an event: into memory, on the disk, or as dropped. See the option *overflow*."""
        inbox = self._inbox
        entry = Entry(body, self._clock(), self._memory)
        full = self._is_full(entry)
        if not (self._append and self._store(entry, full=full)) and (
            not full or self._make_room(entry)
        ):
            inbox.append(entry)
        is_much = len(inbox) > LONG_INBOX or len(body) > LARGE
        if is_much and self._queue.lock.acquire(blocking=False):
            try:
                self._queue.absorb()
            finally:
                self._queue.lock.release()

    def _is_full(self, entry: Entry) -> bool:
        # Without the lock: the bound is exact up to the number of callers.
        counts = self._counts
        return (
            counts.unsettled + len(self._inbox) >= self._max_queue
            or counts.bytes + len(entry.body) > MAX_BYTES
        )

    def _store(self, entry: Entry, *, full: bool) -> bool:
        """Accept *entry* on the disk; False: the disk did not take it."""
        backlog = self._feed.backlog
        spill = full or backlog.spilling
        stored = self._append(entry.body, spill=spill) if self._append else None
        if stored is None:
            return False
        if spill:
            backlog.spilling = True  # the following ones, too, until there is room again
            self._inbox.append(Spilled(stored.file, stored.size))
        else:
            entry.file, entry.number, entry.size = stored
            self._inbox.append(entry)
        return True

    def _make_room(self, entry: Entry) -> bool:
        """Whether there is room for *entry* by now, as *overflow* says; else it is dealt with."""
        queue, overflow = self._queue, self._overflow
        if overflow == "caller_runs":
            self._send_in_call(entry)
            return False
        with queue.lock:
            queue.absorb()
            if len(entry.body) > MAX_BYTES:
                pass  # even an empty queue has no room for it
            elif overflow == "block":
                self._wait_for_room(entry)
            elif overflow == "drop_oldest":
                while self._is_full(entry) and (first := queue.first_in_memory()) is not None:
                    queue.settle(first, "overflow")
            if self._is_full(entry):
                self._counts.refuse("overflow")
                return False
        return True

    def _wait_for_room(self, entry: Entry) -> None:
        queue = self._queue
        deadline = self._clock() + self._timeout
        queue.waiting_for_room += 1
        try:
            while (left := deadline - self._clock()) > 0 and self._is_full(entry):
                queue.changed.wait(min(left, threading.TIMEOUT_MAX))
        finally:
            queue.waiting_for_room -= 1

    def _send_in_call(self, entry: Entry) -> None:
        queue, run = self._queue, Run()
        with queue.lock:
            if not self._feed.allows():
                # The service is down: more attempts would hold up the callers and add load to it,
                # and what fails would add to a queue that is full.
                self._counts.refuse("overflow")
                return
            self._inbox.append(entry)
            queue.absorb()
            taken = self._feed.take_this(entry, weakref.ref(run))
        try:
            if taken:  # pragma: no branch - else a signal handler sent it
                self._attempts.attempt(entry, run)
        finally:
            run.has_ended = True

"""Two threads that wait: for what becomes ready by time alone, and for the death of a process.

The *monitor* starts workers for retries and probes that become due and for events that wait while
all workers are busy, and looks after the outbox. The *death watch* waits until another process that
shares the outbox has died. Each lives while something of its kind is ahead.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, Protocol

from valued._delivery.entry import Role, Run
from valued._process.fork import ProcessToken

if TYPE_CHECKING:
    from collections.abc import Callable

    from valued._delivery.feed import Feed
    from valued._delivery.threads import ThreadCache

#: Seconds that the monitor waits at most while events are pending.
LONGEST_WAIT: Final = 5.0

#: Seconds between two looks at least: what is due may be in the hands of another thread.
SHORTEST_WAIT: Final = 0.01


class Monitored(Protocol):
    """What the monitor looks after."""

    def next_look(self) -> float | None:
        """When to look, by the clock; None: never, as things are. With the lock."""

    def look(self, run: Run) -> object:
        """Do it. Without the lock."""


class Monitor:
    """At most one thread of *threads*. Any thread may call, without the queue's lock."""

    def __init__(self, feed: Feed, threads: ThreadCache) -> None:
        self._feed = feed
        self._queue = feed.queue
        self._threads = threads
        self._token = ProcessToken()
        # Guarded by the queue's lock.
        self._role = Role()
        self._looks_at = 0.0
        self._keeps = False  # whether the thread keeps the owner alive
        self._handed_over: object = None  # the owner, until the thread runs and keeps it
        self._generation = 0  # one more with each `stop`

    def is_free(self) -> bool:
        """Whether no thread is there."""
        return self._role.is_free()

    def notice(self, moment: float, owner: object) -> None:
        """There is something to do at *moment*, or *owner* is to be kept, or not kept any more."""
        with self._queue.lock:
            pending = self._queue.pending() > 0
            if moment < self._looks_at or self._keeps != pending:
                self._looks_at, self._keeps = moment, pending  # one notice is enough
                self._handed_over = owner
                self._queue.changed.notify_all()

    def start(self, monitored: Monitored, owner: Callable[[], object]) -> None:
        """Look after *monitored* until nothing is ahead.

        Keeps what *owner* returns alive while events are pending, and no longer: the upkeep of an
        outbox alone is no reason. Raises `RuntimeError` if no thread can be started.
        """
        run = Run()
        with self._queue.lock:
            if not self._role.begin(run):
                return
            self._looks_at = self._queue.clock()
            generation = self._generation
        # The caller may be the last one that keeps the owner alive, and end before the thread runs.
        self._handed_over = owner()
        try:
            self._threads.submit(self._watch, run, generation, monitored, owner)
        except BaseException:
            self._handed_over = None
            self._role.end()
            raise

    def stop(self) -> None:
        """Let the thread end, unless events wait. Doesn't wait for it; `start` begins again."""
        self._generation += 1
        with self._queue.lock:
            self._queue.changed.notify_all()

    def stop_from_finalizer(self) -> None:
        """The same, without waiting for the lock. If it is taken, the thread ends at its next look.

        An exception within this method could leave the lock taken; the application has no use for
        it any more.
        """
        self._generation += 1
        if self._queue.lock.acquire(blocking=False):
            try:
                self._queue.changed.notify_all()
            finally:
                self._queue.lock.release()

    def _watch(
        self, run: Run, generation: int, monitored: Monitored, owner: Callable[[], object]
    ) -> None:
        queue = self._queue
        earliest = queue.clock()
        while self._token.is_current():  # pragma: no branch - else a greenlet in a child
            with queue.lock:
                pending = queue.pending() > 0
                handed_over, self._handed_over = self._handed_over, None
            keep = owner() if pending else None  # let go of it here, and not with the lock
            del handed_over  # not before it is kept
            with queue.lock:
                if pending != (queue.pending() > 0):  # pragma: no cover - changed in this instant
                    continue
                moment = monitored.next_look()
                stopped = generation != self._generation
                if moment is None or (stopped and self._feed.outlook().event is None):
                    keep, self._handed_over = self._handed_over, None  # freed at the end
                    self._role.end()
                    break
                self._looks_at, self._keeps = moment, keep is not None
                left = max(moment, earliest) - queue.clock()
                if left > 0:
                    # Greenlets survive a fork, and one in a child has to notice where it is.
                    longest = LONGEST_WAIT if queue.counts.unsettled else threading.TIMEOUT_MAX
                    queue.changed.wait(min(left, SHORTEST_WAIT if stopped else longest))
                    continue
            monitored.look(run)
            earliest = queue.clock() + SHORTEST_WAIT
        if self._token.is_current():  # pragma: no branch - as above
            self._feed.backlog.write_stats()  # else they would wait for the exit


class DeathWatch:
    """At most one thread of *threads*. Any thread may call, without the queue's lock.

    Where the journal can't wait for deaths, there is none, and the monitor looks from time to time.
    """

    def __init__(self, feed: Feed, threads: ThreadCache) -> None:
        self._journal = feed.backlog.journal
        self._lock = feed.queue.lock
        self._threads = threads
        self._token = ProcessToken()
        self._role = Role()  # guarded by the lock
        self._stopped = False

    def begin(self, idle_in: Callable[[], float], look: Callable[[], object]) -> None:
        """Watch, unless a thread does so already, and *look* after each death.

        *idle_in*: the seconds after which the thread is to end if no other process is known.
        """
        if not self._journal.stores or not self._role.is_free():
            return
        run = Run()
        with self._lock:
            if not self._role.begin(run):  # pragma: no cover - another thread was faster
                return
        self._stopped = False
        try:
            if self._journal.watch():
                self._threads.submit(self._watch, run, idle_in, look)
                return
        except RuntimeError:  # pragma: no cover - no thread can be started at this moment
            self._journal.unwatch()
            self._journal.wait_for_deaths(0)  # ends it
        self._role.end()

    def _watch(self, run: Run, idle_in: Callable[[], float], look: Callable[[], object]) -> None:
        while self._token.is_current() and self._journal.wait_for_deaths(idle_in()):
            look()
        if self._token.is_current():  # pragma: no branch - else a greenlet in a child
            self._role.end()
            # Look once more, as an event that came meanwhile relied on this thread.
            if not self._stopped and idle_in() > 0:
                self.begin(idle_in, look)

    def stop(self) -> None:
        """Let the thread end. Doesn't wait for it."""
        self._stopped = True
        self._journal.unwatch()

"""The monitor: a thread that starts workers for what becomes ready by time alone.

Retries and probes become due, events wait while all workers are busy, the outbox needs upkeep. The
thread lives while something of this kind is ahead, and waits until then.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, Protocol

from valued._delivery.runs import Role, Run
from valued._process.fork import ProcessToken

if TYPE_CHECKING:
    from collections.abc import Callable

    from valued._delivery.executors import ThreadCache
    from valued._delivery.queue import Queue

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

    def __init__(self, queue: Queue, threads: ThreadCache, clock: Callable[[], float]) -> None:
        self._queue = queue
        self._threads = threads
        self._clock = clock
        self._token = ProcessToken()
        # Guarded by the queue's lock.
        self._role = Role()
        self._looks_at = 0.0
        self._generation = 0  # one more with each `stop`

    def is_free(self) -> bool:
        """Whether no thread is there."""
        return self._role.is_free()

    def notice(self, moment: float) -> None:
        """There is something to do at *moment*: the thread that waits may have to look earlier."""
        with self._queue.lock:
            if moment < self._looks_at:
                self._looks_at = moment  # one notice is enough
                self._queue.changed.notify_all()

    def start(self, monitored: Monitored, keep: object) -> None:
        """Look after *monitored* until nothing is ahead, and keep *keep* alive meanwhile.

        Raises `RuntimeError` if no thread can be started.
        """
        run = Run()
        with self._queue.lock:
            if not self._role.begin(run):
                return
            self._looks_at = self._clock()
            generation = self._generation
        try:
            self._threads.submit(self._watch, run, generation, monitored, keep)
        except BaseException:
            self._role.end()
            raise

    def stop(self) -> None:
        """Let the thread end, unless events wait. Doesn't wait for it; `start` begins again."""
        with self._queue.lock:
            self._generation += 1
            self._queue.changed.notify_all()

    def _watch(self, run: Run, generation: int, monitored: Monitored, _keep: object) -> None:
        earliest = self._clock()
        while self._token.is_current():  # pragma: no branch - else a greenlet in a child
            with self._queue.lock:
                moment = monitored.next_look()
                stopped = generation != self._generation
                if moment is None or (stopped and not self._queue.is_waiting()):
                    self._role.end()
                    return
                self._looks_at = moment
                left = max(moment, earliest) - self._clock()
                if left > 0:
                    # Greenlets survive a fork, and one in a child has to notice where it is.
                    longest = LONGEST_WAIT if self._queue.unsettled else threading.TIMEOUT_MAX
                    if stopped:
                        longest = SHORTEST_WAIT
                    self._queue.changed.wait(min(left, longest))
                    continue
            monitored.look(run)
            earliest = self._clock() + SHORTEST_WAIT

"""The death watch: a thread that waits until another process that shares the outbox has died.

It lives for `idle_time` after the last event, and while such processes are known to live. Where the
journal can't wait for deaths, there is no such thread, and the monitor looks from time to time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from valued._delivery.runs import Role, Run
from valued._process.fork import ProcessToken

if TYPE_CHECKING:
    from collections.abc import Callable

    from valued._delivery.executors import ThreadCache
    from valued._delivery.feed import Feed


class DeathWatch:
    """At most one thread of *threads*. Any thread may call, without the queue's lock."""

    def __init__(self, feed: Feed, threads: ThreadCache) -> None:
        self._journal = feed.journal
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

"""The threads of the default pool: started on demand, kept while they may be needed again."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from valued._process.clock import CLOCK
from valued._process.facts import has_os_threads
from valued._process.fork import ProcessToken
from valued._process.threads import remember_thread, signals_elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds between two looks at what the kernel still counts as a thread; it sends no notice.
LOOK_AGAIN: Final = 0.001

#: Seconds in which a thread that has nothing to do ends, as a rule.
GRACE: Final = 0.05

#: Seconds that a thread waits for a job after it was chosen for it; that takes microseconds.
HANDING_OVER: Final = 5.0


class _Worker:
    """A thread of the pool, and what it is to run next."""

    __slots__ = ("generation", "idles", "job", "thread", "wake")

    def __init__(self, job: Callable[[], object], wake: threading.Lock) -> None:
        self.job: Callable[[], object] | None = job
        self.thread: threading.Thread | None = None
        self.generation = 0
        self.idles = False
        self.wake = wake
        self.wake.acquire()


class ThreadCache:
    """Runs each job at once, on a thread that idles or on a new one; it has no queue.

    It has no bound either: who submits knows how many jobs are under way. *idle_time*: seconds that
    a thread waits for work before it ends. Threads are daemons, so that none can hold up the end of
    the process. Any thread may submit. It belongs to the process that made it. *new_lock* is given
    by tests only.
    """

    def __init__(
        self, idle_time: float, new_lock: Callable[[], threading.Lock] | None = None
    ) -> None:
        self._new_lock = new_lock or threading.Lock  # looked up now: gevent may have replaced it
        self.idle_time = min(idle_time, threading.TIMEOUT_MAX)
        # Only `append`, `pop` and `remove`, each of them atomic: the thread that removed a worker
        # from the list must wake it, and no other one may.
        self._idle: list[_Worker] = []
        self._workers: set[_Worker] = set()
        self._numbers = itertools.count(1)
        self._generation = 0  # one more with each `dismiss`: who is older leaves, and doesn't idle
        self._token = ProcessToken()

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> None:
        """Run *fn*, which must not raise. Raises `RuntimeError` where no thread can be started."""

        def job() -> None:
            fn(*args)

        while True:
            try:
                worker = self._idle.pop()
            except IndexError:
                self._start(_Worker(job, self._new_lock()))
                return
            is_current = worker.generation == self._generation
            worker.job = job if is_current else None  # the others leave: `join` waits for them
            worker.wake.release()
            if is_current:
                return

    def _start(self, worker: _Worker) -> None:
        worker.thread = threading.Thread(
            target=self._run,
            args=(worker,),
            name=f"valued-sender-{next(self._numbers)}",
            daemon=True,
        )
        worker.generation = self._generation
        self._workers.add(worker)  # before it runs, as `join` must not miss it
        try:
            with signals_elsewhere():
                worker.thread.start()
        except BaseException:
            if worker.thread.ident is None:  # else a Ctrl-C came while it started, and it runs
                self._workers.discard(worker)
            raise

    def _run(self, worker: _Worker) -> None:
        self._workers.add(worker)  # once more: see `_start`
        try:
            while worker.job is not None:
                worker.idles = False
                job, worker.job = worker.job, None
                if self._token.is_current():
                    job()
                del job  # or an idle thread keeps alive what it ran last
                if not self._token.is_current():
                    return  # the job forked, and this is the child
                self._idle.append(worker)
                worker.idles = True
                # Looked at after the append: a `dismiss` either finds this worker in the list, or
                # has counted on before.
                stays = worker.generation == self._generation
                if not worker.wake.acquire(timeout=self.idle_time if stays else 0):
                    try:
                        self._idle.remove(worker)
                    except ValueError:
                        # It was taken in this instant, so a job, or the order to end, comes, unless
                        # an exception broke off the call that took it.
                        if not worker.wake.acquire(timeout=HANDING_OVER):
                            return
                    else:
                        return
        finally:
            self._workers.discard(worker)
            if not self._token.is_current():
                remember_thread()

    def dismiss(self) -> None:
        """End the threads that idle, and the others after their jobs. Takes no lock.

        Later jobs start new threads.
        """
        self._generation += 1
        while self._idle:
            try:
                worker = self._idle.pop()
            except IndexError:  # pragma: no cover - another thread took the last one
                break
            worker.wake.release()  # without a job

    def join(self, deadline: float) -> bool:
        """Wait for the threads that were told to end by `dismiss`. Whether no thread was left then.

        *deadline* is of `CLOCK.monotonic`. What was started later is not waited for. Called from a
        thread of the cache, that one stays, and counts as left.
        """
        ended: set[int] = set()
        for worker in list(self._workers):
            thread = worker.thread
            # Without an ident it is being started just now, and can't be joined yet. What a signal
            # handler started after `dismiss` goes on.
            if thread is None or thread.ident is None or thread is threading.current_thread():
                continue
            if worker.generation == self._generation:
                continue
            thread.join(min(GRACE, max(0.0, deadline - CLOCK.monotonic())))
            if thread.is_alive() and worker.idles and worker not in self._idle:
                # An exception may have broken off the call that took it from the list: wake it.
                with contextlib.suppress(RuntimeError):  # it is awake
                    worker.wake.release()
            thread.join(max(0.0, deadline - CLOCK.monotonic()))
            if not thread.is_alive() and thread.native_id is not None:
                ended.add(thread.native_id)
        ended.discard(threading.get_native_id())  # greenlets share theirs
        while ended and has_os_threads(ended):
            if CLOCK.monotonic() >= deadline:
                return False
            time.sleep(LOOK_AGAIN)
        return not self._workers

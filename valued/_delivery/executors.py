"""Where deliveries run: the default pool, a user's executor or factory, or the call itself."""

from __future__ import annotations

import contextlib
import itertools
import logging
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from valued._errors import ValidationError
from valued._options import Environment, Options, environment, executor_problems, threads_are_off
from valued._process.fork import Birthplace, has_os_threads, is_uwsgi_master

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from valued._typing import Executor

_log: Final = logging.getLogger("valued")

#: Seconds between two looks at what the kernel still counts as a thread; it sends no notice.
LOOK_AGAIN: Final = 0.001

#: No bound on jobs that run in their callers: there are as many as there are callers.
AS_MANY_AS_CALLERS: Final = sys.maxsize

#: Deliveries at the same time where ``max_workers`` is not given.
DEFAULT_WORKERS: Final = 10


class ImmediateExecutor:
    """An executor that delivers in the call itself: an event is sent when its call returns.

    >>> client = valued.Client("TOKEN", executor=valued.ImmediateExecutor())

    For tests, scripts, and functions that are frozen after their answer. If the attempt fails, the
    call returns all the same; the retry waits for the next event, for ``flush`` or for the end of
    the process. It has no threads, so it works in forked children.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> None:
        """Call *fn*."""
        fn(*args)

    def __repr__(self) -> str:
        return "ImmediateExecutor()"


class _Worker:
    """A thread of the pool, and what it is to run next."""

    __slots__ = ("job", "thread", "wake")

    def __init__(self, job: Callable[[], object]) -> None:
        self.job: Callable[[], object] | None = job
        self.thread: threading.Thread | None = None
        self.wake = threading.Lock()
        self.wake.acquire()


#: Of the thread that made them; blocked, they would end the process without a word.
_FAULTS: Final = ("SIGSEGV", "SIGFPE", "SIGILL")


@contextlib.contextmanager
def _signals_elsewhere() -> Iterator[None]:
    """Have threads that are started meanwhile get no signal, under uWSGI.

    Its handlers are C code, and end the process on whichever thread the kernel chose: on one of
    ours during a delivery. Elsewhere, programs that a transport starts would inherit it.
    """
    if "uwsgi" not in sys.modules:
        yield
        return
    faults = {getattr(signal, name) for name in _FAULTS}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - faults)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ThreadCache:
    """Runs each job at once, on a thread that idles or on a new one; it has no queue.

    It has no bound either: who submits knows how many jobs are under way. *idle_time*: seconds that
    a thread waits for work before it ends. Threads are daemons, so that none can hold up the end of
    the process. Any thread may submit. It belongs to the process that made it.
    """

    def __init__(self, idle_time: float) -> None:
        self._idle_time = min(idle_time, threading.TIMEOUT_MAX)
        # Only `append`, `pop` and `remove`, each of them atomic: the thread that removed a worker
        # from the list must wake it, and no other one may.
        self._idle: list[_Worker] = []
        self._workers: set[_Worker] = set()
        self._numbers = itertools.count(1)
        self._generation = 0  # one more with each `retire`: who is older leaves, and doesn't idle
        self._born = Birthplace()

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> None:
        """Run *fn*, which must not raise. Raises `RuntimeError` where no thread can be started."""

        def job() -> None:
            fn(*args)

        try:
            worker = self._idle.pop()
        except IndexError:
            self._start(_Worker(job))
        else:
            worker.job = job
            worker.wake.release()

    def _start(self, worker: _Worker) -> None:
        worker.thread = threading.Thread(
            target=self._run,
            args=(worker, self._generation),
            name=f"valued-sender-{next(self._numbers)}",
            daemon=True,
        )
        self._workers.add(worker)  # before it runs, as `retire` must not miss it
        try:
            with _signals_elsewhere():
                worker.thread.start()
        except BaseException:
            if worker.thread.ident is None:  # else a Ctrl-C came while it started, and it runs
                self._workers.discard(worker)
            raise

    def _run(self, worker: _Worker, generation: int) -> None:
        self._workers.add(worker)  # once more: see `_start`
        try:
            while worker.job is not None:
                job, worker.job = worker.job, None
                if self._born.is_here():
                    job()
                del job  # or an idle thread keeps alive what it ran last
                if not self._born.is_here():
                    return  # the job forked, and this is the child
                self._idle.append(worker)
                # Looked at after the append: a `retire` either finds this worker in the list, or
                # has counted on before.
                stays = generation == self._generation
                if not worker.wake.acquire(timeout=self._idle_time if stays else 0):
                    try:
                        self._idle.remove(worker)
                    except ValueError:
                        # It was taken in this instant, so a job, or the order to leave, comes.
                        worker.wake.acquire()
                    else:
                        return
        finally:
            self._workers.discard(worker)
            if not self._born.is_here():
                # A greenlet of gevent's lives on in a forked child, where `threading` has forgotten
                # it: asked for it, it knows it again, and lets it end without a traceback.
                threading.current_thread()

    def retire(self, deadline: float) -> bool:
        """End the threads; those that are at work end after it. Whether all had ended by then.

        *deadline* is of `time.monotonic`. Later jobs start new threads. Called from a thread of
        the cache, that one stays, and counts as not ended.
        """
        self._generation += 1
        while self._idle:
            try:
                worker = self._idle.pop()
            except IndexError:  # another thread took the last one
                break
            worker.wake.release()  # without a job
        ended: set[int] = set()
        for worker in list(self._workers):
            thread = worker.thread
            # Without an ident it is being started just now, and can't be joined yet.
            if thread is None or thread.ident is None or thread is threading.current_thread():
                continue
            thread.join(max(0.0, deadline - time.monotonic()))
            if not thread.is_alive() and thread.native_id is not None:
                ended.add(thread.native_id)
        ended.discard(threading.get_native_id())  # greenlets share theirs
        while ended and has_os_threads(ended):
            if time.monotonic() >= deadline:
                return False
            time.sleep(LOOK_AGAIN)
        return not self._workers


class Staffing(NamedTuple):
    """How one process delivers: its executor, and how it is used."""

    executor: Executor
    #: Jobs on the executor at the same time, at most.
    limit: int
    #: Events that a job delivers before it makes room for others' work; None: all there are.
    burst: int | None = None
    #: Whether jobs are added by load, one by one; else there is one for each event.
    by_load: bool = False
    #: Whether a job runs in the caller.
    immediate: bool = False
    #: Whether it was made here, so that it ends with us.
    owned: bool = False


class Given:
    """An executor, or a factory, as a user gave it, and the process in which that was."""

    def __init__(self, executor: Executor | Callable[[], Executor]) -> None:
        self.executor = executor
        self.birthplace = Birthplace()


_default: Given | None = None


def set_executor(executor: Executor | Callable[[], Executor] | None) -> None:
    """Set the executor of all clients that were given none.

    >>> valued.set_executor(lambda: ThreadPoolExecutor(5))

    *executor*: an object with ``submit(fn, *args)``, a function that makes one in each process
    (recommended, since threads don't survive a fork), or None for the client's own choice. It
    applies to clients that have not sent anything yet in this process; forked children keep it.
    Raises `ValidationError` for anything else. Any thread may call.
    """
    global _default
    problems = executor_problems(executor)
    if problems:
        raise ValidationError(*problems)
    _default = None if executor is None else Given(executor)


def default_pool(options: Options, threads: ThreadCache) -> Staffing:
    """The default pool: 1 to ``max_workers`` of *threads*, by load."""
    fewest = 1 if environment() is Environment.DEVELOPMENT else DEFAULT_WORKERS
    return Staffing(threads, options.max_workers or fewest, by_load=True)


def staffing(
    options: Options,
    given: Given | None,
    threads: ThreadCache,
    warn: Callable[..., object] = _log.warning,
) -> Staffing:
    """How to deliver in this process; calls a factory.

    An executor that was given in another process has its threads there: *warn* is told, and the
    default pool is used.
    """
    given = Given(ImmediateExecutor()) if is_uwsgi_master() else given or _default
    if given is None:
        if threads_are_off():
            warn(
                "uWSGI runs without threads (its option enable-threads is off): each event is sent "
                "in the request that records it. Set enable-threads to send in the background."
            )
        elif environment() is not Environment.TEST:
            return default_pool(options, threads)
        given = Given(ImmediateExecutor())
    # A class is a factory, though it has a `submit` (of its objects).
    owned = isinstance(given.executor, type) or not hasattr(given.executor, "submit")
    executor: Any = _made(given.executor) if owned else given.executor
    if isinstance(executor, ImmediateExecutor):
        return Staffing(executor, limit=AS_MANY_AS_CALLERS, immediate=True)
    if not owned and not given.birthplace.is_here():
        warn(
            "the executor (%s) was made before this process was forked, so its threads are not "
            "here: events are sent on a default pool. Give a factory, such as "
            "executor=lambda: ThreadPoolExecutor(5), so that each process makes its own.",
            type(executor).__name__,
        )
        return default_pool(options, threads)
    limit = options.max_workers or DEFAULT_WORKERS
    return Staffing(executor, limit, burst=1, owned=owned)


def _made(factory: Any) -> Executor:
    executor: Executor = factory()
    if callable(getattr(executor, "submit", None)):
        return executor
    raise ValidationError(
        f"executor: the factory made a {type(executor).__name__}, which has no submit(fn, *args)"
    )

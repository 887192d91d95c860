"""Where deliveries run: the default pool, an executor or a factory of the user's, the caller."""

from __future__ import annotations

import dataclasses
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from valued._errors import ValidationError
from valued._fork import Birthplace
from valued._options import Environment, Options, environment, executor_problems

if TYPE_CHECKING:
    from collections.abc import Callable

    from valued._typing import Executor

_log: Final = logging.getLogger("valued")

#: Seconds that a thread of the default pool waits for work before it ends. A process whose threads
#: have ended is a safe one to fork; starting one again costs some 100 microseconds.
IDLE_TIME: Final = 60.0

#: No bound on jobs that run in their callers: there are as many as there are callers.
AS_MANY_AS_CALLERS: Final = sys.maxsize

#: Deliveries at the same time where ``max_workers`` is not given.
DEFAULT_WORKERS: Final = 10


class ImmediateExecutor:
    """Runs everything in the caller: an event is delivered, or postponed, when its call returns.

    For tests, scripts and functions that are frozen after their answer. Retries wait for the next
    event, for ``flush`` or for the end of the process. Has no thread, so a fork leaves it whole.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> None:
        """Call *fn*."""
        fn(*args)

    def __repr__(self) -> str:
        return "ImmediateExecutor()"


class _Thread:
    """A thread of the pool, and what it is to run next."""

    __slots__ = ("job", "wake")

    def __init__(self, job: Callable[[], object]) -> None:
        self.job: Callable[[], object] | None = job
        self.wake = threading.Lock()
        self.wake.acquire()


class ThreadCache:
    """Runs each job at once, on a thread that idles or on a new one; it has no queue.

    It has no bound either: who submits knows how many jobs are under way. Threads are daemons, so
    that none can hold up the end of the process. Any thread may submit.
    """

    def __init__(self, idle_time: float = IDLE_TIME) -> None:
        self._idle_time = idle_time
        # Only `append`, `pop` and `remove`, each of them atomic: whoever removed a thread from the
        # list has the right, and the duty, to wake it.
        self._idle: list[_Thread] = []
        self._numbers = 0
        self._threads: set[threading.Thread] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> None:
        """Run *fn*, which must not raise. Raises `RuntimeError` where no thread can be started."""

        def job() -> None:
            fn(*args)

        try:
            thread = self._idle.pop()
        except IndexError:
            self._start(_Thread(job))
        else:
            thread.job = job
            thread.wake.release()

    def _start(self, thread: _Thread) -> None:
        self._numbers += 1
        threading.Thread(
            target=self._run, args=(thread,), name=f"valued-sender-{self._numbers}", daemon=True
        ).start()

    def _run(self, thread: _Thread) -> None:
        me = threading.current_thread()
        self._threads.add(me)
        try:
            while thread.job is not None:
                job, thread.job = thread.job, None
                job()
                del job  # or an idle thread keeps alive what it ran last
                self._idle.append(thread)
                if not thread.wake.acquire(timeout=self._idle_time):
                    try:
                        self._idle.remove(thread)
                    except ValueError:
                        # It was taken in this instant, so a job, or the order to leave, comes.
                        thread.wake.acquire()
                    else:
                        return
        finally:
            self._threads.discard(me)

    def retire(self, deadline: float, clock: Callable[[], float]) -> bool:
        """End the threads that have nothing to do; whether all had ended by *deadline*.

        Later jobs start new ones. Called from a thread of the cache, that one stays.
        """
        while self._idle:
            try:
                thread = self._idle.pop()
            except IndexError:  # somebody else took the last one
                break
            thread.wake.release()  # without a job
        for running in list(self._threads):
            if running is not threading.current_thread():
                running.join(max(0.0, deadline - clock()))
        return not self._threads


@dataclasses.dataclass(frozen=True)
class Staffing:
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
    """Set the executor of clients that name none: an executor, or a factory; None: our own choice.

    It counts for clients that have not sent yet in this process; forked children keep it. Raises
    `ValidationError` for anything else.
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


def staffing(options: Options, given: Given | None, threads: ThreadCache) -> Staffing:
    """How to deliver in this process; calls a factory.

    An executor that was given in another process has its threads there: that is said, and the
    default pool is used.
    """
    given = given or _default
    if given is None:
        if environment() is not Environment.TEST:
            return default_pool(options, threads)
        given = Given(ImmediateExecutor())
    # A class is a factory, though it has a `submit` (of its objects).
    owned = isinstance(given.executor, type) or not hasattr(given.executor, "submit")
    executor: Any = _made(given.executor) if owned else given.executor
    if isinstance(executor, ImmediateExecutor):
        return Staffing(executor, limit=AS_MANY_AS_CALLERS, immediate=True)
    if not owned and not given.birthplace.is_here():
        _log.warning(
            "the executor (%s) was made before this process was forked, so its threads are not "
            "here: events are sent on a default pool. Give a factory, such as "
            "executor=lambda: ThreadPoolExecutor(5), and each process has its own.",
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

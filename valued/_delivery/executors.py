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
from valued._process.clock import CLOCK
from valued._process.facts import has_os_threads
from valued._process.fork import ProcessToken, is_uwsgi_master

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from valued._typing import Executor

_log: Final = logging.getLogger("valued")

#: Seconds between two looks at what the kernel still counts as a thread; it sends no notice.
LOOK_AGAIN: Final = 0.001

#: Seconds in which a thread that has nothing to do ends, as a rule.
GRACE: Final = 0.05

#: Seconds that a thread waits for a job after it was chosen for it; that takes microseconds.
HANDING_OVER: Final = 5.0

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

    __slots__ = ("generation", "idles", "job", "thread", "wake")

    def __init__(self, job: Callable[[], object], wake: threading.Lock) -> None:
        self.job: Callable[[], object] | None = job
        self.thread: threading.Thread | None = None
        self.generation = 0
        self.idles = False
        self.wake = wake
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
    the process. Any thread may submit. It belongs to the process that made it. *new_lock* is given
    by tests only.
    """

    def __init__(
        self, idle_time: float, new_lock: Callable[[], threading.Lock] | None = None
    ) -> None:
        self._new_lock = new_lock or threading.Lock  # looked up now: gevent may have replaced it
        self._idle_time = min(idle_time, threading.TIMEOUT_MAX)
        # Only `append`, `pop` and `remove`, each of them atomic: the thread that removed a worker
        # from the list must wake it, and no other one may.
        self._idle: list[_Worker] = []
        self._workers: set[_Worker] = set()
        self._numbers = itertools.count(1)
        self._generation = 0  # one more with each `retire`: who is older leaves, and doesn't idle
        self._token = ProcessToken()

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> None:
        """Run *fn*, which must not raise. Raises `RuntimeError` where no thread can be started."""

        def job() -> None:
            fn(*args)

        try:
            worker = self._idle.pop()
        except IndexError:
            self._start(_Worker(job, self._new_lock()))
        else:
            worker.job = job
            worker.wake.release()

    def _start(self, worker: _Worker) -> None:
        worker.thread = threading.Thread(
            target=self._run,
            args=(worker,),
            name=f"valued-sender-{next(self._numbers)}",
            daemon=True,
        )
        worker.generation = self._generation
        self._workers.add(worker)  # before it runs, as `retire` must not miss it
        try:
            with _signals_elsewhere():
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
                # Looked at after the append: a `retire` either finds this worker in the list, or
                # has counted on before.
                stays = worker.generation == self._generation
                if not worker.wake.acquire(timeout=self._idle_time if stays else 0):
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
                # A greenlet of gevent's lives on in a forked child, where `threading` has forgotten
                # it: asked for it, it knows it again, and lets it end without a traceback.
                threading.current_thread()

    def dismiss(self) -> None:
        """End the threads that idle, and the others after their jobs. Takes no lock."""
        self._generation += 1
        while self._idle:
            try:
                worker = self._idle.pop()
            except IndexError:  # pragma: no cover - another thread took the last one
                break
            worker.wake.release()  # without a job

    def retire(self, deadline: float) -> bool:
        """End the threads; those that are at work end after it. Whether all had ended by then.

        *deadline* is of `CLOCK.monotonic`. Later jobs start new threads. Called from a thread of
        the cache, that one stays, and counts as not ended.
        """
        self.dismiss()
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


class ExecutorPlan(NamedTuple):
    """How one process delivers: its executor, and how it is used."""

    executor: Executor
    #: Jobs on the executor at the same time, at most.
    limit: int
    #: Events that a job delivers before it makes room for others' work; None: all there are.
    burst: int | None = None
    #: Whether jobs are added one by one, when events wait; else there is one for each event.
    gradual: bool = False
    #: Whether a job runs in the caller.
    immediate: bool = False
    #: Whether it was made here, so that it ends with us.
    owned: bool = False


class ExecutorSpec:
    """An executor, or a factory, as a user gave it, and the process in which that was."""

    def __init__(self, executor: Executor | Callable[[], Executor]) -> None:
        self.executor = executor
        self.token = ProcessToken()


_default: ExecutorSpec | None = None


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
    _default = None if executor is None else ExecutorSpec(executor)


def default_pool(options: Options, threads: ThreadCache) -> ExecutorPlan:
    """The default pool: 1 to ``max_workers`` of *threads*, more when events wait."""
    fewest = 1 if environment() is Environment.DEVELOPMENT else DEFAULT_WORKERS
    return ExecutorPlan(threads, options.max_workers or fewest, gradual=True)


def plan_for(
    options: Options,
    given: ExecutorSpec | None,
    threads: ThreadCache,
    warn: Callable[..., object] = _log.warning,
) -> ExecutorPlan:
    """How to deliver in this process; calls a factory.

    An executor that was given in another process has its threads there: *warn* is told, and the
    default pool is used.
    """
    given = ExecutorSpec(ImmediateExecutor()) if is_uwsgi_master() else given or _default
    if given is None:
        if threads_are_off():
            warn(
                "uWSGI runs without threads (its option enable-threads is off): each event is sent "
                "in the request that records it. Set enable-threads to send in the background."
            )
        elif environment() is not Environment.TEST:
            return default_pool(options, threads)
        given = ExecutorSpec(ImmediateExecutor())
    # A class is a factory, though it has a `submit` (of its objects).
    owned = isinstance(given.executor, type) or not hasattr(given.executor, "submit")
    executor: Any = _made(given.executor) if owned else given.executor
    if isinstance(executor, ImmediateExecutor):
        return ExecutorPlan(executor, limit=AS_MANY_AS_CALLERS, immediate=True)
    if not owned and not given.token.is_current():
        warn(
            "the executor (%s) was made before this process was forked, so its threads are not "
            "here: events are sent on a default pool. Give a factory, such as "
            "executor=lambda: ThreadPoolExecutor(5), so that each process makes its own.",
            type(executor).__name__,
        )
        return default_pool(options, threads)
    limit = options.max_workers or DEFAULT_WORKERS
    return ExecutorPlan(executor, limit, burst=1, owned=owned)


def _made(factory: Any) -> Executor:
    executor: Executor = factory()
    if callable(getattr(executor, "submit", None)):
        return executor
    raise ValidationError(
        f"executor: the factory made a {type(executor).__name__}, which has no submit(fn, *args)"
    )


class Executors:
    """The executor of one process: chosen for its first event, replaced when it fails.

    Any thread may call.
    """

    def __init__(self, options: Options, spec: ExecutorSpec | None, threads: ThreadCache) -> None:
        self._options = options
        self._spec = spec
        self._threads = threads
        self._warned: set[str] = set()
        self._token = ProcessToken()
        self.plan: ExecutorPlan | None = None
        #: Workers up to which a caller starts one more.
        self.limit = 1

    def choose(self) -> ExecutorPlan:
        """Choose the executor; calls a factory."""
        try:
            plan = plan_for(self._options, self._spec, self._threads, self._warn_once)
        except Exception:  # noqa: BLE001 - the user's factory may raise anything
            _log.exception("no executor could be made: a default pool sends the events")
            plan = default_pool(self._options, self._threads)
        if self._token.is_current():  # else the factory forked, and this is the child
            self._use(plan)
        return plan

    def replace(self, plan: ExecutorPlan, reason: str, *, quiet: bool) -> None:
        """The executor of *plan* accepts no more work: use a default pool. *quiet*: no log line."""
        if self.plan is plan:
            self._use(default_pool(self._options, self._threads))
            if not quiet:
                _log.warning(
                    "the executor (%s) accepts no more work (%s): a default pool sends the events",
                    type(plan.executor).__name__,
                    reason,
                )

    def shutdown(self, *, idle: bool) -> None:
        """Let go of the executor; end it, if it was made by us. *idle*: nothing is being sent."""
        plan, self.plan, self.limit = self.plan, None, 1
        stop = getattr(plan.executor, "shutdown", None) if plan else None
        if plan is not None and plan.owned and stop is not None:
            try:
                # `shutdown` has no deadline: wait only where nothing is under way.
                stop(wait=idle)
            except Exception:  # noqa: BLE001 - the user's executor may raise anything
                _log.exception("the executor could not be shut down")

    def _use(self, plan: ExecutorPlan) -> None:
        self.plan, self.limit = plan, 1 if plan.gradual else plan.limit

    def _warn_once(self, message: str, *args: object) -> None:
        if message not in self._warned:
            self._warned.add(message)
            _log.warning(message, *args)

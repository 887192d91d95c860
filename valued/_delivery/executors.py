"""Where deliveries run: the default pool, a user's executor or factory, or the call itself."""

from __future__ import annotations

import logging
import sys
import weakref
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from valued._errors import ValidationError
from valued._options import Environment, Options, environment, executor_problems, threads_are_off
from valued._process import shutdown
from valued._process.fork import ProcessToken, is_uwsgi_master

if TYPE_CHECKING:
    from collections.abc import Callable

    from valued._delivery.threads import ThreadCache
    from valued._process.reporting import Reporter
    from valued._typing import Executor

_log: Final = logging.getLogger("valued")

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


class Owner(shutdown.ExitListener, Protocol):
    """A pipeline. Its workers keep it alive while they have something to do."""

    def begin_to_drain(self) -> object:
        """The process ends: that was noticed by its first event, or by a job that was refused."""


class Executors:
    """The executor of one process: chosen for its first event, replaced when it fails.

    Any thread may call.
    """

    def __init__(
        self,
        options: Options,
        spec: ExecutorSpec | None,
        threads: ThreadCache,
        reporter: Reporter,
        owner: Owner,
    ) -> None:
        self._options = options
        self._spec = spec
        self.threads: Final = threads
        self._reporter = reporter
        self._owner = weakref.ref(owner)  # weak: the last reference to a client ends its threads
        self._warned: set[str] = set()
        self._token = ProcessToken()
        self.plan: ExecutorPlan | None = None
        #: Workers up to which a caller starts one more.
        self.limit = 1
        #: Whether the last try to start a thread of the pool failed.
        self.has_no_threads = False

    def choose(self) -> ExecutorPlan:
        """Choose the executor; calls a factory."""
        try:
            plan = plan_for(self._options, self._spec, self.threads, self._warn_once)
        except Exception:  # noqa: BLE001 - the user's factory may raise anything
            _log.exception("no executor could be made: a default pool sends the events")
            plan = default_pool(self._options, self.threads)
        if self._token.is_current():  # else the factory forked, and this is the child
            self._use(plan)
            self._look_for_the_end()  # the first event may come from an exit handler
        return plan

    def refused(self, plan: ExecutorPlan, reason: str) -> None:
        """The executor of *plan* didn't run a job. Unless it is the pool, a pool replaces it."""
        # On 3.12 no thread can be started once the exit has begun (in Python's words), which
        # needs no warning.
        quiet = shutdown.is_ending() or "interpreter shutdown" in reason
        if plan.gradual:
            self.has_no_threads = True
            if not quiet:  # pragma: no branch - else Python 3.12, at the end
                self._reporter.warn(
                    "threads",
                    "%d times no thread could be started (%s): events wait until a later event, a "
                    "flush or the end of the process tries again",
                    reason,
                )
        elif self.plan is plan:
            self._use(default_pool(self._options, self.threads))
            if not quiet:
                _log.warning(
                    "the executor (%s) accepts no more work (%s): a default pool sends the events",
                    type(plan.executor).__name__,
                    reason,
                )
        self._look_for_the_end()

    def _look_for_the_end(self) -> None:
        if shutdown.is_ending() and (owner := self._owner()) is not None:
            owner.begin_to_drain()

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

"""The workers of one process: how many there are, what starts and ends them.

A *worker* is a call of `Workers._work` on the executor. It takes events and sends them until there
are none. The thread that puts an event looks *after* that whether a worker has to be started; a
worker that found nothing looks once more *after* it has counted itself out. So no event can be left
without a worker. See `monitor` for what becomes ready by time alone.
"""

from __future__ import annotations

import collections
import functools
import weakref
from typing import TYPE_CHECKING, Any, Final

from valued._delivery.attempt import LAST_ATTEMPT
from valued._delivery.entry import Role, Run, Runs
from valued._delivery.monitor import DeathWatch, Monitor
from valued._process import shutdown
from valued._process.fork import ProcessToken
from valued._process.reporting import log

if TYPE_CHECKING:
    from collections.abc import Callable

    from valued._delivery.attempt import Attempts
    from valued._delivery.entry import Entry
    from valued._delivery.executors import ExecutorPlan, Executors, Owner
    from valued._delivery.feed import Feed
    from valued._delivery.losses import Losses

#: Seconds that an event waits, while all workers are busy, before one more is started. Long
#: compared with the delays of a busy interpreter, short for people.
STALL_TIMEOUT: Final = 0.05

#: Seconds. A service that answers more quickly keeps one worker busy with Python's own work, for
#: which threads take turns: more of them would only make the application wait for its turn.
SLOW_ATTEMPT: Final = 0.002

#: Seconds for which deaths are waited for at least, while events are pending.
SHORTEST_WATCH: Final = 5.0

#: How many attempts in a row tell whether the service is slow. One that is quick by chance is rare,
#: one that is slow by chance, as the machine is busy, is not: so the quickest of them counts.
RECENT_ATTEMPTS: Final = 4


class Pace:
    """How quickly the service answered lately. With the lock, but for `note`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._recent: collections.deque[float] = collections.deque(maxlen=RECENT_ATTEMPTS)
        self.ended = clock()  # the latest attempt

    def note(self, began: float) -> None:
        """An attempt that began then has ended."""
        self.ended = self._clock()
        self._recent.append(self.ended - began)

    def is_quick(self) -> bool:
        """Whether it answers so quickly that more workers would only take turns."""
        return min(self._recent, default=SLOW_ATTEMPT) < SLOW_ATTEMPT


class Workers:
    """The workers of one process. Any thread of it may call, without the queue's lock."""

    def __init__(
        self, feed: Feed, attempts: Attempts, executors: Executors, losses: Losses, owner: Owner
    ) -> None:
        self._feed = feed
        self._attempts = attempts
        self._executors = executors
        self._threads = threads = executors.threads
        self._losses = losses
        self._owner = weakref.ref(owner)  # weak: the last reference to a client ends its threads
        self._in_memory = not feed.backlog.journal.stores
        self._clock = feed.queue.clock
        self._lock = feed.queue.lock
        self._token = ProcessToken()
        self._monitor: Final = Monitor(feed, threads)
        self._deathwatch: Final = DeathWatch(feed, threads)
        # All below is guarded by the lock.
        self._present = Runs()
        self._pace = Pace(self._clock)
        self._inline = Role()  # sends in a thread that waits, and is no worker

    # -- starting ----------------------------------------------------------------------------------

    def notice(self) -> None:
        """An event was put: see that something is on its way to it. Called for each event."""
        executors = self._executors
        if len(self._present) < executors.limit:
            if self._start():
                return
            if executors.has_no_threads and shutdown.exit_waits_for_threads():
                self.send_inline(None)  # no thread can be started any more
        elif self._in_memory and (plan := executors.plan) is not None and not plan.gradual:
            return  # all jobs that may be there are there, and each looks for more at its end
        if self._monitor.is_free():
            self._watch()

    def wake(self) -> None:
        """Start workers for what is ready, and watch for what becomes ready."""
        plan = self._executors.plan
        if plan is None or not plan.immediate:
            for _ in range(max(1, self._executors.limit - len(self._present))):
                if not self._start():
                    break
        self._watch()

    def _start(self) -> bool:
        """Start a worker, if one more is allowed and there is something to do. Whether it was."""
        if not self._token.is_current():
            return False
        with self._lock:
            moment = self._next_start()
            if moment is None or moment > self._clock():
                return False
            run = Run()
            self._present.add(run)
        plan = None
        try:
            plan = self._executors.plan or self._executors.choose()
            if not self._token.is_current():
                return False  # the factory forked, and this is the child
            future: Any = plan.executor.submit(self._work, plan, run, self._owner())
        except BaseException as error:
            # The executor was shut down, no thread can be started, the user's executor raised, or
            # Ctrl-C. With Ctrl-C the job may exist already; then there is one too many for a while.
            self._present.discard(run)
            if plan is None or not isinstance(error, Exception) or plan.immediate:
                raise
            self._refused(plan, f"{type(error).__name__}: {error}")
            return False
        self._executors.has_no_threads = False
        if hasattr(future, "add_done_callback"):
            future.add_done_callback(functools.partial(self._check, plan, weakref.ref(run)))
        return True

    def _next_start(self) -> float | None:
        """When one more worker has something to do; None: never, as things are. With the lock."""
        count, plan = len(self._present), self._executors.plan
        if count and (plan is None or count >= plan.limit):
            return None
        outlook = self._feed.outlook()
        if not count or plan is None or not plan.gradual:
            return outlook.first()
        if outlook.event is None:
            return None
        # All are busy. If the service is quick, one more helps only if the attempts under way hang.
        pace = self._pace
        return max(outlook.event, pace.ended if pace.is_quick() else 0.0) + STALL_TIMEOUT

    def _check(self, plan: ExecutorPlan, reference: weakref.ref[Run], future: Any) -> None:
        """Handle a job that the executor accepted and then never ran, since it was cancelled."""
        if not self._token.is_current():
            return
        reason = "it was cancelled" if future.cancelled() else future.exception()
        if reason is not None:
            if (run := reference()) is not None:
                self._present.discard(run)
            self._refused(plan, f"a job did not run: {reason}")

    def _refused(self, plan: ExecutorPlan, reason: str) -> None:
        """The executor of *plan* didn't run a job."""
        self._executors.refused(plan, reason)
        if not plan.gradual:
            self._start()

    # -- working -----------------------------------------------------------------------------------

    def _work(self, plan: ExecutorPlan, run: Run, _keep: Owner | None) -> None:
        """A worker. Runs on the executor, and keeps its owner alive."""
        if not run.begin():
            return  # some executors run a job again
        left = plan.burst
        try:
            if plan.gradual:  # before it looks for dead processes: those that begin later tell
                self._deathwatch.begin(self._idle_in, self._watch)
            while left != 0 and (entry := self._next(run)) is not None:
                began = self._clock()
                if not self._attempts.attempt(entry, run):
                    return
                self._pace.note(began)
                self._losses.report()
                if left is not None:
                    left -= 1
                elif plan.gradual and not self._pace.is_quick() and len(self._present) < plan.limit:
                    self._start()
        except BaseException:  # `SystemExit` out of a transport, and its like
            if plan.immediate:  # it belongs to the caller, like a Ctrl-C
                raise
            log.exception("an exception ended a worker; another one replaces it")
        finally:
            if self._token.is_current():
                self._losses.report()
                run.has_ended = True
                self._present.discard(run)
                # Look once more, now that this worker no longer counts: a thread that put an event
                # may have relied on it. Synchronously, each event has a run of its own.
                if plan.immediate:
                    self._watch()
                else:
                    self.wake()

    def _next(self, run: Run) -> Entry | None:
        """The next event for *run*; None: there is none, and the run doesn't count any more."""
        if not self._token.is_current():
            return None  # a greenlet in a child: greenlets survive a fork
        reference = weakref.ref(run)
        while True:
            self._feed.backlog.tend(run)
            with self._lock:
                entry = self._feed.take(reference)
                if entry is None:
                    counted = self._present.discard(run)
                    # Look again, after that: see the module's docstring.
                    entry = self._feed.take(reference)
                    if entry is not None and counted:
                        self._present.add(run)
            if entry is None or not (reason := self._feed.reason_to_drop(entry)):
                return entry
            with self._lock:
                self._feed.pass_over(entry)
            self._attempts.drop(entry, reason)

    # -- the monitor -------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Have the monitor look after what becomes ready by time alone, if there is such."""
        if not self._token.is_current():
            return
        with self._lock:
            moment = self.next_look()
        if moment is None:
            return
        if not self._monitor.is_free():
            self._monitor.notice(moment, self._owner())
            return
        if self._executors.plan is None and self._present:
            return  # a worker begins: its executor is being made, and in the end it comes here
        plan = self._executors.plan or self._executors.choose()
        try:
            if not plan.immediate:
                self._monitor.start(self, self._owner)
                return
        except RuntimeError:  # no thread can be started
            self._executors.has_no_threads = True
        if (owner := self._owner()) is not None:  # pragma: no branch - it is kept by its jobs
            shutdown.keep(owner)  # the next event, a flush or the exit sends what waits

    def _idle_in(self) -> float:
        """In how many seconds a thread without work ends, unless there is new work."""
        queue = self._feed.queue
        if queue.counts.unsettled or queue.inbox:
            return max(self._threads.idle_time, SHORTEST_WATCH)  # or a short one would begin often
        return self._pace.ended + self._threads.idle_time - self._clock()

    def next_look(self) -> float | None:
        """See `Monitored.next_look`."""
        moments = self._next_start(), self._feed.backlog.next_task()
        return min((one for one in moments if one is not None), default=None)

    def look(self, run: Run) -> None:
        """See `Monitored.look`."""
        self._feed.backlog.tend(run)
        if not self._start() and self._executors.has_no_threads and (entry := self._next(run)):
            self._attempts.attempt(entry, run)  # pragma: no cover - only this thread could start

    # -- sending in a thread that waits ------------------------------------------------------------

    def send_inline(self, deadline: float | None) -> bool:
        """Send one event in this thread, if no other thread is there to do it.

        Whether it was one. One thread at a time, or each request at a server's end would open a
        connection; the one that sends also sends the events of the others.
        """
        plan, run = self._executors.plan, Run()
        is_alone = self._executors.has_no_threads and not self._present
        if not (plan is None or plan.immediate or is_alone):
            return False
        with self._lock:
            if not self._inline.begin(run):
                return False
        try:
            entry = self._next(run)
            return entry is not None and self._attempts.attempt(entry, run, deadline)
        finally:
            run.has_ended = True
            if self._token.is_current():
                self._inline.end()
                self._watch()  # the deadline of a flush may come before the retry of this event

    # -- ending ------------------------------------------------------------------------------------

    def shutdown(self, deadline: float | None, *, idle: bool) -> bool:
        """End the threads, and an executor made by us; *idle*: nothing is being sent.

        Returns whether no thread is left.
        """
        # First: no thread that is started later is waited for. The next two end those before it.
        self._threads.dismiss()
        self._deathwatch.stop()
        self._monitor.stop()
        self._executors.shutdown(idle=idle)
        soon = self._clock() + LAST_ATTEMPT
        return self._threads.join(soon if deadline is None else max(soon, deadline))

    def dismiss(self) -> None:
        """End the threads once they have nothing to do. A finalizer, or the exit, may call."""
        self._threads.dismiss()
        self._deathwatch.stop()
        self._monitor.stop_from_finalizer()

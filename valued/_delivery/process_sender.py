"""What one process sends with: its outbox, its executor, and the jobs that run on it.

A *job* runs on the executor: it takes events from the outbox and delivers them until there are
none. The thread that puts an event checks *after* that whether to add a job; a job that found
nothing checks once more *after* it has counted itself out. So no event can be left without a job.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from valued._delivery.attempt import LAST_ATTEMPT, Delivery
from valued._delivery.executors import Given, Staffing, ThreadCache, default_pool, staffing
from valued._delivery.load import Load, Moment
from valued._process import shutdown as _leaving
from valued._process.fork import Birthplace
from valued._process.reporting import Reporter, log

if TYPE_CHECKING:
    from valued._options import Options
    from valued._typing import Item, Outbox, Wire

#: Seconds without a settled event after which waiting events get one more worker, whatever `Load`
#: says: a delivery may hang. Long compared with a busy interpreter's delays, short for people.
PATIENCE: Final = 0.05

#: A deadline that has passed: look, don't wait.
NOW: Final = 0.0


class ProcessSender:
    """Delivers what one process accepts. Any thread of that process may call."""

    def __init__(self, wire: Wire, options: Options, given: Given | None, outbox: Outbox) -> None:
        self.outbox = outbox
        self._options = options
        self._given = given
        self._reporter = Reporter(options.on_error)
        self._delivery = Delivery(wire, options, outbox, self._reporter, self._watch)
        self._threads = ThreadCache(options.idle_time)
        self._born = Birthplace()
        self._warned: set[str] = set()
        self._staffing: Staffing | None = None
        self._end: float | None = None  # `time.monotonic` of the end, once it has begun
        self._progress = time.monotonic()  # of the last delivery that ended, or job added by load

        # Guards _jobs, _limit and _watching, for a comparison and an assignment. Re-entrant, as a
        # signal handler may record an event. No other lock is taken inside.
        self._lock = threading.RLock()
        # One token per job: an exception out of a signal handler can't count a job out twice.
        self._jobs: set[object] = set()
        self._driver = threading.Lock()  # held by the thread that delivers at exit; never awaited
        self._limit = 1  # until the executor exists, so that only one thread makes it
        self._watching = False  # whether a thread waits until postponed events are due
        self._minding = False  # whether a thread checks that no delivery blocks the others
        self._enough = threading.Lock()  # released to end that thread's wait
        self._enough.acquire()
        self._load = Load()

    # -- accepting ---------------------------------------------------------------------------------

    def accept(self, body: bytes) -> None:
        if _leaving.is_over():
            self._delivery.lose()
            return
        item = self.outbox.put(body)
        if item is not None:  # the outbox is full: deliver it in this call
            item.attempts += 1
            self._attempt(item)
        elif self._end is None:
            if len(self._jobs) < self._limit:
                self._hire()
            elif not self._minding:
                self._mind()
        if self._end is not None:  # the process ends: no worker may live long enough to deliver it
            self._finish()

    # -- jobs --------------------------------------------------------------------------------------

    def _hire(self, *, anyway: bool = False) -> None:
        """Add a job if one more is allowed and there is something to do (or *anyway*)."""
        if not self._born.is_here() or not (anyway or self.outbox.ready()):
            return
        job = object()
        staffing = None
        try:
            with self._lock:
                if len(self._jobs) >= self._limit:
                    return
                self._jobs.add(job)
            staffing = self._staffing or self._staff()
            if not self._born.is_here():
                return  # the factory forked, and this is the child
            future: Any = staffing.executor.submit(self._work, staffing, job)
        except BaseException as error:
            # The executor was shut down, no thread can be started, the user's executor raised, or
            # Ctrl-C. With Ctrl-C the job may exist already; then there is one too many for a while.
            self._job_done(job)
            if staffing is None or not isinstance(error, Exception):
                raise
            self._refused(staffing, f"{type(error).__name__}: {error}")
        else:
            if hasattr(future, "add_done_callback"):
                future.add_done_callback(functools.partial(self._check, staffing, job))

    def _fill(self) -> None:
        """Add jobs for what became ready, one after the other, and watch for one that hangs."""
        for _ in range(self._limit - len(self._jobs)):
            self._hire()
        self._mind()

    def _check(self, staffing: Staffing, job: object, future: Any) -> None:
        """Handle a job that the executor accepted and then never ran, since it was cancelled."""
        if not self._born.is_here():
            return
        reason = "it was cancelled" if future.cancelled() else future.exception()
        if reason is not None:
            self._job_done(job)
            self._refused(staffing, f"a job did not run: {reason}")

    def _staff(self) -> Staffing:
        _leaving.enroll(self)
        try:
            hired = staffing(self._options, self._given, self._threads, self._warn_once)
        except Exception:  # noqa: BLE001 - the user's factory may raise anything
            log.exception("no executor could be made: a default pool sends the events")
            hired = default_pool(self._options, self._threads)
        if self._born.is_here():
            self._use(hired)
            if _leaving.is_ending():  # the first event comes from an atexit handler
                self._begin_end(time.monotonic())
        return hired

    def _warn_once(self, message: str, *args: object) -> None:
        if message not in self._warned:
            self._warned.add(message)
            log.warning(message, *args)

    def _use(self, hired: Staffing) -> None:
        with self._lock:
            self._staffing = hired
            self._limit = 1 if hired.by_load else hired.limit

    def _refused(self, staffing: Staffing, reason: str) -> None:
        if _leaving.is_ending():
            # The thread that records, and the one that ends the process, deliver what is pending; a
            # worker that could start no other one goes on with its own event.
            self._begin_end(time.monotonic())
            return
        if staffing.by_load:
            # From 3.12 on no thread can be started once the exit has begun, which needs no warning.
            # The main thread counts as alive then, until all executors have finished their work.
            if "interpreter shutdown" not in reason:
                self._reporter.warn(
                    "threads",
                    "%d times no thread could be started (%s): events are sent synchronously",
                    reason,
                )
            # Each event once: this may be a worker of the user's executor, and Python waits for it
            # without a bound. Where another worker lives, it delivers all that waits.
            for _ in range(self.outbox.pending()):
                item = None if self._jobs else self.outbox.take()
                if item is None or not self._attempt(item):
                    return
            return
        with self._lock:
            first = self._staffing is staffing
            if first:
                self._staffing = default_pool(self._options, self._threads)
                self._limit = len(self._jobs) + 1  # don't wait for what the old one still runs
        # At interpreter shutdown (Python's wording) this is normal.
        if first and "interpreter shutdown" not in reason:
            log.warning(
                "the executor (%s) accepts no more work (%s): a default pool sends the events",
                type(staffing.executor).__name__,
                reason,
            )
        self._hire()

    def _work(self, staffing: Staffing, job: object) -> None:
        """A job. Runs on the executor."""
        left = staffing.burst
        try:
            while left != 0 and (item := self.outbox.take()) is not None:
                if not self._attempt(item):
                    return
                if left is not None:
                    left -= 1
                elif self._load.wants_fewer(len(self._jobs)):
                    break
        except BaseException:  # `SystemExit` out of a transport, and its like
            if staffing.immediate:  # it belongs to the caller, like a Ctrl-C
                raise
            log.exception("an exception ended a worker; another one replaces it")
        finally:
            if self._born.is_here():
                self._job_done(job)
                # Look once more, now that this job no longer counts: a thread that put an event may
                # have relied on it. Synchronously, each event has a job of its own.
                if not staffing.immediate:
                    self._fill()
                    self._watch()

    def _attempt(self, item: Item, deadline: float | None = None) -> bool:
        """See `Delivery.attempt`. Adds a worker if events wait and that helps."""
        began = Moment.now()
        lag = began.wall - item.accepted_at
        if not self._delivery.attempt(item, deadline):
            return False
        self._delivery.say_overflow()
        ended = Moment.now()
        self._progress = ended.wall
        self._load.observe(began, ended, lag)
        if self._load.wants_more(len(self._jobs)):
            self._grow()
        return True

    def _job_done(self, job: object) -> None:
        with self._lock:
            self._jobs.discard(job)
            if self._staffing is None or self._staffing.by_load:
                self._limit = max(1, len(self._jobs))

    def _grow(self) -> None:
        """Add one worker, if workers are added by load and events wait."""
        if not self._may_grow() or not self.outbox.ready():
            return
        with self._lock:
            if not self._may_grow():
                return
            self._limit += 1
            self._progress = time.monotonic()
        self._hire()

    def _may_grow(self) -> bool:
        staffing = self._staffing
        return staffing is not None and staffing.by_load and self._limit < staffing.limit

    def _mind(self) -> None:
        """Make sure that waiting events get a worker, even if all present workers hang."""
        if self._minding or not self._may_grow() or not self.outbox.ready():
            return
        self._minding = True
        try:
            self._threads.submit(self._grow_while_stuck)
        except RuntimeError:  # no thread can be started: the next event, or a flush, looks again
            self._minding = False

    def _grow_while_stuck(self) -> None:
        while self._born.is_here() and self._may_grow() and self.outbox.ready():
            settled = self._progress
            if self._enough.acquire(timeout=PATIENCE):
                break
            if self._progress == settled:
                self._grow()
        self._minding = False
        self._mind()  # after the flag is reset: an event put meanwhile relied on this thread
        self._watch()  # a probe may be what hangs

    def _watch(self) -> None:
        """Make sure that postponed events, if there are any, are delivered when they are due."""
        if self._watching or not self.outbox.postponed():
            return
        staffing = self._staffing
        if staffing is None or staffing.immediate:
            # No thread of ours: the next event, a flush or the exit delivers them.
            _leaving.keep(self)
            return
        with self._lock:
            if self._watching:
                return
            self._watching = True
        try:
            self._threads.submit(self._hire_when_due)
        except RuntimeError:  # no thread can be started: as above
            self._watching = False
            _leaving.keep(self)

    def _hire_when_due(self) -> None:
        while self.outbox.wait_until_due() and self._born.is_here():
            self._fill()
        if not self._born.is_here():
            return  # a greenlet in a child: greenlets survive a fork
        self._fill()  # what was made due at once is not postponed any more
        self._watching = False
        self._watch()  # after the flag is reset: an event postponed meanwhile relied on this thread

    def adopt(self) -> int:
        found = self.outbox.adopt()
        self._hire(anyway=self.outbox.postponed())  # the job also adopts what others leave later
        return found

    # -- waiting and ending ------------------------------------------------------------------------

    def flush(self, deadline: float | None) -> bool:
        mark = self.outbox.mark()
        staffing = self._staffing
        if staffing is None or staffing.immediate:
            settled = self._drive(mark, deadline)
        else:
            self._watch()
            self._mind()
            settled = self.outbox.wait(mark, deadline)
        return settled and self._born.is_here() and self._delivery.wait_until_told(deadline)

    def park(self, deadline: float | None) -> bool:
        return self.flush(deadline) and self._dismiss(deadline, settled=True)

    def close(self, deadline: float | None) -> bool:
        done = self.flush(deadline)
        if not done:
            self._reporter.warn(
                "closed",
                "%d events were dropped: they were not delivered when the client was closed",
                count=self._delivery.abandon("closed"),
            )
        self._delivery.say_the_rest()
        self._dismiss(deadline, settled=done)
        return done

    def _dismiss(self, deadline: float | None, *, settled: bool) -> bool:
        """End the threads, and an executor made by us. Returns whether no thread is left."""
        self.outbox.rest()
        with self._lock:
            staffing, self._staffing = self._staffing, None
            self._limit = 1
        shutdown = getattr(staffing.executor, "shutdown", None) if staffing else None
        if staffing is not None and staffing.owned and shutdown is not None:
            try:
                # `shutdown` has no deadline: wait only where nothing is under way.
                shutdown(wait=settled)
            except Exception:  # noqa: BLE001 - the user's executor may raise anything
                log.exception("the executor could not be shut down")
        with contextlib.suppress(RuntimeError):  # no thread waits, and the lock is free already
            self._enough.release()
        soon = time.monotonic() + LAST_ATTEMPT
        return self._threads.retire(soon if deadline is None else max(soon, deadline))

    def leave(self, started: float) -> None:
        """The process ends: deliver what is possible in time, and log how much was lost."""
        self._begin_end(started)
        self._finish()
        if self._born.is_here():
            self._delivery.wait_until_told(self._end)
            self.outbox.rest()
            self._delivery.say_the_rest()

    def hurry(self, started: float) -> bool:
        """The process may end: deliver as `leave` does, then go on. Whether all was settled."""
        self._delivery.hasten()
        return self.flush(started + self._options.seconds_at_end())

    def say_what_is_left(self, started: float) -> None:
        self._delivery.say_what_is_left(started + self._options.seconds_at_end())

    def _begin_end(self, started: float) -> None:
        if self._end is None:  # a second notice of the exit doesn't move its deadline
            self._end = started + self._options.seconds_at_end()
            self._delivery.hasten()

    def _finish(self) -> None:
        """Deliver in this thread what is pending, until the deadline; then count the rest as lost.

        Any thread may call, several at once; workers go on meanwhile.
        """
        if self._delivery.is_under_way_here():
            return  # an event recorded in `on_error`: its caller goes on with what is pending
        while self.outbox.pending():
            if self._drive_alone(self.outbox.mark(), self._end):
                continue
            if self._born.is_here():
                self._delivery.lose_the_rest(self._end)
            return

    def _drive_alone(self, mark: int, deadline: float | None) -> bool:
        # One thread at a time, or each request at a server's end would open a connection. The one
        # that delivers also delivers the events of the others.
        if not self._driver.acquire(blocking=False):
            return self.outbox.wait(mark, deadline)
        try:
            return self._drive(mark, deadline)
        finally:
            self._driver.release()

    def _drive(self, mark: int, deadline: float | None) -> bool:
        """Deliver in this thread until all before *mark* is settled; False: *deadline* passed."""
        while self.outbox.wait_for_work(mark, deadline):
            if self.outbox.wait(mark, NOW):
                _leaving.release(self)
                self._watch()  # for later events
                return True
            item = self.outbox.take()
            if item is not None and not self._attempt(item, deadline):
                break
        return False

"""Outbox → executor → transport.

A `Sender` is configuration and survives forks; each process has a `_ProcessSender` of its own,
built with its first event. That one keeps a number of *jobs* under way on the executor; a job takes
events from the outbox and delivers them until there is none. Whoever puts an event looks whether
jobs may be added, *after* putting; a job that found nothing looks again *after* it counted itself
out. So there is no instant at which an event lies there and nobody comes.
"""

from __future__ import annotations

import functools
import random
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from valued import _fork, _leaving, _retry
from valued._errors import DeliveryError
from valued._executors import Given, Staffing, ThreadCache, default_pool, staffing
from valued._options import timeout_seconds
from valued._outbox import MemoryOutbox
from valued._reporting import Reporter, log

if TYPE_CHECKING:
    from collections.abc import Callable

    from valued._options import Options
    from valued._typing import Item, Outbox, Stats, Wire

#: Seconds without a settled event after which waiting events get one more worker. Well above what
#: a fast server takes (adding threads would only cost CPU), well below what a slow one does.
PATIENCE: Final = 0.01

#: Seconds that an attempt has at least, however late it is: enough for a service that answers.
LAST_ATTEMPT: Final = 0.1

#: A deadline that has passed, for those who only look.
NOW: Final = 0.0


class Sender:
    """Delivers what is accepted, by *wire*. Any thread may call; forked children too.

    *release* frees what the transport holds in this process, and is called by `close`.
    """

    def __init__(
        self,
        wire: Wire,
        options: Options,
        *,
        release: Callable[[], object] = lambda: None,
        outbox: Callable[[], Outbox] | None = None,
    ) -> None:
        self._wire = wire
        self._options = options
        self._release = release
        self._outbox = outbox or self._memory
        self._given = None if options.executor is None else Given(options.executor)
        self._here = _fork.PerProcess(self._build)

    def accept(self, body: bytes) -> None:
        """Take over an encoded event. Does no I/O, unless the executor runs it in the caller."""
        self._here.get().accept(body)

    def flush(self, timeout: float | None) -> bool:
        """See `Client.flush`."""
        deadline = _deadline(timeout)
        here = self._here.peek()
        return here is None or here.flush(deadline)

    def park(self, timeout: float | None) -> bool:
        """See `Client.park`."""
        deadline = _deadline(timeout)
        here = self._here.peek()
        return here is None or here.park(deadline)

    def close(self, timeout: float | None) -> bool:
        """See `Client.close`."""
        deadline = _deadline(timeout)
        here = self._here.peek()
        done = here is None or here.close(deadline)
        self._release()
        return done

    def stats(self) -> Stats:
        """See `Client.stats`."""
        pid, started = _fork.identity()
        here = self._here.peek()
        figures = (self._outbox() if here is None else here.outbox).figures()
        stats: Stats = {**figures, "pid": pid, "started": started}  # type: ignore[typeddict-item]
        return stats

    def _memory(self) -> Outbox:
        options = self._options
        return MemoryOutbox(options.max_queue, overflow=options.overflow, block=options.timeout)

    def _build(self) -> _ProcessSender:
        return _ProcessSender(self._wire, self._options, self._given, self._outbox())


def _deadline(timeout: float | None) -> float | None:
    seconds = timeout_seconds(timeout)
    return None if seconds is None else time.monotonic() + seconds


def _delivery_error(cause: BaseException, attempts: int, age: float) -> DeliveryError:
    """What *cause* tells, with the attempts and the age that only the sender knows."""
    if not isinstance(cause, DeliveryError):
        error = DeliveryError(f"{type(cause).__name__}: {cause}", None, attempts, age)
        error.__cause__ = cause
        return error
    error = DeliveryError(cause.reason, cause.status, attempts, age, cause.body, cause.retry_after)
    error.__cause__ = cause.__cause__
    return error


class _ProcessSender:
    """What belongs to one process: its outbox, its executor, the jobs under way."""

    def __init__(self, wire: Wire, options: Options, given: Given | None, outbox: Outbox) -> None:
        self.outbox = outbox
        self._wire = wire
        self._options = options
        self._given = given
        self._reporter = Reporter(options.on_error)
        self._threads = ThreadCache(options.idle_time)
        self._born = _fork.Birthplace()
        self._staffing: Staffing | None = None
        self._budget: float | None = None  # seconds left to the end, once it has begun
        self._progress = time.monotonic()  # of the last delivery that ended, or job added by load

        # Guards _jobs, _limit and _watching, for a comparison and an assignment. Re-entrant, as a
        # signal handler may record an event. No other lock is taken inside.
        self._lock = threading.RLock()
        self._jobs = 0
        self._limit = 1  # until the executor is there, so that one thread alone makes it
        self._watching = False  # whether a thread waits for what is postponed

    # -- accepting ---------------------------------------------------------------------------------

    def accept(self, body: bytes) -> None:
        item = self.outbox.put(body)
        if item is not None:  # the outbox is full, and the caller is to do it
            item.attempts += 1
            self._deliver(item)
        elif self._budget is not None:  # the process ends, no worker may live to see to it
            self._finish(self._budget)
        elif self._jobs < self._limit:
            self._hire()
        elif time.monotonic() - self._progress > PATIENCE:
            self._grow()

    # -- jobs --------------------------------------------------------------------------------------

    def _hire(self) -> None:
        """Add a job if there is something to do and room for one more."""
        if not self.outbox.ready():
            return
        with self._lock:
            if self._jobs >= self._limit:
                return
            self._jobs += 1
        staffing = self._staffing or self._staff()
        if not self._born.is_here():
            return  # the factory forked, and this is the child
        try:
            future: Any = staffing.executor.submit(self._work, staffing)
        except Exception as error:  # noqa: BLE001 - shut down, no thread left, or a stranger's own
            self._job_done()
            self._refused(staffing, f"{type(error).__name__}: {error}")
        else:
            if hasattr(future, "add_done_callback"):
                future.add_done_callback(functools.partial(self._check, staffing))

    def _check(self, staffing: Staffing, future: Any) -> None:
        """See to a job that was accepted and then never ran, as its executor cancelled it."""
        if not self._born.is_here():
            return
        reason = "it was cancelled" if future.cancelled() else future.exception()
        if reason is not None:
            self._job_done()
            self._refused(staffing, f"a job did not run: {reason}")

    def _staff(self) -> Staffing:
        _leaving.enroll(self)
        try:
            hired = staffing(self._options, self._given, self._threads)
        except Exception:  # noqa: BLE001 - the user's factory may raise anything
            log.exception("no executor could be made: events are sent on a default pool")
            hired = default_pool(self._options, self._threads)
        if not self._born.is_here():
            return hired
        self._use(hired)
        if _leaving.is_ending():  # the first event comes from somebody's atexit handler
            self._budget = self._options.shutdown_timeout
        return hired

    def _use(self, hired: Staffing) -> None:
        with self._lock:
            self._staffing = hired
            self._limit = 1 if hired.by_load else hired.limit

    def _refused(self, staffing: Staffing, reason: str) -> None:
        if _leaving.is_ending():
            self._finish(self._options.shutdown_timeout if self._budget is None else self._budget)
            return
        if staffing.by_load:
            self._reporter.warn(
                "threads", "%d times no thread could be started (%s): the caller delivers", reason
            )
            while (item := self.outbox.take()) is not None and self._deliver(item):
                pass
            return
        log.warning(
            "the executor (%s) takes no more work (%s): events are sent on a default pool",
            type(staffing.executor).__name__,
            reason,
        )
        self._use(default_pool(self._options, self._threads))
        self._hire()

    def _work(self, staffing: Staffing) -> None:
        """A job. Runs on the executor."""
        left = staffing.burst
        try:
            while left != 0 and (item := self.outbox.take()) is not None:
                if not self._deliver(item):
                    return
                if left is not None:
                    left -= 1
        except BaseException:  # `SystemExit` out of a transport, and its like
            if staffing.immediate:  # the caller's own, as a Ctrl-C is
                raise
            log.exception("a delivery ended its worker; another one takes its place")
        finally:
            if self._born.is_here():
                self._job_done()
                # Once more, now that this job no longer counts: an event that came meanwhile was
                # left to it. In the caller each event has a job of its own.
                if not staffing.immediate:
                    self._hire()

    def _job_done(self) -> None:
        with self._lock:
            self._jobs -= 1
            if self._staffing is None or self._staffing.by_load:
                self._limit = max(1, self._jobs)

    def _grow(self) -> None:
        """One worker more, where they are added by load and events wait."""
        staffing = self._staffing
        if staffing is None or not staffing.by_load or not self.outbox.ready():
            return
        with self._lock:
            if self._limit >= staffing.limit:
                return
            self._limit += 1
            self._progress = time.monotonic()
        self._hire()

    # -- delivering --------------------------------------------------------------------------------

    def _deliver(self, item: Item, deadline: float | None = None) -> bool:
        """One attempt, until *deadline*; settles or postpones the event, whatever happens.

        False where the transport, or ``on_error``, forked, and this is the child: all here is the
        parent's, locks included.
        """
        started = time.monotonic()
        seconds = self._options.timeout
        if deadline is not None:
            seconds = max(LAST_ATTEMPT, min(seconds, deadline - started))
        try:
            self._wire(item.body, item.idempotency_key, seconds)
        except BaseException as error:
            if self._born.is_here():
                self._undelivered(item, error)
            if not isinstance(error, Exception):
                raise
        else:
            if self._born.is_here():
                self.outbox.delivered(item)
        if not self._born.is_here():
            return False
        self._progress = now = time.monotonic()
        if now - started > PATIENCE:
            self._grow()
        return True

    def _undelivered(self, item: Item, cause: BaseException) -> None:
        now = time.monotonic()
        error = _delivery_error(cause, item.attempts, now - item.accepted_at)
        pause = _retry.pause(error, self._options.retries, random.uniform)
        if pause < 0:
            self.outbox.failed(item)
            self._reporter.gave_up(error, item.body)
            return
        self.outbox.postpone(item, now + pause)
        self._reporter.retrying(error)
        self._watch()

    def _watch(self) -> None:
        """See to it that what is postponed is taken up when it is due."""
        staffing = self._staffing
        if staffing is None or staffing.immediate:
            # No thread of ours: the next event, a flush or the end of the process takes it up.
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
        while self.outbox.wait_until_due():
            self._hire()
        self._watching = False
        # Once more, now that this is said: an event that was postponed meanwhile was left to us.
        if self.outbox.postponed():
            self._watch()

    # -- waiting and ending ------------------------------------------------------------------------

    def flush(self, deadline: float | None) -> bool:
        mark = self.outbox.mark()
        staffing = self._staffing
        if staffing is not None and staffing.immediate:
            return self._drive(mark, deadline)
        return self.outbox.wait(mark, deadline)

    def park(self, deadline: float | None) -> bool:
        done = self.flush(deadline)
        with self._lock:
            staffing, self._staffing = self._staffing, None
            self._limit = 1
        if staffing is not None and staffing.owned and hasattr(staffing.executor, "shutdown"):
            # Waits only where nothing is under way, so not for long: it has no deadline.
            staffing.executor.shutdown(wait=done)
        now = time.monotonic()
        gone = self._threads.retire(now + LAST_ATTEMPT if deadline is None else deadline)
        return done and gone

    def close(self, deadline: float | None) -> bool:
        done = self.flush(deadline)
        if not done:
            self._reporter.warn(
                "closed",
                "%d events were dropped: they were not delivered when the client was closed",
                count=self.outbox.abandon("closed"),
            )
        self.park(deadline)
        return done

    def leave(self, started: float) -> None:
        """The process ends: deliver what can be in time, and say what could not."""
        self._finish(started + self._options.shutdown_timeout - time.monotonic())

    def _finish(self, seconds: float) -> None:
        """Deliver what is pending within *seconds*, which is all the time that there is left."""
        deadline = time.monotonic() + seconds
        self._budget = 0.0  # for who comes while we are at it: an event out of `on_error`
        self.outbox.hasten()
        mark = self.outbox.mark()
        # Whoever is at work goes on; where nobody is, nobody can be started any more.
        done = self.outbox.wait(mark, deadline) if self._jobs else self._drive(mark, deadline)
        self._budget = max(0.0, deadline - time.monotonic())
        if done or not self._born.is_here():
            return
        pending = self.outbox.pending()
        self.outbox.abandon("exit")
        log.warning(
            "the process ends with %d events not delivered: shutdown_timeout (%g s) is over",
            pending,
            self._options.shutdown_timeout,
        )

    def _drive(self, mark: int, deadline: float | None) -> bool:
        """Deliver in this thread until all before *mark* is settled; False: *deadline* came."""
        while self.outbox.wait_for_work(mark, deadline):
            if self.outbox.wait(mark, NOW):
                _leaving.release(self)
                return True
            item = self.outbox.take()
            if item is not None and not self._deliver(item, deadline):
                break
        return False

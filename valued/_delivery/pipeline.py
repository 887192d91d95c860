"""What one process delivers with: accept, flush, drain, close, and the counts.

An event goes from its caller through `Admission` into the inbox of the `Queue`. `Workers` take it
from the `Feed` and make `Attempts`. With an outbox, a journal stores it before, and the `Backlog`
reads it again where memory was full.
"""

from __future__ import annotations

import enum
import functools
from typing import TYPE_CHECKING, Any, Final

from valued._delivery.admission import Admission
from valued._delivery.attempt import Attempts
from valued._delivery.backlog import Backlog
from valued._delivery.executors import Executors, ExecutorSpec
from valued._delivery.feed import Feed
from valued._delivery.losses import Losses
from valued._delivery.queue import Checkpoint, Queue
from valued._delivery.retry import CircuitBreaker
from valued._delivery.status import StatusMaker, figures, no_status
from valued._delivery.threads import ThreadCache
from valued._delivery.workers import Workers
from valued._process import shutdown
from valued._process.clock import CLOCK
from valued._process.fork import ProcessToken
from valued._process.reporting import Reporter

if TYPE_CHECKING:
    from valued._delivery.journal import Journal
    from valued._options import Options
    from valued._typing import SendBytes

#: Seconds between two looks whether the last attempts have ended.
A_TURN: Final = 0.01


class State(enum.Enum):
    """What a pipeline does with a new event."""

    RUNNING = "a worker sends it"
    DRAINING = "the process ends: its call returns when it was sent, or the time is over"


class Pipeline:
    """Delivers what one process accepts. Any thread of that process may call.

    *deadline* is by the queue's clock everywhere; None: no bound. *queue* and *threads* are given
    by tests only.
    """

    def __init__(
        self,
        send: SendBytes,
        options: Options,
        spec: ExecutorSpec | None,
        journal: Journal,
        status: StatusMaker = no_status,
        *,
        queue: Queue | None = None,
        threads: ThreadCache | None = None,
    ) -> None:
        self._options = options
        self._token = ProcessToken()
        self._queue = queue = queue or Queue(CLOCK.monotonic, on_disk=journal.stores)
        self._reporter = reporter = Reporter(options.on_error)
        self._breaker = breaker = CircuitBreaker(options.timeout, options.retries)
        self._attempts = Attempts(send, options, queue, breaker, journal, reporter)
        self._stores = journal.stores
        threads = threads or ThreadCache(options.idle_time)
        executors = Executors(options, spec, threads, reporter, self)
        self._status = status(
            functools.partial(figures, queue, reporter),
            functools.partial(_has_monitor, executors),
            threads.submit,
        )
        self._backlog = Backlog(queue, journal, self._status, options)
        self._feed = feed = Feed(queue, breaker, self._backlog, options)
        self._admit = Admission(feed, self._attempts, journal, options).admit
        self._losses = Losses(queue, options, reporter, self._status)
        self._workers = Workers(feed, self._attempts, executors, self._losses, self)
        self._state = State.RUNNING
        self._end: float | None = None  # deadline, while draining
        self._registered = False

    def __del__(self) -> None:
        # For a client that was dropped, not closed. Only wakes threads: no I/O, no wait for a lock.
        if hasattr(self, "_workers"):  # pragma: no branch - else `__init__` was interrupted
            self._workers.dismiss()

    # -- accepting ---------------------------------------------------------------------------------

    def accept(self, body: bytes) -> None:
        """Accept an event. Does no I/O but one append, unless the executor sends in the call."""
        if shutdown.is_over():
            self._accept_too_late()
            return
        if not self._registered:
            shutdown.register(self)
            self._registered = True
        self._admit(body)
        if self._state is State.RUNNING:
            self._workers.notice()
        # Look again: `notice` may find out that the process ends.
        if self._state is not State.RUNNING:  # no worker may live long enough to send it
            self._drain()

    def _accept_too_late(self) -> None:
        with self._queue.lock:
            self._queue.counts.refuse("exit")
        self._attempts.abandon("exit")
        self._reporter.too_late()

    def adopt(self) -> int:
        """See `Client.adopt`."""
        if not self._stores:
            return 0
        shutdown.register(self)
        directories = self._backlog.adopt()
        self._workers.wake()
        return directories

    # -- waiting -----------------------------------------------------------------------------------

    def flush(self, deadline: float | None) -> bool:
        """See `Client.flush`."""
        with self._queue.lock:
            checkpoint = Checkpoint(self._queue)
        settled = self._wait(checkpoint, deadline)
        return settled and self._attempts.wait_for_callbacks(deadline)

    def _wait(self, checkpoint: Checkpoint, deadline: float | None) -> bool:
        """Wait until all before *checkpoint* is settled; False: *deadline* came."""
        queue = self._queue
        while self._token.is_current():
            with queue.lock:
                queue.recover()
                if checkpoint.is_settled():
                    if not queue.pending():  # later ones may wait for a flush, or for the end
                        shutdown.release(self)
                    return True
                if deadline is not None and queue.clock() >= deadline:
                    return False
            self._workers.wake()
            if not self._workers.send_inline(deadline) and self._token.is_current():
                with queue.lock:
                    if not checkpoint.is_settled():
                        checkpoint.wait(self._next_look(deadline))
        return False

    def _next_look(self, deadline: float | None) -> float | None:
        change, now = self._feed.outlook().first(), self._queue.clock()
        # What can be sent already has a worker by now, or gets the next one that is free.
        later = change if change is not None and change > now else None
        return min((one for one in (deadline, later) if one is not None), default=None)

    def park(self, deadline: float | None) -> bool:
        """See `Client.park`."""
        done = self.flush(deadline)
        self._status.finish()  # before its thread is told to end
        return done and self._shutdown(deadline, settled=True)

    def close(self, deadline: float | None) -> bool:
        """See `Client.close`."""
        done = self.flush(deadline)
        if not done and self._token.is_current():
            self._reporter.warn(
                "closed",
                "%d events were dropped: they were not delivered when the client was closed",
                count=self._attempts.abandon("closed"),
            )
        if self._token.is_current():
            self._status.finish()  # before its thread is told to end
            self._shutdown(deadline, settled=done)
            self._losses.report(last=True)
        return done

    def _shutdown(self, deadline: float | None, *, settled: bool) -> bool:
        self._backlog.release()
        return self._workers.shutdown(deadline, idle=settled)

    # -- the end of the process --------------------------------------------------------------------

    def on_exit(self, started: float) -> None:
        """The process ends: deliver what is possible in time, and log how much was lost."""
        self.begin_to_drain(started)
        self._backlog.hand_back()
        self._drain()
        if self._token.is_current():
            self._wait_for_attempts()
            self._attempts.wait_for_callbacks(self._end)
            self._backlog.release()
            self._losses.report(last=True)

    def flush_now(self, started: float) -> bool:
        """The process may end: deliver as `on_exit` does, then go on. Whether all was settled."""
        self._make_all_due()
        done = self.flush(started + self._options.seconds_at_end())
        self._status.finish()
        return done

    def end_threads(self) -> None:
        """Tell all threads to end, after `on_exit`. It doesn't wait for them."""
        self._workers.dismiss()

    def begin_to_drain(self, started: float | None = None) -> None:
        """From now on, an event's call returns when it was sent, or the time is over.

        *started*: when the end began; None: now.
        """
        started = self._queue.clock() if started is None else started
        with self._queue.lock:
            if self._state is State.RUNNING:  # a second notice doesn't move the deadline
                self._end = started + self._options.seconds_at_end()
                self._state = State.DRAINING
        self._make_all_due()

    def _make_all_due(self) -> None:
        with self._queue.lock:
            self._breaker.hurry(self._queue.clock())
            self._queue.make_all_due()

    def _drain(self) -> None:
        """Wait until what is pending is settled, or the deadline; then count the rest as lost."""
        if self._attempts.is_under_way_here():
            return  # an event recorded in `on_error`: its caller goes on with what is pending
        queue = self._queue
        while True:
            with queue.lock:
                if not queue.pending():
                    return
                checkpoint = Checkpoint(queue)
            if self._wait(checkpoint, self._end):
                continue
            if self._token.is_current():
                self._losses.lost(self._attempts.abandon("exit"), self._end)
            return

    def _wait_for_attempts(self) -> None:
        """Wait for attempts under way, until the deadline: others would send their events again."""
        queue = self._queue
        with queue.lock:
            while self._stores and self._end is not None and queue.sending():
                if (left := self._end - self._queue.clock()) <= 0:  # pragma: no cover - in programs
                    return
                queue.changed.wait(min(left, A_TURN))  # pragma: no cover - in programs

    # -- reporting ---------------------------------------------------------------------------------

    def log_remaining(self, started: float) -> None:
        """See `ExitListener`."""
        self._losses.pending(started + self._options.seconds_at_end())

    def stats(self) -> dict[str, Any]:
        """All counts, of one moment."""
        return self._queue.figures()


def _has_monitor(executors: Executors) -> bool:
    """Whether a thread looks after what becomes due by time: not where calls send by themselves."""
    return executors.plan is not None and not executors.plan.immediate

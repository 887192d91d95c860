"""What one process delivers with: accept, flush, drain, close, and the counts.

An event goes from its caller into the inbox of the `Queue`. `Workers` take it from there and make
`Attempts`. With an outbox, a journal stores it before, and reads it again where memory is full.
"""

from __future__ import annotations

import enum
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

from valued._delivery.attempt import Attempts
from valued._delivery.entry import Entry, Spilled
from valued._delivery.executors import ThreadCache
from valued._delivery.feed import Feed
from valued._delivery.journal import NoFile
from valued._delivery.queue import MAX_BYTES, Checkpoint, Queue
from valued._delivery.retry import CircuitBreaker
from valued._delivery.runs import Run
from valued._delivery.workers import Workers
from valued._process import shutdown
from valued._process.clock import CLOCK
from valued._process.fork import ProcessToken
from valued._process.reporting import Reporter, counted, log

if TYPE_CHECKING:
    from collections.abc import Callable

    from valued._delivery.executors import ExecutorSpec
    from valued._delivery.journal import File, Journal
    from valued._options import Options
    from valued._typing import SendBytes

#: Events that callers put into the inbox before one of them brings them in: until then their bytes
#: are not counted.
LONG_INBOX: Final = 64

#: Events that one call of `Client.adopt` takes over at most: what is taken over and not delivered
#: has to be handed back at the end of the process.
ADOPTED_AT_ONCE: Final = 10_000

#: Seconds in which a worker that was started, or is free, takes an event.
A_TURN: Final = 0.01


class State(enum.Enum):
    """What a pipeline does with a new event."""

    RUNNING = "a worker sends it"
    DRAINING = "the process ends: its call returns when it was sent, or the time is over"


class Pipeline:
    """Delivers what one process accepts. Any thread of that process may call.

    *deadline* is by the clock everywhere; None: no bound. *clock*, *queue* and *threads* are given
    by tests only.
    """

    def __init__(
        self,
        send: SendBytes,
        options: Options,
        spec: ExecutorSpec | None,
        journal: Journal,
        clock: Callable[[], float] = CLOCK.monotonic,
        *,
        queue: Queue | None = None,
        threads: ThreadCache | None = None,
    ) -> None:
        self._options = options
        self._journal = journal
        self._clock = clock
        self._memory: Final[File] = NoFile()
        self._reporter = Reporter(options.on_error)
        self._token = ProcessToken()
        self._queue = queue = queue or Queue(clock, on_disk=journal.stores)
        self._breaker = CircuitBreaker(options.timeout, options.retries)
        self._attempts = Attempts(
            send, options, queue, self._breaker, journal, self._reporter, clock
        )
        self._feed = Feed(queue, self._breaker, journal, options, clock)
        self._workers = Workers(
            self._feed,
            self._attempts,
            options,
            spec,
            self._reporter,
            clock,
            self,
            threads or ThreadCache(options.idle_time),
        )
        self._state = State.RUNNING
        self._end: float | None = None  # deadline, while draining
        self._registered = False
        self._reported: dict[str, int] = {}  # how many dropped events were logged, by reason
        self._logged_sending = 0  # logged as lost while a thread was still trying them
        self._logged_pending: tuple[float | None, int] = None, 0  # deadline, count

    def __del__(self) -> None:
        # For a client that was dropped, not closed. Only wakes threads: no I/O, and no lock.
        if hasattr(self, "_workers"):  # pragma: no branch - else `__init__` was interrupted
            self._workers.dismiss()

    # -- accepting ---------------------------------------------------------------------------------

    def accept(self, body: bytes) -> None:
        """Accept an event. Does no I/O but one append, unless the executor sends in the call."""
        if shutdown.is_over():
            self._accept_too_late()
            return
        if not self._registered:
            self._register()
        queue = self._queue
        entry = Entry(body, self._clock(), self._memory)
        full = self._is_full(entry)
        if not (self._journal.stores and self._store(entry, full=full)) and (
            not full or self._make_room(entry)
        ):
            queue.inbox.append(entry)
        if len(queue.inbox) > LONG_INBOX and queue.lock.acquire(blocking=False):
            try:
                queue.absorb()
            finally:
                queue.lock.release()
        if self._state is State.RUNNING:
            self._workers.notice()
        # Look again: `notice` may find out that the process ends.
        if self._state is not State.RUNNING:  # no worker may live long enough to send it
            self._drain()

    def _register(self) -> None:
        shutdown.register(self)
        self._registered = True

    def _is_full(self, entry: Entry) -> bool:
        # Without the lock: the bound is exact up to the number of callers.
        queue = self._queue
        return (
            queue.unsettled + len(queue.inbox) >= self._options.max_queue
            or queue.bytes + len(entry.body) > MAX_BYTES
        )

    def _store(self, entry: Entry, *, full: bool) -> bool:
        """Accept *entry* on the disk; False: the disk did not take it."""
        spill = full or self._feed.spilling
        stored = self._journal.append(entry.body, spill=spill)
        if stored is None:
            return False
        if spill:
            self._feed.spilling = True  # the following ones, too, until there is room again
            self._queue.inbox.append(Spilled(stored.file, stored.size))
        else:
            entry.file, entry.number, entry.size = stored
            self._queue.inbox.append(entry)
        return True

    def _accept_too_late(self) -> None:
        with self._queue.lock:
            self._queue.refuse("exit")
        self._attempts.abandon("exit")
        self._reporter.too_late()

    def _make_room(self, entry: Entry) -> bool:
        """Whether there is room for *entry* by now, as *overflow* says; else it is settled."""
        queue, options = self._queue, self._options
        if options.overflow == "caller_runs":
            self._send_in_call(entry)
            return False
        with queue.lock:
            queue.absorb()
            if len(entry.body) > MAX_BYTES:
                pass  # even an empty queue has no room for it
            elif options.overflow == "block":
                self._wait_for_room(entry)
            elif options.overflow == "drop_oldest":
                while self._is_full(entry) and (first := queue.first_in_memory()) is not None:
                    queue.settle(first, "overflow")
            if self._is_full(entry):
                queue.refuse("overflow")
                return False
        return True

    def _wait_for_room(self, entry: Entry) -> None:
        queue = self._queue
        deadline = self._clock() + self._options.timeout
        queue.waiting_for_room += 1
        try:
            while (left := deadline - self._clock()) > 0 and self._is_full(entry):
                queue.changed.wait(min(left, threading.TIMEOUT_MAX))
        finally:
            queue.waiting_for_room -= 1

    def _send_in_call(self, entry: Entry) -> None:
        run = Run()
        with self._queue.lock:
            self._queue.inbox.append(entry)
            self._queue.absorb()
            taken = self._queue.take_this(entry, weakref.ref(run))
        try:
            if taken:  # pragma: no branch - else a signal handler sent it
                self._attempts.attempt(entry, run)
        finally:
            run.has_ended = True

    def adopt(self) -> int:
        """See `Client.adopt`."""
        if not self._journal.stores:
            return 0
        self._register()
        directories = self._feed.adopt(ADOPTED_AT_ONCE)
        self._workers.wake()
        return directories

    # -- waiting -----------------------------------------------------------------------------------

    def flush(self, deadline: float | None) -> bool:
        """See `Client.flush`."""
        with self._queue.lock:
            checkpoint = self._queue.checkpoint()
        settled = self._wait(checkpoint, deadline)
        return settled and self._attempts.wait_for_callbacks(deadline)

    def _wait(self, checkpoint: Checkpoint, deadline: float | None) -> bool:
        """Wait until all before *checkpoint* is settled; False: *deadline* came."""
        queue = self._queue
        while self._token.is_current():
            with queue.lock:
                queue.recover()
                if queue.is_settled(checkpoint):
                    if not queue.pending():  # later ones may wait for a flush, or for the end
                        shutdown.release(self)
                    return True
                if deadline is not None and self._clock() >= deadline:
                    return False
            self._workers.wake()
            if not self._workers.send_inline(deadline) and self._token.is_current():
                with queue.lock:
                    if not queue.is_settled(checkpoint):
                        queue.wait(checkpoint, self._next_look(deadline))
        return False

    def _next_look(self, deadline: float | None) -> float | None:
        change = self._feed.next_change()
        if change is not None:
            # What is due already is taken by the next worker that is free: look again in a moment.
            change = max(change, self._clock() + A_TURN)
        return min((one for one in (deadline, change) if one is not None), default=None)

    def park(self, deadline: float | None) -> bool:
        """See `Client.park`."""
        return self.flush(deadline) and self._shutdown(deadline, settled=True)

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
            self._shutdown(deadline, settled=done)
            self.report(last=True)
        return done

    def _shutdown(self, deadline: float | None, *, settled: bool) -> bool:
        self._feed.release()
        return self._workers.shutdown(deadline, idle=settled)

    # -- the end of the process --------------------------------------------------------------------

    def on_exit(self, started: float) -> None:
        """The process ends: deliver what is possible in time, and log how much was lost."""
        self.begin_to_drain(started)
        self._feed.hand_back()
        self._drain()
        if self._token.is_current():
            self._wait_for_attempts()
            self._attempts.wait_for_callbacks(self._end)
            self._feed.release()
            self.report(last=True)

    def flush_now(self, started: float) -> bool:
        """The process may end: deliver as `on_exit` does, then go on. Whether all was settled."""
        self._make_all_due()
        return self.flush(started + self._options.seconds_at_end())

    def end_threads(self) -> None:
        """Tell all threads to end, after `on_exit`. It doesn't wait for them."""
        self._workers.dismiss()

    def begin_to_drain(self, started: float) -> None:
        """From now on, an event's call returns when it was sent, or the time is over."""
        with self._queue.lock:
            if self._state is State.RUNNING:  # a second notice doesn't move the deadline
                self._end = started + self._options.seconds_at_end()
                self._state = State.DRAINING
        self._make_all_due()

    def _make_all_due(self) -> None:
        with self._queue.lock:
            self._breaker.hurry(self._clock())
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
                checkpoint = queue.checkpoint()
            if self._wait(checkpoint, self._end):
                continue
            if self._token.is_current():
                self._log_lost()
            return

    def _wait_for_attempts(self) -> None:
        """Wait for attempts under way, until the deadline: others would send their events again."""
        queue = self._queue
        with queue.lock:
            while self._journal.stores and self._end is not None and queue.sending():
                if (left := self._end - self._clock()) <= 0:  # pragma: no cover - in programs
                    return
                queue.changed.wait(min(left, A_TURN))  # pragma: no cover - in programs

    # -- reporting ---------------------------------------------------------------------------------

    def log_remaining(self, started: float) -> None:
        """Log how many events were not delivered in the time of an exit begun at *started*."""
        seconds = self._options.seconds_at_end()
        with self._queue.lock:
            count = self._queue.pending()
        if count > 0:
            self._logged_pending = started + seconds, count
            line = (
                "%d events are not delivered after %g s: if the process ends now, they are lost, "
                "unless they are in an outbox"
            )
            if count == 1:
                line = line.replace("they are", "it is")
            log.warning(counted(line, count), count, seconds)

    def _log_lost(self) -> None:
        """Drop what is pending, and log how much.

        Several threads may call, one after the other: those that record at exit, and the one that
        ends the process. What other threads are still trying is counted the first time only.
        """
        count = self._attempts.abandon("exit")
        sending = self._queue.sending(unsaved=True)
        count += max(0, sending - self._logged_sending)
        self._logged_sending = max(sending, self._logged_sending)
        if self._logged_pending[0] == self._end:
            count -= self._logged_pending[1]
        if count > 0:
            self._reporter.lost(count, self._options.seconds_at_end())

    def report(self, *, last: bool = False) -> None:
        """Log which events were dropped, and why. *last*: there may be no later opportunity."""
        options = self._options
        for reason, line, limit in (
            ("age", "%d events were dropped: they were older than outbox_max_age (%g s)",
             options.outbox_max_age),
            ("size", "%d events were dropped: the outbox is larger than outbox_max_size (%d bytes)",
             options.outbox_max_size),
            ("damaged", "%d events were dropped: the outbox %s has damaged files",
             options.outbox),
        ):  # fmt: skip
            if new := self._new(reason):
                self._reporter.warn(reason, line, limit, count=new)
        if new := self._new("overflow"):
            self._reporter.overflown(new, options.max_queue, options.overflow)
        if last:
            self._reporter.log_remaining()

    def _new(self, reason: str) -> int:
        """How many events were dropped for *reason* since this was last asked."""
        count = self._queue.counts.get(reason, 0)
        before, self._reported[reason] = self._reported.get(reason, 0), count
        return count - before

    def stats(self) -> dict[str, Any]:
        """All counts, of one moment."""
        return self._queue.figures()

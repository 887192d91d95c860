"""One attempt to send an event, and what follows: the event is settled, or postponed."""

from __future__ import annotations

import contextlib
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

from valued._delivery.entry import Run, Runs
from valued._delivery.journal import HANDED_OVER
from valued._delivery.queue import LOOK_AGAIN
from valued._delivery.retry import is_transient, pause
from valued._errors import DeliveryError
from valued._process.fork import ProcessToken

if TYPE_CHECKING:
    from collections.abc import Iterator

    from valued._delivery.entry import Entry
    from valued._delivery.journal import Journal
    from valued._delivery.queue import Queue
    from valued._delivery.retry import CircuitBreaker
    from valued._options import Options
    from valued._process.reporting import Reporter
    from valued._typing import SendBytes

#: Seconds that an attempt gets at least, however late it is: enough for a service that answers.
LAST_ATTEMPT: Final = 0.1


class Attempts:
    """The attempts of one process. Any thread may call, without the queue's lock."""

    def __init__(
        self,
        send: SendBytes,
        options: Options,
        queue: Queue,
        breaker: CircuitBreaker,
        journal: Journal,
        reporter: Reporter,
    ) -> None:
        self._send = send
        self._options = options
        self._queue = queue
        self._breaker = breaker
        self._journal = journal
        self._reporter = reporter
        self._clock = queue.clock
        self._token = ProcessToken()
        #: How often events were abandoned, and why; always replaced as a whole.
        self._abandoned = (0, "")
        # Weak references: what an exception breaks off can't be left in here.
        self._sending: dict[int, weakref.ref[Run]] = {}  # by thread: the run in an attempt
        self._callbacks = Runs()  # calls of ``on_error`` under way

    def attempt(self, entry: Entry, run: Run, deadline: float | None = None) -> bool:
        """Send *entry* once, until *deadline* (by the clock) if that is before the timeout.

        False if the transport, or ``on_error``, forked, and this is the child: then everything
        here, locks included, belongs to the parent. An exception such as ``KeyboardInterrupt``,
        not an `Exception`, is raised, after the event was settled or postponed.
        """
        if not self._token.is_current():
            return False
        began = self._clock()
        seconds = self._options.timeout
        if deadline is not None:
            seconds = max(LAST_ATTEMPT, min(seconds, deadline - began))
        abandoned = self._abandoned
        thread = threading.get_ident()
        outer = self._sending.get(thread)  # what `on_error` records may be sent within its call
        self._sending[thread] = weakref.ref(run)
        try:
            self._send(entry.body, entry.idempotency_key, seconds)
        except BaseException as error:
            if self._token.is_current():
                self._not_delivered(entry, run, error, began, abandoned)
            if not isinstance(error, Exception):
                raise
        else:
            if self._token.is_current():
                self._settle(entry, "delivered")
                with self._queue.lock:
                    if self._breaker.is_open:  # what waits can go now
                        self._queue.changed.notify_all()
                    self._breaker.succeeded()
        finally:
            if outer is None:
                self._sending.pop(thread, None)
            else:
                self._sending[thread] = outer
        return self._token.is_current()

    def is_under_way_here(self) -> bool:
        """Whether this thread is in an attempt: the transport or ``on_error`` called us."""
        run = self._sending.get(threading.get_ident())
        return run is not None and run() is not None

    def drop(self, entry: Entry, reason: str) -> None:
        """Settle *entry*, which was taken, without an attempt."""
        if entry.file.lost or reason == HANDED_OVER:
            with self._queue.lock:
                self._queue.settle(entry, reason)
        else:
            self._settle(entry, reason)

    def abandon(self, reason: str) -> int:
        """Drop the events that no run has taken, and those being sent if their attempt fails.

        What is on the disk is handed over. Returns how many are lost at once.
        """
        count = 0
        self._abandoned = (self._abandoned[0] + 1, reason)
        with self._queue.lock:
            self._queue.absorb()
            for entry in self._queue.waiting():
                self._queue.settle(entry, HANDED_OVER if entry.is_stored else reason)
                count += not entry.is_stored
            self._queue.changed.notify_all()
        return count

    def _settle(self, entry: Entry, outcome: str) -> None:
        # First on the disk: after a flush returned True, no process may send it again. Where the
        # disk refuses, the journal tries again later; a kill before that repeats the event.
        if entry.is_stored:
            self._journal.settled(entry.file, entry.number)
        with self._queue.lock:
            self._queue.settle(entry, outcome)

    def _not_delivered(
        self, entry: Entry, run: Run, cause: BaseException, began: float, abandoned: tuple[int, str]
    ) -> None:
        now = self._clock()
        error = _delivery_error(cause, entry.attempts, now - entry.accepted_at)
        expired: list[Entry] = []
        with self._queue.lock:
            if not is_transient(error, stored=entry.is_stored):
                self._breaker.succeeded()
            elif self._breaker.failed(began, now, error.retry_after):
                expired = self._take_expired(run, now)
        wait = pause(error, None if entry.is_stored else self._options.retries)
        if wait < 0:
            self._fail(entry, error)
        elif abandoned is not self._abandoned:
            self._fail_abandoned(entry, self._abandoned[1], error)
        else:
            with self._queue.lock:
                self._queue.postpone(entry, now + wait)
            self._reporter.retrying(error)
        for other in expired:
            if other.is_stored:
                self.drop(other, "age")
            else:
                self._fail(other, _while_waiting(error, other, now))
            if not self._token.is_current():
                return

    def _take_expired(self, run: Run, now: float) -> list[Entry]:
        """Take what has waited too long; with the lock."""
        ref = weakref.ref(run)
        in_memory, stored = self._breaker.expired(now), now - self._options.outbox_max_age
        waiting = self._queue.waiting()
        old = [one for one in waiting if one.accepted_at < (stored if one.is_stored else in_memory)]
        found = [entry for entry in old if self._queue.take_this(entry, ref)]
        counts = self._queue.counts
        for entry in found:  # there is no attempt
            entry.attempts, counts.retried = (
                entry.attempts - 1, counts.retried - (entry.attempts > 1)
            )  # fmt: skip
        return found

    def _fail_abandoned(self, entry: Entry, reason: str, error: DeliveryError) -> None:
        with self._calling_back():
            if entry.is_stored:
                self.drop(entry, HANDED_OVER)
                return
            self.drop(entry, reason)
            self._reporter.warn(
                "late", "%d events were dropped as the last try failed: %s", str(error)
            )

    def _fail(self, entry: Entry, error: DeliveryError) -> None:
        # Settle first, as ``on_error`` may flush or close; a flush elsewhere waits for both.
        with self._calling_back():
            if self._journal.stores:
                self._journal.reject(entry.idempotency_key, entry.body, error)
            self._settle(entry, "failed")
            self._reporter.gave_up(error, entry.body)

    @contextlib.contextmanager
    def _calling_back(self) -> Iterator[None]:
        """A block that `wait_for_callbacks` waits for."""
        call = Run()
        self._callbacks.add(call)
        try:
            yield
        finally:
            self._callbacks.discard(call)
            if self._token.is_current():
                with self._queue.lock:
                    self._queue.changed.notify_all()

    def wait_for_callbacks(self, deadline: float | None) -> bool:
        """Wait until ``on_error`` returned for all that failed so far; False: *deadline* passed."""
        begun = self._callbacks.elsewhere()
        with self._queue.lock:
            while self._callbacks.has_any(begun):
                left = LOOK_AGAIN if deadline is None else deadline - self._clock()
                if left <= 0:
                    return False
                self._queue.changed.wait(min(left, LOOK_AGAIN))
        return True


def _delivery_error(cause: BaseException, attempts: int, age: float) -> DeliveryError:
    """*cause* as a `DeliveryError`, with the attempts and the age that only this module knows."""
    if not isinstance(cause, DeliveryError):
        error = DeliveryError(f"{type(cause).__name__}: {_text(cause)}", None, attempts, age)
        error.__cause__ = cause
        return error
    # The user's transport may have put anything into it, or nothing, and what follows calculates
    # with it.
    given: dict[str, Any] = vars(cause)
    reason, body = _text(given.get("reason", type(cause).__name__)), given.get("body", "")
    status, retry_after = given.get("status"), given.get("retry_after")
    status = status if isinstance(status, int) else None
    retry_after = retry_after if isinstance(retry_after, (int, float)) else None
    permanent = given.get("permanent") is True
    error = DeliveryError(reason, status, attempts, age, body, retry_after, permanent)
    error.__cause__ = cause.__cause__
    return error


def _while_waiting(error: DeliveryError, entry: Entry, now: float) -> DeliveryError:
    """The *error* of a probe, for an event that waited for its result."""
    reason = f"{error.reason} (the answer to a probe, while it waited)"
    age = now - entry.accepted_at
    return DeliveryError(reason, error.status, entry.attempts, age, error.body)


def _text(cause: object) -> str:
    try:
        return str(cause)
    except Exception:  # noqa: BLE001 - it isn't ours, and no event may be lost because of it
        return "(its message can't be read)"

"""One attempt to deliver an event, and what follows: the event is settled, or postponed."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from typing import TYPE_CHECKING, Final

from valued._delivery import retry
from valued._errors import DeliveryError
from valued._process.fork import Birthplace
from valued._process.reporting import counted, log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from valued._options import Options
    from valued._process.reporting import Reporter
    from valued._typing import Item, Outbox, Wire

#: Seconds that an attempt gets at least, however late it is: enough for a service that answers.
LAST_ATTEMPT: Final = 0.1

#: Timeouts after which a probe without a result counts as lost. More than one, since connecting to
#: an address, and a TLS handshake, may each take as long.
PROBES: Final = 3


class Delivery:
    """Attempts of one process. Any thread may call.

    *postponed* is called after an event was returned to the outbox for a later attempt.
    """

    def __init__(
        self,
        wire: Wire,
        options: Options,
        outbox: Outbox,
        reporter: Reporter,
        postponed: Callable[[], object],
    ) -> None:
        self._wire = wire
        self._options = options
        self._outbox = outbox
        self._reporter = reporter
        self._postponed = postponed
        self._born = Birthplace()
        self._health = retry.Health(options.retries)
        self._holding = False  # whether the outbox is on hold, until the endpoint answers
        self._threads: set[int] = set()  # those that are in an attempt; only `add` and `discard`
        self._said_left: tuple[float | None, int] = -1.0, 0  # logged as pending: deadline, count
        self._said_trying = 0  # logged as lost while a thread was still trying them
        self._abandoned = (0, "")  # how often, and why; always replaced as a whole

        # Guards _telling. Re-entrant: a signal handler may flush. Nothing else is done inside.
        self._told = threading.Condition(threading.RLock())
        self._telling: dict[object, int] = {}  # calls of ``on_error`` under way, by their threads

    def attempt(self, item: Item, deadline: float | None = None) -> bool:
        """One attempt, until *deadline* (`time.monotonic`) if that is sooner than the timeout.

        False if the transport, or ``on_error``, forked, and this is the child: then everything
        here, locks included, belongs to the parent. An exception such as ``KeyboardInterrupt``, not
        an `Exception`, is raised, after the event was settled or postponed.
        """
        if not self._born.is_here():
            return False
        seconds = self._options.timeout
        if deadline is not None:
            seconds = max(LAST_ATTEMPT, min(seconds, deadline - time.monotonic()))
        abandoned = self._abandoned
        thread = threading.get_ident()
        outermost = thread not in self._threads  # else `on_error` recorded what the caller sends
        self._threads.add(thread)
        began = time.monotonic()
        try:
            self._wire(item.body, item.idempotency_key, seconds)
        except BaseException as error:
            if self._born.is_here():
                self._undelivered(item, error, began, abandoned)
            if not isinstance(error, Exception):
                raise
        else:
            if self._born.is_here():
                self._outbox.delivered(item)
                self._answered()
        finally:
            if outermost:
                self._threads.discard(thread)
        return self._born.is_here()

    def is_under_way_here(self) -> bool:
        """Whether this thread is in an attempt: the transport or ``on_error`` called us."""
        return threading.get_ident() in self._threads

    def abandon(self, reason: str) -> int:
        """Drop all events that no thread has taken, and those being tried if their attempt fails.

        Returns how many of the first kind are lost.
        """
        self._abandoned = (self._abandoned[0] + 1, reason)
        return self._outbox.abandon(reason)

    def hasten(self) -> None:
        """Make everything postponed due now: the process ends, or may."""
        self._health.hasten()
        self._outbox.hasten()

    def _answered(self) -> None:
        self._health.answered()
        # Resume on every success; resuming where there is no hold is harmless. Another thread may
        # be about to hold because of an earlier failure: it sets the flag after its `hold`, and
        # here the flag is reset before `resume`, or a hold without a flag would never end.
        if self._holding:
            self._holding = False
            self._outbox.resume()

    def _undelivered(
        self, item: Item, cause: BaseException, began: float, abandoned: tuple[int, str]
    ) -> None:
        now = time.monotonic()
        error = _delivery_error(cause, item.attempts, now - item.accepted_at)
        patient = self._outbox.patient
        if not retry.is_transient(error.status, patient=patient):
            self._answered()
        elif (probes := self._health.failed(began, now)) is not None:
            # Before the event is postponed, or it could be its own probe without a pause.
            until = now + retry.backoff(probes, error.retry_after, random.uniform)
            self._health.held(until)
            self._outbox.hold(until, PROBES * self._options.timeout)
            self._holding = True
            if not patient:
                self._give_up_what_waited(error, now)
        retries = None if patient else self._options.retries
        pause = retry.pause(error, retries, random.uniform)
        if pause < 0:
            self._give_up(item, error)
        elif abandoned is not self._abandoned:
            with self._being_told():
                if self._outbox.dropped(item, self._abandoned[1]):
                    self._reporter.warn(
                        "late", "%d events were dropped as the last try failed: %s", error
                    )
        else:
            self._outbox.postpone(item, now + pause)
            self._reporter.retrying(error)
            self._postponed()

    def say_overflow(self) -> None:
        """Log how many events the outbox had no room for."""
        # Here and not where it happens: the caller of an event shouldn't wait for a log line.
        if count := self._outbox.overflown():
            self._reporter.overflown(count, self._options.max_queue, self._options.overflow)

    def say_the_rest(self) -> None:
        """Log all that was counted and not logged yet: there may be no later opportunity."""
        self.say_overflow()
        self._reporter.rest()

    def lose(self) -> None:
        """An event was recorded when nothing can be sent any more."""
        self._outbox.refuse("exit")
        self._outbox.abandon("exit")
        self._reporter.too_late()

    def say_what_is_left(self, end: float) -> None:
        """The process is about to end, and *end* has passed: log how many events are pending."""
        count = self._outbox.pending()
        if count > 0:
            self._said_left = end, count
            line = (
                "%d events are not delivered after %g s: if the process ends now, they are lost, "
                "unless they are in an outbox"
            )
            if count == 1:
                line = line.replace("they are", "it is")
            log.warning(counted(line, count), count, self._options.seconds_at_end())

    def lose_the_rest(self, end: float | None) -> None:
        """The deadline of the exit, *end*, has passed: drop what is pending, and log how much.

        Several threads may call, one after the other: those that record at exit, and the one that
        ends the process. What other threads are still trying is counted the first time only.
        """
        trying = self._outbox.at_stake()
        count = self.abandon("exit")
        trying -= count
        count += max(0, trying - self._said_trying)
        self._said_trying = max(trying, self._said_trying)
        if self._said_left[0] == end:
            count -= self._said_left[1]
        if count > 0:
            self._reporter.lost(count, self._options.seconds_at_end())

    def _give_up_what_waited(self, error: DeliveryError, now: float) -> None:
        """Fail the events that have waited too long for an endpoint that is down."""
        moment = self._health.give_up_before(now)
        while (item := self._outbox.take_before(moment)) is not None:
            age = now - item.accepted_at
            reason = f"{error.reason} (the answer to a probe, while it waited)"
            self._give_up(item, DeliveryError(reason, error.status, item.attempts, age, error.body))
            if not self._born.is_here():
                return

    def _give_up(self, item: Item, error: DeliveryError) -> None:
        # Settle first, as ``on_error`` may flush or close; a flush elsewhere waits for both.
        with self._being_told():
            self._outbox.failed(item, error)
            self._reporter.gave_up(error, item.body)

    @contextlib.contextmanager
    def _being_told(self) -> Iterator[None]:
        """A block that `wait_until_told` waits for."""
        call = object()
        with self._told:
            self._telling[call] = threading.get_ident()
        try:
            yield
        finally:
            if self._born.is_here():
                with self._told:
                    del self._telling[call]
                    self._told.notify_all()

    def wait_until_told(self, deadline: float | None) -> bool:
        """Wait until ``on_error`` returned for all that failed so far; False: *deadline* passed."""
        here = threading.get_ident()
        with self._told:
            calls = {call for call, thread in self._telling.items() if thread != here}
            while not calls.isdisjoint(self._telling):
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._told.wait(left if left is None else min(left, threading.TIMEOUT_MAX))
        return True


def _delivery_error(cause: BaseException, attempts: int, age: float) -> DeliveryError:
    """*cause* as a `DeliveryError`, with the attempts and the age that only this module knows."""
    if not isinstance(cause, DeliveryError):
        error = DeliveryError(f"{type(cause).__name__}: {_text(cause)}", None, attempts, age)
        error.__cause__ = cause
        return error
    # The user's transport may have put anything into it, or nothing, and what follows calculates
    # with it.
    given = vars(cause)
    reason, body = given.get("reason", type(cause).__name__), given.get("body", "")
    status, retry_after = given.get("status"), given.get("retry_after")
    status = status if isinstance(status, int) else None
    retry_after = retry_after if isinstance(retry_after, (int, float)) else None
    error = DeliveryError(reason, status, attempts, age, body, retry_after)
    error.__cause__ = cause.__cause__
    return error


def _text(cause: BaseException) -> str:
    try:
        return str(cause)
    except Exception:  # noqa: BLE001 - it isn't ours, and no event may be lost because of it
        return "(its message can't be read)"

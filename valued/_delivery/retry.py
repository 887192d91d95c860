"""Retries: which events are tried again and when; and the circuit breaker.

A failed event waits, and others go on. If attempts do nothing but fail, the endpoint is down: then
the circuit breaker lets no event pass, but for one at a time, as a probe.
"""

from __future__ import annotations

import collections
import random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from valued._errors import DeliveryError

#: Statuses that say "not now": a timeout, too early, too many, and every 5xx below.
_TRANSIENT: Final = frozenset({408, 425, 429})

#: Statuses that say something about the token, and nothing about the event. Events on the disk wait
#: for a process that has the right token (or the right proxy, where an error is permanent); events
#: in memory have no such chance.
_OF_THE_TOKEN: Final = frozenset({401, 403})

#: Seconds. The first pause is between 0 and this (full jitter); this bound doubles with each retry.
FIRST_PAUSE: Final = 0.5

#: Seconds; the longest pause, so that a recovery is noticed within half a minute.
LONGEST_PAUSE: Final = 30.0

#: Enough to get past `LONGEST_PAUSE`, and few enough that the power can't overflow.
MOST_DOUBLINGS: Final = 10

#: Seconds; a longer ``Retry-After`` is cut to this.
LONGEST_RETRY_AFTER: Final = 120.0

#: Failures in a row, of any events, that open the circuit breaker. A single event that makes the
#: service fail reaches this number only if nothing else is sent.
DOWN_AFTER: Final = 5

#: Seconds; an older event in memory fails permanently with its next failure, or with that of a
#: probe. Usage is evaluated by the hour, and an event is of no use in the wrong hour.
MAX_AGE: Final = 3600.0

#: Timeouts after which a probe without a result counts as lost. More than one: each address of a
#: SOCKS proxy may take as long.
PROBES: Final = 3


def is_transient(error: DeliveryError, *, stored: bool = False) -> bool:
    """Whether the same event may succeed later.

    *stored*: whether events are on the disk, where they can wait for as long as needed.
    """
    status = error.status
    if error.permanent or status in _OF_THE_TOKEN:
        return stored
    return status is None or status in _TRANSIENT or 500 <= status <= 599


def pause(
    error: DeliveryError,
    retries: int | None,
    uniform: Callable[[float, float], float] = random.uniform,
) -> float:
    """Seconds until the next attempt; negative: there is none, the event fails permanently.

    *error* has status, attempts and age. *retries*: attempts after the first; None: the event is on
    the disk, and neither their number nor the age is bounded here.
    """
    if not is_transient(error, stored=retries is None):
        return -1.0
    if retries is not None and (error.attempts > retries or error.age > MAX_AGE):
        return -1.0
    return backoff(error.attempts - 1, error.retry_after, uniform)


def backoff(
    doublings: int,
    retry_after: float | None,
    uniform: Callable[[float, float], float] = random.uniform,
) -> float:
    """Seconds of the pause after *doublings* earlier pauses."""
    own = uniform(0.0, min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(doublings, MOST_DOUBLINGS)))
    # ``Retry-After`` can only make the pause longer: a 0, or a date that is in the past by our
    # clock, would use up all attempts at once.
    return max(own, min(retry_after or 0.0, LONGEST_RETRY_AFTER))


class CircuitBreaker:
    """Lets events pass while the endpoint answers; after failures only one at a time, as a probe.

    Call with the queue's lock. All times are of its clock. *timeout*: seconds of one attempt;
    *retries*: the option; *uniform*: `random.uniform`, or a function of a test.
    """

    __slots__ = ("_failures", "_probe", "_probes", "_retries", "_timeout", "_uniform", "_until")

    def __init__(
        self,
        timeout: float,
        retries: int,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._timeout = timeout
        self._retries = retries
        self._uniform = uniform
        self._failures = 0  # in a row
        self._until: float | None = None  # when the next probe may be made; None: it is closed
        self._probe = 0.0  # when the probe under way counts as lost
        self._probes: collections.deque[float] = collections.deque()  # times of failed probes

    @property
    def is_open(self) -> bool:
        """Whether only probes may pass."""
        return self._until is not None

    def allows(self, now: float) -> bool:
        """Whether an event may pass now."""
        return self._until is None or (now >= self._until and now >= self._probe)

    def next_probe(self) -> float | None:
        """When the next event may pass; None: at any time."""
        return None if self._until is None else max(self._until, self._probe)

    def passed(self, now: float) -> None:
        """An event was taken: where it is a probe, no other one passes until it has a result."""
        if self._until is not None:
            self._probe = now + PROBES * self._timeout

    def returned(self) -> None:
        """The event that passed was not tried."""
        self._probe = 0.0

    def succeeded(self) -> None:
        """An attempt got a final answer. Closing a breaker that is closed is harmless."""
        self._failures = 0
        self._until = None
        self._probe = 0.0
        self._probes.clear()

    def failed(self, began: float, now: float, retry_after: float | None = None) -> bool:
        """An attempt that began at *began* failed. Whether the breaker is open because of it."""
        if self._until is not None and began < self._until:
            return False  # no probe: it began before the breaker opened, and proves nothing new
        self._failures += 1
        if self._failures < DOWN_AFTER:
            return False
        self._probes.append(now)
        while len(self._probes) > self._retries + 1:
            self._probes.popleft()
        self._until = now + backoff(self._failures - DOWN_AFTER, retry_after, self._uniform)
        self._probe = 0.0
        return True

    def expired(self, now: float) -> float:
        """Events in memory that were accepted before this moment have waited too long.

        A failed probe counts as an attempt of all events that wait for it.
        """
        probes = self._probes
        aged = now - MAX_AGE
        return max(aged, probes[0]) if len(probes) > self._retries else aged

    def hurry(self, now: float) -> None:
        """Allow a probe now, and make the pauses short again."""
        self._failures = min(self._failures, DOWN_AFTER)
        if self._until is not None:
            self._until = min(self._until, now)

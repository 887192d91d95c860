"""Retries: which events are tried again and when, and when the endpoint counts as down.

A failed event waits, and others go on. If attempts do nothing but fail, the endpoint is down: then
all events wait, and one event at a time is tried, as a probe.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from valued._errors import DeliveryError

#: Statuses that say "not now": a timeout, too early, too many, and every 5xx below.
_TRANSIENT: Final = frozenset({408, 425, 429})

#: Statuses that say something about the token, and nothing about the event. Events on the disk wait
#: for a process that has the right token; events in memory have no such chance.
_OF_THE_TOKEN: Final = frozenset({401, 403})

#: Seconds. The first pause is between 0 and this (full jitter); this bound doubles with each retry.
FIRST_PAUSE: Final = 0.5

#: Seconds; the longest pause, so that a recovery is noticed within half a minute.
LONGEST_PAUSE: Final = 30.0

#: Enough to get past `LONGEST_PAUSE`, and few enough that the power can't overflow.
MOST_DOUBLINGS: Final = 10

#: Seconds; a longer ``Retry-After`` is cut to this.
LONGEST_RETRY_AFTER: Final = 120.0

#: Failures in a row, of any events, after which the endpoint counts as down. A single event that
#: makes the service fail reaches this number only if nothing else is sent.
DOWN_AFTER: Final = 5

#: Seconds; an older event fails permanently with its next failure, or with that of a probe. Usage
#: is evaluated by the hour, and an event is of no use in the wrong hour; and memory is bounded.
MAX_AGE: Final = 3600.0


def is_transient(status: int | None, *, patient: bool = False) -> bool:
    """Whether the same event may succeed later. None: there was no answer.

    *patient*: whether it waits as long as needed; see `Outbox.patient`.
    """
    if status in _OF_THE_TOKEN:
        return patient
    return status is None or status in _TRANSIENT or 500 <= status <= 599


def pause(
    error: DeliveryError, retries: int | None, uniform: Callable[[float, float], float]
) -> float:
    """Seconds until the next attempt; negative: there is none, the event fails permanently.

    *error* has status, attempts and age. *retries*: attempts after the first; None: neither their
    number nor the age is bounded here. *uniform*: `random.uniform`, or a function for tests.
    """
    if not is_transient(error.status, patient=retries is None):
        return -1.0
    if retries is not None and (error.attempts > retries or error.age > MAX_AGE):
        return -1.0
    return backoff(error.attempts - 1, error.retry_after, uniform)


def backoff(
    doublings: int, retry_after: float | None, uniform: Callable[[float, float], float]
) -> float:
    """Seconds of the pause after *doublings* earlier pauses."""
    own = uniform(0.0, min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(doublings, MOST_DOUBLINGS)))
    # ``Retry-After`` can only make the pause longer: a 0, or a date that is in the past by our
    # clock, would use up all attempts at once.
    return max(own, min(retry_after or 0.0, LONGEST_RETRY_AFTER))


class Health:
    """Whether the endpoint as a whole answers, as one process sees it. Any thread may call.

    Threads that race here miscount by one, which means one attempt more or less; no lock is needed.
    *retries*: the option.
    """

    __slots__ = ("_failures", "_held_until", "_probes", "_retries")

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self._failures = 0  # in a row
        self._held_until = 0.0
        self._probes: collections.deque[float] = collections.deque()  # times of failed probes

    def answered(self) -> None:
        """An attempt got a final answer."""
        self._failures = 0
        self._held_until = 0.0
        self._probes = collections.deque()

    def failed(self, began: float, now: float) -> int | None:
        """An attempt that had begun at *began* failed.

        Returns None if other events may be tried; else how often a probe has failed, for `backoff`.
        """
        if began < self._held_until:
            return None  # not a probe: it had begun earlier, or is a caller's, and proves nothing
        self._failures += 1
        if self._failures < DOWN_AFTER:
            return None
        probes = self._probes
        probes.append(now)
        while len(probes) > self._retries + 1:
            probes.popleft()
        return self._failures - DOWN_AFTER

    def held(self, until: float) -> None:
        """No probe is made before *until*."""
        self._held_until = until

    def give_up_before(self, now: float) -> float:
        """Waiting events that were accepted before this moment have waited too long.

        A failed probe counts as an attempt of all events that wait for it.
        """
        probes = self._probes
        aged = now - MAX_AGE
        return max(aged, probes[0]) if len(probes) > self._retries else aged

    def hasten(self) -> None:
        """Make the pauses short again, and allow a probe now."""
        self._failures = min(self._failures, DOWN_AFTER)
        self._held_until = 0.0

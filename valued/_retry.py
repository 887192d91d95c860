"""What is tried again, and when: an event by its attempts and age, the endpoint by its failures.

A failed event waits, and others go on. Where nothing but failures comes back, it is the endpoint
that fails: then all events wait, and one at a time probes.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from valued._errors import DeliveryError

#: Statuses that say "not now": a timeout, too early, too many, and every 5xx below.
_TRANSIENT: Final = frozenset({408, 425, 429})

#: Statuses that say something of the token, and nothing of the event. What is kept on the disk is
#: delivered by who has the right one, or gets it; what waits in memory can't expect that.
_OF_THE_TOKEN: Final = frozenset({401, 403})

#: Seconds. The first pause is between 0 and this (full jitter), the following ones double.
FIRST_PAUSE: Final = 0.5

#: Seconds; a pause is no longer than this, so that recovery is noticed within half a minute.
LONGEST_PAUSE: Final = 30.0

#: Enough to get past `LONGEST_PAUSE`, and few enough that the power can't overflow.
MOST_DOUBLINGS: Final = 10

#: Seconds; a longer ``Retry-After`` is cut to this.
LONGEST_RETRY_AFTER: Final = 120.0

#: Failures in a row, of whichever events, after which the endpoint counts as down. One event that
#: the service stumbles over has as many attempts alone only where nothing else is sent.
DOWN_AFTER: Final = 5

#: Seconds; an event older than this is given up at its next failure, or at that of a probe. Whoever
#: evaluates usage hour by hour has no use for it in the wrong hour, and memory is bounded.
MAX_AGE: Final = 3600.0


def is_transient(status: int | None, *, patient: bool = False) -> bool:
    """Whether the same event may succeed later. None: there was no answer.

    *patient*: whether it waits for as long as that takes, as `Outbox.patient`.
    """
    if status in _OF_THE_TOKEN:
        return patient
    return status is None or status in _TRANSIENT or 500 <= status <= 599


def pause(
    error: DeliveryError, retries: int | None, uniform: Callable[[float, float], float]
) -> float:
    """Seconds until the next attempt; negative: there is none, the event is given up.

    *error* knows status, attempts and age; *retries*: attempts after the first, None where neither
    they nor the age are bounded here; *uniform* is `random.uniform` or a stand-in.
    """
    if not is_transient(error.status, patient=retries is None):
        return -1.0
    if retries is not None and (error.attempts > retries or error.age > MAX_AGE):
        return -1.0
    return backoff(error.attempts - 1, error.retry_after, uniform)


def backoff(
    doublings: int, retry_after: float | None, uniform: Callable[[float, float], float]
) -> float:
    """Seconds of the pause after so many earlier ones."""
    own = uniform(0.0, min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(doublings, MOST_DOUBLINGS)))
    # What the service asks is the least: a 0, or a date that its clock makes one of the past, would
    # use up all attempts in an instant.
    return max(own, min(retry_after or 0.0, LONGEST_RETRY_AFTER))


class Health:
    """Whether the endpoint as a whole answers, as one process sees it. Any thread may call.

    Threads that race here miscount by one, which costs an attempt more or less; no lock is needed.
    *retries*: as the option.
    """

    __slots__ = ("_failures", "_held_until", "_probes", "_retries")

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self._failures = 0  # in a row
        self._held_until = 0.0
        self._probes: collections.deque[float] = collections.deque()  # when they failed

    def answered(self) -> None:
        """An attempt got an answer that is final."""
        self._failures = 0
        self._held_until = 0.0
        self._probes = collections.deque()

    def failed(self, began: float, now: float) -> int | None:
        """An attempt failed that had begun at *began*; None: others may be tried.

        Else how often a probe has failed, for `backoff`.
        """
        if began < self._held_until:
            return None  # no probe: it was under way already, or is a caller's, and tells nothing
        self._failures += 1
        if self._failures < DOWN_AFTER:
            return None
        probes = self._probes
        probes.append(now)
        while len(probes) > self._retries + 1:
            probes.popleft()
        return self._failures - DOWN_AFTER

    def held(self, until: float) -> None:
        """No probe goes before *until*."""
        self._held_until = until

    def give_up_before(self, now: float) -> float:
        """The moment before which an event that waits was accepted for too long.

        A failed probe counts as an attempt of all that wait for it.
        """
        probes = self._probes
        aged = now - MAX_AGE
        return max(aged, probes[0]) if len(probes) > self._retries else aged

    def hasten(self) -> None:
        """Let the pauses be short again, and a probe go now."""
        self._failures = min(self._failures, DOWN_AFTER)
        self._held_until = 0.0

"""What is tried again, and when: pure functions of the failure, the attempts so far and the age."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from valued._errors import DeliveryError

#: Statuses that say "not now": a timeout, too early, too many, and every 5xx below.
_TRANSIENT: Final = frozenset({408, 425, 429})

#: Seconds. The first pause is between 0 and this (full jitter), the following ones double.
FIRST_PAUSE: Final = 0.5

#: Seconds; a pause is no longer than this, so that recovery is noticed within half a minute.
LONGEST_PAUSE: Final = 30.0

#: Enough to get past `LONGEST_PAUSE`, and few enough that the power can't overflow.
MOST_DOUBLINGS: Final = 10

#: Seconds; a longer ``Retry-After`` is cut to this.
LONGEST_RETRY_AFTER: Final = 120.0

#: Seconds; an event older than this is given up at its next failure. Whoever evaluates usage
#: hour by hour has no use for it in the wrong hour, and memory is bounded.
MAX_AGE: Final = 3600.0


def is_transient(status: int | None) -> bool:
    """Whether the same event may succeed later. None: there was no answer."""
    return status is None or status in _TRANSIENT or 500 <= status <= 599


def pause(error: DeliveryError, retries: int, uniform: Callable[[float, float], float]) -> float:
    """Seconds until the next attempt; negative: there is none, the event is given up.

    *error* knows status, attempts and age; *retries*: attempts after the first; *uniform* is
    `random.uniform` or a stand-in.
    """
    if not is_transient(error.status) or error.attempts > retries or error.age > MAX_AGE:
        return -1.0
    doublings = min(error.attempts - 1, MOST_DOUBLINGS)
    own = uniform(0.0, min(LONGEST_PAUSE, FIRST_PAUSE * 2.0**doublings))
    # What the service asks is the least: a 0, or a date that its clock makes one of the past, would
    # use up all attempts in an instant.
    return max(own, min(error.retry_after or 0.0, LONGEST_RETRY_AFTER))

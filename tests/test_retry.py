"""What is tried again, and when: tables."""

from __future__ import annotations

import pytest

import valued
from valued._delivery import retry as _retry
from valued._delivery.retry import is_transient, pause


def longest(_low: float, high: float) -> float:
    return high


def shortest(low: float, _high: float) -> float:
    return low


def failure(
    status: int | None = 503,
    attempts: int = 1,
    age: float = 0.0,
    retry_after: float | None = None,
) -> valued.DeliveryError:
    return valued.DeliveryError("stand-in", status, attempts, age, retry_after=retry_after)


@pytest.mark.parametrize("status", [None, 408, 425, 429, 500, 501, 502, 503, 504, 521, 599])
def test_the_same_event_may_succeed_later_after(status: int | None) -> None:
    assert is_transient(status)
    assert pause(failure(status), 8, longest) == 0.5


@pytest.mark.parametrize(
    "status", [100, 199, 301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 409, 413, 422, 499, 600]
)
def test_an_event_is_given_up_at_once_after(status: int) -> None:
    assert not is_transient(status)
    assert pause(failure(status), 8, longest) < 0
    assert pause(failure(status, retry_after=5.0), 8, longest) < 0


@pytest.mark.parametrize("status", [401, 403])
def test_who_may_wait_for_long_waits_for_the_right_token(status: int) -> None:
    assert is_transient(status, patient=True)
    assert pause(failure(status, attempts=100, age=1e6), None, longest) == 30.0


@pytest.mark.parametrize("status", [301, 400, 404, 413, 422])
def test_what_is_wrong_with_an_event_no_waiting_mends(status: int) -> None:
    assert not is_transient(status, patient=True)
    assert pause(failure(status), None, longest) < 0


@pytest.mark.parametrize(
    ("attempts", "retries", "again"),
    [(1, 0, False), (1, 1, True), (2, 1, False), (8, 8, True), (9, 8, False), (9, 9, True)],
)
def test_retries_are_the_attempts_after_the_first(attempts: int, retries: int, again: bool) -> None:
    assert (pause(failure(attempts=attempts), retries, longest) >= 0) is again


@pytest.mark.parametrize(
    ("age", "again"), [(0.0, True), (3600.0, True), (3600.1, False), (1e9, False)]
)
def test_an_event_older_than_an_hour_is_given_up_however_many_retries_are_left(
    age: float, again: bool
) -> None:
    assert _retry.MAX_AGE == 3600.0
    assert (pause(failure(age=age), 1000, longest) >= 0) is again
    assert (pause(failure(age=age, retry_after=1.0), 1000, longest) >= 0) is again


@pytest.mark.parametrize(
    ("attempts", "bound"),
    [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (5, 8.0), (6, 16.0), (7, 30.0), (8, 30.0),
     (1024, 30.0), (1026, 30.0), (10**6, 30.0)],
)  # fmt: skip
def test_pauses_lie_between_nothing_and_a_bound_that_doubles(attempts: int, bound: float) -> None:
    assert pause(failure(attempts=attempts), 10**6, longest) == bound
    assert pause(failure(attempts=attempts), 10**6, shortest) == 0.0


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [(0.6, 0.6), (5.0, 5.0), (120.0, 120.0), (120.1, 120.0), (86_400.0, 120.0),
     (float("inf"), 120.0)],
)  # fmt: skip
def test_retry_after_is_obeyed_up_to_two_minutes(asked: float, seconds: float) -> None:
    assert pause(failure(429, retry_after=asked), 8, longest) == seconds
    assert pause(failure(429, retry_after=asked), 8, shortest) == seconds


@pytest.mark.parametrize("asked", [0.0, -5.0, 0.1])
def test_retry_after_never_makes_a_pause_shorter(asked: float) -> None:
    # A service whose clock is wrong would otherwise use up all attempts in an instant.
    assert pause(failure(retry_after=asked), 8, longest) == 0.5
    assert pause(failure(attempts=3, retry_after=asked), 8, longest) == 2.0
    assert pause(failure(retry_after=asked), 8, shortest) == max(0.0, asked)


def test_a_default_of_8_retries_rides_out_a_minute_and_a_half_at_most() -> None:
    longest_pauses = [pause(failure(attempts=attempt), 8, longest) for attempt in range(1, 9)]
    assert sum(longest_pauses) == 91.5
    assert pause(failure(attempts=9), 8, longest) < 0


def probing(health: _retry.Health, *moments: float) -> list[int | None]:
    """What each failure says, where the next probe may go at once."""
    said = []
    for moment in moments:
        said.append(health.failed(moment, moment))
        health.held(moment)
    return said


def test_five_failures_in_a_row_are_an_endpoint_that_is_down() -> None:
    assert probing(_retry.Health(100), *range(6)) == [None] * 4 + [0, 1]


def test_an_answer_between_them_says_that_it_is_the_event() -> None:
    health = _retry.Health(100)
    probing(health, *range(4))
    health.answered()
    assert health.failed(5, 5) is None


def test_what_is_no_probe_tells_nothing_new() -> None:
    health = _retry.Health(100)
    probing(health, *range(5))
    health.held(10.0)
    assert health.failed(9.0, 11.0) is None  # under way before, or sent by a caller
    assert health.failed(10.0, 12.0) == 1
    health.answered()
    assert health.failed(13.0, 14.0) is None


def test_at_the_end_pauses_are_short_again_and_a_probe_goes_now() -> None:
    health = _retry.Health(100)
    probing(health, *range(20))
    health.held(1000.0)
    health.hasten()
    assert health.failed(30, 30) == 1
    healthy = _retry.Health(100)
    healthy.hasten()
    assert healthy.failed(0, 0) is None


def test_a_failed_probe_counts_for_all_that_wait() -> None:
    health = _retry.Health(2)
    probing(health, *range(4))
    assert health.give_up_before(5000.0) == 5000.0 - _retry.MAX_AGE
    for moment in (10, 20):
        probing(health, moment)
        assert health.give_up_before(moment) == moment - _retry.MAX_AGE
    probing(health, 30)
    assert health.give_up_before(30.0) == 10  # an event of then has missed three probes
    probing(health, 40)
    assert health.give_up_before(40.0) == 20
    health.answered()
    assert health.give_up_before(50.0) == 50.0 - _retry.MAX_AGE

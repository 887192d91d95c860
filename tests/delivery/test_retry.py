"""What is tried again, and when; the circuit breaker."""

from __future__ import annotations

from typing import Any

import pytest

import valued
from tests.delivery.support import Post, transient
from valued._delivery.retry import (
    DOWN_AFTER,
    MAX_AGE,
    PROBES,
    CircuitBreaker,
    backoff,
    is_transient,
    pause,
)


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
    return valued.DeliveryError("no", status, attempts, age, retry_after=retry_after)


@pytest.mark.parametrize("status", [None, 408, 425, 429, 500, 501, 502, 503, 504, 521, 599])
def test_the_same_event_may_succeed_later_after(status: int | None) -> None:
    assert is_transient(failure(status))
    assert pause(failure(status), 8, longest) == 0.5


@pytest.mark.parametrize(
    "status", [100, 199, 301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 409, 413, 422, 499, 600]
)
def test_an_event_fails_permanently_at_once_after(status: int) -> None:
    assert not is_transient(failure(status))
    assert pause(failure(status), 8, longest) < 0
    assert pause(failure(status, retry_after=5.0), 8, longest) < 0


@pytest.mark.parametrize("status", [401, 403])
def test_events_on_the_disk_wait_for_the_right_token(status: int) -> None:
    assert is_transient(failure(status), stored=True)
    assert pause(failure(status, attempts=100, age=1e6), None, longest) == 30.0


def test_what_a_person_has_to_change_first_is_waited_for_on_the_disk_only() -> None:
    error = valued.DeliveryError("no such proxy", permanent=True)
    assert not is_transient(error)
    assert is_transient(error, stored=True)
    assert pause(error, 8, longest) < 0 < pause(error, None, longest)


@pytest.mark.parametrize("status", [301, 400, 404, 413, 422])
def test_what_is_wrong_with_an_event_itself_is_not_retried_from_the_disk_either(
    status: int,
) -> None:
    assert not is_transient(failure(status), stored=True)
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
def test_an_event_older_than_an_hour_fails_however_many_retries_are_left(
    age: float, again: bool
) -> None:
    assert MAX_AGE == 3600.0
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


# -- the circuit breaker ---------------------------------------------------------------------------


def breaker(retries: int = 100, uniform: Any = longest) -> CircuitBreaker:
    return CircuitBreaker(10.0, retries, uniform)


def fail(one: CircuitBreaker, *moments: float) -> list[bool]:
    """What it says of failed attempts that take no time."""
    said = []
    for moment in moments:
        one.passed(moment)
        said.append(one.failed(moment, moment))
    return said


def test_five_failures_in_a_row_open_it() -> None:
    one = breaker()
    assert DOWN_AFTER == 5
    assert fail(one, 1.0, 1.0, 1.0, 1.0) == [False] * 4
    assert one.allows(1.0)
    assert one.next_probe() is None
    assert not one.is_open
    assert fail(one, 1.0) == [True]
    assert one.is_open
    assert not one.allows(1.0)
    assert one.next_probe() == 1.5
    assert one.allows(1.5)


def test_an_answer_closes_it_and_begins_to_count_again() -> None:
    one = breaker()
    fail(one, *[1.0] * 4)
    one.succeeded()
    assert fail(one, *[2.0] * 4) == [False] * 4
    assert fail(one, 2.0) == [True]
    one.succeeded()
    one.succeeded()  # harmless
    assert not one.is_open
    assert one.allows(2.0)
    assert one.next_probe() is None


def test_one_probe_passes_at_a_time_until_it_counts_as_lost() -> None:
    one = breaker()
    fail(one, *[1.0] * 5)
    assert one.allows(2.0)
    one.passed(2.0)
    assert not one.allows(3.0)
    lost = 2.0 + PROBES * 10.0
    assert one.next_probe() == lost
    assert not one.allows(lost - 0.1)
    assert one.allows(lost)


def test_probes_follow_by_the_backoff_of_retries_and_obey_retry_after() -> None:
    one, moment, pauses = breaker(), 0.0, []
    fail(one, *[0.0] * 5)
    for _ in range(8):
        due = one.next_probe()
        assert due is not None
        pauses.append(due - moment)
        moment = due
        fail(one, moment)
    assert pauses == [backoff(number, None, longest) for number in range(8)]
    assert pauses[-1] == 30.0
    assert one.failed(moment + 30.0, moment + 30.0, 60.0)
    assert one.next_probe() == moment + 90.0
    assert one.failed(moment + 90.0, moment + 90.0, 1e9)
    assert one.next_probe() == moment + 210.0


def test_an_attempt_that_began_before_the_pause_was_over_proves_nothing_new() -> None:
    one = breaker(retries=0)
    fail(one, *[1.0] * 5)
    assert one.next_probe() == 1.5
    assert not one.failed(1.4, 9.0)  # under way before, or sent by a caller
    assert one.next_probe() == 1.5
    assert one.failed(1.5, 9.0)
    assert one.next_probe() == 10.0


def test_at_the_end_of_a_process_a_probe_may_go_now_and_pauses_are_short_again() -> None:
    one = breaker()
    fail(one, *range(0, 600, 30))
    due = one.next_probe()
    assert due is not None
    assert not one.allows(due - 1.0)
    one.hurry(due - 1.0)
    assert one.allows(due - 1.0)
    fail(one, due - 1.0)
    assert one.next_probe() == due
    closed = breaker()
    closed.hurry(1.0)
    assert closed.allows(1.0)
    assert not closed.is_open


def test_a_failed_probe_counts_as_an_attempt_of_all_that_wait() -> None:
    one = breaker(retries=2)
    fail(one, 0.0, 0.0, 0.0, 0.0)
    assert one.expired(5000.0) == 5000.0 - MAX_AGE
    for moment in (10.0, 20.0):
        fail(one, moment)
        assert one.expired(moment) == moment - MAX_AGE
    fail(one, 30.0)
    assert one.expired(30.0) == 10.0  # an event of then has missed three probes
    fail(one, 40.0)
    assert one.expired(40.0) == 20.0
    one.succeeded()
    assert one.expired(50.0) == 50.0 - MAX_AGE


# -- retries of a pipeline -------------------------------------------------------------------------


class Down:
    """What answers with failures as long as *down* says so, by the body of an event."""

    def __init__(self, retry_after: float = 1.0, **options: Any) -> None:
        self.post = Post(self, **options)
        self.down: Any = lambda _body: True
        self.retry_after = retry_after
        self.tries: list[tuple[bytes, float]] = []

    def __call__(self, body: bytes, _key: str, _seconds: float) -> None:
        self.tries.append((body, round(self.post.simulation.now - 1000.0, 3)))
        if self.down(body):
            raise transient(self.retry_after)


def test_one_event_that_always_fails_neither_opens_it_nor_holds_up_others() -> None:
    service = Down(retry_after=1.0, retries=1000, max_workers=1)
    service.down = lambda body: body == b"bad"
    service.post.accept(b"bad")
    for number in range(50):
        service.post.accept(b"%d" % number)
        service.post.go_on(1.0)
    good = {body: moment for body, moment in service.tries if body != b"bad"}
    assert good == {b"%d" % number: number + 1.0 for number in range(50)}  # each at once
    assert service.post.figures()["delivered"] == 50


def test_a_single_event_does_not_use_up_its_attempts_as_the_probe_of_an_outage() -> None:
    service = Down(retry_after=1.0, retries=8, max_workers=1)
    service.post.accept(*[b"%d" % number for number in range(40)])
    service.post.go_on()
    for _ in range(7):
        service.post.go_on(60.0)
    counts = [sum(body == b"%d" % number for body, _ in service.tries) for number in range(40)]
    assert max(counts) <= 2  # each probe was an event that was never tried
    service.down = lambda _body: False
    service.post.go_on(130.0)
    assert service.post.figures()["delivered"] == 40


def test_in_an_outage_all_that_waited_fails_with_the_probe_that_was_one_too_many() -> None:
    service = Down(retry_after=10.0, retries=2, max_workers=1)
    service.post.accept(*[b'{"key": "%d"}' % number for number in range(20)])
    service.post.go_on(1.0)
    while service.post.figures().get("failed", 0) == 0:
        service.post.accept(b'{"key": "later"}')
        service.post.go_on(31.0)
    assert len(service.tries) == DOWN_AFTER + 2
    figures = service.post.figures()
    assert figures["failed"] == 19  # all but the probe, which has attempts left
    assert "retried" not in figures
    assert figures["pending"] == figures["accepted"] - 19
    never = [error for error, _ in service.post.failed if error.attempts == 0]
    assert len(never) >= 13
    assert never[0].reason == "not now (the answer to a probe, while it waited)"
    assert never[0].status == 503
    assert never[0].age > 60.0


def test_an_hour_of_outage_fails_what_is_older() -> None:
    service = Down(retry_after=120.0, retries=1000, max_workers=1)
    service.post.accept(*[b"{}"] * 10)
    service.post.go_on()
    for _ in range(40):
        service.post.go_on(120.0)
    assert service.post.figures()["failed"] == 10
    assert 3600.0 <= max(error.age for error, _ in service.post.failed) < 4000.0

"""One attempt, and what follows: settled, or postponed; in a forked child, neither."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

import valued
from tests.delivery.conftest import Make
from tests.delivery.support import BOUND, Jobs, Post, Service, figures, record, transient
from valued import DeliveryError
from valued._delivery.attempt import LAST_ATTEMPT

BODY = b'{"category": "action"}'


def raising(error: BaseException) -> Callable[..., object]:
    def send(*_args: object) -> None:
        raise error

    return send


def attempted(send: Callable[..., object], **options: Any) -> Post:
    """One event, and one attempt of it."""
    post = Post(send, **options)
    post.accept(BODY)
    post.jobs.run_one()
    return post


# -- outcomes --------------------------------------------------------------------------------------


def test_what_the_transport_takes_is_delivered_and_it_is_told_body_key_and_time() -> None:
    calls: list[Any] = []
    post = attempted(lambda *args: calls.append(args), timeout=7.0)
    ((body, key, seconds),) = calls
    assert (body, seconds) == (BODY, 7.0)
    assert key.endswith("-1")
    assert post.figures() == {"accepted": 1, "delivered": 1}
    assert post.failed == []


@pytest.mark.parametrize(("left", "seconds"), [(100.0, 7.0), (3.0, 3.0), (0.01, LAST_ATTEMPT)])
def test_an_attempt_of_a_thread_that_waits_has_until_its_deadline_but_enough_for_an_answer(
    left: float, seconds: float
) -> None:
    given: list[float] = []

    def send(_body: bytes, _key: str, seconds: float) -> None:
        given.append(seconds)
        if len(given) == 1:
            raise transient(1.0)

    post = Post(send, timeout=7.0, executor=valued.ImmediateExecutor())
    post.accept(BODY)
    post.simulation.now += 1.0
    assert post.pipeline.flush(post.simulation.now + left)
    assert given == [7.0, seconds]


@pytest.mark.parametrize("status", [None, 408, 429, 500, 503])
def test_what_may_pass_is_postponed(status: int | None, caplog: pytest.LogCaptureFixture) -> None:
    post = attempted(raising(DeliveryError("not now", status)))
    assert post.figures() == {"accepted": 1, "pending": 1}
    assert post.failed == []
    assert "1 delivery failed and will be retried; the latest: not now" in caplog.text


@pytest.mark.parametrize("status", [301, 400, 401, 403, 413, 422])
def test_what_will_not_pass_fails_permanently_with_all_that_is_known(status: int) -> None:
    cause = ValueError("below")
    answer = DeliveryError("no", status, body="user.id: missing", retry_after=3.0)
    answer.__cause__ = cause
    post = attempted(raising(answer))
    assert post.figures() == {"accepted": 1, "failed": 1}
    ((error, event),) = post.failed
    assert event == {"category": "action"}
    assert (error.reason, error.status, error.attempts) == ("no", status, 1)
    assert (error.body, error.retry_after, error.age) == ("user.id: missing", 3.0, 0.0)
    assert error.__cause__ is cause


def test_another_exception_is_postponed_and_is_the_cause_in_the_end() -> None:
    cause = LookupError("no such host")
    post = attempted(raising(cause), retries=1)
    assert post.failed == []
    post.go_on(1.0)
    assert post.figures() == {"accepted": 1, "failed": 1, "retried": 1}
    ((error, _event),) = post.failed
    assert error.reason == "LookupError: no such host"
    assert (error.status, error.attempts, error.retry_after) == (None, 2, None)
    assert error.age == 1.0
    assert error.__cause__ is cause


class Unreadable(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


class Forgetful(DeliveryError):
    def __init__(self) -> None:
        """Its attributes are not there."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Unreadable(), "Unreadable: (its message can't be read)"),
        (Forgetful(), "Forgetful"),
        *(
            (DeliveryError("odd", odd, retry_after=odd), "odd")
            for odd in ("503", "soon", [], object())
        ),
    ],
)
def test_an_error_of_a_transport_may_be_anything(error: Exception, reason: str) -> None:
    post = attempted(raising(error), retries=0)
    ((told, _event),) = post.failed
    assert (told.reason, told.status, told.retry_after) == (reason, None, None)
    assert post.figures() == {"accepted": 1, "failed": 1}


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize(("retries", "outcome"), [(3, "pending"), (0, "failed")])
def test_what_is_no_failure_is_raised_after_the_event_was_settled_or_postponed(
    kind: type[BaseException], retries: int, outcome: str
) -> None:
    outcomes: list[BaseException] = [kind("enough")]

    def transport(_event: dict[str, Any]) -> None:
        if outcomes:
            raise outcomes.pop()

    failed: list[DeliveryError] = []
    client = valued.Client(
        transport,
        executor=valued.ImmediateExecutor(),
        retries=retries,
        on_error=lambda error, _event: failed.append(error),
    )
    with pytest.raises(kind, match="enough"):
        record(client, "a")
    assert figures(client) == {"accepted": 1, outcome: 1}
    assert client.close(BOUND)
    if outcome == "failed":
        assert failed[0].reason == f"{kind.__name__}: enough"
    else:
        assert figures(client) == {"accepted": 1, "delivered": 1, "retried": 1}


# -- on_error --------------------------------------------------------------------------------------


def test_on_error_may_record_events_which_are_sent_within_its_call() -> None:
    order: list[str] = []

    def transport(event: dict[str, Any]) -> None:
        order.append(event["key"])
        if event["key"] == "a":
            raise DeliveryError("no", 400)

    def on_error(_error: DeliveryError, event: dict[str, Any]) -> None:
        order.append(f"on_error {event['key']}")
        record(client, "b", "c")
        order.append("end of on_error")

    client = valued.Client(transport, executor=valued.ImmediateExecutor(), on_error=on_error)
    record(client, "a")
    assert order == ["a", "on_error a", "b", "c", "end of on_error"]
    assert figures(client) == {"accepted": 3, "failed": 1, "delivered": 2}


def test_an_event_of_on_error_while_the_process_ends_does_not_wait_for_itself() -> None:
    """Its thread is in an attempt: the call that ended the process sends the event afterwards."""

    def send(body: bytes, _key: str, _seconds: float) -> None:
        sent.append(body)
        if body == BODY:
            raise DeliveryError("no", 400)

    sent: list[bytes] = []
    post = Post(
        send, on_error=lambda *_: post.accept(b"within"), executor=valued.ImmediateExecutor()
    )
    post.pipeline.begin_to_drain(post.simulation.now)
    post.accept(BODY)
    assert sent == [BODY, b"within"]
    assert post.figures() == {"accepted": 2, "failed": 1, "delivered": 1}


def test_an_on_error_that_raises_is_logged_and_loses_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def on_error(*_args: object) -> None:
        raise ZeroDivisionError

    post = attempted(raising(DeliveryError("no", 400)), on_error=on_error)
    assert post.figures() == {"accepted": 1, "failed": 1}
    assert "on_error raised 1 time" in caplog.text


# -- abandoned meanwhile ---------------------------------------------------------------------------


def test_what_fails_after_all_was_abandoned_is_dropped_for_that_reason(
    make: Make, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    client = make(max_workers=1)
    service.hold.clear()
    record(client, "under way", "waits")
    service.wait_until_inside()
    assert not client.close(0)
    assert figures(client) == {"accepted": 2, "pending": 1, "dropped": 1, "closed": 1}
    service.failure = transient(60.0)
    service.hold.set()
    assert client.flush(BOUND)
    assert figures(client) == {"accepted": 2, "dropped": 2, "closed": 2}
    assert "1 event was dropped as the last try failed: not now" in caplog.text
    assert service.got == []


def test_a_flush_waits_until_what_was_dropped_late_is_logged(
    make: Make, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    import logging

    logging_, go_on = threading.Event(), threading.Event()

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "last try" in record.getMessage():
                logging_.set()
                assert go_on.wait(BOUND)

    handler = Slow()
    logging.getLogger("valued").addHandler(handler)
    try:
        client = make(max_workers=1)
        service.hold.clear()
        record(client, "under way")
        service.wait_until_inside()
        assert not client.close(0)
        service.failure = transient(60.0)
        service.hold.set()
        assert logging_.wait(BOUND)
        assert client.stats()["dropped"] == 1
        assert not client.flush(0)
        go_on.set()
        assert client.flush(BOUND)
    finally:
        go_on.set()
        logging.getLogger("valued").removeHandler(handler)


@pytest.mark.parametrize(("error", "outcome"), [(None, "delivered"), (400, "failed")])
def test_what_is_settled_after_all_was_abandoned_counts_as_what_it_is(
    error: int | None, outcome: str
) -> None:
    def send(*_args: object) -> None:
        post.pipeline.close(post.simulation.now)
        if error is not None:
            raise DeliveryError("no", error)

    post = Post(send)
    post.accept(BODY)
    post.jobs.run()
    assert post.figures() == {"accepted": 1, outcome: 1}


def test_what_is_accepted_after_all_was_abandoned_is_retried_as_usual() -> None:
    post = Post(raising(DeliveryError("not now")))
    for _ in range(2):
        assert post.pipeline.close(post.simulation.now)
    post.accept(BODY)
    post.go_on()
    assert post.figures() == {"accepted": 1, "pending": 1}


# -- forks -----------------------------------------------------------------------------------------


@pytest.fixture
def in_child(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, this is a child of a fork, as far as the package can tell.

    No tracer sees the rest of functions in a real child that were called in its parent.
    """
    return lambda: monkeypatch.setattr(os, "getpid", lambda: -1)


@pytest.mark.parametrize("kind", [None, DeliveryError, OSError, SystemExit])
@pytest.mark.parametrize("executor", ["jobs", "immediate"])
def test_a_child_that_comes_out_of_the_transport_leaves_all_to_its_parent(
    kind: type[BaseException] | None,
    executor: str,
    in_child: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[bytes] = []

    def send(body: bytes, *_args: object) -> None:
        sent.append(body)
        if len(sent) == 1:
            in_child()
            if kind is not None:
                raise kind("no")

    jobs = Jobs()
    post = Post(
        send, retries=0, executor=jobs if executor == "jobs" else valued.ImmediateExecutor()
    )
    try:
        post.accept(BODY)
        if executor == "jobs":
            jobs.run()
    except SystemExit:
        assert kind is SystemExit
    # Nothing goes on here.
    assert sent == [BODY]
    assert post.failed == []
    assert not post.pipeline.flush(None)
    assert not post.pipeline.close(None)
    post.pipeline.on_exit(post.simulation.now)
    monkeypatch.undo()
    # In the parent it is as it was.
    assert figures(post.pipeline) == {"accepted": 1, "pending": 1}


def test_a_child_that_comes_out_of_on_error_leaves_the_rest_to_its_parent(
    in_child: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[DeliveryError] = []

    def on_error(error: DeliveryError, _event: dict[str, Any]) -> None:
        failed.append(error)
        if len(failed) == 6:
            in_child()

    post = Post(raising(transient(1.0)), retries=0, on_error=on_error, max_workers=1)
    post.accept(*[BODY] * 10)
    post.go_on(1.0)  # the fifth opens the breaker, and all that waited fail with it
    assert len(failed) == 6
    monkeypatch.undo()
    assert post.figures()["failed"] == 6


def test_an_attempt_that_begins_in_a_child_is_none(
    in_child: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A greenlet, for example, that the parent had started: greenlets survive a fork."""
    post = Post()
    post.accept(BODY)
    in_child()
    post.jobs.run()
    assert post.sent == []
    monkeypatch.undo()
    assert post.figures() == {"accepted": 1, "pending": 1}


def test_a_child_that_its_factory_forked_starts_no_worker(
    in_child: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs()

    def factory() -> Jobs:
        in_child()
        return jobs

    post = Post(executor=factory)
    post.accept(BODY)
    assert jobs.waiting == []
    monkeypatch.undo()
    assert post.figures() == {"accepted": 1, "pending": 1}


def test_a_child_handles_no_job_of_its_parent(
    in_child: Callable[[], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from concurrent.futures import Future

    future: Future[None] = Future()

    class Executor:
        def submit(self, _fn: Callable[..., object], /, *_args: object) -> Future[None]:
            return future

    post = Post(executor=Executor())
    post.accept(BODY)
    in_child()
    future.cancel()
    monkeypatch.undo()
    assert caplog.text == ""
    assert post.figures() == {"accepted": 1, "pending": 1}

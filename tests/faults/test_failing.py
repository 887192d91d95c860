"""A server that answers, but not with success."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.faults._raw import Peer, answer, answering
from tests.support.processes import run_program


def test_a_failure_that_may_pass_is_tried_again_with_the_same_bytes_on_the_same_connection(
    serve: Any, connect: Any
) -> None:
    server = serve(answering(answer("503 Busy")))
    client = connect(server)
    client.record("a")
    assert client.flush(10)
    stats = client.stats()
    assert (stats["delivered"], stats["retried"], stats["failed"]) == (1, 1, 0)
    assert server.keys == ["a", "a"]
    assert server.bodies[0] == server.bodies[1]
    assert len({headers["idempotency-key"] for headers in server.headers}) == 1
    assert server.connections == 1  # it is kept alive over a failure
    assert client.told == []


def test_a_refusal_is_of_one_event_and_the_others_are_delivered(serve: Any, connect: Any) -> None:
    client = connect(serve(answering(answer("403 No", body=b"reasons"))))
    client.record("a", "b")
    assert client.flush(10)
    ((error, _event),) = client.given_up(1)
    assert (error.status, error.attempts, error.body) == (403, 1, "reasons")
    assert "s3cret" not in f"{error!r} {error} {vars(error)}"
    assert client.stats()["delivered"] == 1


def test_retry_after_is_waited_for(serve: Any, connect: Any) -> None:
    arrivals: list[float] = []

    def serve_one(peer: Peer) -> None:
        while peer.read_request() is not None:
            arrivals.append(time.monotonic())
            late = len(arrivals) > 1
            peer.send(answer("204 OK") if late else answer("429 Too Many", "Retry-After: 1"))

    client = connect(serve(serve_one))
    client.record("a")
    assert client.flush(10)
    assert client.stats()["delivered"] == 1
    assert len(arrivals) == 2
    assert arrivals[1] - arrivals[0] >= 1.0


@pytest.mark.parametrize(
    "header", ["soon", "-1", "nan", "1e999", "", "Mon, 99 Foo", "9" * 400, "9" * 5000]
)
def test_a_retry_after_that_makes_no_sense_leaves_the_status_to_decide(
    header: str, serve: Any, connect: Any
) -> None:
    server = serve(answering(answer("400 No", f"Retry-After: {header}")))
    client = connect(server)
    client.record("a")
    assert client.flush(10)
    assert [error.status for error, _ in client.given_up(1)] == [400]
    assert len(server.bodies) == 1


def test_after_all_retries_an_event_is_given_up_and_the_next_one_is_not(
    serve: Any, connect: Any
) -> None:
    server = serve(answering(*[answer("503 Busy")] * 3))
    client = connect(server, retries=2)
    client.record("a")
    assert client.flush(10)
    ((error, event),) = client.given_up(1)
    assert (error.status, error.attempts, event["key"]) == (503, 3, "a")
    client.record("b")
    assert client.flush(10)
    stats = client.stats()
    assert (stats["delivered"], stats["failed"], stats["retried"]) == (1, 1, 2)
    assert server.keys == ["a", "a", "a", "b"]


def test_the_end_of_a_process_lets_on_error_finish(serve: Any) -> None:
    server = serve(answering(answer("400 No")))
    done = run_program("ends_in_on_error.py", server.url)
    assert done.returncode == 0
    assert done.stderr.startswith("valued: 1 event failed permanently; ")
    assert done.stdout == "the last event failed with 400\n"

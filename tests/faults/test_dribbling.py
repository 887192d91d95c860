"""A server that sends its answer a byte now and then."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.faults._raw import Peer


def dribbling(beginning: bytes, rest: bytes) -> Any:
    """Sends *beginning*, then a byte of *rest* every 50 ms, for 30 s if nobody minds."""

    def serve(peer: Peer) -> None:
        peer.read_request()
        peer.send(beginning)
        for number in range(600):
            if peer.server.over.wait(0.05):
                return
            peer.send(rest[number % len(rest) :][:1])

    return serve


@pytest.mark.parametrize(
    ("beginning", "rest"),
    [
        (b"", b"HTTP/1.1 204 "),
        (b"HTTP/1.1 500 Oops\r\n", b"X-Slow: yes\r\n"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 100000\r\n\r\n", b"body"),
        (b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["status line", "headers", "body", "chunks"],
)
def test_one_attempt_stays_within_its_timeout(
    beginning: bytes, rest: bytes, serve: Any, connect: Any
) -> None:
    client = connect(serve(dribbling(beginning, rest)), timeout=0.3, retries=0)
    started = time.monotonic()
    client.record("a")
    assert client.flush(20)
    took = time.monotonic() - started
    assert 0.3 <= took < 3.0  # each read alone would have had its 0.3 s, for 30 s in all
    ((error, _),) = client.given_up(1)
    assert error.age < 3.0


def test_the_end_of_the_client_is_not_held_up(serve: Any, connect: Any) -> None:
    server = serve(dribbling(b"", b"HTTP/1.1 204 "))
    client = connect(server, timeout=10.0)
    client.record("a")
    server.wait_for(1)
    started = time.monotonic()
    assert client.close(0.2) is False
    assert time.monotonic() - started < 3.0


def test_a_request_that_nobody_reads_stays_within_its_timeout(serve: Any, connect: Any) -> None:
    # More than the buffers of both sides hold, so that sending is what waits.
    client = connect(serve(lambda peer: peer.server.over.wait(30)), timeout=0.3, retries=0)
    started = time.monotonic()
    client.action("a", {"user.id": 1, "attributes.x": "x" * 20_000_000})
    assert client.flush(20)
    assert time.monotonic() - started < 5.0
    assert [error.status for error, _ in client.given_up(1)] == [None]

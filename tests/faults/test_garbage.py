"""A server that does not speak HTTP, or breaks off within its answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.faults._raw import NO_CONTENT, Peer

NO_ANSWER = {
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "zeros": b"\0" * 1000,
    "no status": b"HTTP/1.1\r\n\r\n",
    "status of letters": b"HTTP/1.1 abc OK\r\n\r\n",
    "status of five digits": b"HTTP/1.1 20400 OK\r\n\r\n",
    "endless line": b"HTTP/1.1 204 " + b"x" * 100_000,
    "endless headers": b"HTTP/1.1 204 OK\r\n" + b"X-Y: z\r\n" * 1000,
    "length of letters": b"HTTP/1.1 500 Oops\r\nContent-Length: many\r\n\r\n",
    "chunk of letters": b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "TLS alert": b"\x15\x03\x01\x00\x02\x02\x46",
    "cut in the version": b"H",
    "cut before the status": b"HTTP/1.1 ",
    "cut in the status": b"HTTP/1.1 20",
    "cut in the body of a 500": b"HTTP/1.1 500 Oops\r\nContent-Length: 100\r\n\r\nhalf",
}

SUCCESSES = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
    "chunked": b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhalf",
    "encoding": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nhalf",
}


def saying(data: bytes) -> Callable[[Peer], None]:
    """Sends *data* on the first connection, then ends it; behaves afterwards."""

    def serve(peer: Peer) -> None:
        while peer.read_request() is not None:
            if peer.number == 1:
                peer.send(data)
                return
            peer.send(NO_CONTENT)

    return serve


@pytest.mark.parametrize("name", NO_ANSWER)
def test_what_is_no_answer_is_tried_again_and_no_event_is_lost(
    name: str, serve: Any, connect: Any
) -> None:
    server = serve(saying(NO_ANSWER[name]))
    client = connect(server, timeout=2.0)
    client.record("a")
    assert client.flush(10)
    stats = client.stats()
    assert (stats["delivered"], stats["retried"], stats["failed"]) == (1, 1, 0)
    assert server.keys == ["a", "a"]


@pytest.mark.parametrize("name", SUCCESSES)
def test_a_success_whose_body_is_broken_is_a_success(name: str, serve: Any, connect: Any) -> None:
    # Any 2xx is success. To send it again would count the event twice.
    server = serve(saying(SUCCESSES[name]))
    client = connect(server)
    client.record("a")
    assert client.flush(10)
    assert server.keys == ["a"]
    stats = client.stats()
    assert (stats["delivered"], stats["retried"]) == (1, 0)


def test_a_refusal_whose_body_is_broken_is_a_refusal(serve: Any, connect: Any) -> None:
    server = serve(saying(b"HTTP/1.1 400 No\r\nContent-Length: 100\r\n\r\nhalf"))
    client = connect(server)
    client.record("a")
    assert client.flush(10)
    assert server.keys == ["a"]
    assert [error.status for error, _ in client.given_up(1)] == [400]


def test_headers_sent_before_they_are_asked_for_are_not_taken_for_an_answer_to_the_next_event(
    serve: Any, connect: Any
) -> None:
    # Two answers to one request: the second must not settle an event that was not received.
    def misbehave(peer: Peer) -> None:
        while peer.read_request() is not None:
            peer.send(NO_CONTENT + NO_CONTENT if len(server.bodies) == 1 else NO_CONTENT)

    server = serve(misbehave)
    client = connect(server)
    for key in ("a", "b", "c"):
        client.record(key)
        assert client.flush(10)
    server.wait_for(3)
    assert server.keys == ["a", "b", "c"]

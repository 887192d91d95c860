"""A server that does not speak HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults._raw import NO_CONTENT, Peer

GARBAGE = {
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
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_tried_again_and_no_event_is_lost(name: str, serve: Any, connect: Any) -> None:
    def misbehave(peer: Peer) -> None:
        while peer.read_request() is not None:
            if peer.number == 1:
                peer.send(GARBAGE[name])
                return
            peer.send(NO_CONTENT)

    server = serve(misbehave)
    client = connect(server, timeout=2.0)
    client.record("a")
    assert client.flush(10)
    stats = client.stats()
    assert (stats["delivered"], stats["failed"]) == (1, 0)
    assert server.keys == ["a", "a"]


def test_garbage_for_ever_is_given_up_with_what_happened(serve: Any, connect: Any) -> None:
    def misbehave(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"SSH-2.0-OpenSSH_9.2\r\n")

    client = connect(serve(misbehave), retries=2)
    client.record("a")
    assert client.flush(10)
    ((error, _),) = client.given_up(1)
    assert (error.status, error.attempts) == (None, 3)


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

"""A server whose answer has no end."""

from __future__ import annotations

import gzip
import tracemalloc
from typing import Any

import pytest

from tests.faults._raw import NO_CONTENT, Peer

MEGABYTE = 1024 * 1024


@pytest.mark.parametrize("status", ["200 OK", "302 Found", "400 No"])
def test_of_a_huge_answer_only_the_beginning_is_read(status: str, serve: Any, connect: Any) -> None:
    sent = 0

    def misbehave(peer: Peer) -> None:
        nonlocal sent
        while peer.read_request() is not None:
            if peer.number > 1:
                peer.send(NO_CONTENT)
                continue
            peer.send(f"HTTP/1.1 {status}\r\nContent-Length: {1000 * MEGABYTE}\r\n\r\n".encode())
            while sent < 1000 * MEGABYTE:
                peer.send(b"x" * MEGABYTE)
                sent += MEGABYTE

    server = serve(misbehave)
    client = connect(server)
    client.record("a")
    assert client.flush(10)
    assert sent < 100 * MEGABYTE  # what the buffers of the sockets take, and no more
    client.record("b")
    assert client.flush(10)
    assert server.keys == ["a", "b"]
    refused = 0 if status == "200 OK" else 1
    assert client.stats()["delivered"] == 2 - refused
    assert [len(error.body) for error, _ in client.given_up(refused)] == [500] * refused


def test_an_answer_that_inflates_takes_no_memory(serve: Any, connect: Any) -> None:
    bomb = gzip.compress(b"x" * (100 * MEGABYTE))

    def misbehave(peer: Peer) -> None:
        peer.read_request()
        head = f"HTTP/1.1 400 No\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n"
        peer.send(head.encode() + bomb)
        peer.server.over.wait(20)

    client = connect(serve(misbehave), retries=0)
    tracemalloc.start()
    try:
        client.record("a")
        assert client.flush(10)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * MEGABYTE
    assert [error.status for error, _ in client.given_up(1)] == [400]

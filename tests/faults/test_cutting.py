"""A server that breaks off in the middle of its answer."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults._raw import NO_CONTENT, Peer


def cutting(beginning: bytes) -> Any:
    """Sends *beginning* on the first connection, then ends it; behaves afterwards."""

    def serve(peer: Peer) -> None:
        while peer.read_request() is not None:
            if peer.number == 1:
                peer.send(beginning)
                return
            peer.send(NO_CONTENT)

    return serve


@pytest.mark.parametrize(
    "beginning",
    [b"HTTP/1.1 20", b"HTTP/1.1 ", b"H", b"HTTP/1.1 500 Oops\r\nContent-Length: 100\r\n\r\nhalf"],
)
def test_an_answer_cut_before_it_said_success_is_no_answer(
    beginning: bytes, serve: Any, connect: Any
) -> None:
    server = serve(cutting(beginning))
    client = connect(server)
    client.record("a")
    assert client.flush(10)
    stats = client.stats()
    assert (stats["delivered"], stats["retried"]) == (1, 1)
    assert server.keys == ["a", "a"]


@pytest.mark.parametrize(
    "beginning",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhalf",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nhalf",
    ],
    ids=["length", "chunked", "encoding"],
)
def test_a_success_whose_body_is_broken_is_a_success(
    beginning: bytes, serve: Any, connect: Any
) -> None:
    # Any 2xx is success. To send it again would count the event twice.
    server = serve(cutting(beginning))
    client = connect(server)
    client.record("a")
    assert client.flush(10)
    assert server.keys == ["a"]
    stats = client.stats()
    assert (stats["delivered"], stats["retried"]) == (1, 0)


def test_a_refusal_whose_body_is_broken_is_a_refusal(serve: Any, connect: Any) -> None:
    server = serve(cutting(b"HTTP/1.1 400 No\r\nContent-Length: 100\r\n\r\nhalf"))
    client = connect(server)
    client.record("a")
    assert client.flush(10)
    assert server.keys == ["a"]
    assert [error.status for error, _ in client.given_up(1)] == [400]

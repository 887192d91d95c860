"""A server that sends the client elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults._raw import Peer, answer, answering


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_the_fix_is_said(
    status: int, serve: Any, connect: Any
) -> None:
    other = serve(answering())
    server = serve(answering(answer(f"{status} Elsewhere", f"Location: {other.url}")))
    client = connect(server)
    client.record("a")
    assert client.flush(10)
    ((error, _),) = client.given_up(1)
    assert error.status == status
    assert "redirects are not followed" in str(error)
    assert other.connections == 0  # so the token did not go there
    assert server.methods == ["POST"]


def test_of_the_body_of_a_redirect_only_the_beginning_is_read_and_it_is_told(
    serve: Any, connect: Any
) -> None:
    megabyte = b"x" * 1024 * 1024
    sent = 0

    def misbehave(peer: Peer) -> None:
        nonlocal sent
        peer.read_request()
        peer.send(b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 104857600\r\n\r\n")
        for _ in range(100):
            peer.send(megabyte)
            sent += 1

    client = connect(serve(misbehave))
    client.record("a")
    assert client.flush(20)
    ((error, _),) = client.given_up(1)
    assert (error.status, error.body) == (302, "x" * 500)
    assert sent < 50  # what the buffers of the sockets take, and no more

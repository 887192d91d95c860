"""A server that closes the connection: without an answer, with a reset, or while it idles."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.faults._raw import NO_CONTENT, Peer


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_kept_alive_connection_closed_between_two_events_costs_neither(
    how: str, serve: Any, connect: Any
) -> None:
    closed = threading.Event()

    def misbehave(peer: Peer) -> None:
        if peer.read_request() is None:
            return
        peer.send(NO_CONTENT)
        if peer.number == 1:
            may_close.wait(10)
            peer.reset() if how == "reset" else peer.sock.close()
            closed.set()
            return
        while peer.read_request() is not None:
            peer.send(NO_CONTENT)

    may_close = threading.Event()
    server = serve(misbehave)
    client = connect(server)
    client.record("first")
    assert client.flush(10)  # else a reset could overtake the answer
    may_close.set()
    assert closed.wait(10)
    client.record("second")
    assert client.flush(10)
    assert server.keys == ["first", "second"]
    assert server.connections == 2
    stats = client.stats()
    assert (stats["delivered"], stats["retried"]) == (2, 0)


def test_a_kept_alive_connection_closed_in_answer_to_the_next_event_costs_a_retry_only(
    serve: Any, connect: Any
) -> None:
    def misbehave(peer: Peer) -> None:
        while peer.read_request() is not None:
            if peer.number == 1 and len(server.bodies) == 2:
                return
            peer.send(NO_CONTENT)

    server = serve(misbehave)
    client = connect(server)
    for key in ("first", "second"):
        client.record(key)
        assert client.flush(10)
    assert server.keys == ["first", "second", "second"]
    keys = [headers["idempotency-key"] for headers in server.headers]
    assert keys[1] == keys[2] != keys[0]
    assert client.stats()["delivered"] == 2


def test_a_server_that_closes_after_each_answer_gets_each_event_once(
    serve: Any, connect: Any
) -> None:
    def one_each(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    server = serve(one_each)
    client = connect(server, max_workers=1)
    client.record(*map(str, range(20)))
    assert client.flush(10)
    assert server.keys == [*map(str, range(20))]
    assert client.stats()["retried"] == 0


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_kept_alive_connection_closed_just_as_we_write_goes_unnoticed(
    how: str, serve: Any, connect: Any, caplog: Any
) -> None:
    def misbehave(peer: Peer) -> None:
        while peer.read_request() is not None:
            if peer.number <= 3 and peer.served:
                # It has read the request, so it was open when that was written: nothing that the
                # client could have looked at before would have told.
                if how == "reset":
                    peer.reset()
                return
            peer.served = True
            if peer.number <= 3:
                together.wait(10)  # three connections are kept
            peer.send(NO_CONTENT)

    together = threading.Barrier(3)
    server = serve(misbehave)
    client = connect(server, max_workers=3)
    client.record("a", "b", "c")
    assert client.flush(10)
    client.record("d")
    assert client.flush(10)
    assert server.keys[3:] == ["d", "d"]
    assert server.connections == 4
    assert len({headers["idempotency-key"] for headers in server.headers[3:]}) == 1
    stats = client.stats()
    assert (stats["delivered"], stats["retried"]) == (4, 0)
    assert client.told == []
    assert [record for record in caplog.records if record.name == "valued"] == []


def test_a_connection_that_ends_amid_its_answer_is_a_failure(serve: Any, connect: Any) -> None:
    def misbehave(peer: Peer) -> None:
        while peer.read_request() is not None:
            if peer.number == 1 and peer.served:
                peer.send(NO_CONTENT[:5])  # something was said: it was at work on this event
                return
            peer.served = True
            peer.send(NO_CONTENT)

    client = connect(serve(misbehave))
    client.record("a")
    assert client.flush(10)
    client.record("b")
    assert client.flush(10)
    stats = client.stats()
    assert (stats["delivered"], stats["retried"]) == (2, 1)

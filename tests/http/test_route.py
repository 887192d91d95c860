"""Requests on idle connections: what ends one, what is sent again, what each request carries."""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import valued
from tests.faults._raw import NO_CONTENT, Peer, RawServer, answer, answering
from tests.support.proxy import Listener, read_head, read_request
from valued import Connection, DeliveryError, ValidationError
from valued._delivery import retry as _retry
from valued._http import wire

TOKEN = "t0ken-that-nobody-may-see"
BOUND = 10.0  # seconds; bounds a failure

Serve = Callable[[Callable[[Peer], object]], RawServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server that is a function of the raw socket."""
    servers: list[RawServer] = []

    def start(function: Callable[[Peer], object]) -> RawServer:
        servers.append(RawServer(function))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def heads() -> list[list[str]]:
    """The lines of each request's head that `listener` got."""
    return []


@pytest.fixture
def listener(heads: list[list[str]]) -> Iterator[Listener]:
    """A service that keeps the head of each request."""

    def listen(client: socket.socket) -> None:
        with client.makefile("rb") as stream:
            while head := read_request(stream):
                heads.append(head)
                client.sendall(NO_CONTENT)

    with Listener(listen) as listener:
        yield listener


# -- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (500, b"HTTP/1.1 500 Oops\r\nContent-Length: 40\r\n\r\nshort"),
        (200, b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\nshort"),
        (500, b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        (200, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
    ],
    ids=["a stalled error", "a stalled success", "a broken error", "a broken success"],
)
def test_an_answer_that_is_not_read_to_its_end_ends_its_connection(
    serve: Serve, status: int, said: bytes
) -> None:
    # The rest may come later, and would be taken for the answer to the next event.
    server = serve(answering(NO_CONTENT, said))
    connection = Connection(TOKEN, server.url, timeout=0.2)
    connection.post(b"1")
    if status == 200:
        connection.post(b"2")
    else:
        with pytest.raises(DeliveryError) as caught:
            connection.post(b"2")
        assert caught.value.status == status
    assert server.connections == 1
    connection.post(b"3", timeout=BOUND)
    assert server.connections == 2
    assert server.bodies == [b"1", b"2", b"3"]
    connection.close()


@pytest.mark.parametrize("before", ["100 Continue", "102 Processing", "103 Early Hints"])
def test_an_informational_response_is_skipped(serve: Serve, before: str) -> None:
    early = f"HTTP/1.1 {before}\r\nLink: </a>\r\n\r\n".encode()
    server = serve(
        answering(early + NO_CONTENT, early + early + NO_CONTENT, answer("400 No", body=b"third"))
    )
    connection = Connection(TOKEN, server.url, timeout=BOUND)
    connection.post(b"1")
    connection.post(b"2")
    with pytest.raises(DeliveryError) as caught:
        connection.post(b"3")
    assert (caught.value.status, caught.value.body) == (400, "third")
    assert server.bodies == [b"1", b"2", b"3"]
    assert server.connections == 1
    connection.close()


def test_the_timeout_is_for_sending_and_the_answer_together(serve: Serve) -> None:
    def reads_late_and_never_answers(peer: Peer) -> None:
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        peer.read_request()
        peer.send(NO_CONTENT)
        peer.read_head()
        peer.server.over.wait(0.8)
        while peer.sock.recv(1 << 20):
            pass

    connection = Connection(TOKEN, serve(reads_late_and_never_answers).url, timeout=1.0)
    connection.post(b"1")
    began = time.monotonic()
    with pytest.raises(DeliveryError, match="timed out"):
        connection.post(b"x" * 16_000_000)  # more than the kernel takes for a peer that reads late
    assert time.monotonic() - began < 1.7  # with a second for the answer alone, 1.8
    connection.close()


def test_a_reset_in_the_middle_of_an_answer_is_a_failure(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The service had begun to answer: it has the event, so the stats must show the retry.
    monkeypatch.setattr(_retry, "FIRST_PAUSE", 0.01)
    begun = threading.Semaphore(0)  # released when the first bytes of an answer are read
    begin = http.client.HTTPResponse.begin

    def told(response: http.client.HTTPResponse) -> None:
        begun.release()
        begin(response)

    monkeypatch.setattr(http.client.HTTPResponse, "begin", told)

    def resets(peer: Peer) -> None:
        while peer.read_request() is not None:
            if len(peer.server.bodies) == 2:
                peer.send(b"HTTP/1.1 204 No Content\r\nDate: x\r\n")
                for _ in range(2):
                    assert begun.acquire(timeout=BOUND)
                peer.reset()
                return
            peer.send(NO_CONTENT)

    server = serve(resets)
    client = valued.Client(TOKEN, server.url)
    for key in ("a", "b"):
        client.action(key, {"user.id": 1})
        assert client.flush(BOUND)
    stats = client.stats()
    assert (stats["delivered"], stats["retried"]) == (2, 1)
    assert server.keys == ["a", "b", "b"]
    client.close(1)


# -- connections that end ------------------------------------------------------------------------


def test_a_request_on_an_idle_connection_that_is_reset_in_the_middle_is_sent_again(
    heads: list[list[str]],
) -> None:
    def resets(client: socket.socket) -> None:
        with client.makefile("rb") as stream:
            while len(heads) != 1:
                heads.append(read_request(stream))
                client.sendall(NO_CONTENT)
                if len(heads) == 3:
                    return
            heads.append(read_head(stream))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    body = bytes(16_000_000)  # more than the kernel takes for a peer that doesn't read
    with Listener(resets) as service:
        connection = Connection(TOKEN, service.url, timeout=BOUND)
        connection.post(b"1")
        connection.post(body)
        connection.close()
        assert len(service.peers) == 2
    for head, length in zip(heads, [1, len(body), len(body)], strict=True):
        assert f"Content-Length: {length}" in head


def test_a_request_that_the_service_does_not_read_times_out(
    serve: Serve,
) -> None:
    def reads_no_more(peer: Peer) -> None:
        peer.read_request()
        peer.send(NO_CONTENT)
        peer.server.over.wait(BOUND)

    server = serve(reads_no_more)
    connection = Connection(TOKEN, server.url, timeout=0.2)
    connection.post(b"1")
    with pytest.raises(DeliveryError, match="timed out"):
        connection.post(bytes(16_000_000))
    assert server.connections == 1  # it may have the event, and so is not asked again at once
    connection.close()


# -- requests --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["a\r\nX-Evil: 1", "a\n", "\0", "schlüssel"])
def test_an_idempotency_key_that_is_no_valid_header_is_refused(serve: Serve, key: str) -> None:
    server = serve(answering())
    connection = Connection(TOKEN, server.url)
    for _ in range(2):
        with pytest.raises(ValidationError, match="idempotency_key"):
            connection.post(b"1", key)
        connection.post(b"2", "a-key")
    assert server.bodies == [b"2", b"2"]
    assert server.connections == 1
    connection.close()


def test_a_host_header_of_the_session_replaces_ours(
    listener: Listener, heads: list[list[str]]
) -> None:
    connection = Connection(TOKEN, listener.url)
    connection.session.headers["host"] = "virtual.example"
    for _ in range(3):
        connection.post(b"1")
    connection.close()
    assert len(listener.peers) == 1
    for head in heads:
        hosts = [line for line in head if line.lower().startswith("host:")]
        assert [host.partition(": ")[2] for host in hosts] == ["virtual.example"]


def test_an_auth_of_the_application_sees_each_request_with_its_body(
    listener: Listener, heads: list[list[str]]
) -> None:
    connection = Connection(TOKEN, listener.url)

    def sign(request: Any) -> Any:
        request.headers["X-Signed"] = request.body.decode()
        return request

    connection.session.auth = sign
    for body in (b"1", b"2", b"3"):
        connection.post(body)
    connection.close()
    signed = [re.search(r"X-Signed: (.*)", "\n".join(head)) for head in heads]
    assert [found and found[1] for found in signed] == ["1", "2", "3"]


def test_a_response_hook_of_the_application_sees_each_response(listener: Listener) -> None:
    connection = Connection(TOKEN, listener.url)
    seen: list[tuple[int, Any]] = []
    connection.session.hooks["response"].append(
        lambda answer, **_: seen.append((answer.status_code, answer.request.body))
    )
    for body in (b"1", b"2", b"3"):
        connection.post(body)
    connection.close()
    assert seen == [(204, b"1"), (204, b"2"), (204, b"3")]


def test_a_hook_that_comes_later_changes_nothing_for_a_large_request(
    listener: Listener, heads: list[list[str]]
) -> None:
    # From then on the session itself sends, on the connection that was kept.
    connection = Connection(TOKEN, listener.url, timeout=BOUND)
    connection.post(b"1")
    connection.post(b"2")
    connection.session.hooks["response"].append(lambda answer, **_: answer)
    connection.post(bytes(16_000_000))  # more than the kernel takes at once
    connection.close()
    assert len(heads) == 3
    assert len(listener.peers) == 1


def test_the_prepared_settings_do_not_show_the_token(serve: Serve) -> None:
    connection = Connection(TOKEN, serve(answering()).url)
    connection.post(b"1")
    ready = connection._route.get()._prepared
    assert TOKEN.encode() in ready.head
    assert TOKEN not in repr(ready)
    connection.close()


def test_two_threads_whose_connections_are_stale_at_once_both_send_again(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection(TOKEN, serve(answering()).url)
    route = connection._route.get()
    send = route._send_once

    def stale(*_arguments: Any) -> Any:
        monkeypatch.setattr(route, "_send_once", send)
        route.reset()  # as the other thread did, an instant before
        raise wire.StaleConnection("ended")

    monkeypatch.setattr(route, "_send_once", stale)
    connection.post(b"1")
    connection.close()

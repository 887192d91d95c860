"""Connections that are kept and lie: packets that are lost, peers that never answer, idle ones.

A lost path is a filter of the kernel's on the service's socket, which drops all that comes: nothing
is acknowledged any more, as behind a router that has forgotten the connection.
"""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import valued
from tests.faults._raw import NO_CONTENT, Peer, RawServer, answering
from tests.support.processes import until

BOUND = 10.0  # seconds; bounds a failure

#: SO_ATTACH_FILTER, which `socket` doesn't name, and a program of one instruction: keep 0 bytes.
_ATTACH_FILTER = 26
_DROP_ALL = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))

linux = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux has filters that drop what a socket gets"
)


def mute(sock: socket.socket) -> None:
    """From now on nothing that comes for *sock* arrives, or is acknowledged."""
    program = struct.pack("HL", 1, ctypes.addressof(_DROP_ALL))
    sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, program)


class Service:
    """Answers. *together*: holds the first so many requests until all are there."""

    def __init__(self, together: int = 1) -> None:
        self._used: list[socket.socket] = []  # by each request
        self._together = threading.Barrier(together)

    def __call__(self, peer: Peer) -> None:
        while peer.read_request() is not None:
            self._used.append(peer.sock)
            if len(self._used) <= self._together.parties:
                self._together.wait(BOUND)
            peer.send(NO_CONTENT)

    def mute(self, count: int = 1) -> None:
        """Mute so many connections, those that were used last."""
        latest = [*dict.fromkeys(reversed(self._used))]
        assert len(latest) >= count
        for sock in latest[:count]:
            mute(sock)


# -- packets that are lost --------------------------------------------------------------------


@linux
def test_an_event_on_a_connection_that_lost_its_path_is_delivered_within_three_seconds(
    serve: Callable[..., RawServer],
) -> None:
    service = Service()
    server = serve(service)
    client = valued.Client("token", server.url)
    try:
        client.action("first", {"user.id": 1})
        assert client.flush(BOUND)
        service.mute()
        client.action("second", {"user.id": 1})
        assert client.flush(3.0)
        assert server.keys == ["first", "second"]
    finally:
        client.close(0)


@linux
@pytest.mark.parametrize("muted", [1, 9], ids=["one of ten", "nine of ten"])
def test_lost_paths_among_ten_connections_delay_no_event_beyond_three_seconds(
    serve: Callable[..., RawServer], muted: int
) -> None:
    service = Service(together=10)
    server = serve(service)
    client = valued.Client("token", server.url, max_workers=10)
    try:
        for number in range(10):
            client.action(f"first.{number}", {"user.id": 1})
        assert client.flush(BOUND)
        client.action("on the connection that is used first", {"user.id": 1})
        assert client.flush(BOUND)
        assert server.connections == 10
        service.mute(muted)
        names = [f"second.{number}" for number in range(40)]
        for name in names:
            client.action(name, {"user.id": 1})
        assert client.flush(3.0)
        assert sorted(server.keys[11:]) == sorted(names)
    finally:
        client.close(0)


#: Arguments: URL, events that are delivered first, shutdown_timeout. Ends after one line of input.
_ENDS = """
import json, logging, sys, time
import valued
logging.basicConfig(level=logging.WARNING)
url, count, timeout = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
client = valued.Client("token", url, shutdown_timeout=timeout, max_workers=max(count, 1))
for number in range(count):
    client.action(f"first.{number}", {"user.id": 1})
assert client.flush(10)
client.action("on the connection that is used first", {"user.id": 1})
assert client.flush(10)
print("delivered", flush=True)
input()
client.action("last", {"user.id": 1})
print(json.dumps({"ends": time.time()}), flush=True)
"""


def end_with_an_event(
    url: str, count: int, shutdown_timeout: float, between: Callable[[], object]
) -> tuple[float, str]:
    """Run the program above. Returns the seconds that its end took, and what it logged."""
    arguments = [sys.executable, "-c", _ENDS, url, str(count), str(shutdown_timeout)]
    with subprocess.Popen(
        arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stderr is not None
        try:
            assert program.stdout.readline() == "delivered\n", program.stderr.read()
            between()
            print(file=program.stdin, flush=True)
            said = json.loads(program.stdout.readline())
            logged = program.stderr.read()  # up to its end
            assert program.wait(BOUND) == 0
            return time.time() - said["ends"], logged
        finally:
            program.kill()


@linux
@pytest.mark.parametrize(
    ("muted", "count"), [(1, 1), (1, 10), (10, 10)], ids=["one of one", "one of ten", "ten of ten"]
)
def test_the_last_event_gets_out_though_kept_connections_lost_their_path(
    serve: Callable[..., RawServer], muted: int, count: int
) -> None:
    service = Service(together=count)
    server = serve(service)
    took, logged = end_with_an_event(server.url, count, 3.0, lambda: service.mute(muted))
    assert logged == ""
    assert server.keys.count("last") == 1
    assert took < 3.5


@pytest.mark.parametrize("count", [1, 10], ids=["one kept", "ten kept"])
def test_the_last_event_gets_out_though_kept_connections_never_answer_again(
    serve: Callable[..., RawServer], count: int
) -> None:
    """A relay that acknowledges what it gets on old connections, and lets it lie. New ones work."""
    together = threading.Barrier(count)
    old = threading.Event()
    arrived: list[str] = []

    def relay(peer: Peer) -> None:
        is_old = not old.is_set()
        while (event := peer.read_request()) is not None:
            if event["key"].startswith("first."):
                together.wait(BOUND)
            elif not old.is_set():
                pass
            elif is_old:
                continue
            else:
                arrived.append(event["key"])
            peer.send(NO_CONTENT)

    server = serve(relay)
    took, logged = end_with_an_event(server.url, count, 3.0, old.set)
    assert logged == ""
    assert arrived == ["last"]
    assert took < 3.5
    keys = [
        headers["idempotency-key"]
        for headers, key in zip(server.headers, server.keys, strict=True)
        if key == "last"
    ]
    assert len(set(keys)) == 1  # the service recognizes the repeat


@linux
def test_the_last_event_of_a_service_that_is_gone_is_lost_within_the_bound(
    serve: Callable[..., RawServer],
) -> None:
    """Neither the kept connection answers nor a new one: there is nothing to be had."""
    service = Service()
    server = serve(service)

    def between() -> None:
        service.mute()
        server._listener.shutdown(socket.SHUT_RDWR)
        server._listener.close()

    took, logged = end_with_an_event(server.url, 1, 2.0, between)
    assert "the process ends with 1 event not delivered" in logged
    assert took < 2.0 + 1.9  # less than the bound twice; the machine may be busy


# -- slow services ----------------------------------------------------------------------------


def test_a_service_that_takes_four_seconds_on_a_kept_connection_gets_each_event_once(
    serve: Callable[..., RawServer],
) -> None:
    def slow(peer: Peer) -> None:
        while (event := peer.read_request()) is not None:
            if event["key"] != "first":
                peer.server.over.wait(4.0)
            peer.send(NO_CONTENT)

    server = serve(slow)
    client = valued.Client("token", server.url, max_workers=2)
    try:
        client.action("first", {"user.id": 1})
        assert client.flush(BOUND)
        client.action("second", {"user.id": 1})
        client.action("third", {"user.id": 1})
        assert client.flush(15.0)
        assert sorted(server.keys) == ["first", "second", "third"]
        assert client.stats()["retried"] == 0
    finally:
        client.close(0)


def test_an_event_that_a_relay_swallows_is_sent_again_after_the_timeout(
    serve: Callable[..., RawServer],
) -> None:
    def relay(peer: Peer) -> None:
        while peer.read_request() is not None:
            if peer.number == 1 and len(peer.server.bodies) > 1:
                peer.server.over.wait(BOUND)
                return
            peer.send(NO_CONTENT)

    server = serve(relay)
    client = valued.Client("token", server.url, timeout=0.5)
    try:
        client.action("first", {"user.id": 1})
        assert client.flush(BOUND)
        client.action("second", {"user.id": 1})
        assert client.flush(3.0)
        assert server.keys == ["first", "second", "second"]
        assert server.headers[1]["idempotency-key"] == server.headers[2]["idempotency-key"]
    finally:
        client.close(0)


# -- idle connections -------------------------------------------------------------------------


def test_a_connection_that_was_idle_for_too_long_is_replaced(
    serve: Callable[..., RawServer],
) -> None:
    server = serve(answering())
    options: dict[str, Any] = {"idle_timeout": 0.3}
    connection = valued.Connection("token", server.url, **options)
    connection.post(b"1")
    time.sleep(0.4)  # longer than it may be idle
    connection.post(b"2")
    connection.close()
    assert server.connections == 2
    assert server.bodies == [b"1", b"2"]


def test_a_connection_is_kept_for_fifty_seconds_by_default(
    serve: Callable[..., RawServer],
) -> None:
    assert inspect.signature(valued.Connection).parameters["idle_timeout"].default == 50.0
    server = serve(answering())
    connection = valued.Connection("token", server.url)
    for _ in range(3):
        connection.post(b"1")
    connection.close()
    assert server.connections == 1


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), "50"])
def test_an_idle_timeout_that_is_no_number_of_seconds_is_refused(value: Any) -> None:
    options: dict[str, Any] = {"idle_timeout": value}
    with pytest.raises(valued.ValidationError, match="idle_timeout"):
        valued.Connection("token", "http://127.0.0.1:9/events", **options)


@linux
def test_the_kernel_looks_after_a_connection_that_is_kept(
    serve: Callable[..., RawServer],
) -> None:
    server = serve(answering())
    connection = valued.Connection("token", server.url)
    connection.post(b"1")
    kept = list(_sockets_to(server.port))
    connection.close()
    assert kept == [1]


def _sockets_to(port: int) -> Iterator[int]:
    """Whether the kernel keeps alive each socket of this process that leads to *port*."""
    for name in os.listdir("/proc/self/fd"):
        # Else it is no socket, or isn't connected, or was the listing's own.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as sock:
            if sock.family == socket.AF_INET and sock.getpeername()[1] == port:
                yield sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_a_connection_that_the_service_closed_while_idle_costs_no_event(
    serve: Callable[..., RawServer],
) -> None:
    closed = threading.Event()

    def closes(peer: Peer) -> None:
        peer.read_request()
        peer.send(NO_CONTENT)
        peer.sock.close()
        closed.set()

    server = serve(closes)
    client = valued.Client("token", server.url)
    try:
        for number in range(5):
            closed.clear()
            client.action(str(number), {"user.id": 1})
            assert client.flush(BOUND)
            assert closed.wait(BOUND)
        until(lambda: len(server.bodies) == 5)
        assert server.keys == ["0", "1", "2", "3", "4"]
        assert client.stats()["retried"] == 0
    finally:
        client.close(0)

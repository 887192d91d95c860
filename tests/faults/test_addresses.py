"""Hosts with several addresses, of which some never answer, and name servers that don't answer.

A dead address is a listener whose queue is full: the kernel drops what comes, as a network does
that leads nowhere. The name server is `socket.getaddrinfo`, replaced.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.faults._raw import NO_CONTENT, Peer, RawServer, answering
from tests.support.dead import DeadAddress
from tests.support.processes import run
from tests.support.proxy import Listener, read_request
from tests.support.tls import Authority

BOUND = 10.0  # seconds; bounds a failure

#: Under this name the name server knows the addresses.
HOST = "service.example"

if sys.platform != "linux":
    pytest.skip(
        "only Linux has all of 127.0.0.0/8, and drops what a full listener gets",
        allow_module_level=True,
    )


class NameServer:
    """What `socket.getaddrinfo` says of `HOST`; of other names it says what it always does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses: list[str] = []
        self.asked = 0
        self.fails = False
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._answer)

    def _answer(self, host: Any, port: Any, *args: Any, **kwargs: Any) -> list[Any]:
        if host not in (HOST, HOST.encode()):
            return self._real(host, port, *args, **kwargs)
        self.asked += 1
        if self.fails:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, (address, int(port))) for address in self.addresses]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> NameServer:
    return NameServer(monkeypatch)


@pytest.fixture
def dead() -> Iterator[Callable[[int, int], list[str]]]:
    """Make so many dead addresses on a port."""
    with contextlib.ExitStack() as stack:

        def make(count: int, port: int) -> list[str]:
            found = [f"127.0.77.{number}" for number in range(2, count + 2)]
            for address in found:
                stack.enter_context(contextlib.closing(DeadAddress(address, port)))
            return found

        yield make


def url_of(port: int, scheme: str = "http") -> str:
    return f"{scheme}://{HOST}:{port}/events"


CLOSING = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"


class AddressedServer:
    """A service on another address of loopback; it counts its requests, one a connection."""

    def __init__(self, address: str, port: int) -> None:
        self.requests = 0
        self._listener = socket.create_server((address, port))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                accepted, _ = self._listener.accept()
                with accepted, accepted.makefile("rb") as stream:
                    if read_request(stream):
                        self.requests += 1
                        accepted.sendall(CLOSING)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.mark.parametrize(("count", "bound"), [(1, 1.5), (6, 3.0)], ids=["one", "six"])
def test_dead_addresses_before_a_living_one_delay_the_first_event_only(
    names: NameServer,
    dead: Callable[[int, int], list[str]],
    serve: Callable[..., RawServer],
    count: int,
    bound: float,
) -> None:
    server = serve(answering(*[CLOSING] * 10))  # each event needs a connection of its own
    names.addresses = [*dead(count, server.port), "127.0.0.1"]
    client = valued.Client("token", url_of(server.port))
    began = time.monotonic()
    try:
        client.action("0", {"user.id": 1})
        server.wait_for(1, bound)
        assert client.flush(bound)
        assert time.monotonic() - began < bound
        took = []
        for number in range(1, 6):
            began = time.monotonic()
            client.action(str(number), {"user.id": 1})
            assert client.flush(BOUND)
            took.append(time.monotonic() - began)
        # Without a look at the dead ones, which costs a quarter of a second each.
        assert sorted(took)[2] < 0.2, took
        assert server.keys == [str(number) for number in range(6)]
        assert client.stats()["retried"] == 0
    finally:
        client.close(0)


def test_an_address_that_dies_gives_way_to_the_next_one(
    names: NameServer, serve: Callable[..., RawServer]
) -> None:
    server = serve(answering(*[CLOSING] * 10))
    first = AddressedServer("127.0.77.2", server.port)
    names.addresses = ["127.0.77.2", "127.0.0.1"]
    client = valued.Client("token", url_of(server.port))
    client.action("before", {"user.id": 1})
    assert client.flush(BOUND)
    first.close()
    gone = DeadAddress("127.0.77.2", server.port)
    try:
        client.action("after", {"user.id": 1})
        server.wait_for(1, 2.0)
        assert client.flush(2.0)
        assert (first.requests, server.keys) == (1, ["after"])
    finally:
        client.close(0)
        gone.close()


def test_an_address_that_refuses_gives_way_at_once(
    names: NameServer, serve: Callable[..., RawServer]
) -> None:
    server = serve(answering())
    names.addresses = ["127.0.77.2", "127.0.77.3", "127.0.0.1"]  # nothing listens on the first two
    connection = valued.Connection("token", url_of(server.port))
    began = time.monotonic()
    connection.post(b"{}")
    assert time.monotonic() - began < 1.0
    assert len(server.bodies) == 1
    connection.close()


def test_events_wait_while_all_addresses_are_dead_and_come_when_one_lives(
    names: NameServer, dead: Callable[[int, int], list[str]], serve: Callable[..., RawServer]
) -> None:
    server = serve(answering())
    names.addresses = dead(3, server.port)
    client = valued.Client("token", url_of(server.port), timeout=0.3)
    try:
        for number in range(5):
            client.action(str(number), {"user.id": 1})
        assert client.flush(1.0) is False
        assert client.stats()["pending"] == 5
        names.addresses = ["127.0.0.1"]
        assert client.flush(BOUND)
        assert sorted(server.keys) == ["0", "1", "2", "3", "4"]
    finally:
        client.close(0)


_ENDS = """
import json, logging, socket, sys, threading, time
import valued
logging.basicConfig(level=logging.WARNING)
addresses, port, timeout = json.loads(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
def getaddrinfo(host, port, *args, **kwargs):
    if not addresses:
        threading.Event().wait()
    kind = socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, ""
    return [(*kind, (address, int(port))) for address in addresses]
socket.getaddrinfo = getaddrinfo
client = valued.Client("token", f"http://service.example:{port}/events", shutdown_timeout=timeout)
for number in range(20):
    client.action(str(number), {"user.id": 1})
print(json.dumps({"ends": time.time()}), flush=True)
"""


@pytest.mark.parametrize("count", [6, 0], ids=["six dead addresses", "a silent name server"])
def test_the_end_of_a_process_stays_in_its_bound(
    dead: Callable[[int, int], list[str]], serve: Callable[..., RawServer], count: int
) -> None:
    server = serve(answering())
    done = run("-c", _ENDS, json.dumps(dead(count, server.port)), str(server.port), "2")
    took = time.time() - json.loads(done.stdout)["ends"]
    assert done.returncode == 0, done.stderr
    assert took < 2.0 + 1.9  # less than the bound twice; the machine may be busy
    assert "the process ends with 20 events not delivered" in done.stderr
    assert server.bodies == []


def test_a_name_server_that_hangs_does_not_hold_up_the_caller_beyond_the_timeout(
    monkeypatch: pytest.MonkeyPatch, in_thread: Callable[..., Any]
) -> None:
    over = threading.Event()
    hang = threading.Event()

    def hangs(*_arguments: Any, **_named: Any) -> Any:
        hang.set()
        over.wait(BOUND)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    client = valued.Client(
        "token", url_of(80), executor=valued.ImmediateExecutor(), timeout=1.0, retries=0
    )
    called = in_thread(client.action, "key", {"user.id": 1})
    try:
        assert hang.wait(BOUND)
        called.result(2.0)  # an error of `concurrent.futures` else, an `Exception` of its own
    finally:
        over.set()
        client.close(0)


def test_a_name_server_that_hangs_ends_the_attempt_at_its_timeout(
    monkeypatch: pytest.MonkeyPatch, in_thread: Callable[..., Any]
) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_named: over.wait(BOUND) and [])
    connection = valued.Connection("token", url_of(80), timeout=0.5)
    posted = in_thread(connection.post, b"{}")
    try:
        assert isinstance(posted.exception(1.5), valued.DeliveryError)
    finally:
        over.set()
        connection.close()


def test_the_last_answer_serves_while_the_name_server_fails(
    names: NameServer, serve: Callable[..., RawServer]
) -> None:
    server = serve(answering(*[CLOSING] * 10))
    names.addresses = ["127.0.0.1"]
    connection = valued.Connection("token", url_of(server.port))
    connection.post(b"1")
    names.fails = True
    connection.post(b"2")
    assert server.bodies == [b"1", b"2"]
    assert names.asked == 2  # it was asked again first
    connection.close()


def test_the_answer_of_a_name_server_is_never_older_than_it_has_to_be(
    names: NameServer, serve: Callable[..., RawServer]
) -> None:
    """A service that moves is found with the next connection, though its old address answers."""
    old = serve(answering(*[CLOSING] * 10))
    moved = AddressedServer("127.0.77.9", old.port)
    names.addresses = ["127.0.0.1"]
    connection = valued.Connection("token", url_of(old.port))
    try:
        connection.post(b"1")
        names.addresses = ["127.0.77.9"]
        connection.post(b"2")
    finally:
        connection.close()
        moved.close()
    assert (old.bodies, moved.requests) == ([b"1"], 1)


def test_an_event_reached_by_the_second_address_comes_once(
    names: NameServer, dead: Callable[[int, int], list[str]], serve: Callable[..., RawServer]
) -> None:
    """The service takes its time for each answer. What is left after a dead address is enough."""

    def slowly(peer: Peer) -> None:
        while peer.read_request() is not None:
            peer.server.over.wait(0.3)
            peer.send(NO_CONTENT)

    server = serve(slowly)
    names.addresses = [*dead(1, server.port), "127.0.0.1"]
    client = valued.Client("token", url_of(server.port), timeout=1.0)
    try:
        client.action("once", {"user.id": 1})
        server.wait_for(1, 3.0)
        assert client.flush(3.0)
        assert server.keys == ["once"]
    finally:
        client.close(0)


def _shake_hands(
    context: ssl.SSLContext, client: socket.socket, parts: int, arrived: list[bytes]
) -> None:
    """Answer a TLS handshake in so many parts, 0.7 s before each; *arrived* gets what follows."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=True)
    is_done = False
    while True:
        try:
            if is_done:
                arrived.append(tls.read(65536))
            else:
                tls.do_handshake()
                is_done = True
                client.sendall(outgoing.read())
        except ssl.SSLWantReadError:
            said = outgoing.read()
            size = -(-len(said) // parts)
            for start in range(0, len(said), size or 1):
                time.sleep(0.7)  # a slow service; what is waited for is the client's timeout
                client.sendall(said[start : start + size])
            data = client.recv(65536)
            if not data:
                return
            incoming.write(data)


@pytest.mark.parametrize("through", ["directly", "through a tunnel"])
def test_an_event_is_not_sent_when_connecting_has_used_up_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, through: str
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.bundle))
    arrived: list[bytes] = []
    context = authority.context()

    def serve(client: socket.socket) -> None:
        if through == "directly":
            _shake_hands(context, client, 2, arrived)
            return
        assert client.recv(65536).startswith(b"CONNECT ")
        time.sleep(0.7)  # likewise
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        _shake_hands(context, client, 1, arrived)

    with Listener(serve) as service:
        if through != "directly":
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{service.port}")
        connection = valued.Connection(
            "token", f"https://127.0.0.1:{service.port}/events", timeout=1.0
        )
        with pytest.raises(valued.DeliveryError):
            connection.post(b"{}")
        connection.close()
        assert service.ended.acquire(timeout=BOUND)  # all that was sent is read by now
    assert b"POST" not in b"".join(arrived)

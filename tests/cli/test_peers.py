"""Which process is at the other end of a connection."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.support.processes import Child
from valued._service import peers as peers_of_connections
from valued._service.peers import Peers, Process


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection: the peer's socket, which this process has made, too, and ours."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    yield theirs, ours
    theirs.close()
    ours.close()


def find(peers: Peers, pair: tuple[socket.socket, socket.socket]) -> Process:
    return peers.find(pair[0].getsockname(), pair[1].getsockname())


ME = Process(os.getpid(), psutil.Process().name())


def test_process_is_found_by_its_connection(pair: tuple[socket.socket, socket.socket]) -> None:
    assert find(Peers(), pair) == ME


@pytest.mark.parametrize("told", [0, -1], ids=["a child", "the maker"])
def test_maker_is_found_where_forked_processes_hold_the_socket_too(
    told: int,
    pair: tuple[socket.socket, socket.socket],
    fork: Callable[..., Child],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading, writing = os.pipe()
    children = [fork(os.read, reading, 1) for _ in range(3)]
    pids = [*(child.pid for child in children), os.getpid()]
    real = psutil.net_connections

    def look(kind: str) -> Any:
        # Of those who hold a socket psutil tells of one: the order of their pids says of which.
        return [
            found._replace(pid=pids[told]) if found.pid in pids else found for found in real(kind)
        ]

    monkeypatch.setattr(psutil, "net_connections", look)
    assert find(Peers(), pair) == ME
    os.write(writing, b"xxx")
    assert [child.wait() for child in children] == [0, 0, 0]
    os.close(reading)
    os.close(writing)


def test_forked_process_is_found_by_a_connection_of_its_own(fork: Callable[..., Child]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        child = fork(lambda: socket.create_connection(server.getsockname()).recv(1))
        ours, theirs = server.accept()
        assert Peers().find(theirs, ours.getsockname()).pid == child.pid
        ours.close()
        assert child.wait() == 0


def test_who_asks_at_the_same_time_shares_one_look(
    pair: tuple[socket.socket, socket.socket],
    in_thread: Callable[..., Future[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks, looking, go_on = [], threading.Event(), threading.Event()
    real = psutil.net_connections

    def look(kind: str) -> Any:
        looks.append(kind)
        looking.set()
        assert go_on.wait(10)
        return real(kind)

    monkeypatch.setattr(psutil, "net_connections", look)
    peers = Peers()
    first = in_thread(find, peers, pair)
    assert looking.wait(10)
    asked = threading.Barrier(9)

    def ask() -> Process:
        asked.wait(10)
        return find(peers, pair)

    others = [in_thread(ask) for _ in range(8)]
    asked.wait(10)
    go_on.set()
    assert {future.result(10) for future in (first, *others)} == {ME}
    # Nine have asked; those who came during one look, and none has to, share the next.
    assert 2 <= len(looks) < 9


def test_who_asked_before_a_look_began_shares_it(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    real = psutil.net_connections

    def look(kind: str) -> Any:
        looks.append(kind)
        return real(kind)

    # One asks, and looks; the next one had asked before that look, and waited.
    moments = iter([1.0, 3.0, 2.0])
    monkeypatch.setattr(peers_of_connections, "time", SimpleNamespace(monotonic=moments.__next__))
    monkeypatch.setattr(psutil, "net_connections", look)
    peers = Peers()
    assert [find(peers, pair), find(peers, pair)] == [ME, ME]
    assert len(looks) == 1


def test_process_that_ended_after_the_look_is_looked_for_anew(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = [True]

    class Ended(psutil.Process):
        def __init__(self, pid: int | None = None) -> None:
            if ended:
                raise psutil.NoSuchProcess(ended.pop())
            super().__init__(pid)

    monkeypatch.setattr(psutil, "Process", Ended)
    assert find(Peers(), pair) == ME


@pytest.mark.parametrize(
    ("asked", "raised"),
    [("Process", psutil.NoSuchProcess(1)), ("net_connections", RuntimeError("malformed line"))],
    ids=["it ends ever again", "trouble with the look"],
)
def test_process_that_can_not_be_found_is_unknown(
    asked: str,
    raised: Exception,
    pair: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_what: object) -> Any:
        raise raised

    assert Peers().find(("192.0.2.1", 9), ("192.0.2.2", 9)) == Process(None, None)
    monkeypatch.setattr(psutil, asked, fail)
    assert find(Peers(), pair) == Process(None, None)


def test_each_process_is_asked_where_all_sockets_at_once_are_not_shown(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on macOS, where that takes root's rights, and where some processes are another user's.
    def denied(*_arguments: object, **_options: object) -> Any:
        raise psutil.AccessDenied

    class Foreign:
        pid = 1
        net_connections = denied

    me = psutil.Process()
    monkeypatch.setattr(psutil, "net_connections", denied)
    monkeypatch.setattr(psutil, "process_iter", lambda: [Foreign(), me])
    assert find(Peers(), pair) == ME

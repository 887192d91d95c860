"""Programs that gevent has patched: threads are greenlets, and live on in a forked child."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.support.hold import Hold
from tests.support.left import files_of
from tests.support.processes import run_program
from tests.support.server import Server
from tests.support.tls import Authority, TLSServer

pytest.importorskip("gevent")

InThread = Callable[..., "Future[Any]"]

#: What was there when the standard library was patched. The first is gevent's rule.
ORDERS = ["patched first", "imported first", "client first"]

CHILDREN = ["child-0", "child-1", "child-2", "child-3", "child-4", "child-at-end"]

#: The roads on which a process records its first event when its end has begun.
AT_THE_END = [
    "first_event_in_an_atexit_handler",
    "first_event_of_a_thread_that_outlives_the_main_one",
]


@pytest.fixture
def secure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TLSServer]:
    """A service behind TLS, which the programs trust."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.bundle))
    server = TLSServer(authority)
    yield server
    server.close()


@pytest.fixture(params=["memory", "disk"])
def kept(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the program keeps what it has accepted."""
    if request.param == "disk":
        monkeypatch.setenv("VALUED_OUTBOX", str(tmp_path / "outbox"))


def run(server: Server, order: str, road: str, **variables: str) -> str:
    """What it printed, once it has ended without a complaint."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore:This process", **variables}
    done = run_program("gevent_roads.py", server.url, order, road, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("order", ORDERS)
def test_events_of_greenlets_arrive_each_once(order: str, server: Server) -> None:
    run(server, order, "events")
    assert server.keys() == sorted(f"{n}-{page}" for n in range(20) for page in range(10))


def test_an_event_never_waits_for_the_service_and_other_greenlets_have_their_turns(
    server: Server,
) -> None:
    with Hold(server):
        found = json.loads(run(server, "patched first", "pauses"))
    assert found["pending"] == 1000
    assert found["ticks"] > 0
    # Some milliseconds; with a call that waited for the server it would be the time-out of 10 s.
    assert found["worst"] < 2, found


def test_scopes_of_greenlets_are_their_own(server: Server) -> None:
    run(server, "patched first", "scopes")
    expected = {f"user-{n}": (n, None) for n in range(1, 11)}
    expected |= {f"both-{n}": (n, -n) for n in range(1, 11)}
    assert len(server.events) == 20
    assert {
        event["key"]: (event["user"]["id"], event.get("customer", {}).get("id"))
        for event in server.events
    } == expected


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("order", ["patched first", "client first"])
def test_the_end_of_a_patched_program_delivers(order: str, server: Server) -> None:
    run(server, order, "end")
    assert server.keys() == sorted(f"event-{number}" for number in range(50))


@pytest.mark.parametrize("order", ["patched first", "client first"])
@pytest.mark.parametrize("road", AT_THE_END)
def test_events_of_a_patched_program_that_begin_at_its_end_arrive(
    order: str, road: str, server: Server
) -> None:
    run(server, order, road)
    assert server.keys() == ["one", "two"]


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("order", "road"),
    [
        ("patched first", "fork_while_the_server_is_waited_for"),
        ("client first", "fork_while_the_server_is_waited_for"),
        ("patched first", "fork_by_gevent"),
    ],
)
def test_a_child_sends_its_own_events_only_while_the_parent_waits_for_the_server(
    order: str, road: str, server: Server, in_thread: InThread
) -> None:
    with Hold(server, lambda event: event["key"] == "held") as hold:
        done = in_thread(run, server, order, road)
        server.wait_for(2 + len(CHILDREN))
        assert server.keys() == [*CHILDREN, "held", "warm"]
        hold.release()
        done.result(30)
    assert server.keys() == [*CHILDREN, "held", "queued", "warm"]
    parents, children = senders(server)
    assert len(parents) == len(children) == 1
    came_on = {request.event["key"]: request.connection for request in server.requests}
    # The stream of the parent is whole, and nobody else's.
    assert came_on["warm"] == came_on["held"] == came_on["queued"]
    assert came_on["held"] not in {came_on[key] for key in CHILDREN}


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("road", "keys"),
    [
        ("fork_with_an_idle_thread", ["warm"]),
        ("fork_with_a_job_handed_over", ["handed-over", "warm"]),
        ("fork_before_a_connection_is_there", ["unconnected"]),
    ],
)
def test_a_greenlet_that_lives_on_in_a_child_sends_nothing_there(
    road: str, keys: list[str], server: Server
) -> None:
    run(server, "patched first", road)
    assert server.keys() == sorted([*CHILDREN, *keys])
    parents, children = senders(server)
    assert len(parents) == len(children) == 1
    assert parents != children


def test_what_a_child_left_on_the_disk_is_delivered_by_its_parent(
    server: Server, tmp_path: Path
) -> None:
    outbox = tmp_path / "outbox"
    run(server, "patched first", "fork_of_a_child_that_dies", VALUED_OUTBOX=str(outbox))
    # A greenlet of the child may have sent one, and not heard of it: that comes again.
    came = {
        (request.event["key"], request.headers["Idempotency-Key"]) for request in server.requests
    }
    assert sorted(key for key, _ in came) == sorted([*CHILDREN[:-1], "parent"])
    assert files_of(outbox) == []


def test_a_greenlet_that_listens_for_signals_ends_in_a_child_without_a_word(server: Server) -> None:
    run(server, "patched first", "fork_while_a_greenlet_listens_for_signals")
    assert server.keys() == ["child", "parent"]


def test_a_child_lets_go_of_a_connection_of_tls_that_a_greenlet_reads_from(
    secure: TLSServer, in_thread: InThread
) -> None:
    with Hold(secure, lambda event: event["key"] == "held") as hold:
        done = in_thread(run, secure, "patched first", "fork_while_the_server_is_waited_for")
        secure.wait_for(2 + len(CHILDREN))
        hold.release()
        done.result(30)
    assert secure.keys() == [*CHILDREN, "held", "queued", "warm"]
    came_on = {request.event["key"]: request.connection for request in secure.requests}
    assert came_on["warm"] == came_on["held"] == came_on["queued"]


def test_a_handshake_that_a_child_inherits_ends_there_and_harms_nobody(
    secure: TLSServer, in_thread: InThread
) -> None:
    finish_request = secure._http.finish_request
    peers: list[Any] = []  # in the order in which they came; their threads may run in another
    go_on = threading.Event()

    def come(_socket: Any, peer: Any) -> bool:
        peers.append(peer)
        return True

    def begin(sock: Any, peer: Any) -> None:
        if peer == peers[0]:
            assert go_on.wait(30)
        finish_request(sock, peer)

    secure._http.verify_request = come
    secure._http.finish_request = begin  # on a thread for each connection
    done = in_thread(run, secure, "patched first", "fork_in_a_tls_handshake")
    try:
        secure.wait_for(len(CHILDREN))
        assert secure.keys() == CHILDREN
    finally:
        go_on.set()
    done.result(30)
    assert secure.keys() == [*CHILDREN, "held"]
    parents, children = senders(secure)
    assert len(parents) == len(children) == 1


def senders(server: Server) -> tuple[set[int], set[int]]:
    """The processes that sent what parents record, and what children do."""
    pids: tuple[set[int], set[int]] = (set(), set())
    for event in server.events:
        pids[event["key"].startswith("child")].add(event["attributes"]["pid"])
    return pids


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors can't be listed here")
def test_new_connections_leave_nothing_behind_where_gevent_replaced_no_threads(
    server: Server,
) -> None:
    before, after = (
        run_program("gevent_without_threads.py", server.url, count) for count in ("1", "11")
    )
    assert json.loads(after.stdout) == json.loads(before.stdout), after.stderr
    assert len(server.requests) == 12

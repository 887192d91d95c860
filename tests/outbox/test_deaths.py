"""Deaths are noticed at once: what a dead child or sibling left is delivered without a new one."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.outbox.conftest import Fork, New
from tests.support.processes import VANISHED, Child, until, vanish
from tests.support.server import Server
from valued._outbox import deaths

pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="deaths are noticed at once on Linux only"
)

SOON = 5.0  # seconds; bounds a failure: it takes some milliseconds


class Service:
    """A transport that is down for every process but the one that made it."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self.got: list[str] = []

    def __call__(self, event: dict[str, Any]) -> None:
        if os.getpid() != self._pid:
            threading.Event().wait()
        self.got.append(event["key"])


@pytest.fixture(autouse=True)
def no_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """No regular scan comes within a test, so nothing else finds what was left."""
    monkeypatch.setattr("valued._outbox.claims.SCAN_INTERVAL", 3600.0)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def client(new: New, service: Service) -> valued.Client:
    return new(service)


def record(client: valued.Client, key: str) -> None:
    client.action(key, {"user.id": 1})


def settle(client: valued.Client) -> None:
    """Wait until a flush is done, and with it the first scan: one thread does both."""
    assert client.flush(10)


class Told:
    """A pipe on which children say how far they are."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def tell(self, what: bytes = b"x") -> None:
        os.write(self._write, what)

    def wait(self, count: int = 1) -> bytes:
        found = b""
        while len(found) < count:
            assert select.select([self._read], [], [], 10)[0], f"told {found!r} only"
            found += os.read(self._read, count - len(found))
        return found

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


@pytest.fixture
def told() -> Iterator[Told]:
    told = Told()
    yield told
    told.close()


def kill(*children: Child) -> None:
    for child in children:
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == VANISHED


def names() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    # A test of `flush_on_signals` may have run here before; that thread stays.
    return [name for name in names if name.startswith("valued-") and name != "valued-signals"]


def test_parent_that_recorded_before_it_forked_delivers_what_killed_children_left(
    client: valued.Client, service: Service, told: Told, fork: Fork
) -> None:
    record(client, "parent")
    settle(client)

    def child(key: str) -> None:
        record(client, key)
        told.tell()
        signal.pause()

    children = [fork(child, key) for key in ("a", "b", "c")]
    told.wait(3)
    kill(*children)
    until(lambda: sorted(service.got) == ["a", "b", "c", "parent"], SOON)


def test_child_that_was_killed_before_its_first_worker_ran_is_noticed(
    client: valued.Client, service: Service, fork: Fork
) -> None:
    record(client, "parent")
    settle(client)

    def child() -> None:
        threading.Thread.start = lambda _thread: None  # type: ignore[method-assign]
        record(client, "child")
        vanish()

    assert fork(child).wait() == VANISHED
    until(lambda: service.got == ["parent", "child"], SOON)


_POOL = """
import multiprocessing, sys, valued
url, outbox = sys.argv[1:]
client = valued.Client("token", url, outbox=outbox)

def record(key):
    client.action(key, {"user.id": 1})

record("parent")
assert client.flush(10)
with multiprocessing.get_context("fork").Pool(2) as pool:
    pool.map(record, [f"job-{number}" for number in range(20)], chunksize=1)
print("the block is over", flush=True)
sys.stdin.readline()
"""


def test_events_of_a_multiprocessing_pool_arrive_after_its_block(
    place: Path, server: Server
) -> None:
    keys = {"parent", *(f"job-{number}" for number in range(20))}
    # A program of its own: a worker that is terminated may have a lock of the test's process.
    with subprocess.Popen(
        [sys.executable, "-c", _POOL, server.url, str(place)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as program:  # fmt: skip
        assert program.stdin is not None
        assert program.stdout is not None
        try:
            assert program.stdout.readline() == "the block is over\n"
            # What was being sent at the end of a worker may come twice.
            until(lambda: {event["key"] for event in server.events} == keys, SOON)
            program.stdin.write("\n")
            program.stdin.flush()
            assert program.wait(20) == 0
        finally:
            program.kill()


@pytest.mark.parametrize("first", ["dead", "living"])
def test_sibling_delivers_what_a_killed_one_left(
    place: Path, told: Told, fork: Fork, first: str
) -> None:
    ready, go = Told(), Told()

    def dead() -> None:
        def send(_event: dict[str, Any]) -> None:
            ready.tell()  # its first worker is here
            threading.Event().wait()

        go.wait()
        record(valued.Client(send, outbox=str(place)), "dead")
        signal.pause()

    def living() -> None:
        go.wait()
        mine = Service()
        client = valued.Client(mine, outbox=str(place))
        record(client, "living")
        settle(client)
        ready.tell()
        until(lambda: mine.got == ["living", "dead"])
        told.tell()
        signal.pause()

    # No parent recorded, so each begins as the first one, in either order.
    functions = [dead, living] if first == "dead" else [living, dead]
    children = {}
    for function in functions:
        children[function] = fork(function)
        go.tell()
        ready.wait()
    kill(children[dead])
    told.wait()
    kill(children[living])
    ready.close()
    go.close()


def test_parked_process_has_no_thread_and_is_not_woken(
    client: valued.Client, service: Service, told: Told, fork: Fork
) -> None:
    record(client, "parent")
    settle(client)

    def child() -> None:
        record(client, "child")
        told.tell()
        signal.pause()

    living = fork(child)
    told.wait()
    assert client.park(10)
    assert names() == []
    kill(living)
    assert names() == []
    assert service.got == ["parent"]
    record(client, "again")
    until(lambda: sorted(service.got) == ["again", "child", "parent"], SOON)


def test_threads_of_a_process_that_is_alone_end_after_idle_time(
    new: New, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[bool] = []
    wait = deaths.Deaths.wait

    def counted(self: deaths.Deaths, timeout: float) -> bool:
        rounds.append(wait(self, timeout))
        return rounds[-1]

    monkeypatch.setattr(deaths.Deaths, "wait", counted)
    client = new(service, idle_time=0.2)
    record(client, "alone")
    settle(client)
    until(lambda: names() == [])
    # It was not woken before it ended, but when the time was counted from the end of the attempt.
    assert len(rounds) <= 2
    assert not rounds[-1]


def test_thread_stays_beyond_idle_time_while_a_child_is_known_to_live(
    new: New, service: Service, told: Told, fork: Fork
) -> None:
    client = new(service, idle_time=0.2)
    record(client, "parent")
    settle(client)

    def child() -> None:
        record(client, "child")
        told.tell()
        signal.pause()

    living = fork(child)
    told.wait()
    time.sleep(1.0)  # five times as long as it would live without the child
    kill(living)
    until(lambda: service.got == ["parent", "child"], SOON)
    until(lambda: names() == [])


def test_descriptors_do_not_add_up_over_children(
    client: valued.Client, service: Service, fork: Fork
) -> None:
    record(client, "parent")
    settle(client)
    before = len(os.listdir("/proc/self/fd"))

    def child(number: int) -> None:
        record(client, f"child-{number}")
        vanish()

    for number in range(30):
        started = fork(child, number)
        assert started.wait() == VANISHED
    until(lambda: len(service.got) == 31)
    until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def processes_held() -> list[str]:
    """The files behind the descriptors of this process that are a process."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return [one for one in found if "pidfd" in one]


def test_child_has_none_of_the_descriptors(client: valued.Client, told: Told, fork: Fork) -> None:
    record(client, "parent")
    settle(client)

    def sleeper() -> None:
        record(client, "child")
        told.tell()
        signal.pause()

    def child() -> None:
        told.tell(b"-" if processes_held() else b"+")
        vanish()

    living = fork(sleeper)
    told.wait()
    until(processes_held)
    assert fork(child).wait() == VANISHED
    assert told.wait() == b"+"
    kill(living)


def test_datagrams_that_name_no_owner_lead_to_nothing(
    client: valued.Client, service: Service, place: Path
) -> None:
    record(client, "parent")
    settle(client)
    (mark,) = os.listdir(place / "v1" / "owners")
    until(lambda: f"@valued-{mark}" in Path("/proc/net/unix").read_text())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        for content in (b"", b"../../etc/passwd", b"\xff" * 4000, b"0" * 32, b"A" * 32):
            sender.sendto(content, b"\0valued-" + mark.encode())
    record(client, "next")
    settle(client)
    assert service.got == ["parent", "next"]
    assert client.park(10)
    assert names() == []


@pytest.mark.parametrize("missing", ["pidfd_open", "poll"])
def test_where_the_system_or_a_patch_lacks_it_events_are_delivered_as_before(
    client: valued.Client,
    service: Service,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
) -> None:
    if missing == "poll":
        monkeypatch.setattr(select, "poll", lambda: None)
    else:
        monkeypatch.delattr(os, "pidfd_open")
    record(client, "parent")
    settle(client)
    assert service.got == ["parent"]
    (mark,) = os.listdir(place / "v1" / "owners")
    assert f"@valued-{mark}" not in Path("/proc/net/unix").read_text()
    assert client.park(10)
    assert names() == []

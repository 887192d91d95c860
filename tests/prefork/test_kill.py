"""Processes that die in every way: what they accepted is delivered, once or with the same key.

``python -m benchmarks.programs.kill`` does the same for as long as one likes.
"""

from __future__ import annotations

import ctypes
import faulthandler
import http.client
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import valued
from tests.support.gunicorn import Gunicorn
from tests.support.hold import Hold
from tests.support.kills import POINTS, Arrived, Killing, kill_at
from tests.support.processes import PROGRAMS, Child, run, until
from tests.support.server import Reply, Request, Server

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

#: Events that an answer came for and that may not be noted yet: a group, and those under way.
IN_FLIGHT = 64 + 10


def arrived(server: Server) -> Arrived:
    return Arrived(
        (request.event["attributes"]["number"], request.headers["Idempotency-Key"])
        for request in list(server.requests)
        if len(request.body) == int(request.headers["Content-Length"])  # else it was cut
    )


@pytest.fixture
def killing(tmp_path: Path, server: Server) -> Iterator[Killing]:
    killing = Killing(tmp_path, server.url, seed=1)
    yield killing
    for pid in killing.living:
        killing.kill(pid)
    killing.client.close(0)


def check(killing: Killing, server: Server, deaths: int) -> None:
    killing.drain(30)
    came = arrived(server)
    assert killing.accepted() - came.times.keys() == set()
    assert came.with_several_keys() == []
    assert came.repeats() <= deaths * IN_FLIGHT


def test_workers_that_are_killed_at_any_instant_lose_nothing(
    killing: Killing, server: Server
) -> None:
    first = killing.start(5)  # one at least gets so far, however busy the machine is
    until(lambda: len(killing.accepted()) == 5)
    killing.kill(first)
    killing.run(kills=24, workers=4, events=40, seconds=0.1)
    check(killing, server, deaths=25)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("point", POINTS)
def test_a_worker_that_is_killed_on_purpose_loses_nothing(
    killing: Killing, server: Server, point: str, after: bool
) -> None:
    first = killing.start(5)
    until(lambda: len(killing.accepted()) == 5)
    killing.kill(first)  # so there is something to take over
    if point == "release":  # of what is left, so something must be
        server.script = lambda _request: Reply(503)

    def prepare() -> None:
        call = 3 if point in ("append", "request", "answer") else 1
        kill_at(killing.client, point, call, after=after)
        if point == "release":
            threading.Thread(target=end, daemon=True).start()

    def end() -> None:
        until(lambda: killing.client.stats()["accepted"])
        killing.client.close(0)

    pid = killing.start(5, prepare)
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
    try:
        until(lambda: os.waitid(os.P_PID, pid, ended), 10)
    finally:
        killing.kill(pid)
    server.script = lambda _request: Reply()
    check(killing, server, deaths=2)


def left_by(client: valued.Client, number: int) -> None:
    client.action("left", {"user.id": 1, "attributes.number": number})


def crash() -> None:
    faulthandler.disable()  # what it says is no failure of the test
    ctypes.string_at(0)


@pytest.fixture
def down(tmp_path: Path, server: Server) -> valued.Client:
    """A client with an outbox, of a service that is down."""
    server.script = lambda _request: Reply(503)
    return valued.Client("test-token", server.url, outbox=str(tmp_path / "outbox"))


def test_an_exit_without_a_word_and_a_crash_in_c_lose_nothing(
    down: valued.Client, server: Server
) -> None:
    for number, how in enumerate((lambda: os._exit(0), crash)):
        pid = os.fork()
        if pid == 0:
            left_by(down, number)
            how()
        os.waitpid(pid, 0)
    server.requests.clear()
    server.script = lambda _request: Reply()
    assert down.adopt() == 2
    server.wait_for(2)
    assert down.close(10)
    assert sorted(arrived(server).times.items()) == [(0, 1), (1, 1)]


def begin(started: threading.Barrier) -> None:
    # Where coverage is measured, SIGTERM has a handler, and `terminate` hangs: CPython forgets a
    # signal that comes before a child's first step, and is late for one that comes just before a
    # worker waits for its next task.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    started.wait(30)


def work(number: int) -> None:
    assert _client is not None
    left_by(_client, number)


_client: valued.Client | None = None


def test_what_the_workers_of_a_pool_had_not_sent_is_delivered_by_the_parent(
    down: valued.Client, server: Server
) -> None:
    global _client
    _client = down
    context = multiprocessing.get_context("fork")
    started = context.Barrier(4)
    with context.Pool(3, begin, (started,)) as pool:
        started.wait(30)
        pool.map(work, range(30), chunksize=1)
    server.requests.clear()
    server.script = lambda _request: Reply()
    assert 1 <= down.adopt() <= 3  # a worker may have had no task
    until(lambda: down.stats()["delivered"] == 30)
    assert down.close(10)
    assert down.stats()["adopted"] == 30
    assert arrived(server).times.keys() == set(range(30))
    assert arrived(server).with_several_keys() == []


def test_a_stopped_owner_is_not_robbed_and_goes_on(
    down: valued.Client, server: Server, fork: Callable[..., Child]
) -> None:
    recorded, finish = os.pipe(), os.pipe()

    def owner() -> None:
        left_by(down, 1)
        os.write(recorded[1], b".")
        os.read(finish[0], 1)
        assert down.flush(10)

    child = fork(owner)
    os.read(recorded[0], 1)
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    server.script = lambda _request: Reply()
    left_by(down, 2)
    assert down.adopt() == 0
    assert down.flush(10)
    os.kill(child.pid, signal.SIGCONT)
    os.write(finish[1], b".")
    assert child.wait(20) == 0
    for end in (*recorded, *finish):
        os.close(end)
    assert down.close(10)
    assert arrived(server).times.keys() == {1, 2}
    assert arrived(server).with_several_keys() == []


def test_the_end_of_a_process_leaves_to_others_what_a_service_that_is_down_did_not_take(
    down: valued.Client, server: Server, fork: Callable[..., Child]
) -> None:
    def child() -> None:
        left_by(down, 1)
        began = time.monotonic()
        assert not down.close(0.1)
        assert time.monotonic() - began < 5
        assert down.stats()["handed_over"] == 1

    assert fork(child).wait() == 0
    server.script = lambda _request: Reply()
    assert down.adopt() == 1
    until(lambda: down.stats()["delivered"] == 1)
    assert down.close(10)


@pytest.mark.parametrize("has_recorded", [True, False])
def test_an_idle_process_notices_by_itself_that_another_one_died(
    down: valued.Client, server: Server, monkeypatch: pytest.MonkeyPatch, has_recorded: bool
) -> None:
    monkeypatch.setattr("valued._outbox.claims.SCAN_INTERVAL", 0.05)
    dead = threading.Event()

    def script(request: Request) -> Reply:
        mine = request.event["attributes"]["number"] == 2
        return Reply() if mine or dead.is_set() else Reply(503)

    server.script = script
    pid = os.fork()
    if pid == 0:
        left_by(down, 1)
        signal.pause()
    server.wait_for(1)
    if has_recorded:
        left_by(down, 2)
        assert down.flush(10)
    else:
        assert down.adopt() == 0
    dead.set()  # before, as its death is noticed within milliseconds
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    until(lambda: down.stats()["delivered"] == 1 + has_recorded)
    assert down.park(10)
    assert not any(thread.name.startswith("valued-") for thread in threading.enumerate())
    assert arrived(server).with_several_keys() == []
    assert down.close(10)


_REPLACED = """
import os, sys, time, valued
url, outbox, program = sys.argv[1:4]
client = valued.Client("t", url, outbox=outbox)
if program:
    client.action("before", {"user.id": 1})
    os.execv(sys.executable, [sys.executable, "-c", program, url, outbox, ""])
client.action("after", {"user.id": 1})
while client.stats()["delivered"] < 2:
    time.sleep(0.01)
"""


def test_a_process_that_is_replaced_by_exec_delivers_what_it_had_before(
    tmp_path: Path, server: Server
) -> None:
    after = threading.Event()

    def script(request: Request) -> Reply:
        if request.event["key"] == "after":
            after.set()
        return Reply(204 if after.is_set() else 503, {"Retry-After": "0"})

    server.script = script
    place = str(tmp_path / "outbox")
    run("-c", _REPLACED, server.url, place, _REPLACED, timeout=30)
    assert {event["key"] for event in server.events} == {"after", "before"}
    assert len({request.headers["Idempotency-Key"] for request in server.requests}) == 2


def test_events_of_a_gunicorn_worker_that_its_timeout_kills_arrive(
    tmp_path: Path, server: Server
) -> None:
    pytest.importorskip("gunicorn")
    pytest.importorskip("flask")
    with Gunicorn(
        *(tmp_path, "tests.programs.gunicorn_app:app", "--preload", "--timeout", "1"),
        configuration="def post_fork(server, worker):\n"
        "    from tests.programs.gunicorn_app import client\n"
        "    client.adopt()\n",
        VALUED_TOKEN="test-token",
        VALUED_ENDPOINT=server.url,
        VALUED_OUTBOX=str(tmp_path / "outbox"),
        ASK=f"http://127.0.0.1:{server.port}/ask",
    ) as gunicorn:
        connection = http.client.HTTPConnection("127.0.0.1", gunicorn.port, timeout=20)
        # The interpreter's lock is held from the event on: nothing can send it.
        connection.request("POST", "/hang-in-c", headers={"X-Request-Id": "killed"})
        with pytest.raises((http.client.HTTPException, OSError)):
            connection.getresponse()
        connection.close()
        until(lambda: "hanging" in keys(server), 30)
        assert keys(server).count("hanging") == 1


def keys(server: Server) -> list[str]:
    return [json.loads(request.body).get("key", "") for request in list(server.requests)
            if request.body]  # fmt: skip


IN_A_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def test_a_disk_that_is_full_for_a_while_costs_no_event(tmp_path: Path, server: Server) -> None:
    mount = f"mount -t tmpfs -o size=64k,mode=0700 tmpfs {tmp_path}"
    if (
        not shutil.which("unshare")
        or subprocess.run(
            [*IN_A_NAMESPACE, "sh", "-c", mount], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("no small file system can be mounted here")
    program = shlex.join([sys.executable, str(PROGRAMS / "small_disk.py")])
    with (
        Hold(server) as hold,
        subprocess.Popen(
            [*IN_A_NAMESPACE, "sh", "-c", f"{mount} && exec {program} {tmp_path} {server.url}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process,
    ):  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "full\n"
        hold.release()
        said, complaint = process.communicate("\n", timeout=60)
    assert process.returncode == 0, complaint
    stats = json.loads(said)
    lines = [line for line in complaint.splitlines() if "the outbox" in line and "No space" in line]
    assert 1 <= len(lines) <= 2, complaint  # at once, and in sum
    assert stats["delivered"] == stats["accepted"] == stats["recorded"]
    assert sorted(event["user"]["id"] for event in server.events) == [*range(stats["recorded"])]

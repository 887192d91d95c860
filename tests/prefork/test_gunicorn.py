"""Gunicorn itself, stopped, reloaded, recycled and timed out under load.

What is compared is always the same: the answers that visitors got, and the events that arrived.
Each promise has a few kinds of workers here; ``tests/soak/test_gunicorn.py`` has all of them.
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.support.gunicorn import Gunicorn, Visitors
from tests.support.programs import BOUND
from tests.support.server import Reply, Request, Server

pytest.importorskip("gunicorn")
pytest.importorskip("flask")

APP = "tests.programs.gunicorn_app:app"

#: What one process opens, at most: `max_workers`, and one for the thread that ends the process.
CONNECTIONS = 10 + 1

# With --preload, gevent's worker patches what the application imported before, as it warns itself.
# So those who use gevent patch in the configuration file, and all of the master is patched, too.
PATCH = "from gevent import monkey\nmonkey.patch_all()\n"
LATE = ("-W", "ignore:Monkey-patching ssl")

Start = Callable[..., Gunicorn]


@pytest.fixture
def start(tmp_path: Path, server: Server) -> Iterator[Start]:
    """Start Gunicorn with two workers; what it said is in the report of a failure."""
    with contextlib.ExitStack() as started:

        def start(kind: str, *options: str, python: tuple[str, ...] = (), configuration: str = "",
                  **more: str) -> Gunicorn:  # fmt: skip
            worker_class, *how = kind.split(", ")
            if worker_class == "gevent":
                pytest.importorskip("gevent")
                if "patched early" in how:
                    configuration = PATCH + configuration
                else:
                    python += LATE
            threads = ("--threads", "3") if worker_class == "gthread" else ()
            preload = ("--preload",) if "preload" in how else ()
            return started.enter_context(
                Gunicorn(
                    *(tmp_path, APP, "--worker-class", worker_class),
                    *(*threads, *preload, *options),
                    python=python,
                    configuration=configuration,
                    VALUED_TOKEN="test-token",
                    VALUED_ENDPOINT=server.url,
                    ASK=f"http://127.0.0.1:{server.port}/ask",
                    **more,
                )
            )

        yield start


@pytest.fixture
def gate(server: Server) -> Iterator[Gate]:
    """Holds answers back; open at the end of the test."""
    gate = Gate(server)
    yield gate
    gate.open.set()


class Gate:
    """Events whose body holds *what* get no answer before ``open`` is set."""

    def __init__(self, server: Server) -> None:
        self.what = b"imported"
        self.open = threading.Event()
        self._held = threading.Event()
        server.script = self._script

    def _script(self, request: Request) -> Reply:
        if request.path == "/ask":  # whether one is held
            self._held.wait(BOUND)
        elif self.what in request.body:
            self._held.set()
            self.open.wait()
        return Reply()


def events(server: Server) -> list[Request]:
    return [request for request in list(server.requests) if request.path == "/events"]


def split(server: Server) -> dict[str, list[tuple[str, str, int]]]:
    """The events, by the beginning of their id: id, category, pid of who says that he sent it."""
    found = collections.defaultdict(list)
    for request in events(server):
        event = request.event
        name = event["attributes"]["id"]
        found[name.split("-")[0]].append((name, event["category"], event["attributes"]["pid"]))
    return found


def imports_of(*pids: int) -> list[tuple[str, str, int]]:
    """The events that the application records at its import, in these processes."""
    return sorted((f"import-{pid}-{number}", "action", pid) for pid in pids for number in range(20))


def assert_connections_were_kept(server: Server) -> None:
    """Few for each process, and none that two processes wrote on."""
    users = collections.defaultdict(set)
    for request in events(server):
        users[request.connection].add(request.event["attributes"]["pid"])
    assert [pids for pids in users.values() if len(pids) > 1] == []
    counted = collections.Counter(pid for pids in users.values() for pid in pids)
    assert max(counted.values()) <= CONNECTIONS


@pytest.mark.parametrize(
    "kind", ["sync, preload", "gthread", "gevent, preload", "gevent, patched early, preload"]
)
def test_each_answer_has_its_events_once_though_sigterm_came_under_load(
    kind: str, start: Start, server: Server
) -> None:
    end_under_load(start(kind), server)


def end_under_load(gunicorn: Gunicorn, server: Server) -> None:
    visitors = Visitors(gunicorn.port)
    visitors.wait_for(200)
    workers = gunicorn.workers()
    visitors.wait_for_pids(workers)
    gunicorn.stop()
    visitors.join()
    visits = split(server)["visit"]
    visitors.assert_each_event_came_once(visits)
    assert {pid for _, _, pid in visits} == workers
    assert_connections_were_kept(server)
    gunicorn.assert_said_nothing()


@pytest.mark.parametrize(
    ("kind", "then"),
    [
        ("sync, preload", "until idle"),
        ("gthread, preload", "until told"),
        ("gevent, patched early, preload", "at once"),
        ("gevent, patched early, preload", "until told"),
    ],
)
def test_events_of_a_preloading_master_are_sent_by_it_alone(
    kind: str, then: str, start: Start, server: Server, gate: Gate
) -> None:
    record_before_the_fork(kind, then, start, server, gate)


def record_before_the_fork(kind: str, then: str, start: Start, server: Server, gate: Gate) -> None:
    if then != "until told":
        gate.open.set()
    gunicorn = start(
        kind,
        AT_IMPORT=then,
        CLIENT_OPTIONS=json.dumps({"idle_time": 0.2}),  # what idles in the master ends meanwhile
    )
    visitors = Visitors(gunicorn.port)
    visitors.wait_for(100)
    visitors.wait_for_pids(gunicorn.workers())
    gate.open.set()
    gunicorn.stop()
    visitors.join()
    arrived = split(server)
    visitors.assert_each_event_came_once(arrived["visit"])
    assert sorted(arrived["import"]) == imports_of(gunicorn.pid)
    assert_connections_were_kept(server)
    gunicorn.assert_said_nothing()


def test_events_that_wait_for_another_attempt_in_a_master_are_sent_by_it_alone(
    start: Start, server: Server
) -> None:
    refused: list[str] = []
    all_are_refused = threading.Event()

    def script(request: Request) -> Reply:
        if request.path == "/ask":
            all_are_refused.wait(BOUND)
        elif (
            b"imported" in request.body and len(refused) < 4
        ):  # one more, and it would be an outage
            refused.append(request.event["attributes"]["id"])
            if len(refused) == 4:
                all_are_refused.set()
            return Reply(503, {"Retry-After": "1"})  # seconds, in which the master forks
        return Reply()

    server.script = script
    gunicorn = start("gevent, patched early, preload", AT_IMPORT="until told")
    visitors = Visitors(gunicorn.port)
    visitors.wait_for_pids(gunicorn.workers())
    gunicorn.wait_until(lambda: len(split(server)["import"]) == 24)
    gunicorn.stop()
    visitors.join()
    arrived = split(server)
    visitors.assert_each_event_came_once(arrived["visit"])
    assert len(set(refused)) == 4
    twice = [event for event in imports_of(gunicorn.pid) if event[0] in refused]
    assert sorted(arrived["import"]) == sorted(imports_of(gunicorn.pid) + twice)
    gunicorn.assert_said_nothing(besides="the service answered 503")


def test_events_of_the_import_are_each_workers_own_without_preload(
    start: Start, server: Server
) -> None:
    gunicorn = start("sync", AT_IMPORT="at once")
    visitors = Visitors(gunicorn.port)
    workers = gunicorn.workers()
    visitors.wait_for_pids(workers)
    gunicorn.stop()
    visitors.join()
    arrived = split(server)
    visitors.assert_each_event_came_once(arrived["visit"])
    assert sorted(arrived["import"]) == imports_of(*workers)
    gunicorn.assert_said_nothing()


@pytest.mark.parametrize("kind", ["gthread", "gevent, patched early, preload"])
def test_workers_that_are_recycled_under_load_lose_nothing(
    kind: str, start: Start, server: Server
) -> None:
    gunicorn = start(kind, "--max-requests", "40", "--max-requests-jitter", "10")
    visitors = Visitors(gunicorn.port)
    visitors.wait_for_processes(6)
    gunicorn.stop()
    visitors.join()
    visits = split(server)["visit"]
    visitors.assert_each_event_came_once(visits)
    assert {pid for _, _, pid in visits} >= visitors.pids()
    assert_connections_were_kept(server)
    gunicorn.assert_said_nothing()


def test_workers_that_are_reloaded_under_load_lose_nothing(start: Start, server: Server) -> None:
    gunicorn = start("sync, preload")
    visitors = Visitors(gunicorn.port)
    visitors.wait_for(50)
    old = gunicorn.workers()
    visitors.wait_for_pids(old)
    gunicorn.process.send_signal(signal.SIGHUP)
    new = gunicorn.workers(besides=old)
    visitors.wait_for_pids(new)
    gunicorn.stop()
    visitors.join()
    visits = split(server)["visit"]
    visitors.assert_each_event_came_once(visits)
    assert {pid for _, _, pid in visits} == old | new
    assert_connections_were_kept(server)
    gunicorn.assert_said_nothing()


def post(port: int, path: str) -> int | None:
    """Ask for *path*; the status of the answer, None where none came."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=BOUND)
    try:
        connection.request("POST", path, headers={"X-Request-Id": "hanging-1"})
        return connection.getresponse().status
    except (ConnectionError, http.client.HTTPException):
        return None
    finally:
        connection.close()


@pytest.mark.parametrize("where", ["python", "c"])
def test_worker_that_is_killed_by_its_timeout_loses_no_more_than_what_was_in_it(
    where: str, start: Start, server: Server, in_thread: Callable[..., Future[Any]]
) -> None:
    hanging = threading.Event()

    def script(request: Request) -> Reply:
        if request.path == "/ask":
            hanging.set()
        return Reply()

    server.script = script
    gunicorn = start("sync, preload", "--timeout", "2")
    before = Visitors(gunicorn.port, "before-")
    before.wait_for_pids(gunicorn.workers())
    before.leave()
    server.wait_for(before.count_of_events())  # so nothing else is in the worker that is killed
    answer = in_thread(post, gunicorn.port, f"/hang-in-{where}")
    assert hanging.wait(BOUND)
    visitors = Visitors(gunicorn.port)
    replacement: int = gunicorn.wait_until(lambda: gunicorn.booted()[2:])[0]
    visitors.wait_for_pids([replacement])
    gunicorn.stop()
    visitors.join()
    arrived = split(server)
    before.assert_each_event_came_once(arrived["before"])
    visitors.assert_each_event_came_once(arrived["visit"])
    recorded = [event[:2] for event in arrived["hanging"]]
    if where == "python":  # Gunicorn's handler raises `SystemExit`: the worker ends as others do
        assert answer.result() == 500
        assert recorded == [("hanging-1", "action")]
    else:
        assert answer.result() is None
        assert recorded in ([], [("hanging-1", "action")])
    assert gunicorn.stderr() == ""
    assert gunicorn.complaints()[0] == "WORKER TIMEOUT (pid)"


@pytest.mark.parametrize("kind", ["gthread, preload", "gevent, patched early, preload"])
def test_workers_leave_in_time_though_the_service_never_answers(
    kind: str, start: Start, server: Server, gate: Gate
) -> None:
    gate.what = b""
    gunicorn = start(
        kind, "--graceful-timeout", "8", CLIENT_OPTIONS=json.dumps({"shutdown_timeout": 1})
    )
    visitors = Visitors(gunicorn.port)
    workers = gunicorn.workers()
    visitors.wait_for_pids(workers)
    assert gunicorn.stop() < 8  # at which it kills those that are still there
    visitors.join()
    said = gunicorn.stderr().splitlines()
    ends = [line for line in said if re.match(r"valued: the process ends with \d+ event", line)]
    assert len(ends) >= len(workers)
    # The last attempts had the second that was left.
    assert [line for line in said if line not in ends and "Read timed out" not in line] == []
    assert gunicorn.complaints() == []


PARKING = {
    "by the application": "",
    "when_ready": "def when_ready(server):\n    client().park()\n",
    "pre_fork": "def pre_fork(server, worker):\n    client().park()\n",
}


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("gevent, patched early, preload", "by the application"),
        ("sync, preload", "when_ready"),
        ("sync, preload", "pre_fork"),
    ],
)
def test_no_warning_of_a_fork_names_a_master_that_was_parked(
    kind: str, where: str, start: Start, server: Server
) -> None:
    gunicorn = start(
        kind,
        # Not as an error: that one is swallowed, as `os.fork` has no use for it.
        python=("-W", "always:This process:DeprecationWarning"),
        configuration=(
            "def client():\n    from tests.programs import gunicorn_app\n"
            f"    return gunicorn_app.client\n{PARKING[where]}"
        ),
        AT_IMPORT="at once" if PARKING[where] else "until parked",
    )
    visitors = Visitors(gunicorn.port)
    visitors.wait_for_pids(gunicorn.workers())
    gunicorn.stop()
    visitors.join()
    arrived = split(server)
    visitors.assert_each_event_came_once(arrived["visit"])
    assert sorted(arrived["import"]) == imports_of(gunicorn.pid)
    gunicorn.assert_said_nothing()


def test_counts_of_all_workers_never_go_back_and_are_in_the_end_what_arrived(
    start: Start, server: Server, tmp_path: Path
) -> None:
    place = tmp_path / "status"
    gunicorn = start("sync", "--workers", "4", "--max-requests", "20", VALUED_STATUS=str(place))
    visitors = Visitors(gunicorn.port)
    status, scrapes = valued.Status(place), []
    while len(visitors.answered) < 300:
        assert not visitors.wrong
        scrapes.append(status.read().totals)
        time.sleep(0.02)  # how often to look; the workers need the CPUs
    visitors.leave()
    gunicorn.stop()
    assert len(gunicorn.booted()) > 12
    scrapes.append(status.read().totals)
    for name in ("accepted", "delivered", "retried"):
        counts = [totals[name] for totals in scrapes]
        assert counts == sorted(counts), name
    assert scrapes[-1]["delivered"] == scrapes[-1]["accepted"] == len(events(server))
    assert scrapes[-1]["pending"] == 0
    assert status.read().processes == []

"""`os.fork` at the worst moments, each forced: the thread is where we want the fork."""

from __future__ import annotations

import collections
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

import valued
from tests.support.inside import is_postponed, make_due, pipeline_of
from tests.support.processes import VANISHED, Child, run_program, until, vanish
from tests.support.server import Reply, Request, Server

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

Fork = Callable[..., Child]
InThread = Callable[..., "Future[Any]"]

BOUND = 10.0  # seconds that bound a failure, no pause

#: What one fork leaves is seen after these.
FORKS = 15


class Gate:
    """Holds whoever passes, until it is opened; a forked child finds it open."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._reached = threading.Event()
        self._open = threading.Event()

    def __call__(self, *_: Any) -> None:
        if os.getpid() == self._pid:
            self._reached.set()
            assert self._open.wait(BOUND)

    def is_reached(self) -> bool:
        return self._reached.wait(BOUND)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()  # or a failed test waits for its threads


@pytest.fixture
def holding(server: Server, gate: Gate) -> Server:
    """A server that answers the events named ``parent`` when the gate is opened, others at once."""

    def script(request: Request) -> Reply:
        if request.event["key"] == "parent":
            gate()
        return Reply()

    server.script = script
    return server


def record_and_flush(client: valued.Client, key: str = "child", user: Any = 2) -> None:
    """What a child does."""
    assert client.stats()["accepted"] == 0
    client.action(key, {"user.id": user})
    assert client.flush(BOUND)
    stats = client.stats()
    assert (stats["accepted"], stats["delivered"], stats["pid"]) == (1, 1, os.getpid())


def end_as_child(client: valued.Client) -> NoReturn:
    """What a child does that came back from a fork within the library."""
    status = 1
    try:
        record_and_flush(client)
        status = 0
    finally:
        os._exit(status)


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def finish(client: valued.Client, server: Server, *keys: str) -> None:
    """All of *keys* arrived, each once; what the parent has is settled, so nothing more comes."""
    assert client.flush(BOUND)
    assert server.keys() == sorted(keys)


def test_a_child_sends_its_own_event_while_a_thread_is_inside_action(
    client: valued.Client, server: Server, fork: Fork, in_thread: InThread, gate: Gate
) -> None:
    client.action("first", {"user.id": 1})
    assert client.flush(BOUND)

    queue = pipeline_of(client)._queue
    absorb = queue.absorb

    def slow() -> None:
        queue.absorb = absorb
        gate()  # with the queue's lock held
        absorb()

    queue.absorb = slow
    parent = in_thread(client.action, "parent", {"user.id": 1})
    assert gate.is_reached()
    child = fork(record_and_flush, client)
    assert child.wait() == 0
    gate.open()
    parent.result(BOUND)
    finish(client, server, "first", "parent", "child")


def test_a_child_makes_its_own_executor_while_a_thread_is_inside_the_first_build(
    server: Server, fork: Fork, in_thread: InThread, gate: Gate
) -> None:
    def factory() -> ThreadPoolExecutor:
        gate()
        return ThreadPoolExecutor(1)

    with valued.Client("token", server.url, executor=factory) as client:
        parent = in_thread(client.action, "parent", {"user.id": 1})
        assert gate.is_reached()
        assert fork(record_and_flush, client).wait() == 0
        gate.open()
        parent.result(BOUND)
        finish(client, server, "parent", "child")


@pytest.mark.parametrize("wait", ["flush", "close"])
def test_a_child_sends_its_own_event_while_a_thread_is_inside(
    wait: str, client: valued.Client, holding: Server, fork: Fork, in_thread: InThread, gate: Gate
) -> None:
    client.action("parent", {"user.id": 1})
    assert gate.is_reached()
    waiting = in_thread(getattr(client, wait), BOUND)
    assert fork(record_and_flush, client).wait() == 0
    assert not waiting.done()
    gate.open()
    assert waiting.result(BOUND)
    finish(client, holding, "parent", "child")


def test_a_child_of_a_parent_with_requests_under_way_and_events_queued_has_none_of_them(
    client: valued.Client, holding: Server, fork: Fork, gate: Gate
) -> None:
    for number in range(2_000):
        client.action("parent", {"user.id": 1, "attributes.number": number})
    assert gate.is_reached()
    assert fork(record_and_flush, client).wait() == 0
    assert holding.keys().count("child") == 1
    gate.open()
    assert client.flush(30)
    numbers = [
        event["attributes"]["number"] for event in holding.events if event["key"] == "parent"
    ]
    assert sorted(numbers) == list(range(2_000))


def test_a_child_leaves_a_retry_pause_to_its_parent(
    client: valued.Client, server: Server, fork: Fork
) -> None:
    # The first attempt of the parent's event is refused for longer than any test runs.
    refusals = collections.Counter[str]()

    def script(request: Request) -> Reply:
        key = request.event["key"]
        refusals[key] += 1
        if key == "parent" and refusals[key] == 1:
            return Reply(503, {"Retry-After": "60"})
        return Reply()

    server.script = script
    client.action("parent", {"user.id": 1})
    until(lambda: is_postponed(client))
    assert fork(record_and_flush, client).wait() == 0
    assert client.stats()["pending"] == 1
    make_due(client)
    assert client.flush(BOUND)
    assert server.keys() == ["child", "parent", "parent"]
    keys = {r.headers["Idempotency-Key"] for r in server.requests if r.event["key"] == "parent"}
    assert len(keys) == 1
    assert client.stats()["retried"] == 1


def test_a_child_sends_its_own_event_while_a_converter_runs(
    client: valued.Client, server: Server, fork: Fork, in_thread: InThread, gate: Gate
) -> None:
    class SlowUser:
        def to_valued_data(self) -> dict[str, Any]:
            gate()
            return {"id": 1}

    parent = in_thread(lambda: client.action("parent", user=SlowUser()))
    assert gate.is_reached()
    assert fork(record_and_flush, client, "child", 2).wait() == 0
    gate.open()
    parent.result(BOUND)
    finish(client, server, "parent", "child")


def test_a_child_sends_its_own_event_while_on_error_runs(
    server: Server, fork: Fork, gate: Gate
) -> None:
    server.script = lambda request: Reply(400 if request.event["key"] == "parent" else 204)
    with valued.Client("token", server.url, max_workers=1, on_error=gate) as client:
        client.action("parent", {"user.id": 1})
        assert gate.is_reached()
        assert fork(record_and_flush, client).wait() == 0
        gate.open()
        finish(client, server, "parent", "child")
        assert client.stats()["failed"] == 1


def test_a_child_sends_its_own_event_while_a_worker_is_inside_logging(
    client: valued.Client, server: Server, fork: Fork, gate: Gate
) -> None:
    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            gate()  # with the handler's lock held

    server.script = lambda request: Reply(400)
    handler = Slow()
    logging.getLogger("valued").addHandler(handler)
    try:
        client.action("parent", {"user.id": 1})
        assert gate.is_reached()

        def child() -> None:
            client.action("child", {"user.id": 2})
            assert client.flush(BOUND)
            assert client.stats()["failed"] == 1  # so it logged, too

        assert fork(child).wait() == 0
        gate.open()
        finish(client, server, "parent", "child")
    finally:
        logging.getLogger("valued").removeHandler(handler)


def test_a_child_that_a_worker_thread_forks_has_its_own_events_and_no_one_elses(
    server: Server,
) -> None:
    statuses: list[int] = []
    connection = valued.Connection("token", server.url)

    def transport(event: dict[str, Any]) -> None:
        if event["key"] == "forks":
            pid = os.fork()
            if pid == 0:
                end_as_child(client)
            statuses.append(status_of(pid))
        connection(event)

    with valued.Client(transport, max_workers=1) as client:
        for key in ("forks", "queued", "queued"):
            client.action(key, {"user.id": 1})
        finish(client, server, "child", "forks", "queued", "queued")
    assert statuses == [0]


def test_a_child_that_comes_back_from_a_worker_sends_nothing_of_its_parents_and_ends(
    server: Server, in_thread: InThread, gate: Gate
) -> None:
    pids: list[int] = []
    connection = valued.Connection("token", server.url)

    def transport(event: dict[str, Any]) -> None:
        if event["key"] == "forks":
            # With the queue's lock held by another thread: the child must not even ask for it.
            holder = in_thread(hold, pipeline_of(client)._queue.lock, gate)
            assert gate.is_reached()
            pid = os.fork()
            if pid == 0:
                return
            pids.append(pid)
            gate.open()
            holder.result(BOUND)
        connection(event)

    with valued.Client(transport, max_workers=1) as client:
        for key in ("forks", "queued", "queued"):
            client.action(key, {"user.id": 1})
        finish(client, server, "forks", "queued", "queued")
    process = psutil.Process(pids[0])
    try:
        assert process.wait(BOUND) == 0  # its only thread has nothing left to do
    finally:
        if process.is_running():
            process.kill()
    assert server.keys() == ["forks", "queued", "queued"]


def hold(lock: Any, gate: Gate) -> None:
    with lock:
        gate()


def test_a_child_that_comes_back_from_a_transport_in_the_caller_goes_on_with_its_own(
    server: Server,
) -> None:
    connection = valued.Connection("token", server.url)
    forked: list[int] = []

    def transport(event: dict[str, Any]) -> None:
        if event["key"] == "forks":
            forked.append(os.fork())
            if forked[0] == 0:
                return
        connection(event)

    client = valued.Client(transport, executor=valued.ImmediateExecutor())
    client.action("forks", {"user.id": 1})
    if forked[0] == 0:
        end_as_child(client)
    assert status_of(forked[0]) == 0
    finish(client, server, "child", "forks")


class Never:
    """An executor that runs nothing."""

    def submit(self, fn: Any, /, *args: Any) -> None:
        pass


def test_a_child_that_comes_back_from_a_signal_handler_leaves_what_the_caller_runs_to_the_parent(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = valued.Client(
        "token", server.url, executor=Never(), max_queue=1, overflow="caller_runs"
    )
    client.action("queued", {"user.id": 1})
    queue = type(pipeline_of(client)._queue)
    real = queue.take_this
    forked: list[int] = []

    def take_this(*args: Any) -> Any:
        taken = real(*args)
        forked.append(os.fork())
        return taken

    with monkeypatch.context() as patch:
        patch.setattr(queue, "take_this", take_this)
        try:
            client.action("parent", {"user.id": 1})
        finally:
            if forked[0] == 0:
                os._exit(0)
    assert status_of(forked[0]) == 0
    assert server.keys() == ["parent"]


def test_a_factory_that_forks_leaves_the_event_to_the_parent(server: Server) -> None:
    forked: list[int] = []

    def factory() -> valued.ImmediateExecutor:
        if not forked:
            forked.append(os.fork())
        return valued.ImmediateExecutor()

    client = valued.Client("token", server.url, executor=factory)
    client.action("parent", {"user.id": 1})
    if forked[0] == 0:
        end_as_child(client)
    assert status_of(forked[0]) == 0
    finish(client, server, "child", "parent")


def test_a_child_of_a_child_sends_its_own_event(
    client: valued.Client, holding: Server, fork: Fork, gate: Gate
) -> None:
    client.action("parent", {"user.id": 1})
    assert gate.is_reached()

    def child() -> None:
        client.action("child", {"user.id": 2})
        grandchild = Child(record_and_flush, client, "grandchild")
        assert grandchild.wait() == 0
        assert client.flush(BOUND)

    assert fork(child).wait(20) == 0
    gate.open()
    finish(client, holding, "child", "grandchild", "parent")


def test_forks_in_a_row_cost_the_parent_no_thread_and_no_descriptor(
    client: valued.Client, server: Server, fork: Fork
) -> None:
    client.action("parent", {"user.id": 1})
    assert client.flush(BOUND)
    process = psutil.Process()
    connections = {request.connection for request in server.requests}
    before = process.num_fds(), process.num_threads()
    for number in range(FORKS):
        child = os.fork()
        if child == 0:
            try:
                record_and_flush(client, f"child {number}")
                vanish()
            finally:
                os._exit(1)
        assert status_of(child) == VANISHED
    client.action("parent", {"user.id": 1})
    finish(client, server, "parent", "parent", *(f"child {number}" for number in range(FORKS)))
    mine = {request.connection for request in server.requests if request.event["key"] == "parent"}
    assert mine == connections  # the parent's connection went through all of it
    assert (process.num_fds() - len(server.connections()), process.num_threads()) <= before


def test_a_daemon_that_closes_every_descriptor_sends_on_ones_of_its_own(
    client: valued.Client, server: Server, fork: Fork
) -> None:
    client.action("parent", {"user.id": 1})
    assert client.flush(BOUND)

    def daemonize() -> None:
        os.closerange(3, 1024)
        record_and_flush(client)

    assert fork(daemonize).wait() == 0
    client.action("parent", {"user.id": 1})
    finish(client, server, "child", "parent", "parent")
    assert len(server.connections()) == 2


def test_an_event_that_a_hook_before_ours_records_in_the_child_is_sent_once(
    server: Server,
) -> None:
    done = run_program("hook_before_ours.py", server.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert server.keys() == ["hook", "parent"]


@pytest.mark.parametrize("end", ["return", "sys.exit", "exception"])
def test_a_child_ends_though_a_thread_held_every_lock_at_the_fork(end: str, server: Server) -> None:
    done = run_program("fork_with_all_locks_held.py", server.url, end)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["status"] == (1 if end == "exception" else 0)
    assert found["locks"] >= 5  # of the outbox, the sender, a thread, pools, cookies, logging
    assert server.keys() == ["child", "parent", "parent"]


def test_the_executor_of_a_parent_is_named_once_and_replaced_in_the_child(
    server: Server, fork: Fork, caplog: pytest.LogCaptureFixture
) -> None:
    with ThreadPoolExecutor(2) as executor:
        client = valued.Client("token", server.url, executor=executor)
        client.action("parent", {"user.id": 1})
        assert client.flush(BOUND)

        def child() -> None:
            caplog.clear()
            for number in range(3):
                client.action(f"child {number}", {"user.id": 2})
                assert client.park(BOUND)  # the next event asks for an executor again
            warnings = [record.getMessage() for record in caplog.records]
            assert len(warnings) == 1
            assert "lambda: ThreadPoolExecutor" in warnings[0]

        assert fork(child).wait() == 0
        finish(client, server, "parent", "child 0", "child 1", "child 2")
        client.close()


def test_a_fork_takes_no_figure_no_option_and_no_connection_along(
    server: Server, fork: Fork
) -> None:
    client = valued.Client("token", server.url, max_queue=7)
    valued.connect(client)
    valued.scope["user.id"] = 9
    valued.action("parent")
    assert client.flush(BOUND)

    def child() -> None:
        assert valued.client() is client
        assert valued.scope["user.id"] == 9
        stats = client.stats()
        assert stats["accepted"] == stats["delivered"] == 0
        assert stats["pid"] == os.getpid()
        assert stats["started"] == psutil.Process().create_time()
        valued.action("child")
        assert valued.flush(BOUND)

    assert fork(child).wait() == 0
    finish(client, server, "child", "parent")
    assert {event["user"]["id"] for event in server.events} == {9}
    assert len({request.connection for request in server.requests}) == 2
    client.close()


def test_a_parked_master_forks_without_a_warning(server: Server) -> None:
    done = run_program("park.py", server.url, env=dict(os.environ))
    assert (done.returncode, done.stderr) == (0, "")
    assert server.keys() == sorted(["boot"] * 50 + ["child"] * 20 + ["between"] * 20)


@pytest.mark.parametrize("kept", ["memory", "disk"])
def test_a_client_imports_nothing_later_as_a_child_forked_meanwhile_never_could(
    server: Server, tmp_path: Path, kept: str
) -> None:
    tried: list[str] = []

    def script(request: Request) -> Reply:
        tried.append(request.event["key"])
        if request.event["key"] == "refused":
            return Reply(422)
        again = request.event["key"] == "tried again" and tried.count("tried again") == 1
        return Reply(503) if again else Reply()

    server.script = script
    outbox = [str(tmp_path / "outbox")] if kept == "disk" else []
    done = run_program("late_imports.py", server.url, *outbox)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
    assert sorted(tried) == ["delivered", "refused", "tried again", "tried again"]

"""RQ for real: whose events they are, and that a work horse delivers before its `os._exit`."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.support import redis
from tests.support.processes import PROGRAMS, Child, until
from tests.support.server import Reply, Request, Server
from tests.support.tls import Authority, TLSServer

rq = pytest.importorskip("rq")
if redis.PROGRAM is None:
    pytest.skip("there is no redis-server", allow_module_level=True)

from valued.integrations.rq import Queue, SimpleWorker, Worker, scope_meta  # noqa: E402

Command = tuple[list[str], dict[str, str]]


@pytest.fixture
def connection(redis_server: redis.Redis) -> Iterator[Any]:
    from redis import Redis

    with Redis.from_url(redis_server.url) as connection:
        yield connection


@pytest.fixture
def queue(connection: Any) -> Any:
    return Queue("q", connection=connection)


@pytest.fixture
def command(redis_server: redis.Redis, server: Server) -> Callable[..., Command]:
    """``rq worker`` with a class of workers: its arguments, and its environment."""

    def command(kind: str, *options: str, url: str = server.url, **environment: str) -> Command:
        return [
            *(sys.executable, "-m", "rq.cli", "worker", "q", *options),
            *("--url", redis_server.url, "--worker-class", kind),
        ], {
            **os.environ,
            "PYTHONPATH": str(PROGRAMS),
            "VALUED_TOKEN": "test-token",
            "VALUED_ENDPOINT": url,
            **environment,
        }

    return command


@pytest.fixture
def work(command: Callable[..., Command]) -> Callable[..., None]:
    """Have a worker do what there is to do."""

    def work(kind: str, **more: str) -> None:
        arguments, environment = command(kind, "--burst", **more)
        done = subprocess.run(
            arguments, capture_output=True, text=True, timeout=60, check=False, env=environment
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return work


def assert_each_has_its_own(events: list[dict[str, Any]]) -> None:
    found = [event.get("user") for event in events]
    wanted = [event["attributes"]["expected"] for event in events]
    assert found == [None if user is None else {"id": user} for user in wanted]
    assert all(
        event["customer"]["id"] == ("nobody" if user is None else 2 * user)
        for event, user in zip(events, wanted, strict=True)
    )


def person(user: int) -> dict[str, Any]:
    return {"user": {"id": user, "name": "Ada"}, "customer": {"id": 2 * user, "name": "Engines"}}


# -- workers ---------------------------------------------------------------------------------------

WORKERS = {
    "the worker": "valued.integrations.rq.Worker",
    "connected itself": "rq_jobs.Connected",
    "in turn": "rq_jobs.InTurn",
    "spawning": "rq_jobs.Spawning",
    "simple": "valued.integrations.rq.SimpleWorker",
}


@pytest.mark.parametrize("kind", WORKERS.values(), ids=WORKERS)
def test_each_job_has_the_ids_of_whoever_enqueued_it(
    kind: str, work: Callable[..., None], queue: Any, server: Server, recorder: valued.Client
) -> None:
    valued.connect(recorder)
    queue.enqueue("rq_jobs.has", None)
    with valued.nested(person(1)):
        queue.enqueue("rq_jobs.has", 1)
        queue.enqueue("rq_jobs.fails_once", 1, retry=rq.Retry(max=1))
    queue.enqueue("rq_jobs.has", None)
    with valued.nested(person(2)):
        first = queue.enqueue("rq_jobs.has", 2, on_success=rq.Callback("rq_jobs.succeeded"))
        queue.enqueue("rq_jobs.has", 2, depends_on=first)
    queue.enqueue("rq_jobs.has", None)
    work(kind)
    events = server.events
    assert len(events) == 9
    assert_each_has_its_own(events)
    pids = {event["attributes"].get("pid") for event in events} - {None}
    assert len(pids) == (1 if kind.endswith("SimpleWorker") else 8)


def test_what_a_job_sets_is_gone_for_the_next_one(
    work: Callable[..., None], queue: Any, server: Server
) -> None:
    for _ in range(2):
        queue.enqueue("rq_jobs.sets", None, 7)
        queue.enqueue("rq_jobs.has", None)
    work("valued.integrations.rq.SimpleWorker")
    events = server.events
    found = [(event["key"], event.get("user", {}).get("id")) for event in events]
    assert found == [("has", None), ("sets", 7), ("has", None)] * 2


def test_each_work_horse_delivers_before_it_ends(
    work: Callable[..., None], queue: Any, tmp_path: Path, recorder: valued.Client
) -> None:
    def slow(_request: Request) -> Reply:
        time.sleep(0.5)  # what a real service may take
        return Reply()

    authority = Authority(tmp_path)
    service = TLSServer(authority, slow)
    valued.connect(recorder)
    try:
        for user in range(1, JOBS + 1):
            with valued.nested(person(user)):
                # One that fails, too: an exception is no reason to lose what was recorded.
                queue.enqueue("rq_jobs.fails" if user % 4 == 0 else "rq_jobs.has", user)
        work(WORKERS["the worker"], url=service.url, REQUESTS_CA_BUNDLE=str(authority.bundle))
        assert sorted(event["attributes"]["expected"] for event in service.events) == [
            *range(1, JOBS + 1)
        ]
        assert_each_has_its_own(service.events)
    finally:
        service.close()


#: More of them show no more, but take a second each.
JOBS = int(os.environ.get("VALUED_TEST_RQ_JOBS", "6"))


def test_what_a_killed_work_horse_had_recorded_is_delivered_by_the_worker(
    command: Callable[..., Command], queue: Any, server: Server, tmp_path: Path
) -> None:
    taken: list[Request] = []

    def script(request: Request) -> Reply:
        if Path("/proc", str(request.event["attributes"]["pid"])).exists():
            return Reply(503)
        taken.append(request)
        return Reply()

    server.script = script
    queue.enqueue("rq_jobs.killed", None)
    arguments, environment = command("rq_jobs.Connected", VALUED_OUTBOX=str(tmp_path / "outbox"))
    worker = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        # With no job behind it, whose work horse could have taken it over.
        until(lambda: taken and not list(valued.Outbox(tmp_path / "outbox").events()), 30)
    finally:
        worker.kill()
        worker.wait(10)
    assert [request.event["key"] for request in taken] == ["killed"]


@pytest.mark.parametrize("outbox", [False, True])
def test_a_worker_with_nothing_to_take_over_starts_no_thread(
    outbox: bool,
    queue: Any,
    server: Server,
    connection: Any,
    tmp_path: Path,
    fork: Callable[..., Child],
) -> None:
    valued.connect("test-token", server.url, **({"outbox": tmp_path / "outbox"} if outbox else {}))
    for _ in range(2):
        queue.enqueue(valued.action, "ran", user={"id": 1})

    def work() -> None:
        worker = Worker([queue], connection=connection)
        assert worker.work(burst=True, logging_level="ERROR")
        threads = [thread.name for thread in threading.enumerate()]
        assert not [name for name in threads if name.startswith("valued")], threads

    assert fork(work).wait(30) == 0
    assert server.keys() == ["ran"] * 2


# -- enqueueing ------------------------------------------------------------------------------------


def test_ids_go_into_the_meta_of_a_job_however_it_is_enqueued(
    queue: Any, recorder: valued.Client, connection: Any
) -> None:
    valued.connect(recorder)
    ids = {"user.id": 1, "customer.id": 2}
    later = datetime.datetime(2100, 1, 1, tzinfo=datetime.timezone.utc)
    with valued.nested(person(1)):
        jobs = [
            queue.enqueue("rq_jobs.has"),
            queue.enqueue_call("rq_jobs.has"),
            queue.enqueue_at(later, "rq_jobs.has"),
            queue.enqueue_in(datetime.timedelta(days=1), "rq_jobs.has"),
            queue.enqueue("rq_jobs.has", depends_on=[queue.enqueue("rq_jobs.has")]),
            *queue.enqueue_many([Queue.prepare_data("rq_jobs.has") for _ in range(2)]),
            rq.Queue("q", connection=connection).enqueue("rq_jobs.has", meta=scope_meta()),
        ]
    for job in jobs:
        assert rq.job.Job.fetch(job.id, connection).meta == {"valued": ids}


@pytest.mark.parametrize("connected", [True, False])
def test_a_copied_entry_does_not_count(
    queue: Any, recorder: valued.Client, connected: bool
) -> None:
    if connected:
        valued.connect(recorder)
    meta = {"valued": {"user.id": 666}, "other": "kept"}
    assert queue.enqueue("rq_jobs.has", meta=meta).meta == {"other": "kept"}
    assert meta == {"valued": {"user.id": 666}, "other": "kept"}  # it is the caller's
    assert scope_meta() == {}


def test_a_user_that_can_not_be_read_is_left_out_and_logged_by_type_alone(
    queue: Any, recorder: valued.Client, caplog: pytest.LogCaptureFixture
) -> None:
    def user() -> object:
        raise RuntimeError("ada@example.com")

    valued.connect(recorder)
    with valued.isolated(lazy={"user": user}, customer={"id": 3}):
        assert queue.enqueue("rq_jobs.has").meta == {"valued": {"customer.id": 3}}
    [record] = [record for record in caplog.records if record.name == "valued"]
    assert record.getMessage() == "a job goes without user.id: RuntimeError was raised"
    assert record.exc_info is None


def test_a_job_that_runs_in_its_caller_keeps_the_scope_of_its_caller(
    connection: Any, recorder: valued.Client
) -> None:
    valued.connect(recorder)
    queue = Queue("q", connection=connection, is_async=False)
    with valued.nested(person(1)):
        job = queue.enqueue(valued.scope.to_dict)
    assert job.return_value() == person(1)


# -- in this process: a worker's own code, without a work horse ------------------------------------


def performed(connection: Any, meta: object, f: Any = "valued.scope.to_dict") -> Any:
    """What a job returns to a worker of this process."""
    queue = rq.Queue("q", connection=connection)
    job = queue.enqueue(f, meta=meta)
    worker = SimpleWorker([queue], connection=connection)
    worker.work(burst=True, logging_level="CRITICAL")
    return job.return_value(refresh=True)


@pytest.mark.parametrize(
    "meta",
    [{}, {"valued": 7}, {"valued": {"user.id": True, "user.name": "Ada", "x": 1}}],
)
def test_an_entry_that_is_not_ours_gives_nobody(
    meta: object, connection: Any, recorder: valued.Client
) -> None:
    valued.connect(recorder)
    valued.scope.user = {"id": 9}  # of whoever runs the worker
    assert performed(connection, meta) == {}
    assert valued.scope.user == {"id": 9}


def test_a_user_is_replaced_as_a_whole(connection: Any) -> None:
    defaults = {"user": {"id": 0, "name": "cron"}, "attributes": {"plan": "pro"}}
    with valued.connect(lambda _event: None, defaults=defaults):
        meta = {"valued": {"user.id": 1}}
        assert performed(connection, meta) == {**defaults, "user": {"id": 1}}


def test_where_nothing_is_connected_jobs_run_as_ever(connection: Any) -> None:
    assert performed(connection, {"valued": {"user.id": 1}}, "valued.connected") is False
    assert performed(connection, {}, "no_such_module.function") is None

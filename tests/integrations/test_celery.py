"""Whose events they are: each Celery task's own scope, and ids that travel with it.

Workers are real ones. Each task is given the user that it has to have, and its events say so.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.support.celery import Worker, carry_no_scope
from tests.support.processes import PROGRAMS, run
from tests.support.server import Server
from valued._process import tasks as _celery

celery = pytest.importorskip("celery")
if not hasattr(os, "fork"):
    pytest.skip("Celery's workers are made for Unix", allow_module_level=True)

from celery.app.trace import build_tracer  # noqa: E402 - Celery may not be there
from celery.utils.dispatch import Signal  # noqa: E402

from valued.integrations.celery import HEADER, carry_scope  # noqa: E402

PROGRAM = PROGRAMS / "celery_scopes.py"
Start = Callable[..., Worker]


@pytest.fixture
def start(server: Server, broker: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start a worker whose events go to the server."""
    with contextlib.ExitStack() as workers:

        def start(
            *options: str, tasks: Sequence[tuple[Any, ...]] = (), **environment: str
        ) -> Worker:
            environment = {**broker, **reporting_to(server), **environment}
            return workers.enter_context(
                Worker(PROGRAM, tmp_path, *options, environment=environment, tasks=tasks)
            )

        yield start


def reporting_to(server: Server) -> dict[str, str]:
    return {"VALUED_TOKEN": "test-token", "VALUED_ENDPOINT": server.url}


def assert_each_has_its_own(events: list[dict[str, Any]]) -> None:
    """Each event has the user that its task has to have, and nobody's where it has none."""
    found = [event.get("user", {}).get("id") for event in events]
    assert found == [event["attributes"]["expected"] for event in events]


def finish(worker: Worker, server: Server, count: int) -> list[dict[str, Any]]:
    worker.wait_until(lambda: len(server.requests) >= count)
    assert worker.stop() == 0
    assert worker.complaints() == []
    assert len(server.requests) == count
    return server.events


# -- a scope for each task -------------------------------------------------------------------------

POOLS = {
    "prefork": ("--pool", "prefork", "--concurrency", "1"),
    "threads": ("--pool", "threads", "--concurrency", "2"),
    "solo": ("--pool", "solo"),
    "gevent": ("--pool", "gevent", "--concurrency", "2"),
}
#: Tasks, and the user that each of them has to have.
TASKS = [
    *[("sets", 1), ("has", None), ("sets", 2), ("has", None)],
    *[("welcomed", 3), ("has", None), ("reported", 4), ("reported", None), ("has", None)],
]


@pytest.mark.parametrize("pool", POOLS)
def test_what_a_task_sets_is_gone_for_the_next_one(pool: str, start: Start, server: Server) -> None:
    pairs = [("meets", user) for user in (21, 22)] if pool in ("threads", "gevent") else []
    worker = start(*POOLS[pool], tasks=[*TASKS, *pairs])
    # Two scopes record each; and those that are reported are so before and after.
    events = finish(worker, server, 2 * (len(TASKS) + len(pairs)) + 2 * 2)
    assert_each_has_its_own(events)
    assert [sum(event["key"] == key for event in events) for key in ("before", "after")] == [4, 4]


def test_a_client_that_does_not_isolate_tasks_keeps_what_they_set(
    start: Start, server: Server
) -> None:
    tasks = [("sets", 1), ("has", 1), ("sets", 2), ("has", 2)]
    worker = start(*POOLS["solo"], tasks=tasks, VALUED_ISOLATE_TASKS="0")
    assert_each_has_its_own(finish(worker, server, 2 * len(tasks)))


# -- ids that travel -------------------------------------------------------------------------------


@pytest.mark.parametrize(("pool", "protocol"), [("prefork", 2), ("threads", 1)])
def test_ids_travel_however_a_task_is_published(
    pool: str, protocol: int, start: Start, server: Server, broker: dict[str, str]
) -> None:
    if "FOLDER" in broker:
        pytest.skip("there is no redis-server: over files, tasks can't publish while others read")
    environment = {"CARRY": "1", "PROTOCOL": str(protocol)}
    worker = start("--pool", pool, "--concurrency", "2", **environment)
    done = run(
        *(str(PROGRAM), json.dumps([1, None, 2, None])),
        env={**os.environ, **broker, **reporting_to(server), **environment},
    )
    # Celery's results may say that they could not take leave of Redis.
    assert done.returncode == 0, done.stderr
    assert "a task goes without" not in done.stderr
    events = finish(worker, server, int(done.stdout))
    assert_each_has_its_own(events)
    carried = [event for event in events if "user" in event and "name" not in event["user"]]
    eager = [event for event in events if "name" in event.get("user", {})]
    assert len(eager) == 2  # they keep the whole scope of their caller
    assert all(it["customer"] == {"id": 2 * it["user"]["id"]} for it in [*carried, *eager])
    assert all(it["user"].keys() == {"id"} for it in carried)
    nobody = [event for event in events if "user" not in event]
    assert all(event["customer"] == {"id": "nobody"} for event in nobody)


@pytest.mark.parametrize("isolates", ["0", "1"])
def test_ids_that_were_carried_end_with_their_task(
    isolates: str, start: Start, server: Server, broker: dict[str, str]
) -> None:
    environment = {"CARRY": "1", "VALUED_ISOLATE_TASKS": isolates}
    done = run(
        *(str(PROGRAM), json.dumps([1, None, 2, None]), "once"),
        env={**os.environ, **broker, **reporting_to(server), **environment},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert_each_has_its_own(finish(start(*POOLS["solo"], **environment), server, 4))


# -- in this process: Celery's own code, without a worker ------------------------------------------


@pytest.fixture
def app() -> Iterator[Any]:
    """An application whose messages stay in this process; with `carry_scope`'s receivers gone."""
    app = celery.Celery("here", broker="memory://localhost", set_as_current=False)
    yield app
    with app.connection_for_write() as connection:
        connection.default_channel.queue_purge("celery")
    carry_no_scope()


@pytest.fixture
def task(app: Any) -> Any:
    """A task that returns what its scope holds."""

    @app.task
    def look() -> Any:
        return valued.scope.to_dict()

    return look


def published(app: Any) -> Any:
    """What travels with the message that was published last."""
    with app.connection_for_read() as connection:
        text = connection.default_channel.basic_get("celery", no_ack=True).headers.get(HEADER)
    return None if text is None else json.loads(text)


def perform(task: Any, header: object = None, *, eager: bool = False) -> Any:
    """What *task* returns to a worker that got this header."""
    tracer = build_tracer(task.name, task, app=task.app)
    request = {"id": "1", "delivery_info": {}, "is_eager": eager, HEADER: header}
    return tracer("1", (), {}, request).retval


def test_eager_tasks_keep_the_data_of_their_caller(app: Any, recorder: valued.Client) -> None:
    carry_scope()
    valued.connect(recorder)

    @app.task
    def sets() -> Any:
        before = valued.scope.user
        valued.scope.user = {"id": 2}
        return before

    app.conf.task_always_eager = True
    valued.scope.user = {"id": 1, "name": "Ada"}
    assert sets.delay().get() == {"id": 1, "name": "Ada"}
    assert valued.scope.user == {"id": 2}


def test_an_eager_task_within_another_one_does_not_end_that_ones_scope(
    app: Any, recorder: valued.Client
) -> None:
    carry_scope()
    valued.connect(recorder)

    @app.task
    def inner() -> None:
        pass

    @app.task
    def outer() -> Any:
        inner.apply()
        return valued.scope.user

    assert perform(outer, '{"user.id": 1}') == {"id": 1}
    assert valued.scope.user is None


def test_ids_and_nothing_else_travel(app: Any, task: Any, recorder: valued.Client) -> None:
    carry_scope(["user.id", "customer.id", "attributes.tenant_id", "user.id"])
    valued.connect(recorder)
    with valued.nested(
        user={"id": 2**80, "name": "Ada", "email": "ada@example.com"},
        customer={"id": "ü" * 3, "name": "Analytical Engines"},
        attributes={"tenant_id": "t", "plan": "pro"},
    ):
        task.delay()
    ids = published(app)
    assert ids == {"user.id": 2**80, "customer.id": "üüü", "attributes.tenant_id": "t"}
    assert perform(task, json.dumps(ids)) == {
        "user": {"id": 2**80},
        "customer": {"id": "üüü"},
        "attributes": {"tenant_id": "t"},
    }


@pytest.mark.parametrize("id", [True, None, 1.5, {"id": 1}, [1]])
def test_what_is_no_id_stays_here(app: Any, task: Any, recorder: valued.Client, id: object) -> None:
    carry_scope(["attributes.tenant_id"])
    valued.connect(recorder)
    with valued.nested(attributes={"tenant_id": id}):
        task.delay()
    assert published(app) is None


@pytest.mark.parametrize("connected", [True, False])
def test_a_copied_header_does_not_count(
    app: Any, task: Any, recorder: valued.Client, connected: bool
) -> None:
    carry_scope()
    if connected:
        valued.connect(recorder)
    task.apply_async(headers={HEADER: '{"user.id": 666}', "other": "kept"})
    with app.connection_for_read() as connection:
        headers = connection.default_channel.basic_get("celery", no_ack=True).headers
    assert HEADER not in headers
    assert headers["other"] == "kept"


def test_a_user_that_can_not_be_read_is_left_out_and_logged_by_type_alone(
    app: Any, task: Any, recorder: valued.Client, caplog: pytest.LogCaptureFixture
) -> None:
    def user() -> object:
        raise RuntimeError("ada@example.com")

    carry_scope()
    valued.connect(recorder)
    with valued.isolated(lazy={"user": user}, customer={"id": 3}):
        task.delay()
    assert published(app) == {"customer.id": 3}
    [record] = caplog.records
    assert (record.name, record.levelname) == ("valued", "WARNING")
    assert record.getMessage() == "a task goes without user.id: RuntimeError was raised"
    assert record.exc_info is None


def test_the_last_call_decides_and_each_receiver_is_called_once(
    app: Any, task: Any, recorder: valued.Client
) -> None:
    carry_scope()
    carry_scope(["customer.id"])
    for signal in (celery.signals.before_task_publish, celery.signals.task_prerun):
        assert [key[0] for key, _ in signal.receivers].count("valued.carry_scope") == 1
    valued.connect(recorder)
    with valued.nested(user={"id": 1}, customer={"id": 2}):
        task.delay()
    assert published(app) == {"customer.id": 2}
    assert perform(task, '{"user.id": 1, "customer.id": 2}') == {"customer": {"id": 2}}


def test_a_user_is_replaced_as_a_whole(task: Any) -> None:
    carry_scope()
    defaults = {"user": {"id": 0, "name": "cron"}, "attributes": {"plan": "pro"}}
    with valued.connect(lambda _event: None, defaults=defaults):
        assert perform(task, '{"user.id": 1}') == {**defaults, "user": {"id": 1}}
        assert perform(task) == defaults


@pytest.mark.parametrize(
    "header", ["", "{", "[1]", "7", 7, {"user.id": 1}, '{"user.id": true}', '{"user.name": "Ada"}']
)
def test_a_header_that_is_not_ours_gives_nobody(
    task: Any, recorder: valued.Client, header: object
) -> None:
    carry_scope()
    valued.connect(recorder)
    assert perform(task, header) == {}


def test_a_header_of_an_eager_task_does_not_count(task: Any, recorder: valued.Client) -> None:
    carry_scope()
    valued.connect(recorder)
    assert perform(task, '{"user.id": 1}', eager=True) == {}


def test_where_nothing_is_connected_nothing_happens(
    app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    carry_scope()

    @app.task
    def connected() -> bool:
        return valued.connected()

    connected.delay()
    assert published(app) is None
    assert perform(connected, '{"user.id": 1}') is False
    assert caplog.records == []


def test_the_users_of_receivers_take_precedence_whenever_they_were_connected(
    app: Any, task: Any, recorder: valued.Client
) -> None:
    seen = []

    def sets(**_: Any) -> None:
        seen.append(valued.scope.user_id)
        valued.scope.user_id = 2

    def looks(**_: Any) -> None:
        seen.append(valued.scope.user_id)

    def looks_too(**_: Any) -> None:
        seen.append(valued.scope.user_id)

    celery.signals.task_prerun.connect(sets)
    celery.signals.task_postrun.connect(looks)
    try:
        carry_scope()
        valued.connect(recorder)
        celery.signals.task_postrun.connect(looks_too)
        assert perform(task, '{"user.id": 1}')["user"] == {"id": 2}
        assert seen == [1, 2, 2]
        assert valued.scope.user is None
    finally:
        celery.signals.task_prerun.disconnect(sets)
        celery.signals.task_postrun.disconnect(looks)
        celery.signals.task_postrun.disconnect(looks_too)


@pytest.mark.parametrize(
    "keys",
    [
        *("user.id", {"user.id": 1}, 7, None, [7], [None], [""], ["id"], ["user"], ["user."]),
        *(["user.name"], ["user.email"], ["user.id.id"], ["customer.plan_id"], ["user_id"]),
        *(["attributes"], ["attributes.plan"], ["attributes..id"], ["attributes.paid"]),
    ],
)
def test_keys_that_are_not_of_ids_are_refused(app: Any, keys: Any) -> None:
    with pytest.raises(valued.ValidationError, match=r"^carry_scope: expected .*'user\.id'"):
        carry_scope(keys)
    assert not [
        key for key, _ in celery.signals.task_prerun.receivers if key[0] == "valued.carry_scope"
    ]


def test_receivers_of_the_client_come_first_and_last(
    recorder: valued.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another(**_: Any) -> None:
        pass

    signals = types.SimpleNamespace(
        **{name: Signal() for name in ("task_prerun", "task_postrun", "worker_process_shutdown")}
    )
    signals.task_prerun.connect(another)
    monkeypatch.setitem(sys.modules, "celery.signals", signals)
    monkeypatch.setattr(_celery, "listening", False)
    valued.Client(recorder._transport)
    signals.task_postrun.connect(another)
    task = types.ModuleType("task")  # anything that can have a request
    task.request = types.SimpleNamespace(is_eager=False)  # type: ignore[attr-defined]
    for _ in range(2):
        signals.task_prerun.send(sender=task, task=task)
        signals.task_postrun.send(sender=task, task=task)
    assert signals.task_prerun.receivers[0][0][0] == "valued"
    assert signals.task_postrun.receivers[-1][0][0] == "valued"

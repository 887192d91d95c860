"""Delivery through Celery's broker: by real workers, from a real Redis that keeps what it took."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import pickle
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import valued
from tests.support import rabbitmq as rabbitmq_support
from tests.support import redis as redis_support
from tests.support.celery import Worker, carry_no_scope
from tests.support.processes import PROGRAMS, Child
from tests.support.processes import run as run_program
from tests.support.programs import free_port
from tests.support.rabbitmq import RabbitMQ
from tests.support.redis import Redis
from tests.support.server import Reply, Request, Server

celery = pytest.importorskip("celery")
if not hasattr(os, "fork"):
    pytest.skip("Celery's workers are made for Unix", allow_module_level=True)

from celery.exceptions import Reject, Retry  # noqa: E402 - Celery may not be there

from valued.integrations.celery import HEADER, Relay, carry_scope, delivery_task  # noqa: E402

PROGRAM = PROGRAMS / "celery_delivery.py"
TOKEN = "token-that-nobody-sees"
NAME = "name-that-nobody-sees"
KEY = "0d9bd7f0-9a6a-4b8c-8e39-1f6dd0c3f0a1"
EVENT = {"category": "action", "key": "report.generated", "user": {"id": 1, "name": NAME}}
BODY = json.dumps(EVENT).encode()


@pytest.fixture(scope="module")
def one_redis() -> Iterator[Redis]:
    if redis_support.PROGRAM is None:
        pytest.skip("there is no redis-server")
    redis = Redis(durable=True)
    yield redis
    redis.close()


@pytest.fixture
def redis(one_redis: Redis) -> Redis:
    one_redis.clear()
    return one_redis


@pytest.fixture(scope="module")
def one_rabbitmq() -> Iterator[RabbitMQ]:
    if rabbitmq_support.PROGRAM is None:
        pytest.skip("there is no rabbitmq-server")
    rabbitmq = RabbitMQ()
    yield rabbitmq
    rabbitmq.close()


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> Any:
    """Each broker that is installed here."""
    broker = request.getfixturevalue(f"one_{request.param}")
    broker.clear()
    return broker


@pytest.fixture
def start(server: Server, redis: Redis, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Start a worker that delivers to the server."""
    with contextlib.ExitStack() as workers:

        def start(*options: str, **environment: str) -> Worker:
            environment = {
                "BROKER": redis.url,
                "VALUED_TOKEN": TOKEN,
                "VALUED_ENDPOINT": server.url,
                **environment,
            }
            options = ("--queues", "valued", "--concurrency", "1", *options)
            return workers.enter_context(
                Worker(PROGRAM, tmp_path, *options, environment=environment)
            )

        yield start


_relays: list[Relay] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _relays:
        _relays.pop().close()


def relay_to(broker: str) -> Relay:
    _relays.append(Relay(delivery_task(celery.Celery(broker=broker, set_as_current=False))))
    return _relays[-1]


def messages(url: str) -> list[Any]:
    """What waits in the queue; it is taken out."""
    found = []
    with celery.Celery(broker=url, set_as_current=False).connection_for_read() as connection:
        queue = connection.SimpleQueue("valued")
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(queue.get(block=False))
                found[-1].ack()
        queue.close()
    return found


def published(url: str) -> list[str]:
    """The idempotency keys of the messages in the queue, sorted; they are taken out."""
    return sorted(message.headers["id"] for message in messages(url))


def event_of(message: Any) -> Any:
    return json.loads(base64.b64decode(message.payload[0][0]))


# -- by workers ------------------------------------------------------------------------------------


def test_an_event_arrives_under_its_key_and_neither_log_nor_message_shows_it(
    start: Callable[..., Worker], redis: Redis, server: Server
) -> None:
    with valued.Client(relay_to(redis.url)) as client:
        client.action("report.generated", {"user": {"id": 1, "name": NAME}})
        assert client.flush(10)
    [waiting] = messages(redis.url)
    key = waiting.headers["id"]
    shown = json.dumps([waiting.headers, waiting.properties], default=str)
    assert key == waiting.properties["correlation_id"]
    relay_to(redis.url).post(base64.b64decode(waiting.payload[0][0]), key, 10.0)
    worker = start("--loglevel", "DEBUG")
    server.wait_for(1, 30)
    assert worker.stop() == 0
    [request] = server.requests
    assert (request.event["key"], request.event["user"]["name"]) == ("report.generated", NAME)
    assert request.headers["Idempotency-Key"] == key
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"
    assert "valued.deliver" in worker.said()
    for text in (shown, worker.said()):
        assert NAME not in text
        assert TOKEN not in text
    assert TOKEN not in str(waiting.payload)
    assert published(redis.url) == []


def test_an_event_that_the_service_refuses_is_kept_and_the_others_are_tried_again(
    start: Callable[..., Worker], redis: Redis, server: Server, tmp_path: Path
) -> None:
    seen: list[str] = []

    def answer(request: Request) -> Reply | None:
        key = request.event["key"]
        seen.append(key)
        first = {"a.busy": Reply(503), "a.late": Reply(429, {"Retry-After": "1"}), "a.cut": None}
        if key == "a.bad":
            return Reply(400, body=f"what is {NAME}?".encode())
        return first[key] if seen.count(key) == 1 else Reply()

    server.script = answer
    worker = start(REJECTED=str(tmp_path / "rejected"))
    relay = relay_to(redis.url)
    for key in ("a.bad", "a.busy", "a.late", "a.cut"):
        relay.post(json.dumps({**EVENT, "key": key}).encode(), key, 10.0)
    # The event that was refused comes once, each of the others twice.
    worker.wait_until(lambda: len(server.requests) >= 7)
    assert worker.stop() == 0
    assert sorted(seen) == sorted(["a.bad", *["a.busy", "a.late", "a.cut"] * 2])
    assert all(each.headers["Idempotency-Key"] == each.event["key"] for each in server.requests)
    [path] = (tmp_path / "rejected").iterdir()
    kept = json.loads(path.read_text())
    assert path.name == "a.bad.json"
    assert kept.pop("reason").startswith("the service answered 400")
    assert kept == {
        "idempotency_key": "a.bad",
        "status": 400,
        "body": f"what is {NAME}?",
        "attempts": 1,
        "event": {**EVENT, "key": "a.bad"},
    }
    assert NAME not in worker.said()
    assert "failed permanently here so far: 1, kept in on_rejected" in worker.said()


def test_an_event_of_a_child_that_is_killed_comes_again_under_its_key(
    broker: Any, start: Callable[..., Worker], server: Server
) -> None:
    relay_to(broker.url).post(BODY, KEY, 10.0)
    held = threading.Event()

    def answer(_request: Request) -> Reply:
        if len(server.requests) == 1:
            held.wait(30)  # until its child is dead
        return Reply()

    server.script = answer
    worker = start(BROKER=broker.url)
    server.wait_for(1, 30)
    [child] = psutil.Process(worker.pid).children()
    child.kill()
    try:
        server.wait_for(2, 30)
    finally:
        held.set()
    worker.wait_until(lambda: "succeeded in" in worker.said())
    assert worker.stop() == 0
    assert [each.headers["Idempotency-Key"] for each in server.requests] == [KEY] * 2
    assert NAME not in worker.said()
    assert published(broker.url) == []


def test_a_store_of_results_that_hangs_holds_up_no_publish(redis: Redis) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hangs:
        store = f"redis://127.0.0.1:{hangs.getsockname()[1]}/0"
        app = celery.Celery(broker=redis.url, backend=store, set_as_current=False)
        _relays.append(Relay(delivery_task(app)))
        publish = threading.Thread(target=_relays[-1].post, args=(BODY, KEY, 10.0), daemon=True)
        publish.start()
        publish.join(10)
        assert not publish.is_alive()
    assert published(redis.url) == [KEY]


# -- the broker hangs, or is down ------------------------------------------------------------------


def test_a_broker_that_hangs_holds_up_no_call_and_no_worker_longer_than_the_timeout(
    broker: Any, tmp_path: Path
) -> None:
    relay = relay_to(broker.url)
    relay.post(BODY, KEY, 1.0)
    assert published(broker.url) == [KEY]
    client = valued.Client(relay, outbox=tmp_path, timeout=1.0)
    calls = []
    broker.pause()
    try:
        for one in (relay, relay_to(broker.url)):  # connected, and not yet
            began = time.monotonic()
            with pytest.raises(Exception, match=r"(?i)timed out|timeout|^$"):
                one.post(BODY, KEY, 1.0)
            assert time.monotonic() - began < 2.0
        for number in range(200):
            began = time.monotonic()
            client.action("report.generated", {"user.id": number})
            calls.append(time.monotonic() - began)
        assert not client.flush(2)
        assert client.stats()["delivered"] == 0
    finally:
        broker.resume()
    assert sorted(calls)[198] < 0.5  # one that waits for the broker takes a second
    assert client.flush(30)
    # The broker may have read what it was sent while it hung: that comes again.
    events = [event_of(each) for each in messages(broker.url)]
    assert {each["user"]["id"] for each in events if "name" not in each["user"]} == set(range(200))
    client.close()


def test_a_host_that_hangs_leaves_time_for_the_next_one(broker: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hangs:
        address = f"127.0.0.1:{hangs.getsockname()[1]}"
        first = re.sub(r"127\.0\.0\.1:\d+", address, broker.url)
        relay = relay_to(f"{first};{broker.url}")
        began = time.monotonic()
        relay.post(BODY, KEY, 4.0)
        assert time.monotonic() - began < 4.0
    assert published(broker.url) == [KEY]


def test_a_queue_that_is_gone_is_an_error_and_made_again(one_rabbitmq: RabbitMQ) -> None:
    one_rabbitmq.clear()
    relay = relay_to(one_rabbitmq.url)
    relay.post(BODY, KEY, 10.0)
    app = celery.Celery(broker=one_rabbitmq.url, set_as_current=False)
    with app.connection_for_write() as connection:
        connection.default_channel.queue_delete("valued")
    with pytest.raises(Exception, match="NO_ROUTE"):
        relay.post(BODY, KEY, 10.0)
    relay.post(BODY, KEY, 10.0)
    assert published(one_rabbitmq.url) == [KEY]


def test_events_wait_in_the_outbox_while_the_broker_is_down_and_go_out_after_it(
    broker: Any, tmp_path: Path
) -> None:
    client = valued.Client(relay_to(broker.url), outbox=tmp_path)
    client.action("report.generated", {"user.id": 0})
    assert client.flush(10)
    broker.kill()
    try:
        for number in range(1, 50):
            client.action("report.generated", {"user.id": number})
        assert not client.flush(1)
    finally:
        broker.start_again()
    assert client.flush(60)
    assert client.close()
    events = [event_of(each) for each in messages(broker.url)]
    assert sorted(each["user"]["id"] for each in events) == list(range(50))


def test_what_a_worker_can_not_publish_again_goes_back_to_the_broker() -> None:
    app = celery.Celery(broker=f"redis://127.0.0.1:{free_port()}/0", set_as_current=False)
    app.conf.task_publish_retry_policy = {"max_retries": 0}
    nowhere = valued.Connection(TOKEN, f"http://127.0.0.1:{free_port()}/")
    task = delivery_task(app, nowhere)
    with pytest.raises(Reject, match="OperationalError") as caught:
        run(task)
    assert caught.value.requeue


# -- in this process, with a broker in memory ------------------------------------------------------


ENCODED = base64.b64encode(BODY).decode()


def run(
    task: Any,
    published: float | None = None,
    retries: int = 0,
    body: Any = ENCODED,
) -> Any:
    """Run the task as a worker does; what it raises, or None."""
    info = {"exchange": "", "routing_key": "valued"}
    arguments = [body, time.time() if published is None else published]
    task.push_request(
        id=KEY,
        called_directly=False,
        delivery_info=info,
        retries=retries,
        args=arguments,
        kwargs={},
    )
    try:
        task.run(*arguments)
    except Retry as again:
        return again
    finally:
        task.pop_request()
    return None


@pytest.fixture
def memory() -> Any:
    app = celery.Celery(broker="memory://", set_as_current=False)
    yield app
    with app.connection_for_write() as connection:
        connection.SimpleQueue("valued").clear()


def test_each_retry_waits_longer_and_no_more_than_half_a_minute(
    memory: Any, server: Server
) -> None:
    server.script = lambda _request: Reply(503, {"Retry-After": "3600"} if far else {})
    task = delivery_task(memory, valued.Connection(TOKEN, server.url))
    far = False
    pauses = [run(task, retries=number).when for number in range(0, 40, 2)]
    assert all(0.25 * 2**number <= pauses[number // 2] for number in range(0, 6, 2))
    assert all(15 <= pause <= 30 for pause in pauses[4:])
    far = True
    assert run(task).when == 30
    shown = [str(message.headers) for message in messages("memory://")]
    assert len(shown) == 21
    assert not any(base64.b64encode(BODY).decode() in text for text in shown)


def test_an_event_is_tried_for_as_long_as_was_asked_for(
    memory: Any, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.script = lambda _request: Reply(503, body=NAME.encode())
    task = delivery_task(memory, valued.Connection(TOKEN, server.url), retry_for=60)
    assert isinstance(run(task, time.time() - 50), Retry)
    assert task.refused() == 0
    assert run(task, time.time() - 70) is None
    assert run(task, time.time() - 70) is None
    assert task.refused() == 2
    again, over = [each.getMessage() for each in caplog.records if each.name == "valued"]
    assert again.startswith("valued.deliver: an event was not delivered and will be tried again:")
    assert over.startswith("valued.deliver: events that failed permanently here so far: 1, lost")
    assert NAME not in again + over


def test_while_the_directory_can_not_be_written_to_a_refused_event_stays_in_the_broker(
    memory: Any, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.script = lambda _request: Reply(422)
    folder = tmp_path / "rejected"
    folder.write_text("a file")
    task = delivery_task(memory, valued.Connection(TOKEN, server.url), on_rejected=folder)
    with caplog.at_level(logging.WARNING, "valued"):
        assert isinstance(run(task), Retry)
    assert "a refused event could not be kept" in caplog.text
    folder.unlink()
    folder.mkdir()
    (folder / f"{KEY}.json").mkdir()  # a file can't take its place
    assert isinstance(run(task), Retry)
    assert [path.name for path in folder.iterdir()] == [f"{KEY}.json"]
    assert task.refused() == 0
    (folder / f"{KEY}.json").rmdir()
    assert run(task) is None
    assert task.refused() == 1


def test_routes_and_settings_made_later_lead_no_event_astray(memory: Any, server: Server) -> None:
    server.script = lambda _request: Reply(503)
    task = delivery_task(memory, valued.Connection(TOKEN, server.url))
    relay = Relay(task)
    memory.conf.task_routes = {"*": {"exchange": "media", "routing_key": "media.video"}}
    memory.conf.task_serializer = "pickle"
    memory.conf.task_annotations = {"*": {"max_retries": 1}}
    relay.post(BODY, KEY, 10.0)
    assert isinstance(run(task, retries=9), Retry)
    memory.conf.accept_content = ["pickle"]
    found = messages("memory://")
    assert [each.content_type for each in found] == ["application/x-python-serialize"] * 2
    assert [each.headers["id"] for each in found] == [KEY] * 2


def test_an_error_that_is_not_the_services_gives_the_event_back_to_the_broker(
    memory: Any, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.script = lambda _request: Reply(503)
    task = delivery_task(memory, valued.Connection(TOKEN, server.url))
    with pytest.raises(Reject) as caught:
        run(task, "not a time")  # type: ignore[arg-type]
    assert caught.value.requeue
    assert "an event goes back to the broker: TypeError" in caplog.text


def test_what_is_no_json_is_kept_as_text_when_the_service_refuses_it(
    memory: Any, server: Server, tmp_path: Path
) -> None:
    server.script = lambda _request: Reply(400)
    task = delivery_task(memory, valued.Connection(TOKEN, server.url), on_rejected=tmp_path)
    assert run(task, body=base64.b64encode(b"{no json").decode()) is None
    [kept] = tmp_path.iterdir()
    assert json.loads(kept.read_text())["event"] == "{no json"


@pytest.mark.parametrize("body", ["not Base64!", "eyJh!IjoxfQ==", None, 1])
def test_a_message_without_an_event_is_rejected_once(
    body: Any, memory: Any, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    task = delivery_task(memory, valued.Connection(TOKEN, server.url))
    with pytest.raises(Reject) as caught:
        run(task, body=body)
    assert not caught.value.requeue  # else it would come again each second, for ever
    assert "a message that has no event is rejected" in caplog.text
    assert server.requests == []


def test_a_worker_without_a_token_keeps_the_event_in_the_broker(memory: Any) -> None:
    task = delivery_task(memory)
    again = run(task)
    assert isinstance(again, Retry)
    assert "VALUED_TOKEN" in str(again.exc)


def test_an_eager_application_delivers_in_the_publish_and_its_client_tries_again(
    memory: Any, server: Server
) -> None:
    memory.conf.task_always_eager = True
    server.script = lambda _request: Reply(503 if len(server.requests) == 1 else 204)
    relay = Relay(delivery_task(memory, valued.Connection(TOKEN, server.url)))
    with pytest.raises(valued.DeliveryError, match="503"):
        relay.post(BODY, KEY, 10.0)
    with valued.Client(relay) as client:
        client.action("report.generated", {"user.id": 1})
        assert client.flush(10)
    assert len(server.requests) == 2
    assert client.stats()["delivered"] == 1


def test_the_ids_of_a_scope_are_in_no_message_of_an_event(memory: Any) -> None:
    client = valued.connect(
        Relay(delivery_task(memory)), executor=valued.ImmediateExecutor(), defaults={"user.id": 7}
    )
    carry_scope()
    try:
        valued.action("report.generated")
    finally:
        carry_no_scope()
    assert client.stats()["delivered"] == 1
    [message] = messages("memory://")
    assert HEADER not in message.headers


# Tasks of other tests, shared by all applications, have a name in common.
@pytest.mark.filterwarnings("ignore:Task name")
def test_a_relay_survives_a_pickle_and_takes_only_the_task_that_is_meant_for_it(
    memory: Any,
) -> None:
    before = celery.current_app._get_current_object()
    memory.set_current()  # where the pickle of a task is read, its application is the current one
    try:
        relay = pickle.loads(pickle.dumps(Relay(delivery_task(memory))))
    finally:
        before.set_current()
    relay.post(BODY, KEY, 10.0)
    assert published("memory://") == [KEY]
    with pytest.raises(valued.ValidationError, match=r"task: .*delivery_task\(app\).*got str"):
        Relay("TOKEN")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"retry_for": -1}, "retry_for"),
        ({"retry_for": True}, "retry_for"),
        ({"retry_for": "1"}, "retry_for"),
        ({"queue": ""}, "queue"),
        ({"on_rejected": b"rejected"}, "on_rejected"),
        ({"on_rejected": "\0"}, "on_rejected"),
        ({"app": "reports"}, "app: expected a Celery app, got str"),
    ],
)
def test_what_a_delivery_task_can_not_be_made_of_is_named(
    given: dict[str, Any], problem: str, memory: Any
) -> None:
    with pytest.raises(valued.ValidationError, match=problem):
        delivery_task(**{"app": memory, **given})


def test_a_queue_has_one_delivery_task_in_an_application(memory: Any) -> None:
    delivery_task(memory)
    with pytest.raises(valued.ValidationError, match="already"):
        delivery_task(memory, retry_for=60)
    assert delivery_task(memory, queue="other").refused() == 0
    before = celery.current_app._get_current_object()
    memory.set_current()
    try:
        assert delivery_task(celery.current_app, queue="third").refused() == 0
    finally:
        before.set_current()


def test_a_connection_that_was_idle_for_long_or_waits_too_long_is_not_used_again(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = relay_to(redis.url)
    for timeout, expected in ((2.0, 1), (2.0, 1), (3.0, 1), (1.0, 2)):
        relay.post(BODY, KEY, timeout)
        assert len(relay._here()._all) == expected
    monkeypatch.setattr("valued.integrations._celery_connections._IDLE", 0.0)
    relay.post(BODY, KEY, 2.0)
    assert len(relay._here()._all) == 1
    relay.close()
    assert relay._here()._all == []


# -- forks -----------------------------------------------------------------------------------------


def test_a_forked_child_publishes_on_connections_of_its_own(
    broker: Any, fork: Callable[..., Child]
) -> None:
    relay = relay_to(broker.url)
    relay.post(BODY, "parent", 10.0)

    def publish(name: str) -> None:
        for number in range(100):
            relay.post(BODY, f"{name}-{number:03}", 10.0)

    children = [fork(publish, f"child-{number}") for number in range(2)]
    publish("parent")
    assert [child.wait(30) for child in children] == [0, 0]
    names = ("child-0", "child-1", "parent")
    expected = [f"{name}-{number:03}" for name in names for number in range(100)]
    assert published(broker.url) == sorted(["parent", *expected])


_FORKS = """
import json, os, sys
from celery import Celery
from valued.integrations.celery import Relay, delivery_task

relay = Relay(delivery_task(Celery(broker=sys.argv[1])))
relay.post(b"{}", "before", 10.0)
[mine] = relay._here()._all
if os.fork() == 0:
    if sys.argv[2] == "publishes":
        relay.post(b"{}", "child", 10.0)
    sys.exit()  # an end with destructors
_pid, status = os.wait()
relay.post(b"{}", "after", 10.0)
assert (status, relay._here()._all) == (0, [mine])
"""


@pytest.mark.parametrize("does", ["publishes", "nothing"])
def test_the_end_of_a_forked_child_leaves_the_connection_of_its_parent_alone(
    does: str, broker: Any
) -> None:
    done = run_program("-W", "ignore", "-c", _FORKS, broker.url, does)
    assert (done.returncode, done.stderr) == (0, "")
    child = ["child"] if does == "publishes" else []
    assert published(broker.url) == sorted(["before", *child, "after"])


def test_a_child_that_no_hook_was_called_in_has_connections_of_its_own(redis: Redis) -> None:
    relay = relay_to(redis.url)
    relay.post(BODY, "before", 10.0)
    parents = relay._here()
    parents.pid += 1  # as in a child of uWSGI's
    relay.post(BODY, "after", 10.0)
    assert relay._here() is not parents
    assert published(redis.url) == ["after", "before"]

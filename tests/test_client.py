"""`Client`, against a real server: what goes on the wire, and what its caller sees."""

from __future__ import annotations

import datetime
import json
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

import valued
from tests.support.server import Reply, Request, Server

TOKEN = "s3cret-token"


class Held:
    """A script for the server that answers nobody until it is told to."""

    def __init__(self) -> None:
        self.release = threading.Event()

    def __call__(self, _request: Request) -> Reply:
        self.release.wait(20)  # bounds a failure
        return Reply()


@pytest.fixture
def held(server: Server) -> Iterator[Held]:
    server.script = script = Held()
    yield script
    script.release.set()


def record(client: valued.Client, count: int = 1) -> None:
    for number in range(count):
        client.action(f"key.{number}", {"user.id": 1})


# -- on the wire -----------------------------------------------------------------------------------

USER = {"user": {"id": 1}}
CALLS: dict[str, tuple[Callable[[valued.Client], object], dict[str, Any]]] = {
    "action": (
        lambda client: client.action("report.generated", {"user.id": 1}),
        {"category": "action", "key": "report.generated", **USER},
    ),
    "action with fields": (
        lambda client: client.action(
            "report.generated", customer={"id": 12}, user={"id": 1}, attributes={"format": "pdf"}
        ),
        {
            "category": "action",
            "key": "report.generated",
            "customer": {"id": 12},
            "attributes": {"format": "pdf"},
            **USER,
        },
    ),
    "fields win over data": (
        lambda client: client.action(
            "a", {"user.id": 5, "user.name": "Josh", "attributes.x": 1}, user={"id": 1}
        ),
        {
            "category": "action",
            "key": "a",
            "user": {"id": 1, "name": "Josh"},
            "attributes": {"x": 1},
        },
    ),
    "page_view": (
        lambda client: client.page_view("https://big.company.com/learn", {"user.id": 1}),
        {
            "category": "pageview",
            "attributes": {"source": {"url": "https://big.company.com/learn"}},
            **USER,
        },
    ),
    "pageview": (
        lambda client: client.pageview("https://big.company.com/learn", user={"id": 1}),
        {
            "category": "pageview",
            "attributes": {"source": {"url": "https://big.company.com/learn"}},
            **USER,
        },
    ),
    "sync": (
        lambda client: client.sync({"user": {"id": 1, "name": "Josh"}}),
        {"category": "sync", "user": {"id": 1, "name": "Josh"}},
    ),
    "sync_user": (
        lambda client: client.sync_user({"id": 1, "location": {"country": "NZ"}}),
        {"category": "sync", "user": {"id": 1, "location": {"country": "NZ"}}},
    ),
    "sync_customer": (
        lambda client: client.sync_customer(id=1, name="BBC Radio"),
        {"category": "sync", "customer": {"id": 1, "name": "BBC Radio"}},
    ),
    "config": (
        lambda client: client.config(
            goals=[{"name": "First", "action_key": "Created", "min_count": 5}], signals=[]
        ),
        {
            "category": "config",
            "data": {
                "goals": [{"name": "First", "action_key": "Created", "min_count": 5}],
                "signals": [],
            },
        },
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_one_post_of_one_object(name: str, client: valued.Client, server: Server) -> None:
    call, expected = CALLS[name]
    before = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    assert call(client) is None
    assert client.flush(10)
    (event,) = server.events
    occured_at = datetime.datetime.fromisoformat(event.pop("occured_at"))
    assert event == expected
    assert before <= occured_at <= datetime.datetime.now(datetime.timezone.utc)
    assert occured_at.utcoffset() is not None


def test_a_sync_of_a_scope_sends_that_part_of_it(client: valued.Client, server: Server) -> None:
    scope = valued.Scope(client, {"user": {"id": 1, "name": "Josh"}, "customer.id": 12})
    client.sync_user(scope)
    client.sync_customer(scope, name="BBC Radio")
    assert client.flush(10)
    parties = sorted(
        (
            {key: event[key] for key in ("user", "customer") if key in event}
            for event in server.events
        ),
        key=str,
    )
    assert parties == [
        {"customer": {"id": 12, "name": "BBC Radio"}},
        {"user": {"id": 1, "name": "Josh"}},
    ]


# -- transports ------------------------------------------------------------------------------------


def test_a_transport_gets_a_dict_of_its_own() -> None:
    sent: list[Any] = []
    data = {"user": {"id": 1}, "attributes": {"tags": ["a"]}}

    def transport(event: dict[str, Any]) -> None:
        sent.append((type(event), event["attributes"]["tags"].copy()))
        event["attributes"]["tags"].append("changed")

    with valued.Client(transport) as client:
        client.action("a", data)
        assert client.flush(10)
    assert sent == [(dict, ["a"])]
    assert data == {"user": {"id": 1}, "attributes": {"tags": ["a"]}}


class Posting:
    """A transport that takes bytes; the first attempt fails."""

    def __init__(self) -> None:
        self.posted: list[tuple[bytes, str, float]] = []
        self.closed = 0

    def post(self, body: bytes, idempotency_key: str, timeout: float) -> str:
        self.posted.append((body, idempotency_key, timeout))
        if len(self.posted) == 1:
            raise OSError("no answer")
        return "ignored"

    def close(self) -> None:
        self.closed += 1


def test_an_object_with_post_gets_bytes_under_the_same_key_in_each_attempt_and_is_closed() -> None:
    transport = Posting()
    client = valued.Client(transport, timeout=3.0)
    assert repr(client) == "Client(transport=Posting)"
    record(client)
    assert client.flush(10)
    assert transport.closed == 0
    assert client.close()
    assert transport.closed == 1
    [(body, key, timeout), again] = transport.posted
    assert again == (body, key, timeout)
    assert isinstance(body, bytes)
    assert json.loads(body)["user"] == {"id": 1}
    assert key
    assert timeout == 3.0
    assert client.stats()["delivered"] == client.stats()["retried"] == 1


def test_an_object_that_can_be_called_as_well_is_called() -> None:
    class Both(Posting):
        def __call__(self, data: dict[str, Any]) -> None:
            called.append(data["user"])

    called: list[Any] = []
    transport = Both()
    with valued.Client(transport) as client:
        record(client)
        assert client.flush(10)
    assert (called, transport.posted, transport.closed) == ([{"id": 1}], [], 0)


def test_what_can_not_be_a_transport_that_takes_bytes_is_named() -> None:
    class WithoutClose:
        def post(self) -> None: ...

    class NoFunction:
        post = close = TOKEN

    class Async(Posting):
        async def post(self, *_: Any) -> None: ...  # type: ignore[override]

    for bad in (WithoutClose(), NoFunction()):
        with pytest.raises(
            valued.ValidationError, match=r"methods post.* and close\(\), got"
        ) as at:
            valued.Client(bad)  # type: ignore[arg-type]
        assert TOKEN not in str(at.value)
    with pytest.raises(valued.ValidationError, match="without async"):
        valued.Client(Async())  # type: ignore[arg-type]
    with pytest.raises(valued.ValidationError, match="endpoint: a transport has its own"):
        valued.Client(Posting(), "http://127.0.0.1/")


def test_a_transport_may_say_by_a_delivery_error_that_it_is_final() -> None:
    heard: list[valued.DeliveryError] = []

    def transport(_event: dict[str, Any]) -> None:
        raise valued.DeliveryError("refused", 422)

    client = valued.Client(transport, on_error=lambda error, _event: heard.append(error))
    with client:
        record(client)
        assert client.flush(10)
    assert [(error.reason, error.status, error.attempts) for error in heard] == [
        ("refused", 422, 1)
    ]


# -- bad input -------------------------------------------------------------------------------------


def test_bad_input_raises_in_the_caller_and_changes_nothing(
    client: valued.Client, server: Server
) -> None:
    bad: list[tuple[Any, ...]] = [
        (client.action, "a"),
        (client.action, "", {"user.id": 1}),
        (client.action, 5, {"user.id": 1}),
        (client.action, "a", 5),
        (client.action, "a", {"user.id": 1, "attributes.x": float("nan")}),
        (client.action, "a", {"user.id": 1, "attributes.x": object()}),
        (client.page_view, "https://big.company.com", {"customer.id": 1}),
        (client.sync, {"user.id": 1, "customer.id": 2}),
        (client.sync_user, {"name": "Josh"}),
        (client.sync_customer,),
        (client.config,),
    ]
    for call, *arguments in bad:
        with pytest.raises(valued.ValuedError):
            call(*arguments)
    assert client.stats()["accepted"] == 0
    record(client)
    assert client.flush(10)
    assert server.keys() == ["key.0"]


def test_delivery_trouble_never_raises_in_the_caller(server: Server) -> None:
    server.script = lambda _request: Reply(400)
    for executor in (None, valued.ImmediateExecutor()):
        with valued.Client(TOKEN, server.url, executor=executor) as client:
            record(client, 3)
            assert client.flush(10)
            assert client.stats()["failed"] == 3


# -- flush, close, stats ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["flush", "close", "park"])
@pytest.mark.parametrize("timeout", [-1, -0.001, 1e12, float("nan"), float("inf"), "5", True, b"1"])
def test_a_bad_timeout_is_refused(method: str, timeout: Any, client: valued.Client) -> None:
    record(client)
    with pytest.raises(valued.ValidationError, match="timeout: expected seconds"):
        getattr(client, method)(timeout)
    with pytest.raises(ValueError, match="timeout"):
        getattr(valued.Client(TOKEN), method)(timeout)


def test_a_with_statement_closes_also_when_its_block_raises(server: Server) -> None:
    client = valued.Client(TOKEN, server.url)

    def use() -> None:
        with client as entered:
            assert entered is client
            record(client, 3)
            raise LookupError

    with pytest.raises(LookupError):
        use()
    assert server.keys() == ["key.0", "key.1", "key.2"]
    assert client.stats()["delivered"] == 3


def test_close_can_be_repeated_and_an_event_afterwards_starts_anew(server: Server) -> None:
    client = valued.Client(TOKEN, server.url)
    assert client.close() is True  # before anything
    for expected in (1, 2):
        record(client)
        assert client.close() is True
        assert client.close() is True
        assert client.stats()["delivered"] == len(server.requests) == expected
    assert len({request.connection for request in server.requests}) == 2


def test_stats_count_and_name_this_process(client: valued.Client, server: Server) -> None:
    process = psutil.Process()
    zero = client.stats()
    assert zero == {
        "accepted": 0,
        "delivered": 0,
        "failed": 0,
        "dropped": 0,
        "pending": 0,
        "retried": 0,
        "dropped_by_reason": {"overflow": 0, "exit": 0, "closed": 0},
        "adopted": 0,
        "handed_over": 0,
        "unsaved": 0,
        "disabled": 0,
        "invalid": 0,
        "anonymous": 0,
        "refused": 0,
        "pid": os.getpid(),
        "started": process.create_time(),
    }
    record(client, 5)
    assert client.flush(10)
    assert client.stats() == {**zero, "accepted": 5, "delivered": 5}


def test_the_reprs_show_no_token(server: Server) -> None:
    assert repr(valued.Client(TOKEN, server.url)) == f"Client(endpoint={server.url!r})"
    assert repr(valued.Client(print)) == "Client(transport=builtin_function_or_method)"
    with valued.Client(TOKEN, server.url) as client:
        record(client)
        assert TOKEN not in repr(vars(client)) + repr(vars(client._transport))


# -- where deliveries run --------------------------------------------------------------------------


def test_production_an_event_call_returns_while_the_server_still_holds_the_answer(
    client: valued.Client, held: Held, server: Server
) -> None:
    record(client)
    server.wait_for(1)
    assert client.stats()["pending"] == 1
    held.release.set()
    assert client.flush(10)


def test_test_sends_in_the_caller_whichever_client_it_is(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_ENV", "test")
    threads: list[threading.Thread] = []
    clients: list[valued.Client] = [
        valued.Client(TOKEN, server.url),
        valued.Client(lambda _event: threads.append(threading.current_thread())),
        valued.connect(TOKEN, server.url),
    ]
    for client in clients:
        record(client)
        assert client.stats()["delivered"] == 1
    assert len(server.requests) == 2
    assert threads == [threading.current_thread()]

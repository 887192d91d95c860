"""`Client`, against a real server: what goes on the wire, and what its caller sees."""

from __future__ import annotations

import copy
import datetime
import os
import platform
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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


def test_the_headers(server: Server) -> None:
    with valued.Client(TOKEN, server.url) as client:
        record(client)
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/events")
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"
    assert request.headers["User-Agent"] == (
        f"valued-client/{valued.__version__} (Python/{platform.python_version()})"
    )
    assert len(request.headers["Idempotency-Key"]) > 32


def test_the_idempotency_key_is_the_events_own_over_all_attempts(server: Server) -> None:
    answers = {"key.0": iter([503, 503, 204]), "key.1": iter([204])}
    server.script = lambda request: Reply(next(answers[request.event["key"]]))
    with valued.Client(TOKEN, server.url) as client:
        record(client, 2)
        assert client.flush(10)
        assert client.stats()["retried"] == 2
    keys: dict[str, set[str]] = {}
    for request in server.requests:
        keys.setdefault(request.event["key"], set()).add(request.headers["Idempotency-Key"])
    assert len(server.requests) == 4
    assert [len(used) for used in keys.values()] == [1, 1]
    assert not keys["key.0"] & keys["key.1"]


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_success(status: int, client: valued.Client, server: Server) -> None:
    server.script = lambda _request: Reply(status)
    record(client)
    assert client.flush(10)
    assert client.stats()["delivered"] == len(server.requests) == 1


def test_token_and_endpoint_come_from_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_TOKEN", TOKEN)
    monkeypatch.setenv("VALUED_ENDPOINT", server.url)
    with valued.Client() as client:
        record(client)
    assert server.requests[0].headers["Authorization"] == f"Bearer {TOKEN}"


def test_a_netrc_entry_for_the_host_does_not_replace_the_token(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with valued.Client(TOKEN, server.url) as client:
        record(client)
    assert server.requests[0].headers["Authorization"] == f"Bearer {TOKEN}"


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


def test_a_transport_that_raises_is_asked_again_and_the_caller_hears_nothing() -> None:
    asked: list[Any] = []

    def transport(event: dict[str, Any]) -> None:
        asked.append(event)
        if len(asked) < 3:
            raise ConnectionError("not now")

    with valued.Client(transport) as client:
        record(client)
        assert client.flush(10)
        assert client.stats()["delivered"] == 1
    assert asked == [asked[0]] * 3


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


def test_a_transport_with_an_endpoint_is_refused() -> None:
    with pytest.raises(valued.ValidationError, match="endpoint: a transport has its own"):
        valued.Client(print, "http://127.0.0.1:4567/events")


# -- bad input -------------------------------------------------------------------------------------


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(valued.ValidationError) as caught:
        valued.Client(*arguments, **options)
    return str(caught.value)


def test_no_token_names_the_variable() -> None:
    assert "VALUED_TOKEN" in refused()


BAD_TOKENS = {
    "empty": "",
    "blank": " ",
    "blank inside": "s3cret s3cret",
    "line end": "s3cret\n",
    "header injection": "s3cret\r\nX-Other: 1",
    "tab": "s3cret\t",
    "NUL": "s3cret\0",
    "not ASCII": "s3cretü",
    "no-break space": "s3cret\xa0",
}


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_a_bad_token_is_refused_without_being_shown(name: str) -> None:
    message = refused(BAD_TOKENS[name])
    assert message.startswith("token: ")
    assert "s3cret" not in message


@pytest.mark.parametrize("name", [name for name in BAD_TOKENS if name != "NUL"])
def test_a_bad_token_in_the_environment_is_refused_by_the_name_of_the_variable(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_TOKEN", BAD_TOKENS[name])
    message = refused()
    assert message.startswith("VALUED_TOKEN: ")
    assert "s3cret" not in message


@pytest.mark.parametrize("token", [b"s3cret", 5, ["s3cret"], {"s3cret": 1}, False])
def test_a_token_that_is_no_text_is_refused_by_its_type(token: Any) -> None:
    message = refused(token)
    assert message == f"token: expected a string, got {type(token).__name__}"


BAD_ENDPOINTS = [
    "", "s3cret-token", "ftp://s3cret/", "http://", "https:///events", "http://s3cret:port/",
    "http://s3cret:0/", "http://s3cret:99999/", "http://a b/s3cret", "http://[s3cret/", "//s3cret",
    "http://user@s3cret/", "https://user:s3cret@host/", 5, b"http://s3cret/", ["http://s3cret/"],
]  # fmt: skip


@pytest.mark.parametrize("endpoint", BAD_ENDPOINTS, ids=map(repr, BAD_ENDPOINTS))
def test_a_bad_endpoint_is_refused_without_being_shown(endpoint: Any) -> None:
    # A token in the endpoint's place is a likely mistake.
    message = refused(TOKEN, endpoint)
    assert message.startswith("endpoint: ")
    assert "s3cret" not in message


def test_a_bad_endpoint_in_the_environment_is_refused_by_the_name_of_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VALUED_ENDPOINT", "s3cret")
    assert refused(TOKEN).startswith("VALUED_ENDPOINT: ")


def test_an_unknown_option_is_refused_with_a_hint() -> None:
    assert refused(TOKEN, retrys=3) == "retrys: no such option; did you mean retries?"


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


def test_flush_is_true_when_all_is_settled_and_false_when_time_runs_out(
    client: valued.Client, held: Held, server: Server
) -> None:
    assert client.flush() is True
    record(client)
    server.wait_for(1)
    assert client.flush(0) is False
    started = time.monotonic()
    assert client.flush(0.05) is False
    assert 0.05 <= time.monotonic() - started < 5  # far below the server's
    held.release.set()
    assert client.flush(None) is True
    assert client.flush(0) is True


@pytest.mark.parametrize("method", ["flush", "close", "park"])
@pytest.mark.parametrize("timeout", [-1, -0.001, 1e12, float("nan"), float("inf"), "5", True, b"1"])
def test_a_bad_timeout_is_refused(method: str, timeout: Any, client: valued.Client) -> None:
    record(client)
    with pytest.raises(valued.ValidationError, match="timeout: expected seconds"):
        getattr(client, method)(timeout)
    with pytest.raises(ValueError, match="timeout"):
        getattr(valued.Client(TOKEN), method)(timeout)


def test_a_timeout_of_days_is_fine(client: valued.Client, held: Held, server: Server) -> None:
    record(client)
    server.wait_for(1)
    results: list[bool] = []
    waiter = threading.Thread(target=lambda: results.append(client.flush(1e6)), daemon=True)
    waiter.start()
    held.release.set()
    waiter.join(10)
    assert results == [True]


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


def test_close_ends_the_threads(server: Server) -> None:
    before = set(threading.enumerate())
    client = valued.Client(TOKEN, server.url)
    record(client, 20)
    assert client.close(10)
    assert {
        thread for thread in set(threading.enumerate()) - before if "valued" in thread.name
    } == set()


def test_close_drops_what_is_not_sent_in_time_and_counts_it(server: Server, held: Held) -> None:
    client = valued.Client(TOKEN, server.url, max_workers=1)
    record(client, 3)
    server.wait_for(1)
    assert client.close(0.05) is False
    stats = client.stats()
    assert stats["dropped_by_reason"]["closed"] == 2
    assert stats["accepted"] == stats["delivered"] + stats["dropped"] + stats["pending"] == 3
    held.release.set()


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


def test_development_has_one_thread(
    server: Server, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_ENV", "development")
    client = valued.Client(TOKEN, server.url)
    record(client, 2)
    server.wait_for(1)
    assert client.flush(0.1) is False
    record(client)  # in production, this one would add a worker, and that one a request
    assert client.flush(0.1) is False
    assert len(server.requests) == 1
    held.release.set()
    assert client.close(10)
    assert len(server.requests) == 3
    assert len({request.connection for request in server.requests}) == 1


def test_development_takes_the_threads_that_max_workers_asks_for(
    server: Server, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_ENV", "development")
    with valued.Client(TOKEN, server.url, max_workers=2) as client:
        _record_until_held(client, server, 2)
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


def test_a_running_pytest_counts_as_test_where_nothing_is_set(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VALUED_ENV")
    client = valued.Client(TOKEN, server.url)
    record(client)
    assert client.stats()["delivered"] == len(server.requests) == 1


def _record_until_held(client: valued.Client, server: Server, count: int) -> int:
    """Record events, one by one, until *count* requests are held; how many that were."""
    deadline = time.monotonic() + 10  # bounds a failure
    recorded = 0
    while len(server.requests) < count:
        assert time.monotonic() < deadline, f"{len(server.requests)} of {count} requests"
        client.action(f"key.{recorded}", {"user.id": 1})
        recorded += 1
        time.sleep(0.002)  # the pace of the events; what is waited for is the server's
    return recorded


def test_the_pool_grows_with_a_slow_server_up_to_its_bound(server: Server, held: Held) -> None:
    with valued.Client(TOKEN, server.url, max_workers=4) as client:
        recorded = _record_until_held(client, server, 4)
        for _ in range(30):
            record(client)
        assert client.flush(0.1) is False
        assert len(server.requests) == 4
        held.release.set()
        assert client.flush(10)
        assert client.stats()["delivered"] == recorded + 30


def test_by_default_10_requests_are_under_way_at_once(
    client: valued.Client, server: Server, held: Held
) -> None:
    _record_until_held(client, server, 10)
    held.release.set()
    assert client.flush(10)
    assert len({request.connection for request in server.requests}) == 10


def test_the_pool_does_not_grow_while_no_event_waits() -> None:
    threads: set[int] = set()
    with valued.Client(lambda _event: threads.add(threading.get_ident())) as client:
        for _ in range(20):
            record(client)
            assert client.flush(10)
    assert len(threads) <= 2  # one that just ends, and one that a flush woke


# -- executors -------------------------------------------------------------------------------------


class Noting:
    """An executor that runs all in the caller, and notes that it did."""

    def __init__(self) -> None:
        self.submitted = 0

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> None:
        self.submitted += 1
        function(*arguments)


def test_an_executor_that_is_given_runs_the_deliveries(server: Server) -> None:
    with ThreadPoolExecutor(2, thread_name_prefix="own") as pool:
        names: list[str] = []
        with valued.Client(
            lambda _event: names.append(threading.current_thread().name), executor=pool
        ) as client:
            record(client, 5)
            assert client.flush(10)
        assert len(names) == 5
        assert {name[:3] for name in names} == {"own"}
        assert pool.submit(int).result(10) == 0  # it is the user's: closing a client leaves it


def test_a_factory_is_called_with_the_first_event_and_again_after_a_close(server: Server) -> None:
    made: list[ThreadPoolExecutor] = []

    def factory() -> ThreadPoolExecutor:
        made.append(ThreadPoolExecutor(2))
        return made[-1]

    client = valued.Client(TOKEN, server.url, executor=factory)
    assert made == []
    for count in (1, 2):
        record(client, 3)
        assert client.close(10)
        assert len(made) == count
        with pytest.raises(RuntimeError, match="shutdown"):
            made[-1].submit(int)  # ours to end
    assert len(server.requests) == 6


def test_the_immediate_executor_sends_in_the_caller(server: Server) -> None:
    client = valued.Client(TOKEN, server.url, executor=valued.ImmediateExecutor())
    for count in (1, 2, 3):
        record(client)
        assert len(server.requests) == client.stats()["delivered"] == count


def test_set_executor_counts_for_clients_that_name_none(server: Server) -> None:
    default, own = Noting(), Noting()
    valued.set_executor(default)
    with valued.Client(TOKEN, server.url) as client:
        record(client, 2)
        assert client.flush(10)
    with valued.Client(TOKEN, server.url, executor=own) as client:
        record(client, 1)
        assert client.flush(10)
    assert default.submitted >= 1
    assert own.submitted >= 1
    assert len(server.requests) == 3


def test_an_executor_that_takes_no_work_is_replaced_and_named(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    class Refusing:
        def submit(self, _function: Callable[..., Any], /, *_arguments: Any) -> None:
            raise OSError("refused by the executor")

    with valued.Client(TOKEN, server.url, executor=Refusing()) as client:
        record(client, 3)
        assert client.flush(10)
        assert client.stats()["delivered"] == 3
    (line,) = [record.getMessage() for record in caplog.records]
    assert "Refusing" in line
    assert "refused by the executor" in line
    assert len(server.requests) == 3


def test_a_factory_that_raises_is_replaced_and_its_traceback_logged(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    def factory() -> Any:
        raise LookupError("no executor here")

    with valued.Client(TOKEN, server.url, executor=factory) as client:
        record(client)
        assert client.flush(10)
    assert len(server.requests) == 1
    assert "LookupError: no executor here" in caplog.text


def test_an_executor_that_is_none_is_refused() -> None:
    assert "executor: int has no submit(fn, *args)" in refused(TOKEN, executor=5)


# -- overflow --------------------------------------------------------------------------------------


def test_a_full_queue_drops_the_newest_and_counts_it(server: Server, held: Held) -> None:
    with valued.Client(TOKEN, server.url, max_queue=3, max_workers=1) as client:
        record(client, 5)
        stats = client.stats()
        assert (stats["accepted"], stats["dropped_by_reason"]["overflow"]) == (5, 2)
        held.release.set()
        assert client.flush(10)
        assert client.stats()["delivered"] == 3
    assert server.keys() == ["key.0", "key.1", "key.2"]


def test_caller_runs_delivers_in_the_caller_what_is_too_many() -> None:
    inside, leave = threading.Event(), threading.Event()
    callers: list[str] = []

    def transport(event: dict[str, Any]) -> None:
        if threading.current_thread() is threading.main_thread():
            callers.append(event["key"])
            return
        inside.set()
        leave.wait(20)

    with valued.Client(transport, max_queue=1, overflow="caller_runs", max_workers=1) as client:
        client.action("first", {"user.id": 1})
        assert inside.wait(10)
        client.action("second", {"user.id": 1})
        assert callers == ["second"]
        leave.set()
        assert client.flush(10)
        assert client.stats()["delivered"] == 2


def test_the_memory_of_an_idle_process_that_flushes_does_not_grow(client: valued.Client) -> None:
    record(client)
    assert client.flush(10)
    tracemalloc.start()
    try:
        client.flush()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(10_000):
            assert client.flush()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 20_000  # two bytes a flush; what a thread that comes or goes takes is less


def test_a_copy_is_the_client_itself(client: valued.Client) -> None:
    # It stands for one queue and one set of threads, wherever it is held.
    assert copy.copy(client) is client
    assert copy.deepcopy({"client": client})["client"] is client

"""The middleware for ASGI, called as a server calls it. Under real servers: `test_fastapi`."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from typing import Any

import pytest

import valued
from tests.support.server import Reply, Server
from valued.integrations.asgi import ScopeMiddleware

Scope = MutableMapping[str, Any]
Messages = list[dict[str, Any]]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@pytest.fixture(autouse=True)
def connected(recorder: valued.Client) -> None:
    valued.connect(recorder)


@pytest.fixture(params=["http", "websocket"])
def kind(request: pytest.FixtureRequest) -> str:
    """A kind of call that has a unit."""
    return str(request.param)


def record(key: str) -> None:
    valued.action(key, {"customer.id": "c"})


def users(sent: list[dict[str, Any]]) -> dict[str, Any]:
    """The id of the user, by the key of the event."""
    return {event["key"]: event.get("user", {}).get("id") for event in sent}


async def call(app: App, scope: Scope | None = None, *received: str) -> list[str]:
    """Call *app*, give it messages of the types *received*; the types of what it sends."""
    to_come = list(received)
    messages: list[str] = []

    async def receive() -> Any:
        return {"type": to_come.pop(0)}

    async def send(message: Any) -> None:
        messages.append(message["type"])

    await app({"type": "http"} if scope is None else scope, receive, send)
    return messages


def one(app: App, scope: Scope | None = None, *received: str) -> list[str]:
    return asyncio.run(call(app, scope, *received))


async def signs_in(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that sets the user, and records."""
    record("before")
    valued.scope.user_id = scope.get("id", 1)
    record("after")


# -- requests --------------------------------------------------------------------------------------


def test_a_call_has_a_unit_that_starts_with_the_defaults(kind: str, sent: Messages) -> None:
    async def serve() -> None:
        valued.scope.user_id = 99
        await call(ScopeMiddleware(signs_in), {"type": kind})
        record("outside")

    asyncio.run(serve())
    assert users(sent) == {"before": None, "after": 1, "outside": 99}


def test_other_kinds_of_calls_have_no_unit(sent: Messages) -> None:
    async def serve() -> None:
        await call(ScopeMiddleware(signs_in), {"type": "of the future"})
        record("outside")

    asyncio.run(serve())
    assert users(sent)["outside"] == 1


def test_where_nothing_is_connected_calls_pass_through() -> None:
    valued.disconnect()
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(await receive())
        await send({"type": "http.response.start"})

    assert one(ScopeMiddleware(app, dict), None, "http.request") == ["http.response.start"]
    assert seen == [{"type": "http.request"}]


def test_exceptions_go_on_to_the_caller_and_end_the_unit(sent: Messages) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        valued.scope.user_id = 1
        raise KeyError("of the application's")

    async def serve() -> None:
        scope = {"type": "http"}
        with pytest.raises(KeyError, match="of the application's"):
            await call(ScopeMiddleware(app), scope)
        record("outside")
        assert scope == {"type": "http"}

    asyncio.run(serve())
    assert users(sent) == {"outside": None}


def test_an_application_gets_the_very_scope_and_outer_ones_see_what_it_puts_there() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = "/reports"

    scope = {"type": "http"}
    one(ScopeMiddleware(app), scope)
    assert scope == {"type": "http", "route": "/reports"}


def test_a_scope_that_is_used_for_two_calls_starts_two_units(sent: Messages) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        record(f"of {scope['n']}")
        valued.scope.user_id = scope["n"]

    async def serve() -> None:
        scope: Scope = {"type": "http", "n": 1}
        await call(ScopeMiddleware(app), scope)
        scope["n"] = 2
        await call(ScopeMiddleware(app), scope)

    asyncio.run(serve())
    assert users(sent) == {"of 1": None, "of 2": None}


def test_interleaved_streams_keep_their_users(sent: Messages) -> None:
    async def serve() -> None:
        turns = [asyncio.Semaphore(0), asyncio.Semaphore(0)]

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            me = scope["id"]
            valued.scope.user_id = me
            for step in range(3):
                await turns[me].acquire()
                record(f"{me} at {step}")
                turns[1 - me].release()

        stack = ScopeMiddleware(app)
        streams = [asyncio.ensure_future(call(stack, {"type": "http", "id": n})) for n in (0, 1)]
        turns[0].release()
        await asyncio.gather(*streams)

    asyncio.run(serve())
    assert [event["key"] for event in sent] == [
        "0 at 0", "1 at 0", "0 at 1", "1 at 1", "0 at 2", "1 at 2",
    ]  # fmt: skip
    assert [event["user"]["id"] for event in sent] == [0, 1, 0, 1, 0, 1]


def test_threads_and_tasks_of_a_call_share_its_unit(sent: Messages) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.to_thread(setattr, valued.scope, "user_id", 5)
        record("seen here")
        await asyncio.create_task(as_task())
        record("set by a task")

    async def as_task() -> None:
        record("seen in a task")
        valued.scope.user_id = 6

    one(ScopeMiddleware(app))
    assert users(sent) == {"seen here": 5, "seen in a task": 5, "set by a task": 6}


def test_a_task_that_outlives_its_call_keeps_its_user(sent: Messages) -> None:
    async def serve() -> None:
        go_on = asyncio.Event()
        tasks = []

        async def later(me: int) -> None:
            await go_on.wait()
            record(f"later of {me}")

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            valued.scope.user_id = scope["id"]
            tasks.append(asyncio.create_task(later(scope["id"])))

        for number in (1, 2):
            await call(ScopeMiddleware(app), {"type": "http", "id": number})
        go_on.set()
        await asyncio.gather(*tasks)

    asyncio.run(serve())
    assert users(sent) == {"later of 1": 1, "later of 2": 2}


def test_a_call_that_is_cancelled_leaves_nothing_behind(sent: Messages) -> None:
    async def serve() -> None:
        began = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            valued.scope.user_id = 1
            began.set()
            await asyncio.Event().wait()

        stream = asyncio.ensure_future(call(ScopeMiddleware(app)))
        await began.wait()
        stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stream
        record("outside")

    asyncio.run(serve())
    assert users(sent) == {"outside": None}


# -- data ------------------------------------------------------------------------------------------


def test_data_is_not_asked_for_where_nothing_is_recorded() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None: ...

    one(ScopeMiddleware(app, lambda scope: pytest.fail("it was asked")))


def test_data_is_asked_once_and_sees_what_inner_middlewares_put_into_the_scope(
    kind: str, sent: Messages
) -> None:
    asked = []

    def data(scope: Scope) -> Mapping[str, Any]:
        asked.append(scope)
        return {"user": {"id": scope["session"]}, "attributes": {"plan": "pro"}}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["session"] = 4
        record("one")
        record("two")

    scope = {"type": kind}
    one(ScopeMiddleware(app, data), scope)
    assert asked == [scope]
    assert asked[0] is scope
    assert users(sent) == {"one": 4, "two": 4}
    assert sent[1]["attributes"] == {"plan": "pro"}


def test_data_that_is_none_is_asked_again_so_that_a_login_is_seen(sent: Messages) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        record("before")
        scope["user"] = 8
        record("after")

    def data(scope: Scope) -> Mapping[str, Any] | None:
        return {"user.id": scope["user"]} if "user" in scope else None

    one(ScopeMiddleware(app, data))
    assert users(sent) == {"before": None, "after": 8}


def test_what_the_application_sets_counts_more_than_data(sent: Messages) -> None:
    one(ScopeMiddleware(signs_in, lambda scope: {"user": {"id": 7, "name": "A"}}))
    assert sent[-1]["user"]["id"] == 1


def test_what_data_raises_the_event_call_raises() -> None:
    def data(scope: Scope) -> Mapping[str, Any]:
        raise LookupError("no such session")

    with pytest.raises(LookupError, match="no such session"):
        one(ScopeMiddleware(signs_in, data))


class _Asks:
    async def __call__(self, scope: Scope) -> None: ...


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"user": {"id": 1}}, "got dict"),
        (_Asks().__call__, "a coroutine function"),
        (_Asks(), "a coroutine function"),
        (functools.partial(_Asks.__call__, _Asks()), "a coroutine function"),
    ],
)
def test_data_that_cannot_be_called_by_an_event_is_refused_at_the_start(
    data: Any, problem: str
) -> None:
    with pytest.raises(valued.ValidationError, match=problem):
        ScopeMiddleware(signs_in, data)


# -- applied twice ---------------------------------------------------------------------------------


def test_applied_twice_the_unit_and_the_data_of_the_outermost_count(
    kind: str, sent: Messages
) -> None:
    async def between(scope: Scope, receive: Receive, send: Send) -> None:
        await inner(scope, receive, send)
        record("between")

    inner = ScopeMiddleware(signs_in, lambda scope: pytest.fail("it was asked"))
    one(ScopeMiddleware(between, lambda scope: {"user.id": 3}), {"type": kind})
    assert users(sent) == {"before": 3, "after": 1, "between": 1}


def test_applied_twice_the_unit_is_found_again_by_the_scope_where_the_context_is_lost(
    sent: Messages,
) -> None:
    async def loses_the_context(scope: Scope, receive: Receive, send: Send) -> None:
        valued.scope.user_id = 3
        task = contextvars.Context().run(asyncio.ensure_future, inner(dict(scope), receive, send))
        await task
        record("outside")

    inner = ScopeMiddleware(signs_in)
    one(ScopeMiddleware(loses_the_context))
    assert users(sent) == {"before": 3, "after": 1, "outside": 1}


# -- the end ---------------------------------------------------------------------------------------


async def lives(scope: Scope, receive: Receive, send: Send) -> None:
    """An application with a lifespan, which records at its end."""
    assert (await receive())["type"] == "lifespan.startup"
    await send({"type": "lifespan.startup.complete"})
    assert (await receive())["type"] == "lifespan.shutdown"
    for number in range(3):
        record(f"end {number}")
    await send({"type": scope.get("end", "lifespan.shutdown.complete")})


LIFE = ("lifespan.startup", "lifespan.shutdown")


@pytest.fixture
def slow() -> Iterator[Server]:
    """A service that takes its time; the shared client is connected to it."""

    def script(_request: object) -> Reply:
        time.sleep(0.1)
        return Reply()

    server = Server(script)
    client = valued.connect("test-token", server.url)
    yield server
    client.close(10)
    server.close()


@pytest.fixture
def flushes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads in which `flush_all` was called, which does what it does."""
    called: list[int] = []
    flush_all = valued.flush_all
    monkeypatch.setattr(
        valued, "flush_all", lambda: called.append(threading.get_ident()) or flush_all()
    )
    return called


@pytest.mark.parametrize("end", ["complete", "failed"])
def test_events_are_delivered_before_the_server_hears_of_the_end(end: str, slow: Server) -> None:
    settled = []

    async def serve() -> list[str]:
        types = iter(LIFE)
        sent = []

        async def receive() -> Any:
            return {"type": next(types)}

        async def send(message: Any) -> None:
            sent.append(message["type"])
            settled.append(valued.client().stats()["delivered"])

        scope = {"type": "lifespan", "end": f"lifespan.shutdown.{end}"}
        await ScopeMiddleware(lives)(scope, receive, send)
        assert "valued.unit" not in scope
        return sent

    assert asyncio.run(serve()) == ["lifespan.startup.complete", f"lifespan.shutdown.{end}"]
    assert settled == [0, 3]


def test_the_event_loop_goes_on_while_events_are_delivered(slow: Server) -> None:
    async def serve() -> int:
        life = asyncio.ensure_future(call(ScopeMiddleware(lives), {"type": "lifespan"}, *LIFE))
        turns = 0
        while not life.done():
            await asyncio.sleep(0.005)
            turns += 1
        return turns

    assert asyncio.run(serve()) >= 5
    assert len(slow.events) == 3


def test_events_are_delivered_while_all_threads_of_the_loop_are_busy(slow: Server) -> None:
    async def serve() -> None:
        leave = threading.Event()
        loop = asyncio.get_running_loop()
        busy = [loop.run_in_executor(None, leave.wait, 20) for _ in range(64)]
        life = call(ScopeMiddleware(lives), {"type": "lifespan"}, *LIFE)
        try:
            await asyncio.wait_for(life, 10)
        finally:
            leave.set()
            await asyncio.gather(*busy)
        assert len(slow.events) == 3

    asyncio.run(serve())


def test_what_is_left_at_the_end_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    answer = threading.Event()

    def script(_request: object) -> Reply:
        answer.wait(20)
        return Reply()

    server = Server(script)
    valued.disconnect()  # a second connect that differs would be logged, too
    client = valued.connect("test-token", server.url, shutdown_timeout=0.2)
    one(ScopeMiddleware(lives), {"type": "lifespan"}, *LIFE)
    answer.set()
    client.close(10)
    server.close()
    (logged,) = caplog.records
    assert logged.getMessage().startswith("3 events are not delivered after 0.2 s: ")


@pytest.mark.parametrize(
    ("tells", "raises", "times"),
    [
        ([], True, 0),
        (["startup.failed"], False, 0),
        (["startup.complete"], False, 1),
        (["startup.complete"], True, 1),
        (["startup.complete", "shutdown.complete"], True, 1),
    ],
)
def test_an_application_is_flushed_once_if_it_has_started_however_it_ends(
    tells: list[str], raises: bool, times: int, flushes: list[int]
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for each in tells:
            await send({"type": f"lifespan.{each}"})
        if raises:
            raise ValueError("of the application's")

    with pytest.raises(ValueError, match="of the app") if raises else contextlib.nullcontext():
        one(ScopeMiddleware(app), {"type": "lifespan"})
    assert len(flushes) == times


def test_a_lifespan_that_the_server_cancels_is_flushed(slow: Server) -> None:
    async def serve() -> None:
        life = asyncio.ensure_future(never_ends(ScopeMiddleware(lives)))
        while not valued.client().stats()["accepted"]:
            await asyncio.sleep(0)
        life.cancel()
        with pytest.raises(asyncio.CancelledError):
            await life
        assert len(slow.events) == 1

    async def never_ends(app: App) -> None:
        started = asyncio.Event()

        async def receive() -> Any:
            if started.is_set():
                record("in the last moment")
                await asyncio.Event().wait()
            return {"type": "lifespan.startup"}

        async def send(message: Any) -> None:
            started.set()

        await app({"type": "lifespan"}, receive, send)

    asyncio.run(serve())


def test_applied_twice_it_flushes_once(flushes: list[int]) -> None:
    stack = ScopeMiddleware(ScopeMiddleware(lives))
    scope = {"type": "lifespan"}
    assert one(stack, scope, *LIFE) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert len(flushes) == 1
    assert scope == {"type": "lifespan"}


def test_in_asyncio_it_flushes_in_a_thread_of_its_own(flushes: list[int]) -> None:
    one(ScopeMiddleware(lives), {"type": "lifespan"}, *LIFE)
    assert threading.get_ident() not in flushes


def test_without_asyncio_it_flushes_in_the_event_loop(flushes: list[int]) -> None:
    life = call(ScopeMiddleware(lives), {"type": "lifespan"}, *LIFE)
    with pytest.raises(StopIteration) as ended:
        life.send(None)
    assert ended.value.value == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert flushes == [threading.get_ident()]


def test_trio_runs_calls_and_lifespans(slow: Server) -> None:
    trio = pytest.importorskip("trio")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.to_thread.run_sync(setattr, valued.scope, "user_id", 5)
        await trio.sleep(0)
        record("of 5")

    async def serve() -> None:
        await call(ScopeMiddleware(app))
        await call(ScopeMiddleware(lives), {"type": "lifespan"}, *LIFE)
        assert users(slow.events)["of 5"] == 5
        assert len(slow.events) == 4

    trio.run(serve)


# -- Litestar --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["around the application", "as its middleware"])
def test_litestar_has_a_unit_for_each_request(how: str, sent: Messages) -> None:
    litestar = pytest.importorskip("litestar")
    httpx = pytest.importorskip("httpx")
    from litestar.background_tasks import BackgroundTask
    from litestar.middleware import DefineMiddleware

    def sign_in(connection: litestar.Request, _handler: object) -> None:
        valued.scope.user_id = connection.headers.get("x-user-id")

    def later(name: str) -> None:
        record(f"background {name}")

    @litestar.get("/", guards=[sign_in], sync_to_thread=True)
    def report(request: litestar.Request) -> litestar.Response:
        name = request.url.query
        record(f"endpoint {name}")
        task = BackgroundTask(later, name)
        return litestar.Response("", background=task)

    def data(scope: Scope) -> Mapping[str, Any]:
        return {"attributes": {"query": scope["query_string"].decode()}}

    # Without a logger of its own, which it would start a thread for.
    inside = how == "as its middleware"
    app: Any = litestar.Litestar(
        [report],
        middleware=[DefineMiddleware(ScopeMiddleware, data=data)] if inside else (),
        logging_config=None,
        signature_namespace={"litestar": litestar},
    )
    if not inside:
        app = ScopeMiddleware(app, data)

    async def visit() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as visitor:
            for name, headers in (("a", {"X-User-Id": "1"}), ("b", {"X-User-Id": "2"}), ("c", {})):
                answer = await visitor.get(f"/?{name}", headers=headers)
                assert answer.status_code == 200, answer.text
        record("outside")

    asyncio.run(visit())
    assert users(sent) == {
        "endpoint a": "1", "background a": "1", "endpoint b": "2", "background b": "2",
        "endpoint c": None, "background c": None, "outside": None,
    }  # fmt: skip
    assert {event["attributes"]["query"] for event in sent[:-1]} == {"a", "b", "c"}


def test_litestar_is_flushed_at_the_end_where_the_application_is_wrapped(slow: Server) -> None:
    litestar = pytest.importorskip("litestar")

    async def leave() -> None:
        record("leaving")

    app = litestar.Litestar([], on_shutdown=[leave], logging_config=None)
    one(ScopeMiddleware(app), {"type": "lifespan"}, *LIFE)
    assert len(slow.events) == 1

"""The Django integration, by Django's own handlers and test clients: who an event belongs to."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import valued
from tests.support.django_site import MODULE, Site
from tests.support.processes import run
from valued._http import recording

django = pytest.importorskip("django")
pytest.importorskip("rest_framework")

from asgiref.sync import async_to_sync  # noqa: E402 - after it is known to be there
from django.conf import settings as django_settings  # noqa: E402
from django.contrib.auth import get_user_model, login  # noqa: E402
from django.contrib.auth.signals import user_logged_in  # noqa: E402
from django.core.handlers.asgi import ASGIHandler  # noqa: E402
from django.core.handlers.wsgi import WSGIHandler  # noqa: E402
from django.http import HttpResponse, StreamingHttpResponse  # noqa: E402
from django.test import AsyncClient, Client, RequestFactory, override_settings  # noqa: E402
from django.urls import path as urlpath  # noqa: E402

from valued.integrations.django import ScopeMiddleware  # noqa: E402
from valued.integrations.django._fields import _ask_again, follow_logins, user_of  # noqa: E402

A, B = 11, 12

#: What Django's own receiver of a login updates.
SOMEBODY = SimpleNamespace(save=lambda **_: None)

Get = Callable[..., Any]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site.make(tmp_path_factory.mktemp("site"))
    variables = {
        "DJANGO_DATABASE": str(site.database),
        "DJANGO_SETTINGS_MODULE": f"{MODULE}.settings",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        django.setup()
        django_settings.DATABASES["default"]["NAME"] = str(site.database)
        yield site
    from django.db import connections

    connections.close_all()


@pytest.fixture
def events(site: Site, sent: list[dict[str, Any]], recorder: valued.Client) -> list[dict[str, Any]]:
    """What the connected client was given."""
    valued.connect(recorder)
    return sent


def visit(path: str, who: int | None = None, *, site: Site | None = None, **headers: str) -> Any:
    """Ask by the handler that the path names; *who* is signed in."""
    client = AsyncClient() if path.startswith("async") else Client()
    client.raise_request_exception = False
    if who is not None:
        assert site is not None
        client.cookies["sessionid"] = site.sessions[who]
    if isinstance(client, AsyncClient):

        async def ask() -> Any:
            response = await client.get("/" + path, headers=headers)
            if response.streaming:
                response.chunks = [chunk async for chunk in response]
            return response

        return async_to_sync(ask)()
    response = client.get("/" + path, headers=headers)
    if response.streaming:
        response.chunks = list(response)
    return response


def signed_in(who: int, **headers: str) -> Client:
    """A client with a session of its own, which a login of somebody else ends."""
    client = Client(headers=headers)
    client.force_login(get_user_model().objects.get(pk=who))
    return client


def routes(view: Callable[[Any], Any]) -> ModuleType:
    """A ``ROOT_URLCONF`` with one view."""
    module = ModuleType("routes")
    module.urlpatterns = [urlpath("", view)]  # type: ignore[attr-defined]
    return module


def users(events: list[dict[str, Any]]) -> list[Any]:
    return [event.get("user", {}).get("id") for event in events]


def urls(events: list[dict[str, Any]]) -> list[str]:
    return [
        event["attributes"]["source"]["url"] for event in events if event["category"] == "pageview"
    ]


# -- whose event it is -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["sync/page", "async/page", "sync/stream", "async/stream"])
def test_each_request_records_for_its_own_user_and_an_unknown_visitor_for_none(
    path: str, events: list[dict[str, Any]], site: Site
) -> None:
    for who in (A, None, B, None):
        before = len(events)
        assert visit(path, who, site=site).status_code == 200
        found = users(events[before:])
        assert found
        assert set(found) == {who}
    assert valued.scope.to_dict() == {}


@pytest.mark.parametrize("path", ["sync/quiet", "async/quiet"])
def test_view_that_records_nothing_causes_no_query_and_no_vary_cookie(
    path: str, events: list[dict[str, Any]], site: Site
) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    visit(path, A, site=site)  # what is set up with the first one
    with CaptureQueriesContext(connection) as queries:
        response = visit(path, A, site=site)
    assert (response.status_code, len(queries)) == (200, 0)
    assert "Vary" not in response.headers
    assert events == []


@pytest.mark.parametrize("path", ["sync/login", "async/login"])
def test_login_in_the_view_is_seen(path: str, events: list[dict[str, Any]], site: Site) -> None:
    visit(path, **{"X-Expected": str(A)})
    assert users(events) == [A]


def test_events_after_a_login_are_of_the_one_who_signed_in(
    events: list[dict[str, Any]], site: Site
) -> None:
    signed_in(A, **{"X-Expected": str(B)}).get("/again/login")
    assert users(events) == [A, B]
    events.clear()
    visit("again/login", None, **{"X-Expected": str(B)})
    assert users(events) == [None, B]


def test_receiver_of_a_login_records_for_the_one_who_signed_in(
    events: list[dict[str, Any]], site: Site
) -> None:
    def record(**_: Any) -> None:
        valued.action("signed in", {"customer.id": 1})

    client = signed_in(A, **{"X-Expected": str(B)})
    user_logged_in.connect(record)
    # Those of the application are often there before the middleware is made.
    user_logged_in.receivers.insert(0, user_logged_in.receivers.pop())
    follow_logins.cache_clear()
    user_logged_in.disconnect(_ask_again)
    try:
        client.get("/again/login")
    finally:
        user_logged_in.disconnect(record)
    assert [(event["key"], event["user"]["id"]) for event in events] == [
        ("before", A),
        ("signed in", B),
        ("step", B),
    ]


def test_customer_is_asked_for_anew_after_a_login(events: list[dict[str, Any]], site: Site) -> None:
    def customer(request: Any) -> dict[str, object] | None:
        return {"id": f"of {request.user.pk}"}

    def view(request: Any) -> HttpResponse:
        valued.action("a")
        login(request, get_user_model().objects.get(pk=B))
        valued.action("a")
        return HttpResponse()

    with override_settings(VALUED={"CUSTOMER": customer}, ROOT_URLCONF=routes(view)):
        signed_in(A).get("/")
    assert [(event["user"]["id"], event["customer"]["id"]) for event in events] == [
        (A, f"of {A}"),
        (B, f"of {B}"),
    ]


def test_login_after_the_view_has_removed_the_customer_is_no_failure(
    events: list[dict[str, Any]], site: Site
) -> None:
    answers = iter([{"id": "first"}, None, None])

    def view(request: Any) -> HttpResponse:
        valued.action("a")
        del valued.scope["customer"]
        login(request, get_user_model().objects.get(pk=B))
        valued.action("a")
        return HttpResponse()

    settings = {"CUSTOMER": lambda _request: next(answers)}
    with override_settings(VALUED=settings, ROOT_URLCONF=routes(view)):
        assert signed_in(A).get("/").status_code == 200
    assert [(event["user"]["id"], event.get("customer")) for event in events] == [
        (A, {"id": "first"}),
        (B, None),
    ]


def test_login_outside_of_a_request_changes_nothing(
    events: list[dict[str, Any]], site: Site
) -> None:
    visit("sync/page", A, site=site)
    with valued.isolated({"user.id": 1}):
        user_logged_in.send(sender=None, request=None, user=SOMEBODY)
        assert valued.scope.user_id == 1


def test_user_whom_the_view_sets_goes_first_and_a_logout_leaves_nobody(
    events: list[dict[str, Any]], site: Site
) -> None:
    visit("set", A, site=site)
    signed_in(A).get("/logout")
    assert users(events) == ["given", None]


def test_rest_framework_user_is_the_one_of_the_token_and_not_of_a_cookie(
    events: list[dict[str, Any]], site: Site
) -> None:
    response = visit("api", A, site=site, Authorization=f"Token {site.tokens[B]}")
    assert response.status_code == 200
    visit("api", A, site=site)
    visit("api")
    assert users(events) == [B, A, None]


def test_async_view_without_a_loaded_user_is_told_what_to_await_by_each_server(
    events: list[dict[str, Any]], site: Site
) -> None:
    response = visit("async/unloaded", A, site=site)
    assert response.status_code == 409
    assert "`await request.auser()`" in response.content.decode()
    assert events == []
    client = Client()
    client.cookies["sessionid"] = site.sessions[A]
    assert client.get("/async/unloaded").status_code == 409
    assert client.get("/async/page").status_code == 200
    assert users(events) == [A, A]


def test_user_function_reads_what_an_async_view_has_loaded(
    events: list[dict[str, Any]], site: Site
) -> None:
    with override_settings(
        VALUED={"USER": lambda request: {"id": request.user.pk, "name": request.user.username}}
    ):
        visit("async/page", A, site=site)
    assert [event["user"] for event in events] == [{"id": A, "name": f"user{A}"}] * 2


def test_user_function_that_queries_in_an_async_view_is_named(
    events: list[dict[str, Any]], site: Site
) -> None:
    def user(_request: Any) -> Any:
        return {"id": get_user_model().objects.get(pk=A).pk}

    with override_settings(VALUED={"USER": user}):
        client = AsyncClient()
        with pytest.raises(valued.ValidationError, match="USER or CUSTOMER makes a database query"):
            async_to_sync(client.get)("/async/page")
    assert events == []


def test_request_without_authentication_middleware_has_no_user(
    events: list[dict[str, Any]], site: Site
) -> None:
    with override_settings(MIDDLEWARE=["valued.integrations.django.ScopeMiddleware"]):
        visit("sync/page", A, site=site)
    assert users(events) == [None]


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (SimpleNamespace(is_authenticated=True, pk=7, email="a@example.com"), {"id": 7}),
        (
            SimpleNamespace(is_authenticated=True, pk=uuid.UUID(int=7)),
            {"id": "00000000-0000-0000-0000-000000000007"},
        ),
        (SimpleNamespace(is_authenticated=True, pk=None), None),
        (SimpleNamespace(is_authenticated=False, pk=7), None),
        (None, None),
    ],
)
def test_user_is_an_id_and_nothing_else(user: Any, expected: Any) -> None:
    assert user_of(SimpleNamespace(user=user)) == expected


def test_nothing_is_left_behind_by_a_view_that_fails(
    events: list[dict[str, Any]], site: Site
) -> None:
    assert visit("failing", A, site=site).status_code == 500
    visit("sync/page", B, site=site)
    assert "left" not in events[0]["attributes"]
    assert valued.scope.to_dict() == {}


def test_requests_pass_where_nothing_is_connected(site: Site) -> None:
    valued.disconnect(0)
    with override_settings(VALUED={"PAGE_VIEWS": True}):
        assert visit("sync/quiet", A, site=site).status_code == 200
        assert visit("async/quiet", A, site=site).status_code == 200


def test_login_after_the_client_is_gone_is_no_failure(
    events: list[dict[str, Any]], site: Site
) -> None:
    def view(request: Any) -> HttpResponse:
        request.user = SimpleNamespace(is_authenticated=True, pk=1)
        valued.action("a", {"customer.id": 1})
        valued.disconnect(0)
        user_logged_in.send(sender=None, request=request, user=SOMEBODY)
        return HttpResponse()

    assert ScopeMiddleware(view)(RequestFactory().get("/")).status_code == 200


# -- streams ---------------------------------------------------------------------------------------


def test_interleaved_streams_keep_their_users(events: list[dict[str, Any]], site: Site) -> None:
    streams = []
    for who in (A, B):
        client = Client()
        client.cookies["sessionid"] = site.sessions[who]
        streams.append(iter(client.get("/sync/stream", headers={"X-Expected": str(who)})))
    for _ in range(3):
        for stream in streams:
            next(stream)
    assert users(events) == [A, B, A, B, A, B]
    assert valued.scope.to_dict() == {}


def test_dropped_stream_ends_within_its_unit_and_leaves_nothing_behind(
    events: list[dict[str, Any]], site: Site
) -> None:
    response = WSGIHandler()(
        RequestFactory(headers={"Cookie": f"sessionid={site.sessions[A]}"}).get("/dropped").environ,
        lambda *_: None,
    )
    next(iter(response))
    response.close()
    assert users(events) == [A]
    assert valued.scope.to_dict() == {}


def test_dropped_async_stream_ends_within_its_unit_and_leaves_nothing_behind(
    events: list[dict[str, Any]], site: Site
) -> None:
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/adropped",
        "query_string": b"",
        "headers": [
            (b"cookie", f"sessionid={site.sessions[A]}".encode()),
            (b"host", b"testserver"),
        ],
    }

    async def drop() -> None:
        has_begun = asyncio.Event()
        received: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if not received:
                received.append({"type": "http.request", "body": b""})
                return received[0]
            await has_begun.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.body":
                has_begun.set()
                await asyncio.Event().wait()  # the reader takes no more; the stream stands still

        await ASGIHandler()(scope, receive, send)
        assert valued.scope.to_dict() == {}
        while not events:  # asyncio ends a generator that is left in a task of its own
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(drop(), 30))
    assert users(events) == [A]


def test_stream_that_is_no_generator_records_for_its_user(
    events: list[dict[str, Any]], site: Site
) -> None:
    class Chunks:
        left = 2

        def __aiter__(self) -> Chunks:
            return self

        async def __anext__(self) -> bytes:
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            valued.action("a", {"customer.id": 1})
            return b"chunk"

    async def view(request: Any) -> StreamingHttpResponse:
        await request.auser()
        return StreamingHttpResponse(Chunks())

    client = AsyncClient()
    client.cookies["sessionid"] = site.sessions[A]

    async def ask() -> list[bytes]:
        return [chunk async for chunk in await client.get("/")]

    with override_settings(ROOT_URLCONF=routes(view)):
        assert async_to_sync(ask)() == [b"chunk"] * 2
    assert users(events) == [A, A]


def test_file_that_the_server_sends_is_left_as_it_is(
    events: list[dict[str, Any]], site: Site
) -> None:
    given: list[Any] = []
    environ = RequestFactory().get("/file").environ
    environ["wsgi.file_wrapper"] = lambda file, size: given.append((file, size)) or [b""]
    WSGIHandler()(environ, lambda *_: None)
    [(file, _)] = given
    assert file.read().startswith(b'"""Each view')
    file.close()


# -- the handlers ----------------------------------------------------------------------------------


def test_both_handlers_call_the_middleware_as_it_is(
    events: list[dict[str, Any]], site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    threads: list[int] = []

    def user(_request: Any) -> None:
        threads.append(threading.get_ident())

    async def ask() -> None:
        await AsyncClient().get("/async/quiet")
        threads.append(threading.get_ident())

    own = "valued.integrations.django.ScopeMiddleware"
    with (
        caplog.at_level(logging.DEBUG, "django.request"),
        override_settings(
            DEBUG=True, MIDDLEWARE=[own], VALUED={"USER": user, "PAGE_VIEWS": lambda *_: True}
        ),
    ):
        asyncio.run(ask())
        Client().get("/sync/quiet")
    assert [text for text in caplog.messages if "adapted for middleware" in text] == []
    assert set(threads) == {threading.get_ident()}


# -- page views ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["sync/quiet", "async/quiet", "sync/page", "async/page"])
def test_page_view_is_recorded_once_without_query_for_whoever_is_known(
    path: str, events: list[dict[str, Any]], site: Site
) -> None:
    with override_settings(VALUED={"PAGE_VIEWS": True}):
        visit(path + "?token=secret", A, site=site)
        visit(path + "?token=secret")
    assert urls(events) == [f"http://testserver/{path}"]
    assert {who for who in users(events) if who} == {A}


def customer_of_user(request: Any) -> Any:
    return {"id": request.user.pk} if request.user.is_authenticated else None


@pytest.mark.parametrize("invalid", ["raise", "log"])
@pytest.mark.parametrize("path", ["sync/quiet", "async/quiet"])
@pytest.mark.parametrize("customer", [None, customer_of_user])
def test_page_view_under_an_async_server_has_its_user_and_is_no_mistake(
    customer: Any,
    path: str,
    invalid: Any,
    site: Site,
    sent: list[dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = valued.ImmediateExecutor()
    client = valued.connect(sent.append, executor=now, invalid=invalid, anonymous="drop")
    browser = AsyncClient()
    with override_settings(VALUED={"PAGE_VIEWS": True, "CUSTOMER": customer}):
        assert async_to_sync(browser.get)(f"/{path}").status_code == 200
        browser.cookies["sessionid"] = site.sessions[A]
        assert async_to_sync(browser.get)(f"/{path}").status_code == 200
    views = [event for event in sent if event["category"] == "pageview"]
    assert users(views) == [A]
    assert [event.get("customer") for event in views] == [None if customer is None else {"id": A}]
    assert (client.stats()["invalid"], caplog.messages) == (0, [])


@pytest.mark.parametrize("invalid", ["raise", "log"])
def test_function_is_called_once_for_the_page_view_of_an_async_request(
    invalid: Any, site: Site, sent: list[dict[str, Any]]
) -> None:
    calls: list[Any] = []

    def user(request: Any) -> Any:
        calls.append(request)
        return {"id": 7}

    valued.connect(sent.append, executor=valued.ImmediateExecutor(), invalid=invalid)
    with override_settings(VALUED={"PAGE_VIEWS": True, "USER": user}):
        async_to_sync(AsyncClient().get)("/sync/quiet")
    assert (users(sent), len(calls)) == ([7], 1)


def test_function_that_raises_costs_an_async_page_its_page_view_and_one_line(
    site: Site, sent: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    client = valued.connect(sent.append, executor=valued.ImmediateExecutor(), invalid="log")
    with override_settings(VALUED={"PAGE_VIEWS": True, "USER": lambda _request: 1 // 0}):
        assert visit("async/quiet", A, site=site).status_code == 200
    assert (sent, client.stats()["invalid"], len(caplog.messages)) == ([], 1, 1)


@pytest.mark.parametrize(
    "path",
    ["data", "failing", "file", "api", "no/such/page", "admin/login/", "admin/own", "staff/login/"],
)
def test_what_is_no_page_of_the_site_is_not_recorded(
    path: str, events: list[dict[str, Any]], site: Site
) -> None:
    with override_settings(VALUED={"PAGE_VIEWS": True}):
        visit(path, A, site=site)
    assert urls(events) == []


@pytest.mark.parametrize("name", ["STATIC_URL", "MEDIA_URL"])
def test_static_files_and_uploads_are_no_pages(
    name: str, events: list[dict[str, Any]], site: Site
) -> None:
    with override_settings(VALUED={"PAGE_VIEWS": True}, **{name: "/sync/"}):
        visit("sync/quiet", A, site=site)
        visit("set", A, site=site)
    assert urls(events) == ["http://testserver/set"]
    events.clear()
    routed = routes(lambda _request: HttpResponse())  # a site that has none, and no admin
    without = {"MEDIA_URL": "", "STATIC_URL": None, "ROOT_URLCONF": routed}
    with override_settings(VALUED={"PAGE_VIEWS": True}, **without):
        visit("", A, site=site)
    assert urls(events) == ["http://testserver/"]


def test_path_that_looks_like_another_host_or_a_query_stays_a_path(
    events: list[dict[str, Any]], site: Site
) -> None:
    with override_settings(VALUED={"PAGE_VIEWS": True, "USER": lambda _request: {"id": 1}}):
        answer = ScopeMiddleware(lambda _request: HttpResponse())
        for path in ("//elsewhere.example/a", "/a%3Fb=c"):
            request = RequestFactory().get("/")
            request.path = path.replace("%3F", "?")
            answer(request)
    assert urls(events) == ["http://testserver//elsewhere.example/a", "http://testserver/a%3Fb%3Dc"]


@pytest.mark.parametrize("path", ["sync/quiet", "async/quiet"])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [(True, ["http://testserver/{}"]), ("/as/named", ["/as/named"]), (False, []), (None, [])],
)
def test_function_decides_about_page_views_and_is_asked_for_pages_only(
    path: str, answer: Any, expected: list[str], events: list[dict[str, Any]], site: Site
) -> None:
    asked: list[str] = []

    def choose(request: Any, _response: Any) -> Any:
        asked.append(request.path)
        return answer

    with override_settings(VALUED={"PAGE_VIEWS": choose}):
        visit(path, A, site=site)
        for other in ("data", "failing", "file"):  # no HTML, an error, an attachment
            visit(other, A, site=site)
        Client().post(f"/{path}")
    assert urls(events) == [url.format(path) for url in expected]
    assert asked == [f"/{path}"]


def test_a_response_that_is_gone_has_nothing_to_close(site: Site) -> None:
    def stream(_request: Any) -> StreamingHttpResponse:
        return StreamingHttpResponse(iter([b"a"]))

    response = ScopeMiddleware(stream)(RequestFactory().get("/"))
    close = response.close
    del response
    gc.collect()
    close()


@pytest.mark.parametrize("path", ["sync/quiet", "async/quiet"])
@pytest.mark.parametrize("result", ["raises", "number"])
def test_function_that_fails_breaks_no_page(
    path: str,
    result: str,
    events: list[dict[str, Any]],
    site: Site,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def choose(_request: Any, _response: Any) -> Any:
        if result == "raises":
            raise LookupError("secret")
        return 1

    with override_settings(VALUED={"PAGE_VIEWS": choose}):
        assert visit(path, A, site=site).status_code == 200
    kind = "LookupError" if result == "raises" else "TypeError"
    said = [text for name, _, text in caplog.record_tuples if name == "valued"]
    assert said == [f"a page view was not recorded: {kind} was raised"]
    assert events == []


@pytest.mark.parametrize("path", ["sync/quiet", "async/quiet"])
@pytest.mark.parametrize("where", ["page", "function"])
def test_page_view_that_would_go_to_the_real_service_fails_the_test(
    path: str, where: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(_request: Any, _response: Any) -> None:
        valued.action("a", {"user.id": 1})

    monkeypatch.setattr(recording, "blocked", True)
    valued.connect("any", "http://192.0.2.1/e")
    page_views: Any = True if where == "page" else choose
    own = "valued.integrations.django.ScopeMiddleware"
    client = AsyncClient() if path.startswith("async") else Client()
    given = {"PAGE_VIEWS": page_views, "USER": f"{__name__}.who"}
    get = async_to_sync(client.get) if isinstance(client, AsyncClient) else client.get
    with (
        override_settings(MIDDLEWARE=[own], VALUED=given),
        pytest.raises(valued.testing.RealEndpointError),
    ):
        get("/" + path)


@pytest.mark.parametrize("path", ["sync/quiet", "async/quiet"])
def test_function_of_page_views_may_ask_who_the_user_is(
    path: str, events: list[dict[str, Any]], site: Site
) -> None:
    with override_settings(
        VALUED={"PAGE_VIEWS": lambda request, _response: request.user.is_authenticated}
    ):
        visit(path, A, site=site)
        visit(path)
    assert urls(events) == [f"http://testserver/{path}"]


def test_page_view_of_an_async_request_loads_no_user_where_the_view_named_one(
    events: list[dict[str, Any]], site: Site
) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    client = AsyncClient()
    client.cookies["sessionid"] = site.sessions[A]
    with (
        override_settings(VALUED={"PAGE_VIEWS": True}),
        CaptureQueriesContext(connection) as queries,
    ):
        async_to_sync(client.get)("/set")
    assert (users(events), len(queries)) == (["given", "given"], 0)


def test_page_view_of_an_async_request_without_authentication_is_skipped(
    events: list[dict[str, Any]], site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    from django.core.exceptions import SynchronousOnlyOperation

    def user(_request: Any) -> None:
        raise SynchronousOnlyOperation

    own = "valued.integrations.django.ScopeMiddleware"
    with override_settings(MIDDLEWARE=[own], VALUED={"PAGE_VIEWS": True, "USER": user}):
        assert visit("async/quiet").status_code == 200
    assert events == []
    said = [text for name, _, text in caplog.record_tuples if name == "valued"]
    [line] = said
    assert line.startswith("a page view was not recorded: user: request.user isn't loaded")


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("token", "VALUED: expected a mapping, such as {'TOKEN': '…'}, got str"),
        ({"MAX_QUEU": 5}, "VALUED: MAX_QUEU: no such setting; did you mean MAX_QUEUE?"),
        ({"PAGE_VIEW": True}, "VALUED: PAGE_VIEW: no such setting; did you mean PAGE_VIEWS?"),
        ({"token": "a"}, "VALUED: token: no such setting; did you mean TOKEN?"),
        ({"Q": 1}, "VALUED: Q: no such setting; there are TOKEN, ENDPOINT, ENABLED, USER, "),
        ({"ENABLED": "no"}, "VALUED: ENABLED: expected True or False, got str"),
        ({"FLUSH_ON_SIGNALS": 1}, "VALUED: FLUSH_ON_SIGNALS: expected True or False, got int"),
        ({"USER": 1}, "VALUED: USER: expected a function or its dotted path, got int"),
        ({"USER": "no_such.module"}, "VALUED: USER: No module named 'no_such'"),
        ({"USER": asyncio.sleep}, "VALUED: USER: expected a function without async, since "),
    ],
)
def test_mistake_in_the_settings_is_named_when_the_middleware_is_made(
    given: Any, problem: str, site: Site
) -> None:
    with override_settings(VALUED=given), pytest.raises(valued.ValidationError) as error:
        ScopeMiddleware(lambda _request: None)
    assert str(error.value).startswith(problem)


SECRET = "t0ken-that-nobody-may-see"


def frames_of(error: BaseException) -> Iterator[tuple[str, object]]:
    """What the frames of ours hold that *error*, and all that it leads to, came through."""
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None:
            waiting += (one.__cause__, one.__context__)
            for frame, _ in traceback.walk_tb(one.__traceback__):
                if "/tests/" not in frame.f_code.co_filename:
                    yield from frame.f_locals.items()


@pytest.mark.parametrize(
    "given",
    [
        SECRET,
        [SECRET],
        {"TOKEN": SECRET, "TIMEOUTT": 3},
        {"TOKEN": SECRET, "ENABLED": "yes"},
        {"TOKEN": SECRET, "TIMEOUT": -1},
        {"TOKEN": SECRET, "INVALID": "LOG"},
        {"TOKEN": SECRET, "BEFORE_SEND": "os.path.join"},
        {"TOKEN": SECRET, "DEFAULTS": {"user.id": float("nan")}},
        {"TOKEN": SECRET, "ENDPOINT": "ftp://127.0.0.1/"},
        {"TOKEN": SECRET + "\n"},
        {"TOKEN": SECRET.encode()},
        {"TOKEN": "https://ingest.valued.app/events", "ENDPOINT": SECRET},
        {"TOKEN": "any", "ENDPOINT": f"https://{SECRET}@127.0.0.1/"},
        {"API_KEY": SECRET},
        {"token": SECRET},
        {"KEYS": {"any": [SECRET]}},
    ],
)
def test_no_frame_shows_the_token_where_the_settings_are_wrong(
    given: Any, ready: Callable[..., list[str]]
) -> None:
    from django.apps import apps

    with override_settings(VALUED=given), pytest.raises(valued.ValidationError) as caught:
        apps.get_app_config("valued").ready()
    assert str(caught.value).startswith("VALUED: ")
    assert SECRET not in str(caught.value)
    shown = [name for name, value in frames_of(caught.value) if SECRET in repr(value)]
    assert shown == []


def who(_request: Any) -> dict[str, object]:
    return {"id": "by path"}


def page_of(_request: Any, _response: Any) -> str:
    return "/by/path"


def test_functions_may_be_given_by_their_path(events: list[dict[str, Any]], site: Site) -> None:
    valued_settings = {
        "USER": f"{__name__}.who",
        "CUSTOMER": f"{__name__}.who",
        "PAGE_VIEWS": f"{__name__}.page_of",
    }
    with override_settings(VALUED=valued_settings):
        visit("sync/quiet")
    assert (users(events), urls(events)) == (["by path"], ["/by/path"])
    assert events[0]["customer"] == {"id": "by path"}


@pytest.fixture
def ready(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Start the application with settings; returns what Django's check says."""
    from django.apps import apps

    from valued.integrations.django import _connecting
    from valued.integrations.django.apps import check

    monkeypatch.setattr(_connecting._Made, "client", None)
    monkeypatch.setattr(_connecting._Made, "lacks_token", False)
    monkeypatch.setattr(_connecting._Made, "has_warned", False)
    valued.disconnect(0)

    def ready(**given: Any) -> list[str]:
        with override_settings(VALUED=given):
            apps.get_app_config("valued").ready()
            return [f"{found.id} {found.msg}" for found in check()]

    return ready


NOTHING_IS_SENT = "valued.W001 Nothing is sent to Valued: there is no token."


def test_without_a_token_events_are_checked_and_dropped_and_it_is_said(
    ready: Callable[..., list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    assert ready(TOKEN="") == [NOTHING_IS_SENT]
    for _ in range(2):
        visit("sync/quiet")
    said = [text for name, _, text in caplog.record_tuples if name == "valued"]
    [text] = said
    assert text.startswith("nothing is sent: there is no token; set VALUED_TOKEN, or VALUED = ")
    valued.action("a", {"user.id": 1})
    with pytest.raises(valued.ValidationError):
        valued.action("a", {})
    assert ready(ENABLED=True) == [NOTHING_IS_SENT]  # once more, as tests do that change settings


@pytest.mark.parametrize(
    "middleware", [[], ["django.middleware.common.CommonMiddleware", "no.such.Middleware"]]
)
def test_a_middleware_that_is_missing_is_a_warning_of_the_check(
    middleware: list[str], ready: Callable[..., list[str]]
) -> None:
    with override_settings(MIDDLEWARE=middleware):
        [found] = ready(ENABLED=False)
    assert found.startswith("valued.W003 Valued's ScopeMiddleware is not in MIDDLEWARE")


def test_an_application_that_is_missing_is_said_by_the_middleware(
    ready: Callable[..., list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    from django.conf import settings

    ready(ENABLED=False)
    valued.disconnect()
    names = [name for name in settings.INSTALLED_APPS if "valued" not in name]
    with override_settings(INSTALLED_APPS=names):
        ScopeMiddleware(lambda _request: HttpResponse())(RequestFactory().get("/"))
    assert caplog.messages == [
        "nothing is connected: add 'valued.integrations.django' to INSTALLED_APPS"
    ]


def test_enabled_false_sends_nothing_and_says_nothing(
    ready: Callable[..., list[str]], caplog: pytest.LogCaptureFixture, server: Any
) -> None:
    assert ready(ENABLED=False, TOKEN="any", ENDPOINT=server.url, MAX_QUEUE=7) == []
    visit("sync/quiet")
    valued.action("a", {"user.id": 1})
    assert valued.flush(10)
    assert (server.events, caplog.messages) == ([], [])


def test_client_is_connected_with_the_options(
    ready: Callable[..., list[str]], server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_TOKEN", "of-the-environment")
    assert ready(ENDPOINT=server.url, DEFAULTS={"attributes.plan": "pro"}) == []
    valued.action("a", {"user.id": 1})
    [event] = server.wait_for(1)
    assert event["attributes"] == {"plan": "pro"}
    with pytest.raises(valued.ValidationError, match="VALUED: max_queue: expected a whole number"):
        ready(MAX_QUEUE="many")
    with pytest.raises(valued.ValidationError, match=r"^VALUED: defaults: user\.id: JSON has no"):
        ready(DEFAULTS={"user.id": float("nan")})


def test_a_variable_that_says_neither_is_named_whether_there_is_a_token(
    ready: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_DISABLED", "maybe")
    for given in ({}, {"TOKEN": "any"}):
        with pytest.raises(valued.ValidationError, match="VALUED_DISABLED: expected 1 or 0"):
            ready(**given)
    assert ready(ENABLED=False) == []  # nobody asks for it then
    for said, expected in (("1", []), ("0", [NOTHING_IS_SENT]), ("", [NOTHING_IS_SENT])):
        monkeypatch.setenv("VALUED_DISABLED", said)
        assert ready() == expected


def test_client_of_the_application_stays_unless_there_is_a_token(
    ready: Callable[..., list[str]], recorder: valued.Client, server: Any
) -> None:
    valued.connect(recorder)
    assert ready() == []
    assert valued.client() is recorder
    assert ready(MAX_QUEUE=5, ENDPOINT=server.url) == [
        (
            "valued.W002 VALUED: ENDPOINT, MAX_QUEUE: no effect, since valued.connect was called "
            "before."
        )
    ]
    assert valued.client() is recorder
    assert ready(TOKEN="any", ENDPOINT=server.url) == []
    assert valued.client() is not recorder


def test_without_a_token_no_outbox_of_others_is_emptied(
    ready: Callable[..., list[str]], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_OUTBOX", str(tmp_path / "outbox"))
    ready(OUTBOX=str(tmp_path / "outbox"))
    valued.action("a", {"user.id": 1})
    assert valued.flush(10)
    assert not (tmp_path / "outbox").exists()
    assert os.environ["VALUED_OUTBOX"] == str(tmp_path / "outbox")


def test_function_that_is_missing_is_an_error_of_the_check(
    ready: Callable[..., list[str]],
) -> None:
    assert ready(ENABLED=False, CUSTOMER="no_such.function") == [
        "valued.E001 VALUED: CUSTOMER: No module named 'no_such'"
    ]


def test_signals_are_left_alone_on_another_thread(
    ready: Callable[..., list[str]],
    in_thread: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[bool] = []
    monkeypatch.setattr(valued, "flush_on_signals", lambda: called.append(True))
    in_thread(ready, ENABLED=False, FLUSH_ON_SIGNALS=True).result(10)
    assert called == []
    ready(ENABLED=False, FLUSH_ON_SIGNALS=True)
    assert called == [True]


def test_a_stream_that_is_left_at_the_end_of_the_interpreter_prints_nothing() -> None:
    program = """
import sys
import types

kept = sys.modules["kept"] = types.ModuleType("kept")

import django
from django.conf import settings

settings.configure(INSTALLED_APPS=["valued.integrations.django"])
django.setup()

import valued
from django.http import StreamingHttpResponse
from django.test import RequestFactory
from valued.integrations.django import ScopeMiddleware, _middleware

valued.connect(lambda event: None)

def chunks():
    yield b"chunk"
    yield b"chunk"

middleware = ScopeMiddleware(lambda request: StreamingHttpResponse(chunks()))
kept.chunks = middleware(RequestFactory().get("/")).streaming_content
assert next(iter(kept.chunks)) == b"chunk"
# Modules that something refers to are emptied one after the other, later ones first.
sys.referred = [kept, _middleware]
"""
    done = run("-c", program)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr

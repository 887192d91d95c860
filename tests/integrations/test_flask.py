"""The Flask integration: whose events these are, which pages are views, and Gunicorn itself."""

from __future__ import annotations

import asyncio
import collections
import http.client
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.support.gunicorn import WORKERS, Gunicorn
from tests.support.programs import BOUND
from tests.support.server import Server

flask = pytest.importorskip("flask")

from valued.integrations import flask as valued_flask  # noqa: E402
from valued.integrations import wsgi  # noqa: E402

HTML = "<p>A page</p>"


@pytest.fixture(autouse=True)
def _connected(recorder: valued.Client) -> Iterator[None]:
    valued.connect(recorder)
    yield
    assert valued.scope.to_dict() == {}


@pytest.fixture
def asked() -> list[str]:
    """The paths for which `signed_in` was called."""
    return []


@pytest.fixture
def signed_in(asked: list[str]) -> Callable[[], Any]:
    """The user of the header X-User-Id, as an application knows it: by its request."""

    def signed_in() -> dict[str, Any] | None:
        asked.append(flask.request.path)
        user = flask.request.headers.get("X-User-Id")
        return None if user is None else {"id": user}

    return signed_in


def record(expected: object) -> None:
    valued.action("recorded", {"customer.id": 1}, attributes={"expected": expected})


def who() -> str | None:
    user: str | None = flask.request.headers.get("X-User-Id")
    return user


def made(**options: Any) -> Any:
    """An application as its factory makes it."""
    app = flask.Flask(__name__, **options)

    @app.get("/page")
    def page() -> str:
        return HTML

    @app.get("/loud")
    def loud() -> Any:
        record(who())
        record(who())
        return {}

    def chunks(user: str | None) -> Iterator[str]:
        yield "read by the test client at once"
        for chunk in "abc":
            record(user)
            yield chunk

    @app.get("/stream")
    def stream() -> Any:
        return flask.Response(chunks(who()))

    @app.get("/held")
    def held() -> Any:
        return flask.Response(flask.stream_with_context(chunks(who())))

    return app


@pytest.fixture
def app(signed_in: Any) -> Any:
    """An application whose requests have the user of their header."""
    app = made()
    valued_flask.init_app(app, signed_in)
    return app


@pytest.fixture
def viewed(signed_in: Any) -> Any:
    """The same, with page views."""
    app = made()
    valued_flask.init_app(app, signed_in, page_views=True)
    return app


def get(app: Any, path: str, user: str | None = "7", **options: Any) -> Any:
    headers = {} if user is None else {"X-User-Id": user}
    return app.test_client().get(path, headers=headers, **options)


def users(sent: list[dict[str, Any]]) -> list[object]:
    """Whose the actions are; each must be of the user that it names."""
    actions = [event for event in sent if event["category"] == "action"]
    found = [event.get("user", {}).get("id") for event in actions]
    assert found == [event["attributes"]["expected"] for event in actions]
    return found


def views(sent: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    return [
        (event["attributes"]["source"]["url"], event["user"]["id"])
        for event in sent
        if event["category"] == "pageview"
    ]


# -- the user --------------------------------------------------------------------------------------


def test_each_request_has_its_own_user(sent: list[Any], app: Any) -> None:
    for user in ("1", None, "2"):
        assert get(app, "/loud", user).status_code == 200
    assert users(sent) == ["1", "1", None, None, "2", "2"]


def test_a_view_that_records_nothing_asks_for_no_user(app: Any, asked: list[str]) -> None:
    get(app, "/page")
    assert asked == []
    get(app, "/loud")
    assert asked == ["/loud"]


def test_without_a_function_the_user_is_what_the_view_sets(sent: list[Any]) -> None:
    app = made()
    valued_flask.init_app(app)

    @app.before_request
    def sign_in() -> None:
        if who() is not None:
            valued.scope.user_id = who()

    for user in ("1", None):
        get(app, "/loud", user)
    assert users(sent) == ["1", "1", None, None]


def test_a_login_in_the_view_is_seen(sent: list[Any]) -> None:
    app = flask.Flask(__name__)
    app.secret_key = "a secret"

    def signed_in() -> dict[str, Any] | None:
        user = flask.session.get("user")
        return None if user is None else {"id": user}

    valued_flask.init_app(app, user=signed_in)

    @app.post("/login")
    def login() -> str:
        record(None)
        flask.session["user"] = 7
        record(7)
        return ""

    @app.get("/stream")
    def stream() -> Any:
        def chunks() -> Iterator[str]:
            record(7)  # by the session's cookie, though Flask's context is gone
            yield "a"

        return flask.Response(chunks())

    client = app.test_client()
    client.post("/login")
    client.get("/stream")
    assert users(sent) == [None, 7, 7]


def test_to_ask_for_a_user_amid_a_stream_ends_no_request_once_more(
    sent: list[Any], app: Any
) -> None:
    ended: list[str] = []
    app.teardown_request(lambda _error: ended.append("request"))
    app.teardown_appcontext(lambda _error: ended.append("context"))
    answer = get(app, "/stream", "1", buffered=False)
    before = list(ended)
    list(answer.response)
    assert users(sent) == ["1"] * 3
    assert ended == before
    answer.close()


def test_a_stream_with_context_that_is_closed_early_leaves_no_context(
    sent: list[Any], app: Any
) -> None:
    answer = get(app, "/held", "1", buffered=False)
    assert len(list(zip(answer.response, range(2), strict=False))) == 2
    answer.close()
    assert not flask.has_request_context()
    assert set(users(sent)) == {"1"}


def test_a_user_may_be_an_object_with_a_converter(sent: list[Any]) -> None:
    class User:
        def to_valued_data(self) -> dict[str, Any]:
            return {"id": "7"}

    app = made()
    valued_flask.init_app(app, User)
    get(app, "/loud")
    assert users(sent) == ["7", "7"]


@pytest.mark.parametrize("path", ["/stream", "/held"])
def test_interleaved_streams_have_each_their_own_user(
    path: str, sent: list[Any], app: Any, asked: list[str]
) -> None:
    answers = [get(app, path, user, buffered=False) for user in ("1", None, "2")]
    bodies = [iter(answer.response) for answer in answers]
    # Flask can't leave contexts in another order than it entered them, so those end one by one.
    steps = zip(*bodies, strict=True) if path == "/stream" else map(list, reversed(bodies))
    for _ in steps:
        pass
    for answer in answers:
        answer.close()
    assert sorted(users(sent), key=str) == ["1"] * 3 + ["2"] * 3 + [None] * 3
    assert not flask.has_request_context()


def test_a_stream_that_is_read_within_another_request_keeps_its_user(
    sent: list[Any], app: Any
) -> None:
    @app.get("/other")
    def other() -> str:
        # The server of this request reads another one's body on this thread.
        list(answer.response)
        record(who())
        return ""

    answer = get(app, "/stream", "1", buffered=False)
    first = get(app, "/other", "2")
    answer.close()
    assert first.status_code == 200
    assert users(sent) == ["1"] * 3 + ["2"]


def test_a_stream_that_is_read_within_an_application_context_keeps_its_user(
    sent: list[Any], app: Any
) -> None:
    answer = get(app, "/stream", "1", buffered=False)
    with app.app_context():
        list(answer.response)
    answer.close()
    assert users(sent) == ["1"] * 3


def test_a_thread_that_outlives_its_request_asks_for_that_ones_user(
    sent: list[Any], app: Any
) -> None:
    units: list[Any] = []

    @app.get("/later")
    def later() -> str:
        units.append(flask.request.environ[wsgi.UNIT])
        return ""

    get(app, "/later", "1").close()
    with app.test_request_context("/", headers={"X-User-Id": "2"}), units[0].entered():
        record("1")
    assert users(sent) == ["1"]


def test_an_async_view_has_its_own_user(sent: list[Any], app: Any) -> None:
    pytest.importorskip("asgiref")

    @app.get("/async")
    async def view() -> str:
        await asyncio.sleep(0)
        record(who())
        return ""

    for user in ("1", None, "2"):
        assert get(app, "/async", user).status_code == 200
    assert users(sent) == ["1", None, "2"]


def test_a_copy_of_the_environ_is_the_same_request(sent: list[Any], signed_in: Any) -> None:
    app = made()
    inner = app.wsgi_app

    def copying(environ: Any, start_response: Any) -> Any:
        return inner({**environ, "HTTP_X_USER_ID": "signed in below"}, start_response)

    app.wsgi_app = copying
    valued_flask.init_app(app, signed_in)
    get(app, "/loud", "1")
    assert users(sent) == ["signed in below"] * 2


def test_an_application_within_another_one_has_users_of_its_own(sent: list[Any]) -> None:
    outer, inner = flask.Flask("outer"), made()
    valued_flask.init_app(outer, lambda: {"id": flask.current_app.name})
    valued_flask.init_app(inner, lambda: {"id": flask.current_app.name})

    @outer.get("/<path:path>")
    def mounted(path: str) -> Any:
        return flask.Response.from_app(inner, flask.request.environ)

    @outer.after_request
    def after(response: Any) -> Any:
        record("outer")
        return response

    get(outer, "/loud", inner.name)
    assert users(sent) == [inner.name, inner.name, "outer"]


def test_what_user_raises_the_event_raises_and_the_page_of_the_error_is_no_view(
    sent: list[Any],
) -> None:
    app = made()

    def signed_in() -> None:
        raise LookupError("no session")

    valued_flask.init_app(app, signed_in, page_views=True)
    assert get(app, "/loud").status_code == 500
    app.testing = True
    with pytest.raises(LookupError, match="no session"):
        get(app, "/loud")
    assert sent == []


def test_a_file_is_sent_by_the_servers_wrapper() -> None:
    class Wrapper(list[Any]):
        def __init__(self, file: Any, size: int = 0) -> None:
            file.close()

    app = made()
    valued_flask.init_app(app)
    app.add_url_rule("/file", "file", lambda: flask.send_file(__file__))
    environ = app.test_request_context("/file").request.environ
    for wrapper in (Wrapper, lambda file, size=0: Wrapper(file, size)):
        environ["wsgi.file_wrapper"] = wrapper
        assert type(app(environ, lambda *_: None)) is Wrapper


# -- page views ------------------------------------------------------------------------------------


def test_a_page_view_is_recorded_if_asked_for_without_the_query_string_for_a_known_visitor(
    sent: list[Any], app: Any, viewed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert get(viewed, "/page", None).text == HTML
    assert get(app, "/page").text == HTML
    assert (sent, caplog.records) == ([], [])
    assert get(viewed, "/page?token=secret").text == HTML
    assert views(sent) == [("http://localhost/page", "7")]


def test_nothing_but_pages_is_viewed(sent: list[Any], viewed: Any, asked: list[str]) -> None:
    viewed.add_url_rule("/missing", "missing", lambda: (HTML, 404))
    viewed.add_url_rule("/json", "json", dict)
    viewed.add_url_rule("/moved", "moved", lambda: flask.redirect("/page"))
    viewed.add_url_rule("/untyped", "untyped", _untyped)
    viewed.add_url_rule("/fails", "fails", lambda: 1 / 0)
    client = viewed.test_client()
    for path in ("/missing", "/json", "/moved", "/untyped", "/fails", "/nowhere"):
        client.get(path, headers={"X-User-Id": "7"})
    client.head("/page", headers={"X-User-Id": "7"})
    client.post("/page", headers={"X-User-Id": "7"})
    assert (sent, asked) == ([], [])


def _untyped() -> Any:
    answer = flask.Response("text")
    del answer.headers["Content-Type"]
    return answer


@pytest.mark.parametrize(
    ("static_url_path", "path"), [(None, "/static/"), ("/files", "/files/"), ("", "/")]
)
def test_static_files_are_no_pages(
    static_url_path: str | None, path: str, tmp_path: Path, sent: list[Any], signed_in: Any
) -> None:
    for folder in ("static", "own"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file.html").write_text(HTML)
    app = made(static_url_path=static_url_path, static_folder=tmp_path / "static")
    parent = flask.Blueprint("parent", "parent", url_prefix="/parent")
    child = flask.Blueprint(
        "child", "child", static_folder=tmp_path / "own", static_url_path="/own"
    )
    parent.register_blueprint(child, url_prefix="/child")
    # A view of that name, in a blueprint without a folder, is a view.
    parent.add_url_rule("/page", "static", lambda: HTML)
    app.register_blueprint(parent)
    # Nor does a dot in a name make it one of a blueprint's.
    app.add_url_rule("/dotted", "dotted.static", lambda: HTML)
    valued_flask.init_app(app, signed_in, page_views=True)
    for file in (f"{path}file.html", "/parent/child/own/file.html"):
        with get(app, file) as answer:
            assert (answer.status_code, answer.mimetype) == (200, "text/html")
    assert sent == []
    pages = ("/page", "/parent/page", "/dotted")
    for page in pages:
        get(app, page)
    assert views(sent) == [(f"http://localhost{page}", "7") for page in pages]


def test_what_another_view_serves_below_the_static_path_is_no_page(
    sent: list[Any], signed_in: Any
) -> None:
    app = flask.Flask(__name__, static_folder=None, static_url_path="/static")
    app.add_url_rule("/static/<name>", "files", lambda name: HTML)
    app.add_url_rule("/statics", "statics", lambda: HTML)
    valued_flask.init_app(app, signed_in, page_views=True)
    get(app, "/static/file")
    get(app, "/statics")
    assert views(sent) == [("http://localhost/statics", "7")]


def test_a_function_says_which_pages_are_viewed_and_by_which_url(
    sent: list[Any], signed_in: Any
) -> None:
    def choose(request: Any, response: Any) -> Any:
        assert response.get_data(as_text=True) == HTML  # it is asked about pages only
        return {"skip": False, "none": None, "usual": True, "url": request.url}[request.args["as"]]

    app = made()
    valued_flask.init_app(app, signed_in, page_views=choose)
    for kind in ("skip", "none", "usual", "url"):
        get(app, f"/page?as={kind}")
    get(app, "/loud?as=url")
    assert views(sent) == [
        ("http://localhost/page", "7"), ("http://localhost/page?as=url", "7"),
    ]  # fmt: skip


@pytest.mark.parametrize("broken", ["user", "value", "page_views", "result"])
def test_what_a_function_raises_in_a_page_view_is_logged_and_the_page_served(
    broken: str, sent: list[Any], signed_in: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise LookupError("a secret")

    app = made()
    user: Any = {"user": fail, "value": lambda: {"id": 1, "plan": b"secret"}}.get(broken, signed_in)
    page_views: Any = {"page_views": fail, "result": lambda *_: 5}.get(broken, True)
    valued_flask.init_app(app, user, page_views=page_views)
    assert get(app, "/page").text == HTML
    assert sent == []
    reasons = {"result": "url: expected a string", "value": "user.plan: "}
    reason = reasons.get(broken, "LookupError was raised")
    [record] = caplog.records
    assert "secret" not in caplog.text
    assert (record.name, record.levelno) == ("valued", logging.WARNING)
    assert record.getMessage().startswith(f"a page view was not recorded: {reason}")


def test_an_answer_that_is_changed_or_fails_after_the_view_counts_as_it_is_sent(
    sent: list[Any], signed_in: Any
) -> None:
    app = made()

    @app.after_request
    def before(response: Any) -> Any:
        return change(response)

    valued_flask.init_app(app, signed_in, page_views=True)

    @app.after_request
    def after(response: Any) -> Any:
        return change(response)

    def change(response: Any) -> Any:
        if flask.request.args["how"] == "fails" and response.status_code == 200:
            raise RuntimeError("on purpose")
        response.status_code = 500
        return response

    for how in ("fails", "changes"):
        assert get(app, f"/page?how={how}").status_code == 500
    app.after_request_funcs[None].remove(after)
    for how in ("fails", "changes"):
        assert get(app, f"/page?how={how}").status_code == 500
    assert sent == []


def test_where_nothing_is_connected_pages_are_served(
    viewed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    valued.disconnect(0)
    assert get(viewed, "/page").text == HTML
    assert caplog.records == []
    valued.connect(lambda event: None)


# -- setting it up ---------------------------------------------------------------------------------


def test_two_applications_of_a_factory_have_each_their_own(sent: list[Any]) -> None:
    apps = [made(), made()]
    for number, app in enumerate(apps):
        valued_flask.init_app(app, user=lambda number=number: {"id": str(number)})
    get(apps[0], "/loud", "0")
    get(apps[1], "/loud", "1")
    assert users(sent) == ["0", "0", "1", "1"]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("app",), {}, "init_app: expected a Flask application, got str"),
        ((flask.Flask("a"), {"id": 1}), {}, "user: expected a function without arguments, got d"),
        ((flask.Flask("a"),), {"page_views": "/"}, "page_views: expected True, False or a func"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(
    arguments: Any, options: Any, message: str
) -> None:
    with pytest.raises(valued.ValidationError, match=message):
        valued_flask.init_app(*arguments, **options)


def test_a_second_call_for_an_application_is_refused_and_changes_nothing(
    sent: list[Any], app: Any
) -> None:
    with pytest.raises(valued.ValidationError, match="call it once for each"):
        valued_flask.init_app(app, page_views=True)
    get(app, "/page")
    get(app, "/loud", "1")
    assert users(sent) == ["1", "1"]
    assert views(sent) == []


# -- Gunicorn --------------------------------------------------------------------------------------

#: At least.
REQUESTS = 200
RECYCLED_AFTER = 40
USERS = [None, *map(str, range(1, 11))]
#: How many actions a request of each kind records, and whether it is a page.
KINDS = {
    "plain": (1, True), "stream": (3, True), "held": (3, True), "file": (1, False),
    "memory": (1, False), "fails": (1, False), "silent": (0, False),
}  # fmt: skip


class Visits:
    """Requests of several threads, each on a connection of its own and by its own user."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._numbers = iter(range(20 * REQUESTS))
        self._lock = threading.Lock()
        self._processes: set[int] = set()
        self.asked: dict[str, tuple[str, str | None]] = {}
        self.unanswered: set[str] = set()
        self.refused: list[tuple[str, int]] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(6)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while True:
            with self._lock:
                number = next(self._numbers)
            # A worker of gevent's is recycled up to a second late.
            if number >= REQUESTS and len(self._processes) > WORKERS:
                return
            self._ask(str(number), list(KINDS)[number % len(KINDS)], USERS[number % len(USERS)])

    def _ask(self, name: str, kind: str, user: str | None) -> None:
        self.asked[name] = kind, user
        headers = {"X-Request-Id": name} | ({} if user is None else {"X-User-Id": user})
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=BOUND)
        try:
            connection.request("GET", f"/{kind}", headers=headers)
            answer = connection.getresponse()
            answer.read()
            with self._lock:
                self._processes.add(int(answer.headers["X-Pid"]))
            if answer.status != (500 if kind == "fails" else 200):
                self.refused.append((name, answer.status))
        except (ConnectionError, http.client.HTTPException):  # its worker was leaving
            self.unanswered.add(name)
        finally:
            connection.close()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(BOUND)
            assert not thread.is_alive()

    def expected(self) -> Iterator[tuple[str, str, int]]:
        for name, (kind, user) in self.asked.items():
            actions, is_page = KINDS[kind]
            yield from ((name, kind, chunk) for chunk in range(actions))
            if is_page and user is not None:
                yield name, "page view", 0


def _identity(event: dict[str, Any]) -> tuple[str, str, int]:
    attributes = event["attributes"]
    return attributes["id"], event.get("key", "page view"), attributes.get("chunk", 0)


@pytest.mark.parametrize("worker", ["sync", "gthread", "gevent"])
def test_under_gunicorn_each_event_is_there_once_and_of_its_own_requests_user(
    worker: str, server: Server, tmp_path: Path
) -> None:
    pytest.importorskip("gunicorn")
    if worker == "gevent":
        pytest.importorskip("gevent")
    booted = tmp_path / "booted"
    booted.mkdir()
    gunicorn = Gunicorn(
        *(tmp_path, "tests.programs.flask_scopes:app", "--worker-class", worker),
        *("--max-requests", str(RECYCLED_AFTER), "--max-requests-jitter", "10"),
        *(("--threads", "4") if worker == "gthread" else ()),
        python=("-W", "ignore:Monkey-patching ssl"),
        BOOTED=str(booted),
        VALUED_TOKEN="test-token",
        VALUED_ENDPOINT=server.url,
    )
    try:
        visits = Visits(gunicorn.port)
        visits.join()
        # A worker that is forked as SIGTERM comes may not hear of it; it is killed after 30 s.
        gunicorn.wait_until(
            lambda: all(
                (booted / str(pid)).exists() and not gunicorn.is_leaving(pid)
                for pid in gunicorn.workers()
            )
        )
        gunicorn.stop()  # with what the workers have not sent yet
    finally:
        gunicorn.kill()
        print(gunicorn.said())
    events = server.events
    # Under another user, or under one where there was none.
    users = [(event.get("user", {}).get("id"), event["attributes"]["expected"]) for event in events]
    assert [pair for pair in users if pair[0] != (pair[1] if pair[1] != "nobody" else None)] == []
    for event in events:
        attributes = event["attributes"]
        assert attributes["expected"] == (visits.asked[attributes["id"]][1] or "nobody")
        assert attributes.get("given", attributes["expected"]) == attributes["expected"]
    arrived = collections.Counter(map(_identity, events))
    expected = set(visits.expected())
    maybe = {event for event in expected if event[0] in visits.unanswered}
    assert [event for event, times in arrived.items() if times > 1] == []  # twice
    assert expected - maybe - arrived.keys() == set()  # lost
    assert arrived.keys() - expected == set()  # of nobody's request
    assert visits.refused == []
    assert len(visits.unanswered) < len(visits.asked) / 20
    assert len({event["attributes"]["pid"] for event in events}) > WORKERS  # some were recycled
    assert {user for user, _ in users} == set(USERS)
    gunicorn.assert_said_nothing()

"""A site whose every call is wrong, under real servers: visitors see nothing of it."""

from __future__ import annotations

import http.client
import json
import re
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.programs.wrong_site.calls import FIGURES, SECRET, WRONG, before_send
from tests.support.gunicorn import Gunicorn
from tests.support.programs import BOUND
from tests.support.server import Reply, Server
from tests.support.uvicorn import ASGIServer

MODULE = "tests.programs.wrong_site"

#: Where each site is served, and how it is told what to do: by what is in its own file, or so.
VARIABLES = {"VALUED_INVALID": "log", "VALUED_ANONYMOUS": "drop"}
SITES: dict[str, tuple[str, str, dict[str, str]]] = {
    "flask": ("flask", f"{MODULE}.in_flask:app", VARIABLES),
    "fastapi": ("fastapi", f"{MODULE}.in_fastapi:app", {}),
    "django": ("django", f"{MODULE}.in_django:wsgi", {}),
    "django, async": ("django", f"{MODULE}.in_django:asgi", {}),
}

#: What functions of the site's may return for a user.
WHO = ("raises", "can not be shown", "object", "dataclass", "text", "nan")

#: And of a page that somebody known looks at.
PAGE_VIEWS = ("raises", "can not be shown", "object", "text", "number")

PAGE, OPENED = "<p>A page</p>", "page.opened"

#: Each request is made so often. What is said once a minute, is said once.
TIMES = 2


class Site:
    """A server, and one visitor on a connection that is kept."""

    def __init__(self, folder: Path, app: str, **environment: str) -> None:
        self._server: Gunicorn | ASGIServer
        if app.rpartition(":")[2] == "asgi" or "fastapi" in app:
            self._server = ASGIServer(folder, "uvicorn", app, "--lifespan", "auto", **environment)
        else:
            self._server = Gunicorn(folder, app, "--workers", "1", **environment)
        self._connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=BOUND)

    def get(self, path: str, **headers: str) -> str:
        """The body of an answer, which must be a good one."""
        named = {f"X-{name.replace('_', '-')}": value for name, value in headers.items()}
        self._connection.request("GET", urllib.parse.quote(path), headers=named)
        answer = self._connection.getresponse()
        body = answer.read().decode()
        assert answer.status == 200, (path, headers, self.log())
        return body

    def figures(self) -> dict[str, Any]:
        return json.loads(self.get("/figures"))  # type: ignore[no-any-return]

    def log(self) -> str:
        return self._server.said()

    def lines(self) -> list[str]:
        """What the library logged."""
        return [line for line in self.log().splitlines() if line.startswith("valued: ")]

    def stop(self) -> None:
        self._connection.close()
        self._server.stop()

    def kill(self) -> None:
        self._connection.close()
        self._server.kill()


Start = Callable[[str], Site]


@pytest.fixture
def start(tmp_path: Path, server: Server) -> Iterator[Start]:
    started: list[Site] = []

    def start(name: str) -> Site:
        framework, app, variables = SITES[name]
        pytest.importorskip(framework)
        pytest.importorskip("uvicorn" if app.endswith("asgi") or "fastapi" in app else "gunicorn")
        environment = {"VALUED_TOKEN": "any", "VALUED_ENDPOINT": server.url, **variables}
        started.append(Site(tmp_path, app, **environment))
        return started[-1]

    yield start
    for site in started:
        site.kill()


@pytest.mark.parametrize("name", SITES)
def test_site_whose_every_call_is_wrong_answers_each_request(
    name: str, start: Start, server: Server
) -> None:
    # So that there are some that fail, too.
    server.script = lambda request: Reply(422 if request.event.get("key") == OPENED else 204)
    site = start(name)
    total: Counter[str] = Counter()

    def call(calls: list[str], kind: str = "call") -> None:
        for wrong in calls * TIMES:
            counted = json.loads(site.get(f"/{kind}/{wrong}"))
            [counted] = counted if kind == "stream" else [counted]
            assert counted == WRONG[wrong][1], wrong
            total.update(counted)

    nobodys = [wrong for wrong, (_, counted) in WRONG.items() if counted == {"anonymous": 1}]
    call(nobodys)
    assert site.lines() == []
    call([wrong for wrong in WRONG if wrong not in nobodys])
    call([*WRONG][::5], "stream")
    figures = site.figures()
    assert {it: figures[it] for it in FIGURES} == {it: total[it] for it in FIGURES}

    for page in _pages(name) * TIMES:
        for who in WHO:
            assert site.get(page, Who=who) == PAGE
    assert site.figures()["accepted"] == figures["accepted"]
    for page in _pages(name):
        assert site.get(page, Who="fine") == PAGE
    # Each is an action, and a page view.
    assert site.figures()["accepted"] == figures["accepted"] + 2 * len(_pages(name))

    figures = site.figures()
    settled = sum(
        figures[it] for it in ("delivered", "failed", "dropped", "handed_over", "pending")
    )
    assert figures["accepted"] + figures["adopted"] == settled
    assert figures["failed"] == len(_pages(name))
    site.stop()
    assert len(server.events) == figures["accepted"]
    _assert_log(site)


def _pages(name: str) -> list[str]:
    return ["/page", "/apage"] if "async" in name else ["/page"]


def _assert_log(site: Site) -> None:
    """One line for each kind, and one more at the end; no value of an event, no traceback."""
    log = site.log()
    assert SECRET not in log
    assert "Traceback" not in log
    lines = [
        line for line in site.lines() if "failed permanently; the latest: the service" not in line
    ]
    kinds = [re.sub(r"\(\d+ of this kind", "(N of this kind", line) for line in lines]
    assert {line: times for line, times in Counter(kinds).items() if times > 2} == {}
    assert len(kinds) > 30


@pytest.mark.parametrize("name", [name for name in SITES if name != "fastapi"])
def test_function_that_fails_to_choose_page_views_costs_nobody_a_page(
    name: str, start: Start, server: Server
) -> None:
    site = start(name)
    for page in _pages(name):
        for kind in PAGE_VIEWS * TIMES:
            assert site.get(page, Who="fine", Page_View=kind) == PAGE
    site.stop()
    assert {event["category"] for event in server.events} == {"action"}
    assert SECRET not in site.log()
    assert "Traceback" not in site.log()
    assert site.lines()


def test_function_that_fails_to_choose_page_views_is_told_of_once_a_minute(start: Start) -> None:
    site = start("django")
    for _ in range(TIMES):
        site.get("/page", Who="fine", Page_View="raises")
    assert len(site.lines()) == 1


class Column:
    """As an ORM has it: comparing makes an expression, which is neither true nor false."""

    def __eq__(self, other: object) -> Any:
        return Column()

    def __bool__(self) -> bool:
        raise TypeError(SECRET)

    __hash__ = None  # type: ignore[assignment]


class Proxy:
    """As `werkzeug.local.LocalProxy` is outside of a request."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError(SECRET)


def _mark_attributes() -> None:
    valued.scope.attributes[None] = SECRET  # type: ignore[index]


#: Each of these is counted, and returns.
RAISED: dict[str, Callable[[], object]] = {
    "key that can't be compared": lambda: valued.action(Column(), {"user.id": 1}),  # type: ignore[arg-type]
    "URL that can't be compared": lambda: valued.page_view(Column(), {"user.id": 1}),  # type: ignore[arg-type]
    "key of a class that is not known": lambda: valued.action(Proxy(), {"user.id": 1}),  # type: ignore[arg-type]
    "unit of a class that is not known": lambda: valued.isolated(Proxy()),
    "name of an attribute": _mark_attributes,
}


@pytest.mark.parametrize("wrong", RAISED)
def test_call_that_is_wrong_returns(wrong: str, caplog: pytest.LogCaptureFixture) -> None:
    client = valued.connect(print, invalid="log", anonymous="drop")
    with valued.isolated():
        RAISED[wrong]()
    assert client.stats()["invalid"] == 1
    assert SECRET not in caplog.text


def test_figures_add_up_where_many_threads_are_wrong_at_the_same_time(
    in_thread: Callable[..., Future[None]],
) -> None:
    client = valued.connect(
        lambda _event: None, invalid="log", anonymous="drop", before_send=before_send
    )

    def visit() -> None:
        for call, _ in WRONG.values():
            with valued.isolated():
                call()

    for visits in [in_thread(visit) for _ in range(16)]:
        visits.result(30)
    assert client.flush(30)
    expected: Counter[str] = Counter()
    for _, counted in WRONG.values():
        expected.update({name: 16 * count for name, count in counted.items()})
    stats: dict[str, Any] = {**client.stats()}
    assert {name: stats[name] for name in FIGURES} == {name: expected[name] for name in FIGURES}
    assert stats["delivered"] == stats["accepted"]

"""The pages of web frameworks and servers run as printed, most of them under a real server.

Each request carries the id of its user, or of its customer where it has no user, and each event is
compared with that.
"""

from __future__ import annotations

import configparser
import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import docutils.nodes
import pytest
import requests

import valued
from tests.docs.live import Running, Service, needs, run_python, whose, write_page
from tests.docs.support import Case, Cases, blocks, document, python, run_section, runs
from tests.support.documents import doctree, write_files
from tests.support.processes import until
from tests.support.server import Server

_VISIT_FLASK = """
for path, user in (("/reports", {}), ("/reports", {"X-User-Id": "7"})):
    assert app.test_client().post(path, headers=user).status_code == 204
"""

#: Requests to an ASGI application, without a server.
_VISIT_ASGI = """
import asyncio, httpx

async def visit(app, method, path):
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://reader") as client:
        for headers in ({}, {"X-User-Id": "7"}):
            answer = await client.request(method, path, headers=headers)
            assert answer.is_success, answer.text
"""

_LINES = "The lines to write"
_SEE = "See it work"
_USER = "The user and the customer"

CASES: Cases = {
    ("howto/flask", _USER): Case(
        events=1,
        after=(_LINES,),
        driver=("-c", "from teams import app; app.test_client().post('/teams/12/reports')"),
        needs=("flask",),
    ),
    ("howto/flask", "Page views"): Case(
        events=1,
        driver=(
            "-c",
            """
from pages import app
for path in ("/?secret=1", "/internal/status"):
    assert app.test_client().get(path).status_code == 200
""",
        ),
        needs=("flask",),
    ),
    ("howto/flask", "Application factory"): Case(
        events=1,
        driver=("-c", f"import factory\napp = factory.create_app(){_VISIT_FLASK}"),
        needs=("flask",),
    ),
    ("howto/flask", "Test it"): Case(
        after=(_LINES,),
        driver=("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "valued.pytest_plugin"),
        needs=("flask",),
        # Those of others take longer to import than all of it.
        environment=(("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1"),),
    ),
    ("howto/fastapi", _USER): Case(
        events=1,
        driver=(
            "-c",
            f"{_VISIT_ASGI}\nimport login\nasyncio.run(visit(login.app, 'POST', '/reports'))",
        ),
        needs=("fastapi", "httpx"),
    ),
    ("howto/fastapi", "Page views"): Case(
        events=2,
        driver=(
            "-c",
            f"{_VISIT_ASGI}\nimport pages\nasyncio.run(visit(pages.app, 'GET', '/?secret=1'))",
        ),
        needs=("fastapi", "httpx"),
    ),
    ("howto/fastapi", "Any ASGI application"): Case(
        events=2,
        driver=("-c", f"{_VISIT_ASGI}\nimport plain\nasyncio.run(visit(plain.app, 'GET', '/'))"),
        needs=("httpx",),
    ),
    ("howto/wsgi", "Bottle, Pyramid, Falcon"): Case(
        events=1,
        driver=(
            "-c",
            """
from wsgiref.util import setup_testing_defaults
from site_bottle import application
for user in ({}, {"HTTP_X_USER_ID": "7"}):
    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/reports", **user}
    setup_testing_defaults(environ)
    list(application(environ, lambda status, headers, error=None: None))
""",
        ),
        needs=("bottle",),
    ),
    ("howto/uwsgi", _LINES): Case(
        events=1, driver=("-c", f"from app import app{_VISIT_FLASK}"), needs=("flask",)
    ),
    ("howto/integration", _LINES): Case(events=2),
    ("howto/integration", "Hooks before and after a job"): Case(events=1),
    ("howto/integration", "Streams, threads, other processes"): Case(events=5),
}


@pytest.mark.parametrize(("page", "title"), CASES)
def test_section_runs_as_printed(page: str, title: str, shell: Path, server: Server) -> None:
    case = CASES[page, title]
    needs(*case.needs)
    run_section(page, title, case, shell, server)
    for event in server.events:
        source = event.get("attributes", {}).get("source", {"url": "/"})
        assert source["url"].endswith("/"), "there is a query"


# -- visitors --------------------------------------------------------------------------------------


def _commands(page: str) -> list[list[str]]:
    """What the reader types to see the page work, split as a shell does."""
    lines = [
        line
        for block in blocks(page, _SEE)
        if block.language == "console"
        for line in block.code.splitlines()
    ]
    return [shlex.split(line.removeprefix("$ ").partition(" && ")[0]) for line in lines]


def _serve(page: str) -> list[str]:
    """The program, and its arguments, by which the reader starts the server."""
    [command] = [it for it in _commands(page) if it[0] in ("gunicorn", "uvicorn", "python")]
    return command


def _visit_as_printed(page: str, url: str) -> None:
    """What the page's calls of curl do; it is not on every machine."""
    for program, *arguments in _commands(page):
        if program != "curl":
            continue
        method, headers = "GET", {}
        options = iter(arguments)
        for option in options:
            if option == "-X":
                method = next(options)
            elif option == "-H":
                name, _, value = next(options).partition(": ")
                headers[name] = value
            else:
                path = re.sub(r"http://127\.0\.0\.1:\d+", "", option)
        answer = requests.request(method, f"{url}{path}", headers=headers, timeout=10)
        assert answer.status_code in (200, 204), answer.text


def _shown(page: str, url: str = "") -> list[dict[str, Any]]:
    """The events that the page says are shown, without their time."""
    [text] = [block.code for block in blocks(page, _SEE) if block.language == "text"]
    headings = re.findall(r"^(\w.*)\n\{$", text, re.MULTILINE)
    bodies = re.split(r"^\w.*\n", text, flags=re.MULTILINE)[1:]
    found = []
    for heading, body in zip(headings, bodies, strict=True):
        event: dict[str, Any] = json.loads(re.sub(r"http://127\.0\.0\.1:\d+", url, body))
        what = " ".join(filter(None, (event["category"], event.get("key"))))
        assert re.fullmatch(rf"{what} from \w+ \(pid \d+\) on 127\.0\.0\.1:\d+", heading)
        del event["occured_at"]
        found.append(event)
    return found


def _arrived(service: Service) -> list[dict[str, Any]]:
    return [{name: it[name] for name in it if name != "occured_at"} for it in service.events]


def _in_order(events: list[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps(event, sort_keys=True) for event in events)


def _visit(url: str) -> list[tuple[str, Any, Any]]:
    """Requests of several users on kept-alive connections; what is to arrive."""
    wanted: list[tuple[str, Any, Any]] = []
    with requests.Session() as one, requests.Session() as other:
        for number in range(1, 31):
            session = other if number % 3 else one
            if number % 2:
                headers = {"X-User-Id": str(number)}
                answer = session.post(f"{url}/reports", headers=headers, timeout=10)
                wanted.append(("report.generated", number, None))
            else:
                answer = session.post(f"{url}/customers/{number}", timeout=10)
                wanted.append(("for customer", None, number))
            assert answer.status_code in (201, 204), answer.text
    return wanted


class _Listening(NamedTuple):
    """How to start a server on a free port, and where it says which one."""

    command: tuple[str, ...]
    says: str
    status: int = 0


_GUNICORN = ("-m", "gunicorn", "--bind", "127.0.0.1:0", "--no-control-socket")


def _gunicorn(*options: str) -> _Listening:
    return _Listening((*_GUNICORN, *options), r"Listening at: (\S+)")


def _uvicorn(app: str) -> _Listening:
    command = ("-m", "uvicorn", "--port", "0", app)
    return _Listening(command, r"running on (http://127\.0\.0\.1:\d+)", -signal.SIGTERM)


def _assert_serves(
    folder: Path, service: Service, listening: _Listening, page: str, *, see: bool = True
) -> None:
    """Visitors, and an end while their events are pending: each arrives, and has its user."""
    shown: list[dict[str, Any]] = []
    with Running(folder, service, *listening.command) as program:
        url = program.find(listening.says)
        if see:
            _visit_as_printed(page, url)
            shown = _shown(page, url)
        wanted = _visit(url)
        program.stop(len(wanted) + len(shown), status=listening.status)
    arrived = _arrived(service)
    for event in shown:
        assert event in arrived, arrived
    views = [it for it in arrived if it["category"] == "pageview"]
    assert views == [it for it in shown if it["category"] == "pageview"]
    actions = [whose(it) for it in [*arrived] if it["category"] == "action"]
    wanted += [whose(it) for it in shown if it["category"] == "action"]
    assert sorted(actions, key=str) == sorted(wanted, key=str)


# -- frameworks ------------------------------------------------------------------------------------

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="Gunicorn forks")

_MORE_FLASK = """
import valued
from app import app

@app.post("/customers/<int:number>")
def for_customer(number):
    valued.scope.customer_id = number
    valued.action("for customer")
    return "", 204
"""

_MORE_WSGI = """
import valued
from app import ScopeMiddleware, data, site

def more(environ, start_response):
    path = environ["PATH_INFO"]
    if not path.startswith("/customers"):
        return site(environ, start_response)
    valued.scope.customer_id = int(path.rpartition("/")[2])
    valued.action("for customer")
    start_response("204 No Content", [])
    return []

app = ScopeMiddleware(more, data=data)
"""

_MORE_FASTAPI = """
import valued
from main import app

@app.post("/customers/{number}", status_code=204)
async def for_customer(number: int):
    valued.scope.customer_id = number
    valued.action("for customer")
"""

_MORE_STARLETTE = """
import valued
from site_starlette import ScopeMiddleware, data, starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.responses import Response

class User(SimpleUser):
    @property
    def id(self):
        return int(self.username)

class Login(AuthenticationBackend):
    async def authenticate(self, connection):
        if "X-User-Id" in connection.headers:
            return AuthCredentials(), User(connection.headers["X-User-Id"])

def for_customer(request):
    valued.scope.customer_id = request.path_params["number"]
    valued.action("for customer")
    return Response(status_code=204)

starlette.add_route("/customers/{number:int}", for_customer, methods=["POST"])
starlette.add_middleware(AuthenticationMiddleware, backend=Login())
app = ScopeMiddleware(starlette, data=data)
"""

_MORE_LITESTAR = """
import valued
from litestar import Litestar, post
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult
from litestar.middleware import DefineMiddleware
from site_litestar import ScopeMiddleware, data, generate
from types import SimpleNamespace

class Login(AbstractAuthenticationMiddleware):
    async def authenticate_request(self, connection):
        user = connection.headers.get("X-User-Id")
        return AuthenticationResult(user and SimpleNamespace(id=int(user)), None)

@post("/customers/{number:int}")
async def for_customer(number: int) -> None:
    valued.scope.customer_id = number
    valued.action("for customer")

inner = Litestar([generate, for_customer], middleware=[DefineMiddleware(Login)])
app = ScopeMiddleware(inner, data=data)
"""


@forks
@runs("howto/flask", _LINES)
def test_flask_records_for_its_users_and_loses_nothing(folder: Path, service: Service) -> None:
    needs("flask", "gunicorn")
    write_page(folder, "howto/flask", _LINES, more=_MORE_FLASK)
    _assert_serves(
        folder, service, _gunicorn("--worker-class", "gthread", "more:app"), "howto/flask"
    )


@forks
@runs("howto/wsgi", _LINES)
def test_wsgi_records_for_its_users_and_loses_nothing(folder: Path, service: Service) -> None:
    needs("gunicorn")
    assert _serve("howto/wsgi") == ["gunicorn", "app"]  # which takes its `application`
    write_page(folder, "howto/wsgi", _LINES, more=_MORE_WSGI)
    _assert_serves(folder, service, _gunicorn("more:app"), "howto/wsgi")


@runs("howto/fastapi", _LINES)
def test_fastapi_records_for_its_users_and_loses_nothing(folder: Path, service: Service) -> None:
    needs("fastapi", "uvicorn")
    assert _serve("howto/fastapi") == ["uvicorn", "main:app"]
    write_page(folder, "howto/fastapi", _LINES, more=_MORE_FASTAPI)
    _assert_serves(folder, service, _uvicorn("more:app"), "howto/fastapi")


@runs("howto/fastapi", "Starlette", "Litestar")
@pytest.mark.parametrize(
    ("title", "more"), [("Starlette", _MORE_STARLETTE), ("Litestar", _MORE_LITESTAR)]
)
def test_a_wrapped_application_records_for_its_users_and_loses_nothing(
    folder: Path, service: Service, title: str, more: str
) -> None:
    needs(title.lower(), "uvicorn")
    write_page(folder, "howto/fastapi", title, more=more)
    _assert_serves(folder, service, _uvicorn("more:app"), "howto/fastapi", see=False)


@pytest.mark.filterwarnings("ignore")
@runs("howto/aiohttp", _LINES)
def test_requests_on_one_connection_of_aiohttps_have_their_users(
    folder: Path, service: Service
) -> None:
    needs("aiohttp")
    more = """
import valued
from aiohttp import web
from server import create_app

async def for_customer(request):
    valued.scope.customer_id = int(request.match_info["id"])  # nothing takes it back
    valued.action("for customer")
    return web.Response(status=204)

app = create_app()
app.router.add_post("/customers/{id}", for_customer)
web.run_app(app, host="127.0.0.1", port=0)
"""
    assert _serve("howto/aiohttp") == ["python", "server.py"]
    write_page(folder, "howto/aiohttp", _LINES, more=more)
    aiohttp = _Listening(("-u", "more.py"), r"(http://127\.0\.0\.1:\d+)")
    _assert_serves(folder, service, aiohttp, "howto/aiohttp")


# -- Django ----------------------------------------------------------------------------------------

_MAKE_USERS = """
import os, django
os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
django.setup()
from django.contrib.auth.models import User
from django.test import Client
for number in range(1, 6):
    user = User.objects.create_superuser(f"user-{number}")
    client = Client()
    client.force_login(user)
    print(user.pk, client.cookies["sessionid"].value)
"""

#: What the second version of the settings does, and an async view.
_VISIT_DJANGO = """
import asyncio, os, sys, types, django
os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
django.setup()
from django.contrib.auth.models import User
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from mysite import asynchronous, urls, views

more = sys.modules["more"] = types.ModuleType("more")
more.urlpatterns = [
    *urls.urlpatterns,
    path("internal/", views.home),
    path("asynchronous/", asynchronous.generate),
]
ada = User.objects.get(pk=1)
with override_settings(ROOT_URLCONF="more", ALLOWED_HOSTS=["testserver"]):
    client, other = Client(), AsyncClient()
    client.force_login(ada)
    other.force_login(ada)
    session = client.session
    session["team"] = 12
    session.save()
    for page in ("/reports/?secret=1", "/internal/"):
        assert client.get(page).status_code == Client().get(page).status_code == 200
    assert asyncio.run(other.get("/asynchronous/")).status_code == 200
"""


def _visit_django(url: str, sessions: list[list[str]]) -> list[dict[str, Any]]:
    """Pages for those who are signed in, for a visitor, and of the admin; what is to arrive."""
    wanted = []
    with requests.Session() as browser:
        for number, session in sessions * 6:
            for cookies, path in [
                ({}, "/reports/"),
                ({"sessionid": session}, "/reports/?secret=1"),
                ({"sessionid": session}, "/admin/"),
            ]:
                answer = browser.get(f"{url}{path}", cookies=cookies, timeout=10)
                assert answer.status_code == 200, answer.text
            shown = _shown("howto/django", url)
            wanted += [{**event, "user": {"id": int(number)}} for event in shown]
    return wanted


@forks
@runs("howto/django", _LINES, _USER, "Async views", "Test it")
def test_django_lines_are_all_that_a_new_project_needs(
    folder: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("django", "gunicorn")
    run_python(folder, "-m", "django", "startproject", "mysite", ".")
    settings = folder / "mysite" / "settings.py"
    generated = settings.read_text("utf-8")
    write_page(folder, "howto/django", _LINES)
    settings.write_text(generated + settings.read_text("utf-8"), "utf-8")

    with monkeypatch.context() as without_token:
        without_token.delenv("VALUED_TOKEN")
        run_python(folder, "manage.py", "migrate", "--verbosity", "0")
        check = [sys.executable, "manage.py", "check", "--fail-level", "WARNING"]
        done = subprocess.run(check, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert re.findall(r"valued\.\w+", done.stderr) == ["valued.W001"]
        write_page(folder, "howto/django", "Test it")
        without_token.setenv("VALUED_DISABLED", "1")
        test = [sys.executable, "manage.py", "test"]
        done = subprocess.run(test, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Ran 1 test" in done.stderr
        assert "valued" not in done.stdout + done.stderr

    sessions = [line.split() for line in run_python(folder, "-c", _MAKE_USERS).splitlines()]
    server = _gunicorn("mysite.wsgi")
    with Running(folder, service, *server.command) as program:
        wanted = _visit_django(program.find(server.says), sessions)
        program.stop(len(wanted))
    assert _in_order(_arrived(service)) == _in_order(wanted)

    count = len(service.events)
    write_page(folder, "howto/django", _USER, "Async views")
    settings.write_text(
        "\n".join([generated, blocks("howto/django", _LINES)[0].code, settings.read_text("utf-8")])
    )
    run_python(folder, "-c", _VISIT_DJANGO)
    ada = {"id": 1, "name": "user-1"}
    page = {"source": {"url": "http://testserver/reports/"}}
    of_async = {"source": {"url": "http://testserver/asynchronous/"}}
    action = {"category": "action", "key": "report.generated", "user": ada}
    view = {"category": "pageview", "user": ada}
    team = {"customer": {"id": 12}}
    assert _in_order(_arrived(service)[count:]) == _in_order(
        [
            {**action, **team, "attributes": {"format": "pdf"}},
            {**view, **team, "attributes": page},
            action,
            {**view, "attributes": of_async},
        ]
    )


def _first_column(page: str, head: str) -> list[str]:
    """The first cells of the table whose first head is *head*."""
    for table in doctree(document(page)).findall(docutils.nodes.table):
        rows = [
            next(iter(row.findall(docutils.nodes.entry))).astext()
            for row in table.findall(docutils.nodes.row)
        ]
        if rows[0] == head:
            return rows[1:]
    raise AssertionError(f"{page}: no table of {head}")


def test_django_settings_are_all_told() -> None:
    needs("django")
    from valued.integrations.django import _settings

    options = {
        name.upper()
        for name, parameter in inspect.signature(valued.Client).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    own = {name.upper() for name in _settings.Settings._fields if name != "options"}
    rows = set(_first_column("howto/django", "key"))
    assert own - rows == set()
    text = Path(document("howto/django")).read_text("utf-8")
    more = set(re.findall(r"``([A-Z_]+)``", text))
    assert options - rows - more == set()
    assert rows - own - options == set()


# -- servers ---------------------------------------------------------------------------------------

#: So many events that a server which waits for none of them ends before they are delivered.
_KNOCKS = 120


def _knock(url: str) -> None:
    with requests.Session() as browser:
        for _ in range(_KNOCKS):
            assert browser.get(url, timeout=10).status_code == 204


@forks
@runs("howto/gunicorn", _LINES, "The configuration")
def test_gunicorn_with_its_configuration_records_for_its_users_and_loses_nothing(
    folder: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("flask", "gunicorn")
    assert _serve("howto/gunicorn") == ["gunicorn", "--preload", "--workers", "4", "app:app"]
    write_page(folder, "howto/gunicorn", _LINES, "The configuration", more=_MORE_FLASK)
    # A worker that is told to end in the instant of its fork doesn't hear of it, and is waited for.
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--graceful-timeout 10")
    server = _gunicorn(*_serve("howto/gunicorn")[1:-1], "more:app")
    _assert_serves(folder, service, server, "howto/gunicorn")


@forks
@runs("howto/gunicorn", "gevent and preload")
def test_gunicorn_takes_the_configuration_for_gevent(folder: Path, service: Service) -> None:
    needs("flask", "gunicorn", "gevent")
    write_page(folder, "howto/gunicorn", _LINES, "gevent and preload")
    # What becomes of events then is tested in tests/prefork.
    output = python(folder, "-m", "gunicorn", "--check-config", "app:app")
    assert output == ""
    assert service.events == []


@forks
@runs("howto/gunicorn", "UvicornWorker without a lifespan")
def test_gunicorns_uvicorn_workers_deliver_without_a_lifespan(
    folder: Path, service: Service
) -> None:
    needs("gunicorn", "uvicorn_worker")
    write_page(folder, "howto/gunicorn", "UvicornWorker without a lifespan")
    write_page(folder, "howto/fastapi", "Any ASGI application")
    server = _gunicorn("--preload", "plain:app")
    with Running(folder, service, *server.command) as program:
        url = program.find(server.says)
        _knock(url)
        program.stop(_KNOCKS)
    assert list(map(whose, service.events)) == [("report.generated", 7, None)] * _KNOCKS


@forks
@runs("howto/gunicorn", "Killed workers: an outbox")
def test_gunicorns_new_worker_delivers_what_a_killed_one_left(
    folder: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("flask", "gunicorn")
    [variable] = [it.code for it in blocks("howto/gunicorn", "Killed workers: an outbox")
                  if it.language == "console"]  # fmt: skip
    assert variable.startswith("$ export VALUED_OUTBOX=")
    monkeypatch.setenv("VALUED_OUTBOX", str(folder / "outbox"))
    write_page(folder, "howto/gunicorn", _LINES, "Killed workers: an outbox")
    server = _gunicorn("app:app")
    with Running(folder, service, *server.command) as program:
        url, pid = program.find(server.says), int(program.find(r"Booting worker with pid: (\d+)"))
        for _ in range(30):
            headers = {"X-User-Id": "7"}
            answer = requests.post(f"{url}/reports", headers=headers, timeout=10)
            assert answer.status_code == 204
        os.kill(pid, signal.SIGKILL)
        service.ends.set()
        until(lambda: len(_keys(service)) == 30, 20)
    assert {whose(event) for event in service.events} == {("report.generated", 7, None)}


def _keys(service: Service) -> set[str]:
    return {it.headers["Idempotency-Key"] for it in list(service.requests)}


@runs("howto/uvicorn", _LINES, "Without a lifespan")
@pytest.mark.parametrize(
    ("title", "app"), [(_LINES, "app:app"), ("Without a lifespan", "without_lifespan:app")]
)
def test_uvicorn_delivers_before_it_ends(
    folder: Path, service: Service, title: str, app: str
) -> None:
    needs("uvicorn")
    write_page(folder, "howto/uvicorn", title)
    assert _serve("howto/uvicorn") == ["uvicorn", "app:app"]
    server = _uvicorn(app)
    with Running(folder, service, *server.command) as program:
        url = program.find(server.says)
        _visit_as_printed("howto/uvicorn", url)
        _knock(url)
        program.stop(_KNOCKS + 1, status=server.status)
    assert _arrived(service) == _shown("howto/uvicorn") * (_KNOCKS + 1)


def test_configurations_of_servers_can_be_read(tmp_path: Path) -> None:
    printed = [*blocks("howto/uwsgi", _LINES), *blocks("howto/uvicorn", "Hypercorn")]
    write_files(tmp_path, [it for it in printed if it.language != "python"])
    ini = configparser.ConfigParser()
    ini.read(tmp_path / "uwsgi.ini")
    [app] = [it for it in printed if it.language == "python"]
    module, _, name = ini["uwsgi"]["module"].partition(":")
    assert app.file == f"{module}.py"
    assert f"\n{name} = " in app.code
    assert ini["uwsgi"].getboolean("enable-threads")
    toml: Any = pytest.importorskip("tomllib")  # from Python 3.11 on
    assert toml.loads((tmp_path / "hypercorn.toml").read_text("utf-8")) == {
        "workers": 4,
        "daemon": False,
    }


# -- a new integration -----------------------------------------------------------------------------

#: Runs the contributor's test, as if the module were in the package.
_AS_CONTRIBUTED = """
import os, sys
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
import pytest
import valued.integrations
valued.integrations.__path__.insert(0, "clone/valued/integrations")
options = ["-W", "error", "-p", "no:cacheprovider", "-p", "valued.pytest_plugin"]
sys.exit(pytest.main(["-q", *options, "clone/tests/integrations/test_bottle.py"]))
"""


@runs("howto/integration", "Contribute it")
def test_integration_of_the_contributor_passes_its_tests_and_keeps_to_the_rules(
    shell: Path, server: Server
) -> None:
    needs("bottle")
    clone = shell / "clone"
    write_files(clone, blocks("howto/integration", "Contribute it"))
    assert "5 passed" in python(shell, "-c", _AS_CONTRIBUTED)
    assert server.events == []
    code = (clone / "valued" / "integrations" / "bottle.py").read_text("utf-8")
    assert set(re.findall(r"^(?:from|import) (\S+)", code, re.MULTILINE)) == {
        "__future__", "collections.abc", "typing", "bottle", "valued", "valued.integrations.wsgi",
    }  # fmt: skip


@forks
@runs("howto/integration", "Contribute it")
def test_page_of_the_contributor_passes_the_tests_that_are_printed_with_it(
    folder: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("bottle", "gunicorn")
    page = "howto/bottle"
    printed = blocks("howto/integration", "Contribute it")
    write_files(folder, printed)
    (folder / "sitecustomize.py").write_text(
        f"import valued.integrations as them\nthem.__path__.insert(0, {str(folder)!r}"
        " + '/valued_integrations')\n"
    )
    (folder / "valued" / "integrations").rename(folder / "valued_integrations")
    (folder / "valued").rmdir()
    monkeypatch.setattr("tests.docs.support.document", lambda _: f"{folder}/docs/{page}.rst")
    [code] = [it.code for it in printed if it.file == "tests/docs/test_howto_web.py"]
    names: dict[str, Any] = {**globals()}
    exec(code, names)  # as if it were in this file
    run_section(page, _USER, names["CASES"][page, _USER], folder, service)
    service.requests.clear()
    names["test_bottle_records_for_its_users_and_loses_nothing"](folder, service)

"""The recipes of the documents run as printed: real brokers, workers, consumers and servers.

Each job and each request carries the id of its user, or of its customer where it has no user, and
each event is compared with that.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support import redis as redis_support
from tests.support.documents import doctree, sections, write_files
from tests.support.processes import until
from tests.support.server import Reply, Request, Server

DOCUMENTS = ["docs/recipes.rst", "docs/frameworks.rst", "docs/ends.rst"]
RECIPES = sections("docs/recipes.rst")

#: Seconds until an answer, so that there is something left to deliver when a process ends.
DELAY = 0.05

#: The same as long as that end is far: nearly all is left then, however slow this machine is.
HELD = 6.0


class Service(Server):
    """Answers late, and very late until `ends` is set."""

    def __init__(self) -> None:
        super().__init__(self._late)
        self.ends = threading.Event()
        self.ends.set()

    def _late(self, _request: Request) -> Reply:
        if not self.ends.wait(HELD):
            return Reply()
        time.sleep(DELAY)
        return Reply()


def _needs(*names: str) -> None:
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


@pytest.fixture
def folder(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the files of a recipe, and the environment of whoever follows it."""
    monkeypatch.setenv("VALUED_TOKEN", "recipe-token")
    monkeypatch.setenv("VALUED_ENDPOINT", service.url)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in [name for name in os.environ if "COV" in name]:
        # Coverage would bring a handler of SIGTERM, which no reader has.
        monkeypatch.delenv(name)
    return tmp_path


def _write(folder: Path, title: str, document: str = "docs/recipes.rst", **more: str) -> None:
    """The files of a section, and *more* of the tests' own."""
    write_files(folder, [it for it in sections(document)[title] if it.language == "python"])
    for name, code in more.items():
        (folder / f"{name}.py").write_text(code, "utf-8")


def _run(folder: Path, *arguments: str) -> str:
    """What Python, run with *arguments* in *folder*, printed; it must end well."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not delivered" not in done.stderr
    return done.stdout


class Running:
    """A program that runs until it is told to end; the service holds its answers until then."""

    def __init__(self, folder: Path, service: Service, *arguments: str) -> None:
        self._service = service
        self._log = folder / "log"
        service.ends.clear()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def said(self) -> str:
        """What it has printed so far."""
        return self._log.read_text("utf-8")

    def find(self, pattern: str) -> str:
        """What it has printed that matches, once it has; the first group of it."""
        until(lambda: re.search(pattern, self.said()) or self.process.poll() is not None, 20)
        match = re.search(pattern, self.said())
        assert match is not None, self.said()
        return match[1]

    def tell(self, number: signal.Signals, recorded: int) -> None:
        """Signal the process itself, and none of its children; most of *recorded* is pending."""
        assert len(self._service.events) < recorded, "the end has nothing to deliver"
        self.process.send_signal(number)
        self._service.ends.set()

    def stop(self, recorded: int, number: signal.Signals = signal.SIGTERM, status: int = 0) -> None:
        """Signal it; it must end, with this status, and say nothing of what is left."""
        self.tell(number, recorded)
        assert self.process.wait(20) == status, self.said()
        assert "not delivered" not in self.said()

    def close(self) -> None:
        """End it, and all that it started; may be called again."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


@contextlib.contextmanager
def _running(folder: Path, service: Service, *arguments: str) -> Iterator[Running]:
    running = Running(folder, service, *arguments)
    try:
        yield running
    finally:
        running.close()


def _whose(event: dict[str, Any]) -> tuple[str, Any, Any]:
    """The event's key, its user, its customer."""
    return event["key"], event.get("user", {}).get("id"), event.get("customer", {}).get("id")


def _assert_each_has_its_user(service: Service, wanted: list[tuple[str, Any, Any]]) -> None:
    """All of *wanted* arrived, once each, with the user and the customer of its job."""
    assert sorted(map(_whose, service.events), key=str) == sorted(wanted, key=str)
    for event in service.events:
        who, report = _whose(event)[1:], event.get("attributes", {}).get("report")
        # What the job was given, whoever it was recorded for. 123 is the user of the pages.
        assert report is None or 123 in who or report in who, event


@pytest.mark.parametrize("name", DOCUMENTS)
def test_document_renders_without_a_warning(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    doctree(name, report_level=1, highlight="long")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", DOCUMENTS)
def test_each_python_block_is_python(name: str) -> None:
    for blocks in sections(name).values():
        for block in blocks:
            if block.language == "python":
                ast.parse(block.code)


# -- Dramatiq --------------------------------------------------------------------------------------

#: Beside the actors of the recipe: what is tried again, delayed, sent on, and asynchronous.
_MORE_ACTORS = """
import os
from pathlib import Path

import dramatiq
from dramatiq.middleware import AsyncIO

import valued
from actors import *

broker.add_middleware(AsyncIO())

@dramatiq.actor(max_retries=1, min_backoff=50, max_backoff=100)
def fails_once(report):
    valued.action("tried", {"attributes.report": report})
    valued.scope.user_id = valued.scope.customer_id = 99999  # is not for the second attempt
    mark = Path(f"failed-{report}")
    if not mark.exists():
        mark.touch()
        raise ValueError("as planned")

@dramatiq.actor
def sends_on(report):
    generate.send(report)

@dramatiq.actor
async def generate_async(report):
    valued.action("async", {"attributes.report": report})
"""

_SEND = """
import dramatiq
import send  # the recipe's
import valued
from more import *

for number in range(1, 13):
    who = {"user.id": number} if number % 3 else {"customer.id": number}
    with valued.isolated(who):
        generate.send(number)
        sends_on.send(number)
        fails_once.send(number)
        generate_async.send(number)
        generate.send_with_options(args=(number,), delay=60)
        last = generate.message_with_options(args=(number,), pipe_ignore=True)
        (generate.message(number) | last).run()

# One message, sent by two: the ids are those of each.
message = generate.message(50)
for who in ({"user.id": 50}, {"customer.id": 50}):
    with valued.isolated(who):
        broker.enqueue(message)
broker.join("default", timeout=20_000)
"""


@pytest.fixture
def redis(monkeypatch: pytest.MonkeyPatch) -> Iterator[redis_support.Redis]:
    if redis_support.PROGRAM is None:
        pytest.skip("redis-server is not installed")
    server = redis_support.Redis()
    monkeypatch.setenv("REDIS_URL", server.url)
    yield server
    server.close()


def test_a_dramatiq_message_has_its_senders_user_and_its_worker_delivers_at_its_end(
    folder: Path,
    service: Service,
    redis: redis_support.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _needs("dramatiq", "redis")
    monkeypatch.setenv("dramatiq_worker_timeout", "100")  # ms, after which it sees that it ends
    _write(folder, "Dramatiq", more=_MORE_ACTORS, sender=_SEND)
    with _running(
        folder, service, "-m", "dramatiq", "more", "--processes", "2", "--threads", "3"
    ) as worker:
        _run(folder, "sender.py")
        worker.stop(99)
    wanted: list[tuple[str, Any, Any]] = [("report.generated", 123, None)]
    for number in range(1, 13):
        who = (number, None) if number % 3 else (None, number)
        wanted += [("report.generated", *who)] * 5
        wanted += [("tried", *who)] * 2
        wanted += [("async", *who)]
    wanted += [("report.generated", 50, None), ("report.generated", None, 50)]
    _assert_each_has_its_user(service, wanted)


# -- Huey ------------------------------------------------------------------------------------------

#: A journal, and a task that says nothing of a user.
_MORE_JOBS = """
import os

import valued
from jobs import *

@huey.task()
def for_customer(report, fails):
    valued.action("for customer", {"customer.id": report, "attributes.report": report})
    if fails:
        valued.scope.customer_id = 99999
        raise ValueError("as planned")

@huey.signal("complete", "error")
def note(signal, task, exc=None):
    with open("journal", "ab", 0) as file:
        file.write(b"x")

def send():
    for number in range(60):
        if number % 2:
            generate(number, number)
        else:
            for_customer(number, number % 4)
"""

_JOBS = [
    ("report.generated", number, None) if number % 2 else ("for customer", None, number)
    for number in range(60)
]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Huey's signals, and its processes")
@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_huey_task_has_its_user_and_nothing_is_lost_when_the_consumer_ends_or_restarts(
    folder: Path, service: Service, kind: str
) -> None:
    _needs("huey")
    _write(folder, "Huey", more=_MORE_JOBS)
    (folder / "journal").touch()
    _run(folder, "-c", "import more; more.send()")
    consumer = ("-m", "huey.bin.huey_consumer", "more.huey", "--workers", "3", "-k", kind)
    with _running(folder, service, *consumer) as running:
        until(lambda: (folder / "journal").stat().st_size == len(_JOBS), 20)
        if kind == "thread":
            running.tell(signal.SIGHUP, len(_JOBS))
            # Killed at once: what it had before was delivered before it began anew.
            until(lambda: running.said().count("Huey consumer started") == 2, 20)
            running.close()
        else:
            running.stop(len(_JOBS))
    _assert_each_has_its_user(service, _JOBS)


def test_a_huey_task_that_runs_immediately_leaves_its_callers_scope_alone(
    folder: Path, service: Service
) -> None:
    _needs("huey")
    caller = """
import valued
from more import *

huey.immediate = True
with valued.isolated({"user.id": 123}):
    send()
    valued.action("caller's")
"""
    _write(folder, "Huey", more=_MORE_JOBS, caller=caller)
    _run(folder, "caller.py")
    _assert_each_has_its_user(service, [*_JOBS, ("caller's", 123, None)])


# -- APScheduler -----------------------------------------------------------------------------------


def test_jobs_of_apscheduler_have_their_users(folder: Path, service: Service) -> None:
    _needs("apscheduler")
    more = """
import threading

from apscheduler.events import EVENT_JOB_EXECUTED

import valued
from reminders import *

count = threading.Semaphore(0)

def for_customer(customer):
    valued.action("for customer", {"customer.id": customer})

scheduler.add_listener(lambda event: count.release(), EVENT_JOB_EXECUTED)
for number in range(40):
    scheduler.add_job(remind if number % 2 else for_customer, args=[number], misfire_grace_time=60)
for number in range(40):
    assert count.acquire(timeout=20)
scheduler.shutdown()
"""
    _write(folder, "APScheduler", more=more)
    _run(folder, "more.py")
    wanted = [
        ("reminder.sent", number, None) if number % 2 else ("for customer", None, number)
        for number in range(40)
    ]
    _assert_each_has_its_user(service, wanted)


# -- joblib and dask -------------------------------------------------------------------------------

_BY_USER = [("report.generated", user, None) for user in range(20)]


def test_jobs_of_joblib_have_their_users_and_nothing_is_lost_where_another_job_fails(
    folder: Path, service: Service
) -> None:
    _needs("joblib")
    more = """
from joblib import Parallel, delayed

from work import work

def fail():
    raise ValueError("as planned")

def main():
    with Parallel(n_jobs=2) as parallel:
        parallel(delayed(work)(user) for user in range(20, 30))
        try:
            parallel([delayed(fail)()])
        except ValueError:
            pass
"""
    _write(folder, "joblib", more=more)
    _run(folder, "main.py")
    _run(folder, "-c", "import more; more.main()")
    later = [("report.generated", user, None) for user in range(20, 30)]
    _assert_each_has_its_user(service, _BY_USER + later)


@pytest.mark.filterwarnings("ignore")
def test_jobs_of_dask_have_their_users_and_their_workers_deliver_at_their_end(
    folder: Path, service: Service
) -> None:
    _needs("distributed")
    _write(folder, "dask")
    _run(folder, "main.py")
    _assert_each_has_its_user(service, _BY_USER)


def test_tasks_of_dasks_own_schedulers_have_their_users(folder: Path, service: Service) -> None:
    _needs("dask")
    more = """
import dask

from work import work

if __name__ == "__main__":
    for scheduler in ("threads", "processes"):
        dask.compute(*[dask.delayed(work)(user) for user in range(20)], scheduler=scheduler)
"""
    _write(folder, "dask", more=more)
    _run(folder, "more.py")
    _assert_each_has_its_user(service, _BY_USER * 2)


# -- aiohttp, Litestar, Starlette ------------------------------------------------------------------


def _visit(url: str) -> list[tuple[str, Any, Any]]:
    """Requests of several users on kept-alive connections; what is to arrive."""
    wanted: list[tuple[str, Any, Any]] = []
    with requests.Session() as one, requests.Session() as other:
        for number in range(1, 31):
            session = other if number % 3 else one
            if number % 2:
                answer = session.post(f"{url}/reports", headers={"X-User": str(number)}, timeout=10)
                assert answer.status_code in (201, 204), answer.text
                wanted.append(("report.generated", number, None))
            else:
                answer = session.post(f"{url}/customers/{number}", timeout=10)
                assert answer.status_code in (201, 204), answer.text
                wanted.append(("for customer", None, number))
    return wanted


@pytest.mark.filterwarnings("ignore")
def test_requests_on_one_connection_of_aiohttps_have_their_users(
    folder: Path, service: Service
) -> None:
    _needs("aiohttp")
    more = """
import valued
from aiohttp import web
from server import create_app

@web.middleware
async def login(request, handler):
    if "X-User" in request.headers:
        request["user"] = {"id": int(request.headers["X-User"])}
    return await handler(request)

async def for_customer(request):
    valued.scope.customer_id = int(request.match_info["id"])  # nothing takes it back
    valued.action("for customer")
    return web.Response(status=204)

app = create_app()
app.middlewares.append(login)
app.router.add_post("/customers/{id}", for_customer)
web.run_app(app, host="127.0.0.1", port=0)
"""
    _write(folder, "aiohttp", more=more)
    with _running(folder, service, "-u", "more.py") as running:
        wanted = _visit(running.find(r"(http://127\.0\.0\.1:\d+)"))
        running.stop(len(wanted))
    _assert_each_has_its_user(service, wanted)


_LITESTAR = """
import valued
from app import ScopeMiddleware, generate, who
from litestar import Litestar, post
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult
from litestar.middleware import DefineMiddleware
from types import SimpleNamespace

class Login(AbstractAuthenticationMiddleware):
    async def authenticate_request(self, connection):
        user = connection.headers.get("X-User")
        return AuthenticationResult(user and SimpleNamespace(id=int(user)), None)

@post("/customers/{number:int}")
async def for_customer(number: int) -> None:
    valued.scope.customer_id = number
    valued.action("for customer")

inner = Litestar([generate, for_customer], middleware=[DefineMiddleware(Login)])
app = ScopeMiddleware(inner, data=who)
"""

_STARLETTE = """
import valued
from app import ScopeMiddleware, who
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.authentication import AuthenticationBackend, AuthCredentials
from starlette.responses import Response
from starlette.routing import Route
from types import SimpleNamespace

class Login(AuthenticationBackend):
    async def authenticate(self, connection):
        if "X-User" in connection.headers:
            user = SimpleNamespace(id=int(connection.headers["X-User"]))
            return AuthCredentials(), user

async def generate(request):
    valued.action("report.generated")
    return Response(status_code=204)

def for_customer(request):
    valued.scope.customer_id = request.path_params["number"]
    valued.action("for customer")
    return Response(status_code=204)

def known(scope):
    return who(scope) if hasattr(scope.get("user"), "id") else None

routes = [
    Route("/reports", generate, methods=["POST"]),
    Route("/customers/{number:int}", for_customer, methods=["POST"]),
]
middleware = [Middleware(AuthenticationMiddleware, backend=Login())]
app = ScopeMiddleware(Starlette(routes=routes, middleware=middleware), data=known)
"""


@pytest.mark.parametrize(
    "more", [pytest.param(_LITESTAR, id="litestar"), pytest.param(_STARLETTE, id="starlette")]
)
def test_a_wrapped_application_records_for_its_users_and_delivers_before_uvicorn_ends(
    folder: Path, service: Service, more: str
) -> None:
    _needs("litestar", "starlette", "uvicorn")
    _write(folder, "Litestar, Starlette", more=more)
    with _running(folder, service, "-m", "uvicorn", "more:app", "--port", "0") as running:
        wanted = _visit(running.find(r"running on (http://127\.0\.0\.1:\d+)"))
        running.stop(len(wanted), status=-signal.SIGTERM)
    _assert_each_has_its_user(service, wanted)


# -- the frameworks that have a module -------------------------------------------------------------

FRAMEWORKS = "docs/frameworks.rst"

_WSGI = """
import valued
from app import ScopeMiddleware, site, who

def more(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/reports":
        return site(environ, start_response)
    valued.scope.customer_id = int(path.rpartition("/")[2])
    valued.action("for customer")
    start_response("204 No Content", [])
    return []

app = ScopeMiddleware(more, data=who)
"""

_FLASK = """
import valued
from app import app

@app.post("/customers/<int:number>")
def for_customer(number):
    valued.scope.customer_id = number
    valued.action("for customer")
    return "", 204
"""

_DJANGO = """
import os

from settings import *

DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "more"
# Stands for a login.
MIDDLEWARE.append("more.login")

def login(get_response):
    from django.contrib.auth.models import User

    def middleware(request):
        if "X-User" in request.headers:
            request.user = User(pk=int(request.headers["X-User"]))
        return get_response(request)

    return middleware

def for_customer(request, number):
    import valued
    from django.http import HttpResponse

    valued.scope.customer_id = number
    valued.action("for customer")
    return HttpResponse(status=204)

def app(environ, start_response):
    from django.core.wsgi import get_wsgi_application

    global app
    app = get_wsgi_application()
    return app(environ, start_response)

def __getattr__(name):
    if name != "urlpatterns":
        raise AttributeError(name)
    from django.urls import path
    from urls import urlpatterns

    return [*urlpatterns, path("customers/<int:number>", for_customer)]
"""

_FASTAPI = """
import valued
from app import app

@app.post("/customers/{number}", status_code=204)
async def for_customer(number: int):
    valued.scope.customer_id = number
    valued.action("for customer")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Gunicorn forks")
@pytest.mark.parametrize(
    ("title", "more", "needs", "options"),
    [
        pytest.param("WSGI", _WSGI, (), (), id="wsgi"),
        pytest.param("Flask", _FLASK, ("flask",), ("--worker-class", "gthread"), id="flask"),
        pytest.param("Django", _DJANGO, ("django",), (), id="django"),
        pytest.param(
            *("FastAPI, ASGI", _FASTAPI, ("fastapi", "uvicorn_worker")),
            ("--worker-class", "uvicorn_worker.UvicornWorker"),
            id="fastapi",
        ),
    ],
)
def test_the_lines_for_a_framework_record_for_the_right_user_and_lose_nothing(
    folder: Path,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    title: str,
    more: str,
    needs: tuple[str, ...],
    options: tuple[str, ...],
) -> None:
    _needs("gunicorn", *needs)
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "more")
    _write(folder, title, FRAMEWORKS, more=more)
    server = ("gunicorn", "--bind", "127.0.0.1:0", "--no-control-socket", *options, "more:app")
    with _running(folder, service, "-m", *server) as running:
        url = running.find(r"Listening at: (\S+)")
        wanted = _visit(url)
        if title == "Flask":  # and its page views
            answer = requests.get(f"{url}/?token=hidden", headers={"X-User": "7"}, timeout=10)
            assert answer.status_code == 200
        running.stop(len(wanted))
    views = [event for event in service.events if event["category"] == "pageview"]
    assert [(it["user"], it["attributes"]["source"]["url"]) for it in views] == (
        [({"id": 7}, f"{url}/")] if title == "Flask" else []
    )
    actions = [event for event in service.events if event["category"] == "action"]
    assert sorted(map(_whose, actions), key=str) == sorted(wanted, key=str)


def test_the_lines_for_celery_carry_the_user(
    folder: Path, service: Service, redis: redis_support.Redis
) -> None:
    _needs("celery", "redis")
    sender = """
import send  # the page's
import valued
from tasks import generate

for number in range(50):
    with valued.isolated({"user.id": number} if number % 3 else {"customer.id": number}):
        generate.delay(number)
"""
    _write(folder, "Celery", FRAMEWORKS, sender=sender)
    _run(folder, "sender.py")
    # The prefork pool has tests of its own.
    command = ("-W", "ignore", "-m", "celery", "--app", "tasks", "worker", "--pool", "threads")
    options = ("--concurrency", "2", "--without-gossip", "--without-mingle", "--loglevel", "INFO")
    with _running(folder, service, *command, *options) as worker:
        until(lambda: worker.said().count("succeeded in") == 51, 20)
        worker.stop(51)
    wanted = [
        ("report.generated", *((number, None) if number % 3 else (None, number)))
        for number in range(50)
    ]
    _assert_each_has_its_user(service, [("report.generated", 123, None), *wanted])


def test_the_lines_for_rq_carry_the_user_and_its_work_horses_deliver(
    folder: Path, service: Service, redis: redis_support.Redis
) -> None:
    _needs("rq")
    sender = """
import valued
from send import generate, queue  # the page's, which enqueues a job

for number in range(4):
    with valued.isolated({"user.id": number} if number % 3 else {"customer.id": number}):
        queue.enqueue(generate, number)
"""
    _write(folder, "RQ", FRAMEWORKS, sender=sender)
    _run(folder, "sender.py")
    worker = ("--worker-class", "valued.integrations.rq.Worker", "--url", redis.url)
    _run(folder, "-m", "rq.cli", "worker", *worker, "--burst", "reports")
    wanted = [
        ("report.generated", *((number, None) if number % 3 else (None, number)))
        for number in range(4)
    ]
    _assert_each_has_its_user(service, [("report.generated", 123, None), *wanted])

"""With ``VALUED_DISABLED=1`` and no token whatever is run works, and sends nothing."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.support import blocks
from tests.docs.test_readme import CASES as README
from tests.docs.test_tutorial import CASES as TUTORIAL
from tests.prefork.test_django_example import use
from tests.support.celery import Worker
from tests.support.django_site import Served
from tests.support.documents import write_files
from tests.support.gunicorn import Gunicorn
from tests.support.processes import run
from tests.support.programs import BOUND, ROOT, free_port
from tests.support.redis import Redis
from tests.support.server import Server
from tests.support.uvicorn import ASGIServer

EXAMPLES = ROOT / "examples"
PROJECT = EXAMPLES / "django_project"


@pytest.fixture(autouse=True)
def _disabled(
    environment: None, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[None]:
    """Nothing else is set but where to send, so that an event that is sent is seen."""
    monkeypatch.setenv("VALUED_DISABLED", "1")
    monkeypatch.setenv("VALUED_ENDPOINT", server.url)
    monkeypatch.setenv("DATABASE", str(tmp_path / "database.sqlite"))
    monkeypatch.delenv("VALUED_ENV")
    yield
    assert server.requests == []


def runs(*arguments: str, cwd: Path) -> str:
    """Run Python so; what it printed, on both streams."""
    done = run(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


# -- the programs of the README and of the tutorial -----------------------------------------------

CASES = {**README, **TUTORIAL}


@pytest.mark.parametrize(("page", "title"), [key for key in CASES if CASES[key].events])
def test_program_of_a_page_runs(
    page: str, title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[page, title]
    for name in case.needs:
        pytest.importorskip(name)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = [it for it in blocks(page, *case.after, title) if it.language == "python"]
    write_files(tmp_path, found)
    if case.driver:
        runs(*case.driver, cwd=tmp_path)
    script = "\n".join(block.code for block in found if block.file is None)
    (tmp_path / "script.py").write_text(script, "utf-8")
    runs("script.py", cwd=tmp_path)


# -- the examples ----------------------------------------------------------------------------------


def status(port: int, method: str, path: str, user: str | None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=BOUND)
    with contextlib.closing(connection):
        connection.request(method, path, headers={"X-User-Id": user} if user else {})
        answer = connection.getresponse()
        answer.read()
        return answer.status


@pytest.mark.parametrize(
    ("folder", "module", "needs"),
    [
        (EXAMPLES, "flask_app", ("flask",)),
        (EXAMPLES, "fastapi_app", ("fastapi", "celery")),
        (EXAMPLES, "celery_tasks", ("celery",)),
        (PROJECT, "reports.wsgi", ("django", "celery")),
        (PROJECT, "reports.asgi", ("django", "celery")),
        (PROJECT, "reports.tasks", ("celery",)),
    ],
)
def test_example_can_be_imported_with_no_variable_but_that_one(
    folder: Path, module: str, needs: tuple[str, ...]
) -> None:
    for name in needs:
        pytest.importorskip(name)
    # As in the build of an image.
    done = run("-c", f"import {module}", cwd=folder, env={"VALUED_DISABLED": "1"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_flask_example_serves(tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    pytest.importorskip("flask")
    with Gunicorn(
        *(tmp_path, "flask_app:app", "--chdir", str(EXAMPLES), "--workers", "1"),
        configuration=(EXAMPLES / "gunicorn.conf.py").read_text("utf-8"),
    ) as gunicorn:
        for user in (None, "7"):
            assert status(gunicorn.port, "GET", "/reports/12", user) == 200
            assert status(gunicorn.port, "POST", "/reports", user) == 201
        gunicorn.stop()
        gunicorn.assert_said_nothing()


def test_fastapi_example_serves(tmp_path: Path) -> None:
    for name in ("fastapi", "uvicorn", "celery"):
        pytest.importorskip(name)
    app = ("fastapi_app:app", "--app-dir", str(EXAMPLES))
    with ASGIServer(tmp_path, "uvicorn", *app) as uvicorn:
        for user in (None, "7"):
            assert status(uvicorn.port, "GET", "/reports/12", user) == 200
            assert status(uvicorn.port, "POST", "/reports/12", user) == 202
        uvicorn.stop()
        assert uvicorn.complaints() == []


def test_django_example_is_checked_migrated_and_served(tmp_path: Path) -> None:
    pytest.importorskip("django")
    pytest.importorskip("celery")
    said = runs("manage.py", "check", cwd=PROJECT)
    assert said == "System check identified no issues (0 silenced).\n"
    assert "Applying reports" not in runs("manage.py", "migrate", cwd=PROJECT)
    runs("manage.py", "demo", "--only-make", cwd=PROJECT)
    port = free_port()
    command = (str(PROJECT / "manage.py"), "runserver", "--noreload", f"127.0.0.1:{port}")
    with Served(tmp_path, dict(os.environ), *command, port=port) as served:
        use(port, "ada")
        served.end(signal.SIGTERM)
        assert not re.search("Traceback|valued:", served.said())


def test_celery_example_does_its_tasks(redis_server: Redis, tmp_path: Path) -> None:
    pytest.importorskip("celery")
    pytest.importorskip("redis")
    tasks = [("update_profile", 7), *[("generate", number, 7) for number in range(5)]]
    with Worker(
        *(EXAMPLES / "celery_tasks.py", tmp_path, "--concurrency", "2"),
        environment={"CELERY_BROKER_URL": redis_server.url},
        tasks=tasks,
    ) as worker:
        worker.wait_until(lambda: worker.said().count(" succeeded in ") == len(tasks))
        assert worker.stop() == 0
        assert worker.complaints() == []


def test_command_says_that_nothing_was_sent() -> None:
    done = run("-m", "valued", "action", "report.generated", "user.id=1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "valued: nothing was sent: VALUED_DISABLED is set\n"

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

from tests import test_readme
from tests.prefork.test_django_example import use
from tests.support import celery, redis
from tests.support.django_site import BOUND, ROOT, Served, free_port
from tests.support.documents import write_files
from tests.support.gunicorn import Gunicorn
from tests.support.processes import run
from tests.support.server import Server
from tests.support.uvicorn import ASGIServer

EXAMPLES = ROOT / "examples"
PROJECT = EXAMPLES / "django_project"


@pytest.fixture(autouse=True)
def _disabled(
    environment: None, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[None]:
    """Nothing else is set but where to send, where somebody would see it."""
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


# -- the README's programs -------------------------------------------------------------------------

FIRST = test_readme.FIRST
#: Those that a server runs, below.
PROGRAMS = [FIRST, *(name for name in test_readme.ARRIVALS if name not in test_readme.SERVED)]


@pytest.mark.parametrize("section", PROGRAMS)
def test_program_of_the_readme_runs(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if section == "Transports and executors":
        # A transport of the reader's own, which reads the variable itself.
        monkeypatch.setenv("VALUED_TOKEN", "any")
    python = [block for block in test_readme.SECTIONS[section] if block.language == "python"]
    write_files(tmp_path, python)
    if section in test_readme.DRIVERS:
        runs(*test_readme.DRIVERS[section], cwd=tmp_path)
    script = "\n".join(block.code for block in python if block.file is None)
    (tmp_path / "script.py").write_text(script, "utf-8")
    runs("script.py", cwd=tmp_path)


def test_gunicorn_section_of_the_readme_serves(tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    pytest.importorskip("flask")
    write_files(tmp_path, test_readme.SECTIONS["Gunicorn"])
    # One worker, which has answered: a signal in the instant of another one's fork gets lost.
    one = ("--workers", "1")
    gunicorn = Gunicorn(tmp_path, "app:app", "--chdir", str(tmp_path), "--preload", *one)
    try:
        for user in (None, "7"):
            assert status(gunicorn.port, "POST", "/reports", user) == 204
        gunicorn.stop()
        gunicorn.assert_said_nothing()
    finally:
        gunicorn.kill()


def test_django_section_of_the_readme_adds_to_a_project_that_is_made_checked_and_migrated(
    tmp_path: Path,
) -> None:
    pytest.importorskip("django")
    runs("-m", "django", "startproject", "reader", ".", cwd=tmp_path)
    settings = tmp_path / "reader" / "settings.py"
    [block] = [it for it in test_readme.SECTIONS["Django"] if it.language == "python"]
    settings.write_text(f"{settings.read_text('utf-8')}{block.code}\n", "utf-8")
    said = runs("manage.py", "check", cwd=tmp_path)
    assert said == "System check identified no issues (0 silenced).\n"
    runs("manage.py", "migrate", "--verbosity", "0", cwd=tmp_path)


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
    configuration = (EXAMPLES / "gunicorn.conf.py").read_text("utf-8")
    gunicorn = Gunicorn(
        tmp_path,
        "flask_app:app",
        *("--chdir", str(EXAMPLES), "--workers", "1"),
        configuration=configuration,
    )
    try:
        for user in (None, "7"):
            assert status(gunicorn.port, "GET", "/reports/12", user) == 200
            assert status(gunicorn.port, "POST", "/reports", user) == 201
        gunicorn.stop()
        gunicorn.assert_said_nothing()
    finally:
        gunicorn.kill()


def test_fastapi_example_serves(tmp_path: Path) -> None:
    for name in ("fastapi", "uvicorn", "celery"):
        pytest.importorskip(name)
    uvicorn = ASGIServer(tmp_path, "uvicorn", "fastapi_app:app", "--app-dir", str(EXAMPLES))
    try:
        for user in (None, "7"):
            assert status(uvicorn.port, "GET", "/reports/12", user) == 200
            assert status(uvicorn.port, "POST", "/reports/12", user) == 202
        uvicorn.stop()
        assert uvicorn.complaints() == []
    finally:
        uvicorn.kill()


def test_django_example_is_checked_migrated_and_served(tmp_path: Path) -> None:
    pytest.importorskip("django")
    pytest.importorskip("celery")
    said = runs("manage.py", "check", cwd=PROJECT)
    assert said == "System check identified no issues (0 silenced).\n"
    assert "Applying reports" not in runs("manage.py", "migrate", cwd=PROJECT)
    runs("manage.py", "demo", "--only-make", cwd=PROJECT)
    port = free_port()
    served = Served(
        *(tmp_path, dict(os.environ), str(PROJECT / "manage.py"), "runserver", "--noreload"),
        f"127.0.0.1:{port}",
        port=port,
    )
    try:
        use(port, "ada")
        served.end(signal.SIGTERM)
        assert not re.search("Traceback|valued:", served.log())
    finally:
        served.kill()


def test_celery_example_does_its_tasks(tmp_path: Path) -> None:
    pytest.importorskip("celery")
    pytest.importorskip("redis")
    if redis.PROGRAM is None:
        pytest.skip("no redis-server here")
    with contextlib.closing(redis.Redis()) as broker:
        tasks = [("update_profile", 7), *[("generate", number, 7) for number in range(5)]]
        worker = celery.Worker(
            EXAMPLES / "celery_tasks.py",
            tmp_path,
            *("--concurrency", "2"),
            environment={"CELERY_BROKER_URL": broker.url},
            tasks=tasks,
        )
        with contextlib.closing(worker):
            worker.wait_until(lambda: worker.said().count(" succeeded in ") == len(tasks))
            assert worker.stop() == 0
            assert worker.complaints() == []


def test_command_says_that_nothing_was_sent() -> None:
    done = run("-m", "valued", "action", "report.generated", "user.id=1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "valued: nothing was sent: VALUED_DISABLED is set\n"

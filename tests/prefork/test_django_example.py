"""The example with Django and Celery as users run it, with `valued listen` as the service."""

from __future__ import annotations

import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.celery import Worker
from tests.support.cli import Listening
from tests.support.django_site import Served
from tests.support.processes import run
from tests.support.programs import ROOT, free_port
from tests.support.redis import Redis

pytest.importorskip("django")
pytest.importorskip("celery")
pytest.importorskip("gunicorn")

PROJECT = ROOT / "examples" / "django_project"

#: Whom the demo makes, in this order.
USERS = {"ada": 1, "grace": 2}
REPORTS = 3


@pytest.fixture
def environment(environment: None, tmp_path: Path, listener: Listening) -> dict[str, str]:
    return {
        **os.environ,
        "DATABASE": str(tmp_path / "database.sqlite"),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{PROJECT}",
        "PYTHONWARNINGS": "ignore:This process",
        "VALUED_TOKEN": "any-token",
        "VALUED_ENDPOINT": listener.url,
    }


def use(port: int, name: str) -> None:
    """Sign in, and have reports made whose titles say for whom."""
    url = f"http://127.0.0.1:{port}"
    with requests.Session() as browser:

        def send(path: str, **form: str) -> None:
            token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', page.text)
            assert token is not None, page.text
            form["csrfmiddlewaretoken"] = token[1]
            answer = browser.post(url + path, form, timeout=30)
            assert (answer.status_code, answer.url) == (200, f"{url}/")

        page = browser.get(f"{url}/login", timeout=30)
        send("/login", username=name, password="secret")
        for number in range(REPORTS):
            page = browser.get(f"{url}/", timeout=30)
            assert f"Hello {name}" in page.text
            send("/reports", title=f"{name} {number}")


def use_by_all(port: int) -> None:
    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(use, port, name) for name in USERS]:
            done.result(60)


def assert_each_is_of_who_asked(lines: list[dict[str, Any]]) -> None:
    events = [line["event"] for line in lines]
    actions = [
        (event["key"], event["attributes"]["title"], event["user"]["id"])
        for event in events
        if event["category"] == "action"
    ]
    assert sorted(actions) == sorted(
        (key, f"{name} {number}", user)
        for key in ("report.requested", "report.generated")
        for name, user in USERS.items()
        for number in range(REPORTS)
    )
    views = [event["user"]["id"] for event in events if event["category"] == "pageview"]
    # Behind the login, before each report, and behind it; the login itself is nobody's.
    assert sorted(views) == sorted([*USERS.values()] * (1 + 2 * REPORTS))


def test_one_command_serves_the_example_and_runs_its_tasks(
    environment: dict[str, str], listener: Listening, tmp_path: Path
) -> None:
    port = free_port()
    command = (str(PROJECT / "manage.py"), "demo", f"127.0.0.1:{port}")
    with Served(tmp_path, environment, *command, port=port) as served:
        use_by_all(port)
        served.end(signal.SIGTERM)
        assert_each_is_of_who_asked(listener.end())


def test_user_of_the_request_travels_to_the_worker(
    environment: dict[str, str], listener: Listening, redis_server: Redis, tmp_path: Path
) -> None:
    environment["CELERY_BROKER_URL"] = redis_server.url
    done = run(str(PROJECT / "manage.py"), "demo", "--only-make", env=environment)
    assert done.returncode == 0, done.stderr
    with (
        Worker(
            PROJECT / "reports", tmp_path, "--concurrency", "2", environment=environment
        ) as worker,
        Served(
            *(tmp_path, environment, "-m", "gunicorn", "--bind", "127.0.0.1:0", "--workers", "2"),
            *("--no-control-socket", "--preload", "reports.wsgi:application"),
        ) as served,
    ):
        worker.wait_until_ready()
        use_by_all(served.port)
        tasks = REPORTS * len(USERS)
        worker.wait_until(lambda: worker.said().count("succeeded in") == tasks)
        served.end(signal.SIGTERM)
        assert worker.stop() == 0
        assert_each_is_of_who_asked(listener.end())
        assert worker.complaints() == []

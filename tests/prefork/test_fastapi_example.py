"""The example with FastAPI as users run it: under uvicorn, with `valued listen` as the service."""

from __future__ import annotations

import contextlib
import http.client
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.celery import Worker
from tests.support.cli import Listening
from tests.support.programs import BOUND, ROOT
from tests.support.redis import Redis
from tests.support.uvicorn import ASGIServer

for _name in ("uvicorn", "fastapi", "celery"):
    pytest.importorskip(_name)

EXAMPLES = ROOT / "examples"
REPORTS = range(1, 25)

Event = tuple[str, str | None, int]  # what happened, whose it is, the number of the report


@pytest.fixture
def environment(environment: None, listener: Listening) -> dict[str, str]:
    """What the example is told, beside what all tests are."""
    return {"VALUED_TOKEN": "any-token", "VALUED_ENDPOINT": listener.url}


def start(kind: str, folder: Path, environment: dict[str, str]) -> ASGIServer:
    options = ("--app-dir", str(EXAMPLES))
    return ASGIServer(folder, kind, "fastapi_app:app", *options, **environment)


def user_of(number: int) -> str | None:
    """Each report has a visitor of its own; every third one has not signed in."""
    return None if number % 3 == 0 else f"user-{number}"


def visit(port: int, number: int) -> None:
    """Look at a report, and order it, on one connection."""
    user = user_of(number)
    headers = {} if user is None else {"X-User-Id": user}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=BOUND)
    with contextlib.closing(connection):
        for method, status in (("GET", 200), ("POST", 202)):
            connection.request(method, f"/reports/{number}", headers=headers)
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (status, b'{"report":%d}' % number)


def visit_all(port: int) -> None:
    first, *others = REPORTS
    visit(port, first)  # Celery makes a task ready at its first use, and not safely for threads
    with ThreadPoolExecutor(4) as visitors:
        list(visitors.map(lambda number: visit(port, number), others))


def expected() -> Counter[Event]:
    """Three events for each visitor who signed in; those of nobody are not recorded."""
    return Counter(
        (what, user_of(number), number)
        for number in REPORTS
        if user_of(number) is not None
        for what in ("pageview", "report.ordered", "report.rendered")
    )


def received(lines: list[dict[str, Any]]) -> Counter[Event]:
    return Counter(
        (
            event.get("key", event["category"]),
            event["user"]["id"],
            report_of(**event["attributes"]),
        )
        for event in (line["event"] for line in lines)
    )


def report_of(source: dict[str, str] | None = None, report: int = 0, **_more: object) -> int:
    """The number of the report, which a page view has in its URL."""
    return report if source is None else int(source["url"].rpartition("/")[2])


@pytest.mark.parametrize("kind", ["uvicorn", "uvicorn, 2 workers"])
def test_example_records_views_and_actions_of_those_who_asked(
    kind: str, listener: Listening, environment: dict[str, str], tmp_path: Path
) -> None:
    with start(kind, tmp_path, environment) as running:
        visit_all(running.port)
        running.stop()
    assert received(listener.end()) == expected()
    assert running.complaints() == []


def test_example_records_what_a_worker_does_for_those_who_asked(
    listener: Listening, redis_server: Redis, environment: dict[str, str], tmp_path: Path
) -> None:
    environment["CELERY_BROKER_URL"] = redis_server.url
    app = EXAMPLES / "fastapi_app:tasks"
    with (
        start("uvicorn", tmp_path, environment) as running,
        Worker(app, tmp_path, "-c", "2", environment=environment) as worker,
    ):
        visit_all(running.port)
        # Who isn't signed in has a report rendered, too, and no event.
        worker.wait_until(lambda: worker.said().count(" succeeded in ") == len(REPORTS))
        assert worker.stop() == 0
        assert worker.complaints() == []
        running.stop()
    lines = listener.end()
    assert received(lines) == expected()
    # The worker's children recorded what they did, and the server the rest.
    rendered = {line["pid"] for line in lines if line["event"].get("key") == "report.rendered"}
    others = {line["pid"] for line in lines if line["event"].get("key") != "report.rendered"}
    assert not rendered & others
    assert others == {running.pid}

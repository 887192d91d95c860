"""The example with Flask as users run it: under Gunicorn, with `valued listen` as the service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cli import Listening, listening
from tests.support.gunicorn import ROOT, Gunicorn, Visitors

pytest.importorskip("gunicorn")
pytest.importorskip("flask")

CONFIGURATION = (ROOT / "examples" / "gunicorn.conf.py").read_text("utf-8")


@pytest.fixture
def listener() -> Iterator[Listening]:
    with listening() as listener:
        yield listener


@pytest.fixture
def gunicorn(tmp_path: Path, listener: Listening) -> Iterator[Callable[[str], Gunicorn]]:
    """Start it with a configuration; what it said is in the report of a failure."""
    started: list[Gunicorn] = []

    def start(configuration: str) -> Gunicorn:
        gunicorn = Gunicorn(
            tmp_path,
            "flask_app:app",
            *("--chdir", str(ROOT / "examples")),
            configuration=configuration,
            VALUED_TOKEN="any-text",
            VALUED_ENDPOINT=listener.url,
        )
        started.append(gunicorn)
        return gunicorn

    yield start
    for one in started:
        one.kill()
        print(one.said())


@pytest.mark.parametrize("preload", ["as it is", "without preload"])
def test_example_sends_a_page_view_per_request_and_an_action_per_post(
    preload: str, listener: Listening, gunicorn: Callable[[str], Gunicorn]
) -> None:
    running = gunicorn(CONFIGURATION + ("preload_app = False\n" if preload != "as it is" else ""))
    visitors = Visitors(running.port)
    workers = running.workers()
    visitors.wait_for(200)
    visitors.wait_for_pids(workers)
    running.stop()
    visitors.join()
    lines = listener.end()
    events = [line["event"] for line in lines]
    visitors.assert_each_event_came_once(
        (event["attributes"]["id"], event["category"], line["pid"])
        for line, event in zip(lines, events, strict=True)
    )
    assert {line["pid"] for line in lines} == workers
    assert {event["user"]["id"] for event in events} == {"7"}
    assert {event.get("key") for event in events} == {None, "report.generated"}
    running.assert_said_nothing()

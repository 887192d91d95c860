"""The example with Flask as users run it: under Gunicorn, with `valued listen` as the service."""

from __future__ import annotations

import collections
import http.client
import itertools
import os
import re
import shlex
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.cli import Listening
from tests.support.gunicorn import Gunicorn
from tests.support.programs import BOUND, ROOT, Program

pytest.importorskip("gunicorn")
pytest.importorskip("flask")

EXAMPLE = ROOT / "examples" / "flask_app.py"
CONFIGURATION = (ROOT / "examples" / "gunicorn.conf.py").read_text("utf-8")
REQUESTS = 200
USERS = ["", *map(str, range(1, 11))]  # the first is not signed in


@pytest.fixture
def variables(listener: Listening) -> dict[str, str]:
    return {"VALUED_TOKEN": "any-token", "VALUED_ENDPOINT": listener.url}


def visit(port: int, name: str, user: str, method: str, path: str) -> tuple[int, int]:
    """Ask once; the status of the answer, and the process that gave it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=BOUND)
    try:
        headers = {"X-Request-Id": name} | ({"X-User-Id": user} if user else {})
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status, int(answer.headers["X-Pid"])
    finally:
        connection.close()


@pytest.mark.parametrize("preload", ["as it is", "without preload"])
def test_example_records_pages_and_actions_of_those_who_are_signed_in(
    preload: str, listener: Listening, variables: dict[str, str], tmp_path: Path
) -> None:
    more = "preload_app = False\n" if preload != "as it is" else ""
    with Gunicorn(
        *(tmp_path, "flask_app:app", "--chdir", str(EXAMPLE.parent)),
        configuration=CONFIGURATION + more,
        **variables,
    ) as running:
        asked = visit_all(running)
        running.stop()
        running.assert_said_nothing()
    arrived = []
    for line in listener.end():
        event = line["event"]
        attributes = event["attributes"]
        what = event["key"] if event["category"] == "action" else attributes["source"]["url"]
        arrived.append((attributes["id"], event["user"]["id"], what, line["pid"]))
    assert collections.Counter(arrived) == collections.Counter(it for it in asked if it[1])


def visit_all(running: Gunicorn) -> list[tuple[str, str, str, int]]:
    """Ask so often that each worker has answered: id, user, what is recorded, and by whom."""

    def ask(number: int) -> tuple[str, str, str, int]:
        user, post = USERS[number % len(USERS)], number % 4 == 0
        method, path = ("POST", "/reports") if post else ("GET", f"/reports/{number}?page=2")
        status, pid = visit(running.port, str(number), user, method, path)
        assert status == (201 if post else 200)
        url = f"http://127.0.0.1:{running.port}/reports/{number}"
        return str(number), user, "report.generated" if post else url, pid

    workers = running.workers()
    numbers = itertools.count()
    asked: list[tuple[str, str, str, int]] = []
    deadline = time.monotonic() + BOUND
    with ThreadPoolExecutor(4) as visitors:
        while len(asked) < REQUESTS or {pid for *_, pid in asked} != workers:
            assert time.monotonic() < deadline
            asked += visitors.map(ask, itertools.islice(numbers, REQUESTS))
    return asked


def test_example_runs_by_the_commands_that_it_says(listener: Listening, tmp_path: Path) -> None:
    text = EXAMPLE.read_text("utf-8").split('"""')[1]
    commands = [shlex.split(line[6:]) for line in text.splitlines() if line.startswith("    $ ")]
    assert [command[0] for command in commands] == ["valued", "export", "gunicorn", *["curl"] * 3]
    settings = dict(setting.split("=", 1) for setting in commands[1][1:])
    with Program(
        tmp_path / "log",
        *("-m", *commands[2], "--bind", "127.0.0.1:0", "--workers", "1"),
        env={**os.environ, **settings, "VALUED_ENDPOINT": listener.url, "HOME": str(tmp_path)},
    ) as running:
        pattern = r"Listening at: http://127\.0\.0\.1:(\d+)"
        found = running.wait_until(lambda: re.search(pattern, running.said()))
        for command in commands[3:]:
            request = urllib.request.Request(
                command[-1].replace(":8000", f":{found[1]}"),
                method="POST" if "POST" in command else "GET",
                headers={"X-User-Id": "7"} if "X-User-Id: 7" in command else {},
            )
            urllib.request.urlopen(request, timeout=BOUND).close()
        running.process.terminate()
        assert running.process.wait(BOUND) == 0
    events = [line["event"] for line in listener.end()]
    what = sorted((event["category"], event["user"]["id"]) for event in events)
    assert what == [("action", "7"), ("pageview", "7")]

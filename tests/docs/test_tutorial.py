"""The tutorial: its files are written and run as its reader does, up to Gunicorn."""

from __future__ import annotations

import os
import re
import shlex
import signal
from pathlib import Path

import pytest
import requests

from tests.docs.live import Running, Service, needs, write_page
from tests.docs.support import Case, Cases, blocks, run_section
from tests.support.documents import DOCS
from tests.support.processes import run, until
from tests.support.server import Reply, Request, Server

APP = "A web application"
ACCOUNTS = "Users and customers"

#: Visits as the page's curl does them, on the test client of the application.
_VISIT = """
import re, sys
import app
browser = app.app.test_client()
for headers, method, url in {visits!r}:
    answer = browser.open(url, method=method, headers=headers)
    assert answer.status_code in (200, 201), answer.status
"""


def _visits(title: str) -> list[tuple[dict[str, str], str, str]]:
    """What the ``curl`` lines of a section ask for."""
    found = []
    for block in blocks("tutorial", title):
        for line in block.code.splitlines() if block.language == "console" else ():
            words = shlex.split(line.removeprefix("$ "))
            if words[0] != "curl":
                continue
            headers = {}
            if "-H" in words:
                name, _, value = words[words.index("-H") + 1].partition(": ")
                headers[name] = value
            found.append((headers, "POST" if "-X" in words else "GET", words[-1]))
    return found


CASES: Cases = {
    ("index", "valued-client"): Case(events=1),
    ("tutorial", "The first event"): Case(events=1, driver=("first.py",), prints=False),
    ("tutorial", APP): Case(
        events=2, driver=("-c", _VISIT.format(visits=_visits(APP))), needs=("flask",)
    ),
    ("tutorial", ACCOUNTS): Case(
        events=4, driver=("-c", _VISIT.format(visits=_visits(ACCOUNTS))), needs=("flask",)
    ),
    ("tutorial", "Test it"): Case(
        events=0,
        driver=("-m", "pytest", "-q", "-p", "no:cacheprovider"),
        after=(ACCOUNTS,),
        needs=("flask",),
    ),
}


@pytest.mark.parametrize(("page", "title"), CASES)
def test_section_runs_as_printed(page: str, title: str, shell: Path, server: Server) -> None:
    run_section(page, title, CASES[page, title], shell, server)


def test_the_mistake_is_answered_as_printed(shell: Path) -> None:
    [block, shown] = [
        it for it in blocks("tutorial", "The first event") if it.language in ("python", "text")
    ]
    broken = block.code.replace('{"user.id": 123}, ', "")
    assert broken != block.code
    done = run("-c", broken, cwd=shell)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == shown.code


def test_during_an_outage_requests_are_answered_and_their_events_arrive_after_it(
    shell: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("flask", "gunicorn")
    if not hasattr(os, "fork"):
        pytest.skip("Gunicorn forks")
    monkeypatch.setenv("VALUED_ENDPOINT", service.url)
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--bind 127.0.0.1:0 --no-control-socket")
    down = {"down": True}
    late = service.script

    def script(request: Request) -> Reply | None:
        return Reply(503) if down["down"] else late(request)

    service.script = script
    write_page(shell, "tutorial", ACCOUNTS)
    [line] = [it.code for it in blocks("tutorial", "Go to production") if it.language == "console"]
    program, *options = shlex.split(line.removeprefix("$ "))
    with Running(shell, service, "-m", program, *options, "--graceful-timeout", "10") as gunicorn:
        service.ends.set()
        url = gunicorn.find(r"Listening at: (\S+)")
        for number in range(8):
            answer = requests.post(f"{url}/reports", headers={"X-User": "7"}, timeout=5)
            assert answer.status_code == 201, number
        said = r"valued: \d+ deliver\w+ failed and will be retried; the latest: "
        until(lambda: re.search(said, gunicorn.said()) is not None, 10)
        down["down"] = False
        gunicorn.process.send_signal(signal.SIGINT)  # Ctrl-C
        assert gunicorn.process.wait(20) == 0, gunicorn.said()
        taken = {it.headers["Idempotency-Key"] for it in service.requests}
        assert len(taken) == 8
        assert "not delivered" not in gunicorn.said()


def test_its_pictures_are_there() -> None:
    text = (DOCS / "tutorial.rst").read_text("utf-8")
    names = re.findall(r"\.\. image:: (\S+)", text)
    assert len(names) >= 2
    for name in names:
        assert (DOCS / name).read_bytes().startswith(b"\x89PNG")

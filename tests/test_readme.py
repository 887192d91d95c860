"""The documents: they render, and what they print runs."""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docutils.nodes
import pytest
import requests

import valued
from tests.support.documents import ROOT, Block, doctree, sections, write_files
from tests.support.processes import run
from tests.support.server import Reply, Server

DOCUMENTS = [
    "README.rst", "CHANGELOG.rst", "CONTRIBUTING.rst", "docs/faults.rst", "docs/delivery.rst",
    "docs/frameworks.rst", "docs/recipes.rst", "docs/ends.rst",
    "docs/testing.rst",
]  # fmt: skip
TOKEN = "readme-token"

FIRST = "First event in a minute"

#: The other sections with Python blocks, and how many events the service gets from each.
ARRIVALS = {
    "Calls": 6,
    "Scope": 6,
    "One request, one task": 8,
    "The shared client": 5,
    "Your own objects": 2,
    "Forks": 1,
    "Django": 2,
    "Flask": 2,
    "FastAPI": 2,
    "Tasks and jobs": 1,
    "Gunicorn": 40,
    "Celery": 1,
    "multiprocessing": 100,
    "asyncio and gevent": 1,
    "Delivery": 1,
    "What is lost": 1,
    "AWS Lambda": 1,
    "When processes die": 1,
    "In production": 1,
    "Testing your application": 0,
    "Transports and executors": 5,
}

#: What uses the files that a section prints (those whose first line is a comment with a name).
DRIVERS = {
    "Flask": [
        "-c",
        """
import app
visitors = [{}, {"X-User-Id": "7"}, {"X-User-Id": "8"}]
for headers in visitors:
    assert app.app.test_client().get("/?q=1", headers=headers).status_code == 200
""",
    ],
    "FastAPI": [
        "-c",
        """
import asyncio, httpx, main

async def visit():
    transport = httpx.ASGITransport(main.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://reader") as client:
        for user in (7, 8):
            answer = await client.post("/reports", headers={"X-User-Id": str(user)})
            assert answer.status_code == 200

asyncio.run(visit())
""",
    ],
    "Tasks and jobs": [
        "-c",
        """
import tasks, valued
with valued.isolated({"user.id": 123}):
    tasks.generate.apply((7,)).get()
""",
    ],
    "Celery": ["-c", "import tasks; tasks.generate.apply((7, 123)).get()"],
    "multiprocessing": ["work.py"],
    "AWS Lambda": ["-c", "import handler; assert handler.handler({}, None)['statusCode'] == 204"],
    "Testing your application": ["-m", "pytest", "-q", "-p", "no:cacheprovider"],
}


SECTIONS = sections("README.rst")


def _commands() -> list[str]:
    """The lines of the README that are typed into a shell."""
    return [
        line.removeprefix("$ ")
        for blocks in SECTIONS.values()
        for block in blocks
        if block.language == "console"
        for line in block.code.splitlines()
    ]


def _objects(blocks: list[Block]) -> Iterator[dict[str, Any]]:
    """The JSON objects that a section prints."""
    decoder = json.JSONDecoder()
    for block in blocks:
        text = block.code.strip() if block.language == "json" else ""
        while text:
            found, end = decoder.raw_decode(text)
            yield found
            text = text[end:].lstrip()


@pytest.fixture
def shell(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, and an environment as the README asks the reader to set."""
    monkeypatch.setenv("VALUED_TOKEN", TOKEN)
    monkeypatch.setenv("VALUED_ENDPOINT", server.url)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in [name for name in os.environ if "COV" in name]:
        # Coverage would bring a handler of SIGTERM, which no reader has.
        monkeypatch.delenv(name)
    return tmp_path


def _run(folder: Path, *arguments: str, stdin: str = "") -> str:
    """What Python, run with *arguments* in *folder*, printed; it must end well and quietly."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert TOKEN not in done.stdout
    return done.stdout


def _assert_arrived(server: Server, section: str) -> None:
    """All that the section sent, each event once, and among it what the section prints."""
    arrived = server.events
    assert len(arrived) == ARRIVALS[section]
    keys = [request.headers["Idempotency-Key"] for request in server.requests
            if "Idempotency-Key" in request.headers]  # fmt: skip
    assert len(keys) == len(set(keys))
    for event in arrived:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", event["occured_at"])
    assert {request.headers["Authorization"] for request in server.requests} <= {f"Bearer {TOKEN}"}
    for printed in _objects(SECTIONS[section]):
        alike = [
            event
            for event in arrived
            if {**event, "occured_at": ""} == {**printed, "occured_at": ""}
        ]
        assert len(alike) == 1, printed


@pytest.mark.parametrize("name", DOCUMENTS)
def test_document_renders_without_a_warning(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    doctree(name, report_level=1, highlight="long")  # which knows what languages there are
    assert capfd.readouterr().err == ""


def test_every_section_with_python_is_run() -> None:
    with_python = [
        title
        for title, blocks in SECTIONS.items()
        if any(block.language == "python" for block in blocks)
    ]
    assert with_python == [FIRST, *ARRIVALS]


#: Those that have a test of their own.
SERVED = ("Django", "Gunicorn")


@pytest.mark.parametrize("section", [name for name in ARRIVALS if name not in SERVED])
def test_section_runs_as_printed_and_its_events_arrive(
    section: str, server: Server, shell: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if section == "Testing your application":  # as its reader has it, who sets no environment
        monkeypatch.delenv("VALUED_ENV")
    python = [block for block in SECTIONS[section] if block.language == "python"]
    write_files(shell, python)
    output = ""
    if section in DRIVERS:
        _run(shell, *DRIVERS[section])
    script = "\n".join(block.code for block in python if block.file is None)
    if script:
        (shell / "script.py").write_text(script, "utf-8")
        output = _run(shell, "script.py")
    assert all(block.file is None or section in DRIVERS for block in python)
    printed = [block.code for block in SECTIONS[section] if block.language == "text"]
    assert output.splitlines() == "\n".join(printed).splitlines()
    _assert_arrived(server, section)


#: A login, and what a visitor does: what the reader of the section has already.
_SITE = """
from django.contrib.auth.models import User
from django.contrib.auth.views import LoginView
from django.http import HttpResponse
from django.urls import path
import valued

def home(request):
    if request.user.is_authenticated:
        valued.action("home.opened")
    return HttpResponse("<p>Hello</p>")

urlpatterns = [path("", home), path("login/", LoginView.as_view())]
"""

_VISIT = """
import os, django
os.environ["DJANGO_SETTINGS_MODULE"] = "site_of_the_reader.settings"
django.setup()
from django.conf import settings
settings.ALLOWED_HOSTS.append("testserver")
from django.contrib.auth.models import User
from django.test import Client
user = User.objects.create_user("ada", password="secret")
anonymous, ada = Client(), Client()
assert ada.login(username="ada", password="secret")
for client in (anonymous, ada):
    assert client.get("/?q=1").status_code == 200
print(user.pk)
"""


def test_django_section_adds_page_views_to_a_new_project(server: Server, shell: Path) -> None:
    project = "site_of_the_reader"
    _run(shell, "-m", "django", "startproject", project, ".")
    settings = shell / project / "settings.py"
    [block] = [one for one in SECTIONS["Django"] if one.language == "python"]
    lines = block.code.splitlines()
    assert len(lines) <= 6
    assert block.file == settings.name
    settings.write_text(settings.read_text("utf-8") + block.code + "\n", "utf-8")
    (shell / project / "urls.py").write_text(_SITE, "utf-8")
    _run(shell, "manage.py", "migrate", "--verbosity", "0")
    user = int(_run(shell, "-c", _VISIT))
    _assert_arrived(server, "Django")
    assert {event["user"]["id"] for event in server.events} == {user}
    [view] = [event for event in server.events if event["category"] == "pageview"]
    assert view["attributes"]["source"]["url"] == "http://testserver/"


#: A worker that is told to end in the instant of its fork doesn't hear of it, and is waited for.
PATIENCE = "--no-control-socket --graceful-timeout 10"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Gunicorn forks")
def test_gunicorn_section_runs_as_printed_and_each_event_arrives_once(
    server: Server, shell: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(shell, SECTIONS["Gunicorn"])
    typed = [block.code for block in SECTIONS["Gunicorn"] if block.language == "console"]
    (program, *arguments), curl = (shlex.split(command.removeprefix("$ ")) for command in typed)
    # What curl would do; it is not on every machine.
    assert curl[:4] == ["curl", "-X", "POST", "-H"]
    name, _, user = curl[4].partition(": ")
    path = curl[5].removeprefix("http://127.0.0.1:8000")  # where Gunicorn listens by default
    monkeypatch.setenv("GUNICORN_CMD_ARGS", f"--bind 127.0.0.1:0 {PATIENCE}")
    process = subprocess.Popen(
        [sys.executable, "-m", program, *arguments], cwd=shell, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        url = ""
        while not url:  # ends with the log at the latest, by the StopIteration
            match = re.search(r"Listening at: (\S+)", next(process.stderr))
            url = match[1] if match else ""
        visitors = [{}, {name: "nobody"}, {name: user}, *({name: str(it)} for it in range(19))]
        for headers in visitors:
            answer = requests.post(f"{url}{path}", headers=headers, timeout=10)
            assert answer.status_code == 204
        process.send_signal(signal.SIGTERM)
        log = process.communicate(timeout=30)[1]
    finally:
        process.kill()
        process.wait(10)
    assert process.returncode == 0, log
    _assert_arrived(server, "Gunicorn")
    seen = sorted((event["category"], event["user"]["id"]) for event in server.events)
    signed_in = [int(user), *range(19)]
    assert seen == sorted((kind, it) for kind in ("action", "pageview") for it in signed_in)


@contextlib.contextmanager
def _listening(command: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Run ``valued listen …`` on a free port; its URL, and, at the end, the lines it printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", *shlex.split(command), "--port", "0"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: list[str] = []
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        heading = process.stderr if "--json" in command else process.stdout
        lines.append(next(heading))
        yield lines[0].split()[-1], lines
        process.terminate()
        lines += process.communicate(timeout=30)[0].splitlines(keepends=True)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate(timeout=10)


def _without_what_differs(text: str) -> str:
    """*text* without port, process and time."""
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text)
    text = re.sub(r"from \S+ \(pid \d+\)", "from PROCESS", text)
    return re.sub(r'"occured_at": "[^"]+"', '"occured_at": TIME', text)


def test_first_event_is_shown_as_printed(shell: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [program] = [block.code for block in SECTIONS[FIRST] if block.language == "python"]
    [shown] = [block.code for block in SECTIONS[FIRST] if block.language == "text"]
    typed = [block.code for block in SECTIONS[FIRST] if block.language == "console"]
    [listen], exports = ([line.removeprefix("$ ") for line in text.splitlines()] for text in typed)
    (shell / "first.py").write_text(program, "utf-8")
    with _listening(listen, shell) as (url, lines):
        assert exports.pop(0) in _commands()[:2]  # activates the environment once more
        for line in exports:
            name, _, value = line.removeprefix("export ").partition("=")
            monkeypatch.setenv(name, value)
        assert _without_what_differs(os.environ["VALUED_ENDPOINT"]) == _without_what_differs(url)
        monkeypatch.setenv("VALUED_ENDPOINT", url)
        assert _run(shell, "first.py") == ""
    assert _without_what_differs("".join(lines).rstrip()) == _without_what_differs(shown)


def test_where_nothing_arrives_the_quick_check_says_why_and_so_does_a_program(
    server: Server, shell: Path
) -> None:
    [block] = SECTIONS["Nothing arrives?"]
    check = ["-m", *shlex.split(block.code.removeprefix("$ "))]
    done = run(*check, cwd=shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert "was delivered to" in done.stdout
    assert len(server.events) == 1

    server.script = lambda _request: Reply(401)
    done = run(*check, cwd=shell)
    reason = r"the service answered 401 Unauthorized at .* \(1 attempt in \d\.\d s\)"
    assert done.returncode == 1
    assert re.fullmatch(f"valued: not delivered: {reason}", done.stderr.splitlines()[-1])
    [program] = [block.code for block in SECTIONS[FIRST] if block.language == "python"]
    done = run("-c", program, cwd=shell)
    assert done.returncode == 0
    assert re.fullmatch(f"valued: 1 event was given up; the latest: {reason}\n", done.stderr)


def test_command_line_works_as_printed(shell: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [block] = SECTIONS["Command line"]
    commands = [line.removeprefix("$ ") for line in block.code.splitlines()]
    plain, in_json = (line for line in commands if line.startswith("valued listen"))
    event = {"category": "sync", "user": {"id": 5}, "occured_at": "2026-11-23T10:00:00+01:00"}
    (shell / "events.jsonl").write_text(json.dumps(event) + "\n", "utf-8")
    with _listening(plain, shell):
        pass  # it starts, and ends when it is told to
    with _listening(in_json, shell) as (url, lines):
        monkeypatch.setenv("VALUED_ENDPOINT", url)
        for line in commands:
            if line not in (plain, in_json, "valued demo"):
                done = run("-m", *shlex.split(line), cwd=shell)
                assert done.returncode == 0, done.stderr
    arrived = [json.loads(line)["event"] for line in lines[1:]]
    assert [event["category"] for event in arrived] == ["action", "pageview", *["sync"] * 3]
    assert arrived[-1] == event


def test_demo_works_as_printed(shell: Path) -> None:
    assert "valued demo" in _commands()
    done = run("-m", "valued", "demo", cwd=shell)
    assert done.returncode == 0, done.stdout + done.stderr
    assert TOKEN not in done.stdout + done.stderr


def test_options_are_those_of_the_client() -> None:
    rows = {
        row[0].astext(): row[1].astext()
        for node in doctree("README.rst").findall(docutils.nodes.row)
        if len(row := list(node.findall(docutils.nodes.entry))) == 3
    }
    options = {
        name: parameter.default
        for name, parameter in inspect.signature(valued.Client).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    documented = {name: rows[name] for name in rows if name in options or name == "idle_time"}
    assert {name: ast.literal_eval(default) for name, default in documented.items()} == options
    for name, default in options.items():
        assert type(ast.literal_eval(documented[name])) is type(default)


def test_every_public_function_is_mentioned() -> None:
    text = (ROOT / "README.rst").read_text("utf-8")
    aliases = {"pageview", "Executor", "Stats", "Transport", "__version__"}
    missing = [
        name
        for name in valued.__all__
        if name not in aliases and not re.search(rf"\b{name}\b", text)
    ]
    assert missing == []


def test_ci_runs_the_tests_by_the_command_of_the_readme() -> None:
    lines = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    assert lines[:3] == ["#!/usr/bin/env bash", "set -euo pipefail", 'cd "$(dirname "$0")/.."']
    assert lines[-1] in _commands()
    assert [line for line in lines[:-1] if "tox" in line or "pytest" in line] == []
    assert os.access(ROOT / ".ci" / "run", os.X_OK)

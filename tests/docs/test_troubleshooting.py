"""Each symptom of the page is provoked, and says what the page prints."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.live import needs
from tests.docs.support import blocks, runs
from tests.support.documents import sections
from tests.support.server import Reply, Server
from tests.support.tls import Authority, TLSServer

PAGE = "howto/troubleshooting"
DOCS = Path(__file__).parents[2] / "docs"

#: Nothing listens there.
CLOSED = "http://127.0.0.1:9/events"

#: Prints what a client says of itself, or of bad input.
SHOW = "import valued; print(valued.Client())"
#: An event that is pending when the process ends.
APP = """
import valued
client = valued.Client(shutdown_timeout=0.3, max_queue=100)
for number in range(EVENTS):
    client.action("report.generated", {"user.id": 123})
"""
#: A call that raises, as it is without any option.
WRONG = """
import valued
client = valued.Client()
for record in (lambda: client.page_view("https://example.com/"), lambda: client.action("opened")):
    try:
        record()
    except valued.ValidationError as error:
        print(error)
"""
#: A server that puts its own handler back, and a worker whose first event is on another thread.
HANDLER = """
import os, signal, threading
import valued
client = valued.Client()
valued.flush_on_signals()
child = os.fork()
if not child:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    thread = threading.Thread(target=client.action, args=("work.done", {"user.id": 1}))
    thread.start()
    thread.join()
    client.flush()
    os._exit(0)
os.waitpid(child, 0)
"""
NOT_CONNECTED = "import valued; valued.action('work.done', {'user.id': 1})"
BLOCKED = """
import valued
client = valued.Client("a-token", "https://ingest.valued.app/events")
client.action("work.done", {"user.id": 1})
"""
EXECUTOR = """
import os
from concurrent.futures import ThreadPoolExecutor
import valued
client = valued.Client(executor=ThreadPoolExecutor(2))
child = os.fork()
if child:
    os.waitpid(child, 0)
else:
    client.action("work.done", {"user.id": 1})
"""
FORKS = """
import os
import valued
client = valued.Client()
client.action("work.done", {"user.id": 1})
client.flush()
child = os.fork()
if child:
    os.waitpid(child, 0)
"""
#: A uWSGI without threads, as far as a client sees it.
UWSGI = """
import sys, types
sys.modules["uwsgi"] = types.ModuleType("uwsgi")
sys.modules["uwsgi"].has_threads = False
sys.modules["uwsgi"].masterpid = lambda: 0
import valued
valued.Client().action("work.done", {"user.id": 1})
"""
DJANGO = """
import django
from django.conf import settings
settings.configure(INSTALLED_APPS=["valued.integrations.django"], ALLOWED_HOSTS=["*"])
django.setup()
from django.http import HttpResponse
from django.test import RequestFactory
from valued.integrations.django import ScopeMiddleware
ScopeMiddleware(lambda request: HttpResponse())(RequestFactory().get("/"))
"""
DISK = """
import resource, signal
import valued
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
client = valued.Client(outbox="private")
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
client.action("work.done", {"user.id": 1})
client.flush()
assert client.stats()["unsaved"] == 1
"""
ACTION = ("-m", "valued", "action", "check.made", "user.id=1")


@dataclasses.dataclass(frozen=True)
class Program:
    """Run to provoke a symptom; *environment* on top of that of a reader, "" removes."""

    arguments: tuple[str, ...]
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


def _code(code: str, **environment: str) -> Program:
    return Program(("-c", code), environment)


def _app(events: int, **environment: str) -> Program:
    return _code(APP.replace("EVENTS", str(events)), **environment)


SYMPTOMS: dict[str, list[Program]] = {
    "No answer": [_app(1, VALUED_ENDPOINT=CLOSED)],
    "It goes to another address": [_code(SHOW, VALUED_ENDPOINT="")],
    "No token": [Program(ACTION, {"VALUED_TOKEN": ""}), _code(DJANGO, VALUED_TOKEN="")],
    "The client is disabled": [
        Program(ACTION, {"VALUED_DISABLED": "1"}),
        _code(SHOW, VALUED_DISABLED="1"),
    ],
    "The queue is full": [_app(1000, VALUED_ENDPOINT=CLOSED)],
    "Events are lost at a restart": [_app(1, VALUED_ENDPOINT=CLOSED), _code(HANDLER)],
    "A process ends slowly": [_app(9, VALUED_ENDPOINT=CLOSED)],
    "Wrong user, or no user": [_code(WRONG)],
    "NotConnectedError": [_code(NOT_CONNECTED)],
    "Works in development, silent in tests": [_code(BLOCKED, VALUED_BLOCK="1")],
    "Warnings at a fork": [_code(EXECUTOR), Program(("-W", "always", "-c", FORKS))],
    "uWSGI without threads": [_code(UWSGI)],
    "The outbox is not writable": [
        _code("import valued; valued.Client(outbox='open')"),
        _code(DISK),
    ],
}

#: What depends on the machine, or on the version of Python.
ELSEWHERE = ["NameResolutionError", *(["DeprecationWarning"] if sys.version_info < (3, 12) else [])]

#: Whatever the connection calls itself; that changes with urllib3.
_CONNECTION = re.compile(r"<urllib3[^>]*>|\w*Connection(?:Pool)?\(host='[^']*', port=N\)")
_OS_ERROR = re.compile(r"\[Errno N\] [A-Z][a-z]+(?: [a-z]+)*")


def _shape(text: str) -> str:
    """What *text* says, without its numbers and line breaks."""
    text = re.sub(r"\d+(?:\.\d+)?", "N", " ".join(text.split()))
    return _OS_ERROR.sub("OSError", _CONNECTION.sub("CONNECTION", text))


def _run(folder: Path, program: Program) -> str:
    environment = {**os.environ, **program.environment}
    done = subprocess.run(
        [sys.executable, *program.arguments],
        cwd=folder,
        env={name: value for name, value in environment.items() if value},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout


def assert_said(title: str, output: str, *, folder: str = "/srv/valued") -> None:
    """*output* has each block of text of this section."""
    printed = [it.code for it in blocks(PAGE, title) if it.language == "text"]
    assert printed
    for text in printed:
        if not any(word in text for word in ELSEWHERE):
            wanted = _shape(text.replace("/srv/valued", folder))
            assert wanted in _shape(output), f"{title}: {text}\n--- it said:\n{output}"


@pytest.mark.parametrize("title", SYMPTOMS)
def test_symptom_says_what_is_printed(title: str, shell: Path, server: Server) -> None:
    if title == "No token":
        needs("django")
    for name, mode in (("open", 0o755), ("private", 0o700)):
        (shell / name).mkdir()
        (shell / name).chmod(mode)
    output = "\n".join(_run(shell, program) for program in SYMPTOMS[title])
    assert_said(title, output, folder=str(shell / "open"))


def test_refusals_say_what_is_printed(shell: Path, server: Server) -> None:
    found = []
    for status in (401, 404, 301):
        server.script = lambda _request, status=status: Reply(status)  # type: ignore[misc]
        found.append(_run(shell, _app(1)))
    assert_said("401 or 403", found[0])
    assert_said("Other refusals", "\n".join(found[1:]))


def test_certificates_and_proxies_say_what_is_printed(shell: Path, server: Server) -> None:
    authority = Authority(shell)
    tls = TLSServer(authority)
    try:
        environments = [
            {"VALUED_ENDPOINT": tls.url},
            {"VALUED_ENDPOINT": server.url.replace("http:", "https:")},
            *(
                {"VALUED_ENDPOINT": "http://example.invalid/", "http_proxy": proxy, "no_proxy": ""}
                for proxy in (CLOSED, "ftp://proxy.example")
            ),
        ]
        assert_said(
            "A certificate or a proxy",
            "\n".join(_run(shell, _code(APP.replace("EVENTS", "1"), **it)) for it in environments),
        )
        known = {"VALUED_ENDPOINT": tls.url, "REQUESTS_CA_BUNDLE": str(authority.bundle)}
        assert "was delivered to https://" in _run(shell, Program(ACTION, known))
    finally:
        tls.close()


def test_doctor_prints_what_the_page_shows(shell: Path) -> None:
    title = "Run valued doctor"
    [command] = [it.code for it in blocks(PAGE, title) if it.language == "console"]
    assert command.strip() == "$ valued doctor"
    assert_said(
        title, _run(shell, Program(("-m", "valued", "doctor"), {"VALUED_ENDPOINT": CLOSED}))
    )
    assert (DOCS / "images" / "doctor.png").read_bytes().startswith(b"\x89PNG")


@runs(PAGE, "The two-minute check")
def test_check_prints_counts_and_each_request(shell: Path, server: Server) -> None:
    title = "The two-minute check"
    checks = [it.code for it in blocks(PAGE, title) if it.language == "python"]
    [command] = [it.code for it in blocks(PAGE, title) if it.language == "console"]
    output = _run(shell, Program(ACTION))
    assert _shape(output) in _shape(command)
    assert command.splitlines()[0] == "$ valued action check.made user.id=1"
    assert_said(title, output + "\n".join(_run(shell, _code(code)) for code in checks))
    assert [event["key"] for event in server.events] == ["check.made"] * 3


@runs(
    PAGE,
    "Events are lost at a restart",
    "Memory grows",
    "Wrong user, or no user",
    "Visitors who are not signed in",
)
def test_what_to_type_works(shell: Path, server: Server) -> None:
    def typed(title: str) -> str:
        [code] = [it.code for it in blocks(PAGE, title) if it.language == "python"]
        return _run(shell, _code(code))

    assert typed("Events are lost at a restart") == ""
    assert_said("Memory grows", typed("Memory grows"))
    assert typed("Wrong user, or no user") == ""
    said = typed("Visitors who are not signed in")
    assert_said("Visitors who are not signed in", said + _run(shell, _code(WRONG)))
    keys = [(event["key"], event["user"]["id"]) for event in server.events]
    wanted = [("worker.started", 123), *[("report.generated", 123)] * 5, ("page.opened", 1)]
    assert keys == wanted


def test_each_symptom_is_provoked() -> None:
    by_hand = {
        "Run valued doctor",
        "401 or 403",
        "Other refusals",
        "A certificate or a proxy",
        "The two-minute check",
        "Memory grows",
        "Visitors who are not signed in",
    }
    printed = {
        title
        for title, found in sections(f"docs/{PAGE}.rst").items()
        if any(it.language == "text" for it in found)
    }
    assert printed == by_hand | set(SYMPTOMS)

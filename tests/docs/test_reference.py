"""The reference is complete, agrees with the code, and its blocks run as printed."""

from __future__ import annotations

import ast
import importlib
import inspect
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import docutils.nodes
import pytest

import valued
from tests.docs.support import Case, Cases, run_section
from tests.support.documents import ROOT, doctree
from tests.support.processes import until
from tests.support.server import Reply, Server
from valued._options import Options

REFERENCE = ROOT / "docs" / "reference"

_LOGGED = """
import logging, queue, valued, stats_log
from logging.handlers import QueueHandler
lines = queue.Queue()
logger = logging.getLogger("myapp.events")
logger.setLevel("INFO")
logger.addHandler(QueueHandler(lines))
valued.connect()
valued.action("report.generated", {"user.id": 123})
assert valued.flush()
stats_log.start(0.01)
line = lines.get(timeout=10).getMessage()
assert ": 1 delivered, 0 failed, 0 dropped, 0 pending, 0 anonymous," in line, line
"""
_SCRAPED = """
import valued, stats_prometheus
from prometheus_client import generate_latest
assert b"valued_" not in generate_latest()
valued.connect()
valued.action("report.generated", {"user.id": 123})
assert valued.flush()
said = generate_latest().decode()
assert 'valued_events_total{state="delivered"} 1.0' in said, said
assert "valued_events_pending 0.0" in said, said
"""

#: Asks the page of Flask.
_SHOWN = """
import app, valued
valued.action("shown", {"user.id": 1})
valued.flush()
stats = app.app.test_client().get("/internal/events").json
assert (stats["delivered"], stats["pending"]) == (1, 0), stats
"""

CASES: Cases = {
    ("reference/api", "Python API"): Case(events=2),
    ("reference/options", "Options"): Case(),
    ("reference/errors", "Errors"): Case(),
    # That the event failed is logged, too.
    ("reference/errors", "The exceptions"): Case(may_complain=True),
    ("reference/stats", "Counts: stats()"): Case(events=1),
    ("reference/stats", "Show them in a page"): Case(
        events=1, driver=("-c", _SHOWN), needs=("flask",)
    ),
    ("reference/stats", "Log them"): Case(events=1, driver=("-c", _LOGGED)),
    ("reference/stats", "Export them to Prometheus"): Case(
        events=1, driver=("-c", _SCRAPED), needs=("prometheus_client",)
    ),
    ("reference/testing", "Testing: valued.testing and the pytest plugin"): Case(),
}


@pytest.mark.parametrize(("page", "title"), CASES)
def test_section_runs_as_printed(page: str, title: str, shell: Path, server: Server) -> None:
    run_section(page, title, CASES[page, title], shell, server)


# -- the reference is complete ---------------------------------------------------------------------


def text(page: str) -> str:
    return (REFERENCE / f"{page}.rst").read_text("utf-8")


def named(page: str, directive: str) -> list[str]:
    """The names that these directives of *page* are given."""
    found = re.findall(rf"^\.\. {directive}:: (.+(?:\n +\S.*)*)", text(page), re.MULTILINE)
    return " ".join(found).split()


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the site's extension reads from the code."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    return importlib.import_module("valued_described")


def test_every_public_name_is_described() -> None:
    pages = "\n".join(path.read_text("utf-8") for path in REFERENCE.glob("*.rst"))
    described = set(re.findall(r"^\.\. auto\w+:: valued\.(\w+)(?:\(\))?$", pages, re.MULTILINE))
    # Values, and an alias, have no docstring of their own.
    described |= set(re.findall(r"^\.\. py:(?:data|function):: (\w+)", pages, re.MULTILINE))
    assert described >= set(valued.__all__)


@pytest.mark.parametrize(
    "cls",
    [
        valued.Client,
        valued.Scope,
        valued.Isolated,
        valued.Config,
        valued.Connection,
        valued.ImmediateExecutor,
        valued.Outbox,
        valued.testing.Events,
        valued.testing.Service,
        valued.testing.Request,
    ],
)
def test_every_public_method_is_described(cls: type) -> None:
    page = text("testing" if cls.__module__ == "valued.testing" else "api")
    # As far as its entry is indented.
    match = re.search(
        rf"^\.\. autoclass:: {cls.__module__}\.{cls.__name__}(?:\(\))?\n((?: .*\n|\n)*)", page, re.M
    )
    assert match
    described = set(re.findall(r"^   \.\. [\w:]+:: (\w+)", match[1], re.MULTILINE))
    inherited = {"count", "index", "to_valued_data"}  # of a sequence; of what can be sent
    public = {
        it
        for it, member in inspect.getmembers(cls)
        if not it.startswith("_")
        and (callable(member) or isinstance(member, property))
        and not any(it in vars(base) for base in cls.__mro__ if base.__name__ == "Unit")
    }
    assert public - inherited <= described
    for one in public - inherited:
        assert inspect.getdoc(getattr(cls, one)), one


def test_every_option_has_an_entry(code: Any) -> None:
    assert sorted(named("options", "valued-options")) == sorted(Options._fields)
    assert list(code.options()) == list(Options._fields)
    assert all(len(one["text"]) > 20 for one in code.options().values())


def test_every_variable_has_an_entry_in_a_plain_sentence(code: Any) -> None:
    assert sorted(named("environment", "valued-environment")) == sorted(code.VARIABLES)
    for name, sentence in code.VARIABLES.items():
        assert re.fullmatch(r"[^\n`*]{20,300}\.", sentence), name


def test_every_variable_that_is_read_is_known(code: Any) -> None:
    found = set()
    for path in (ROOT / "valued").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "os.environ.get":
                found |= {it.value for it in node.args[:1] if isinstance(it, ast.Constant)}
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(re.findall(r"\b(?:VALUED_[A-Z_]+|[A-Z]+_CA_BUNDLE)\b", node.value))
    # The standard library reads these for us, in capitals, too.
    found |= {name for name in code.VARIABLES if name.endswith("_proxy")}
    assert {name for name in found if name != "NO_PROXY"} == set(code.VARIABLES)


def test_every_variable_of_an_option_is_known(code: Any) -> None:
    said = {one["variable"] for one in code.options().values()} - {""}
    assert said == {
        "VALUED_OUTBOX",
        "VALUED_STATUS",
        "VALUED_ISOLATE_TASKS",
        "VALUED_DISABLED",
        "VALUED_INVALID",
        "VALUED_ANONYMOUS",
    }
    assert said < set(code.VARIABLES)


def test_every_key_of_the_stats_is_explained(code: Any) -> None:
    keys = list(valued.Client(print).stats())
    assert sorted(named("stats", "valued-stats")) == sorted(keys)
    assert sorted(code.described(valued.Stats)) == sorted(keys)
    for name in ("accepted", "adopted", "handed_over", "unsaved"):
        assert name in keys


def test_every_command_and_argument_has_help(code: Any) -> None:
    parsers = code.parsers()
    commands = re.findall(r"^\.\. valued-command:: (.+)$", text("cli"), re.MULTILINE)
    assert sorted(commands) == sorted(name for name in parsers if name)
    for name, parser in parsers.items():
        assert parser.description, name
        for argument, sentence in code.arguments(parser).items():
            assert sentence, f"{name} {argument}"


# -- its messages are those of the code ------------------------------------------------------------


class User:
    pass


def _messages(title: str) -> list[str]:
    """The terms of that section's list."""
    for section in doctree("docs/reference/errors.rst").findall(docutils.nodes.section):
        found = section.next_node(docutils.nodes.title)
        if found is not None and found.astext() == title:
            return [term.astext() for term in section.findall(docutils.nodes.term)]
    raise AssertionError(title)


def _calls(client: valued.Client) -> list[Callable[[], object]]:
    user = {"user.id": 1}
    return [
        valued.Client,
        lambda: valued.Client("two words"),
        lambda: valued.Client("token", "127.0.0.1:4567/events"),
        lambda: valued.Client("token", max_worker=5),  # type: ignore[arg-type]
        lambda: valued.action("key"),
        lambda: client.action("key"),
        lambda: client.page_view("/"),
        lambda: client.action("key", {"user_id": 1}),
        lambda: client.action("key", {"user.id": 1.5}),
        lambda: client.action("key", user=User()),
        lambda: client.action("key", {**user, "attributes.place": User()}),
        lambda: client.action("key", user, attributes="pdf"),
        lambda: client.page_view("reports", user),
        lambda: client.sync(user, customer={"id": 1}),
        lambda: pickle.dumps(valued.Client("token")),
        lambda: pickle.dumps(valued.Scope(client).isolated()),
    ]


def test_messages_of_calls_are_those_of_the_page(
    monkeypatch: pytest.MonkeyPatch, recorder: valued.Client
) -> None:
    monkeypatch.delenv("VALUED_TOKEN", raising=False)
    said = []
    for call in _calls(recorder):
        with pytest.raises(valued.ValuedError) as caught:
            call()
        said.append(str(caught.value).replace(__name__, "module"))
    assert said == _messages("Messages of calls")


@pytest.mark.parametrize("status", [503, 401, 404, 302])
def test_log_lines_of_answers_are_those_of_the_page(
    status: int, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.script = lambda _request: Reply(status)
    client = valued.Client("token", server.url, executor=lambda: ThreadPoolExecutor(1))
    client.action("key", {"user.id": 1})
    until(lambda: caplog.messages)
    client.close(0)
    _assert_is_on_the_page(caplog.messages[0])


def _assert_is_on_the_page(line: str) -> None:
    patterns = [
        ".*".join(map(re.escape, row.split("…"))) for row in _messages("Messages of the log")
    ]
    assert any(re.match(pattern, line) for pattern in patterns), line


def test_log_lines_without_an_answer_are_those_of_the_page(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server()
    server.close()
    client = valued.Client("token", server.url, executor=lambda: ThreadPoolExecutor(1))
    client.action("key", {"user.id": 1})
    until(lambda: caplog.messages)
    client.close(0)
    _assert_is_on_the_page(caplog.messages[0])

"""``valued action``, ``page-view``, ``sync-user``, ``sync-customer``."""

from __future__ import annotations

import signal
import subprocess
import threading
from typing import Any

import pytest

from tests.support.cli import COMMAND
from tests.support.processes import run
from tests.support.server import Reply, Server
from valued.cli import main


@pytest.fixture
def delivery(server: Server) -> list[str]:
    """Options that lead to the service."""
    return ["--token", "cli-token", "--endpoint", server.url]


def received(server: Server) -> dict[str, Any]:
    (event,) = server.events
    assert event.pop("occured_at")
    return event


@pytest.mark.parametrize(
    ("arguments", "event"),
    [
        (
            ["action", "report.generated", "user.id=1", "attributes.plan=pro"],
            {
                "category": "action",
                "key": "report.generated",
                "user": {"id": 1},
                "attributes": {"plan": "pro"},
            },
        ),
        (
            ["page-view", "https://example.com/?a=b", "user.id=ada", "attributes.n=2"],
            {
                "category": "pageview",
                "user": {"id": "ada"},
                "attributes": {"source": {"url": "https://example.com/?a=b"}, "n": 2},
            },
        ),
        (
            ["sync-user", "id=1", "name=Jörg = X", 'location={"country": "NZ"}'],
            {
                "category": "sync",
                "user": {"id": 1, "name": "Jörg = X", "location": {"country": "NZ"}},
            },
        ),
        (
            ["sync-customer", "id=1", "name=BBC Radio"],
            {"category": "sync", "customer": {"id": 1, "name": "BBC Radio"}},
        ),
    ],
)
def test_one_event_is_delivered_when_the_command_ends(
    arguments: list[str], event: dict[str, Any], server: Server, delivery: list[str]
) -> None:
    ended = run("-m", "valued", *arguments, *delivery)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert received(server) == event
    assert server.requests[0].headers["Authorization"] == "Bearer cli-token"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-1.5e3", -1500.0),
        ("true", True),
        ("null", None),
        ('"1"', "1"),
        ("[1, 2]", [1, 2]),
        ("pro", "pro"),
        ("", ""),
        ("01", "01"),
        ("True", "True"),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        ("1e999", "1e999"),
        ("[NaN]", "[NaN]"),
        ("a=b", "a=b"),
        ("9" * 5000, "9" * 5000),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_value_is_json_where_it_parses_as_json_and_text_otherwise(
    text: str, value: object, server: Server, delivery: list[str]
) -> None:
    assert main(["action", "a.b", "user.id=1", f"attributes.x={text}", *delivery]) == 0
    assert received(server)["attributes"] == {"x": value}


def test_token_and_endpoint_come_from_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_TOKEN", "from-environment")
    monkeypatch.setenv("VALUED_ENDPOINT", server.url)
    assert main(["action", "a.b", "user.id=1"]) == 0
    assert server.requests[0].headers["Authorization"] == "Bearer from-environment"


def test_refused_event_is_told_with_its_reason_and_status_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = Server(lambda _request: Reply(401, body=b"who \x1b[31mare you"))
    try:
        assert main(["sync-user", "id=1", "--token", "secret-token", "--endpoint", server.url]) == 1
    finally:
        server.close()
    shown = capsys.readouterr()
    assert shown.err.startswith("valued: not delivered: the service answered 401")
    assert "\x1b" not in shown.err
    assert "secret-token" not in shown.err + shown.out
    assert len(server.requests) == 1


def test_service_that_is_not_there_is_told_after_three_attempts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = Server(lambda _request: None)
    try:
        assert main(["sync-user", "id=1", "--token", "t", "--endpoint", server.url]) == 1
    finally:
        server.close()
    assert "(3 attempts in " in capsys.readouterr().err
    assert len(server.requests) == 3


def test_ctrl_c_ends_the_wait_within_seconds(server: Server, delivery: list[str]) -> None:
    answer = threading.Event()
    server.script = lambda _request: Reply() if answer.wait(30) else None
    process = subprocess.Popen(
        [*COMMAND, "sync-user", "id=1", *delivery], stderr=subprocess.PIPE, text=True
    )
    try:
        server.wait_for(1)
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=4)  # an attempt alone may take 5 s
    finally:
        process.kill()
        process.wait(10)
        answer.set()
    assert (process.returncode, shown) == (130, "")

"""``valued action``, ``page-view``, ``sync-user``, ``sync-customer``."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

import valued.testing
from tests.support.cli import COMMAND
from tests.support.processes import run
from tests.support.server import Reply, Server
from valued._service.render import Progress
from valued.cli import delivery as delivery_of_commands
from valued.cli import main, values


def received(server: Server) -> dict[str, Any]:
    (event,) = server.events
    assert event.pop("occured_at")
    return event


@pytest.mark.parametrize(
    ("arguments", "event", "named"),
    [
        (
            ["action", "report.generated", "user.id=1", "attributes.plan=pro"],
            {
                "category": "action",
                "key": "report.generated",
                "user": {"id": 1},
                "attributes": {"plan": "pro"},
            },
            "action report.generated",
        ),
        (
            ["page-view", "https://example.com/?a=b", "user.id=ada", "attributes.n=2"],
            {
                "category": "pageview",
                "user": {"id": "ada"},
                "attributes": {"source": {"url": "https://example.com/?a=b"}, "n": 2},
            },
            "page view of https://example.com/?a=b",
        ),
        (
            ["sync-user", "id=1", "name=Jörg = X", 'location={"country": "NZ"}'],
            {
                "category": "sync",
                "user": {"id": 1, "name": "Jörg = X", "location": {"country": "NZ"}},
            },
            "sync of user 1",
        ),
        (
            ["sync-customer", "id=1", "name=BBC Radio"],
            {"category": "sync", "customer": {"id": 1, "name": "BBC Radio"}},
            "sync of customer 1",
        ),
    ],
)
def test_one_event_is_delivered_when_the_command_says_so(
    arguments: list[str], event: dict[str, Any], named: str, server: Server, delivery: list[str]
) -> None:
    ended = run("-m", "valued", *arguments, *delivery)
    assert ended.stdout == f"{named} was delivered to {server.url}\n"
    assert (ended.returncode, ended.stderr) == (0, "")
    assert received(server) == event
    assert server.requests[0].headers["Authorization"] == "Bearer cli-token"


@pytest.mark.parametrize("option", ["-q", "--quiet"])
def test_quiet_command_says_nothing_where_all_went_well(
    option: str, server: Server, delivery: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["action", "a.b", "user.id=007", option, *delivery]) == 0
    assert capsys.readouterr() == ("", "")
    assert received(server)["user"] == {"id": "007"}


def test_what_is_said_is_one_line_without_the_query_of_the_endpoint(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{server.url}?key=for-us-alone"
    assert main(["action", "a\n\x1b[1mb", "user.id=1", "--token", "secret", "--endpoint", url]) == 0
    assert capsys.readouterr().out == f"action a\\n\\u001b[1mb was delivered to {server.url}\n"


#: What is typed, and what it stands for: the same text is told apart by its type.
AS_JSON = {
    "1": 1,
    "-1.5": -1.5,
    "0": 0,
    "9" * 40: int("9" * 40),
    "true": True,
    "false": False,
    "null": None,
    '"1"': "1",
    '"007"': "007",
    '"J\\u00f6rg"': "Jörg",
    "[1, 2]": [1, 2],
    '{"a":1,"b":[true]}': {"a": 1, "b": [True]},
    ' [ "x" ]\n': ["x"],
    "[1.50, 1e3]": [1.5, 1000.0],
}
AS_TEXT = [
    *("pro", "", "True", "a=b", "nan", "2026-11-23", "1.1.1", "'1'", ' "1"', "true ", '"', "+"),
]
#: What reads like a number, and the advice of how to send one.
NUMBER_AS_TEXT = {
    "007": "7",
    "-007": "-7",
    "-0": "0",
    "+7": "7",
    " 7": "7",
    "7 ": "7",
    "1_000": "1000",
    "0x10": "16",
    "0b11": "3",
    "1e3": "1000",
    "-1.5e3": "-1500",
    "1.50": "1.5",
    ".5": "0.5",
    "1e16": "1e+16",
    "0.1000000000000000055511151231257827": "0.1",
    "٧": "7",
    "1e999": "",
    "NaN": "",
    "-Infinity": "",
    "9" * 5000: "",
    "0x" + "f" * 5000: "",
}
JSON_AS_TEXT = [
    "[NaN]",
    "[007]",
    "[1e999]",
    "[0.1000000000000000055511151231257827]",
    "{a: 1}",
    '{"a":1,"a":2}',
    "[" * 100_000,
]


@pytest.mark.parametrize("text", [*AS_TEXT, *NUMBER_AS_TEXT, *JSON_AS_TEXT])
def test_value_that_would_come_back_as_something_else_is_the_text_that_was_typed(
    text: str,
) -> None:
    assert values.parsed(text) == text
    remark = values.remark("a", text)
    if text in AS_TEXT:
        assert remark is None
    else:
        assert "is sent as a string, exactly as typed" in (remark or "")
        assert ("it is not JSON" in (remark or "")) is (text in JSON_AS_TEXT)


@pytest.mark.parametrize(("text", "value"), AS_JSON.items())
def test_value_is_json_where_that_is_what_was_typed(text: str, value: object) -> None:
    assert json.dumps(values.parsed(text)) == json.dumps(value)
    assert values.remark("a", text) is None


@pytest.mark.parametrize(("text", "number"), NUMBER_AS_TEXT.items())
def test_text_that_reads_like_a_number_is_told_with_an_advice_that_works(
    text: str, number: str
) -> None:
    remark = values.remark("user.id", text) or ""
    advice = remark.rpartition("to send that, type user.id=")[2] if number else ""
    assert advice == number
    assert not number or not isinstance(values.parsed(number), str)
    assert len(remark) < 250


def test_id_that_was_typed_with_zeros_arrives_with_them_and_a_word_says_so(
    server: Server, delivery: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["action", "a.b", "user.id=007", "customer.id=7", *delivery]) == 0
    event = received(server)
    assert (event["user"], event["customer"]) == ({"id": "007"}, {"id": 7})
    shown = capsys.readouterr()
    assert shown.err == (
        'valued: user.id: "007" is sent as a string, exactly as typed: the number is written 7; '
        "to send that, type user.id=7\n"
    )
    assert shown.out.count("\n") == 1


def test_field_that_is_not_known_is_sent_and_warned_of(server: Server, delivery: list[str]) -> None:
    ended = run("-m", "valued", "action", "a.b", "user.id=1", "layout=pdf", *delivery)
    assert ended.returncode == 0
    assert ended.stderr.startswith("valued: layout is not a field of an event")
    assert "did you mean attributes.layout?" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert received(server)["layout"] == "pdf"


def test_what_becomes_of_an_event_is_not_said_twice(
    in_thread: Callable[..., Future[None]], capsys: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("valued")
    with delivery_of_commands.warnings(Progress(), of_this_thread=True):
        log.warning("of the call")
        in_thread(log.warning, "of a delivery").result(10)
    assert capsys.readouterr().err == "valued: of the call\n"


@pytest.mark.parametrize("said", ["1", "yes"])
@pytest.mark.parametrize(
    "arguments", [["action", "a.b", "user.id=1"], ["sync-user", "id=1", "--token", "t", "-q"]]
)
def test_where_events_are_disabled_nothing_is_sent_and_no_command_claims_so(
    said: str,
    arguments: list[str],
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VALUED_DISABLED", said)
    assert main([*arguments, "--endpoint", server.url]) == 1
    assert capsys.readouterr() == ("", "valued: nothing was sent: VALUED_DISABLED is set\n")
    assert server.requests == []


def test_variables_that_let_bad_events_pass_are_for_applications_and_not_for_a_command(
    server: Server,
    delivery: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VALUED_INVALID", "log")
    monkeypatch.setenv("VALUED_ANONYMOUS", "drop")
    assert main(["action", "a.b", *delivery]) == 2
    assert main(["page-view", "example.com", "user.id=1", *delivery]) == 2
    shown = capsys.readouterr()
    assert [line[:20] for line in shown.err.splitlines()] == [
        "valued: Missing user",
        "valued: url: expecte",
    ]
    assert (shown.out, server.requests) == ("", [])


def test_command_that_a_test_starts_is_recorded_by_it_and_says_so() -> None:
    with valued.testing.recorded() as events:
        ended = run("-m", "valued", "action", "a.b", "user.id=1")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "action a.b was recorded for a test, and not sent\n"
    events.one("a.b", user={"id": 1})


def test_token_and_endpoint_come_from_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_TOKEN", "from-environment")
    monkeypatch.setenv("VALUED_ENDPOINT", server.url)
    assert main(["action", "a.b", "user.id=1"]) == 0
    assert server.requests[0].headers["Authorization"] == "Bearer from-environment"


@pytest.mark.parametrize(
    ("reply", "said", "attempts"),
    [
        (Reply(401, body=b"who \x1b[31mare you"), "not delivered: the service answered 401", 1),
        (None, "(3 attempts in ", 3),
    ],
    ids=["refused", "no service"],
)
def test_event_that_is_not_delivered_is_told_with_its_reason_and_status_1(
    reply: Reply | None,
    said: str,
    attempts: int,
    server: Server,
    delivery: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.script = lambda _request: reply
    assert main(["sync-user", "id=1", *delivery]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("valued: not delivered: ")
    assert said in shown.err
    assert "\x1b" not in shown.err
    assert shown.out == ""
    assert "cli-token" not in shown.err
    assert len(server.requests) == attempts


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

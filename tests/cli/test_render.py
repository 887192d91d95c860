"""What is shown, on a terminal and elsewhere."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest

from valued._service import render
from valued._service.server import Received

EVENT = {"category": "action", "key": "a.b", "user": {"id": 1, "name": "Jörg"}}
RECEIVED = Received(EVENT, 123, "gunicorn", "127.0.0.1:53212", "k-1")


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(received: Received, stream: io.StringIO) -> str:
    render.EventPrinter(stream).pretty(received)
    return stream.getvalue()


PRETTY = """\
action a.b from gunicorn (pid 123) on 127.0.0.1:53212
{
  "category": "action",
  "key": "a.b",
  "user": {
    "id": 1,
    "name": "Jörg"
  }
}
"""


def test_event_is_shown_with_its_sender_or_its_address() -> None:
    assert shown(RECEIVED, io.StringIO()) == PRETTY
    received = Received({"category": "sync"}, None, None, "192.0.2.1:9", None)
    assert shown(received, io.StringIO()).splitlines()[0] == "sync from 192.0.2.1:9"


def test_terminal_shows_the_same_highlighted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    import rich.text

    text = shown(RECEIVED, Screen())
    assert "\x1b[" in text
    assert rich.text.Text.from_ansi(text).plain.rstrip("\n") == PRETTY.rstrip("\n")


def test_terminal_without_rich_is_as_any_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert shown(RECEIVED, Screen()) == PRETTY


def test_one_line_of_json_for_each_event() -> None:
    stream = io.StringIO()
    render.EventPrinter(stream).lines(RECEIVED)
    assert stream.getvalue().endswith("\n")
    assert stream.getvalue().isascii()
    assert json.loads(stream.getvalue()) == {
        "event": EVENT,
        "pid": 123,
        "process": "gunicorn",
        "connection": "127.0.0.1:53212",
        "idempotency_key": "k-1",
    }


@pytest.mark.parametrize("stream", [io.StringIO, Screen])
def test_nothing_that_a_terminal_obeys_is_shown(stream: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    evil = "\x1b[2J\x9b2J\u202e\ud800\n[bold]"
    received = Received({"category": evil, evil: evil}, 1, evil, "x", None)
    text = shown(received, stream())
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert "\\u001b[2J\\u009b2J\\u202e\\ud800\\n[bold]" in text
    assert "\\n" in text.splitlines()[0]  # a line end in a name begins no new line


ROWS = [["parent", 12, 100, 3], ["[bold]\x1b", 4000, 5, 10], ["total", "", 105, 13]]


def test_table_is_aligned_numbers_to_the_right() -> None:
    stream = io.StringIO()
    render.table(stream, ["process", "pid", "sent", "connections"], ROWS)
    assert stream.getvalue() == (
        "process        pid  sent  connections\n"
        "parent          12   100            3\n"
        "[bold]\\u001b  4000     5           10\n"
        "total                105           13\n"
    )


def test_table_on_a_terminal_has_lines() -> None:
    screen = Screen()
    render.table(screen, ["process", "pid", "sent", "connections"], ROWS)
    text = screen.getvalue()
    assert "─" in text
    for cell in ("process", "4000", "[bold]\\u001b", "105"):
        assert cell in text


def test_progress_is_nothing_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with render.progress(100) as progress:
        assert not progress.is_shown
        progress.at(50, 1)
        progress.say("line \x1b")
    assert capsys.readouterr().err == "line \\u001b\n"


@pytest.mark.parametrize(("total", "percentage"), [(100, True), (None, False)])
def test_progress_on_a_terminal_is_a_bar_or_a_count(
    total: int | None, percentage: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", Screen())
    with render.progress(total) as progress:
        assert progress.is_shown
        progress.at(50, 7)
        progress.say("line [bold] \x1b")
    text = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "7 delivered" in text
    assert ("50%" in text) is percentage
    assert "line [bold] \\u001b" in text


def test_complaint_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    render.complain("no such \x07 thing")
    assert capsys.readouterr().err == "valued: no such \\u0007 thing\n"

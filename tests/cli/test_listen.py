"""``valued listen`` as a process: what it prints, and how it ends."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest
import requests

import valued
from tests.support.cli import COMMAND, listening, terminal
from tests.support.processes import run
from valued.cli import main

SEND_ONE = """
import sys, os, valued
with valued.Client("secret-token", sys.argv[1]) as client:
    client.action("a.b", {"user.id": 1})
print(os.getpid())
"""


def send_one(url: str) -> int:
    """Send one event from a process of its own: its pid."""
    ended = run("-c", SEND_ONE, url)
    assert ended.stderr == ""
    return int(ended.stdout)


@contextlib.contextmanager
def plainly(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``valued listen`` without ``--json``, and its endpoint."""
    process = subprocess.Popen(
        [*COMMAND, "listen", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        said = process.stdout.readline()
        assert said.startswith("Listening on http://127.0.0.1:"), said
        url = said.split()[-1]
        assert process.stdout.readline() == f"Page: {url.removesuffix('events')}\n"
        yield process, url
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()
        process.stderr.close()


def test_events_are_lines_of_json_with_the_process_that_sent_them() -> None:
    with listening() as listener:
        pids = [send_one(listener.url) for _ in range(2)]
        lines = listener.end()
    assert [line["pid"] for line in lines] == pids
    for line in lines:
        assert line["event"]["key"] == "a.b"
        assert line["process"].startswith("python")
        assert line["connection"].startswith("127.0.0.1:")
        assert line["idempotency_key"]
    assert listener.summary == (
        "2 events received, 0 refused, on 2 connections from 2 processes of this machine\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_it_cleanly_with_the_figures(number: signal.Signals) -> None:
    options = ["--fail", "503:1", "--delay", "0.01"]
    with listening(*options) as listener, valued.Client("t", listener.url) as client:
        client.action("a.b", {"user.id": 1})
        assert client.flush(10)
        assert len(listener.end(number)) == 1
    assert listener.summary.startswith("1 event received, 0 refused, 1 simulated error, on ")


@pytest.mark.parametrize("asked", [True, False])
def test_end_of_input_ends_it_only_where_that_was_asked_for(asked: bool) -> None:
    with listening(*["--until-eof"] * asked) as listener:
        assert listener.process.stdin is not None
        if not asked:
            listener.process.stdin.close()
        send_one(listener.url)
        if asked:
            listener.process.stdin.write("anything\n")
            listener.process.stdin.close()
        assert len(listener.ended() if asked else listener.end()) == 1


def test_end_of_input_that_is_closed_is_at_once() -> None:
    line = 'exec "$0" -m valued listen --port 0 --until-eof <&-'
    ended = subprocess.run(
        ["sh", "-c", line, sys.executable], capture_output=True, text=True, timeout=30, check=False
    )
    assert (ended.returncode, ended.stderr[:17]) == (0, "0 events received")


def test_another_name_of_this_machine_has_to_be_allowed() -> None:
    with listening("--allow-host", "my.test") as listener:
        assert [ask(listener.url, host) for host in ("my.test", "your.test")] == [204, 403]
        assert len(listener.end()) == 1


def ask(url: str, host: str) -> int:
    """The status of the answer to an event that is sent to *host*."""
    event = {"category": "action", "key": "a.b", "user": {"id": 1}}
    headers = {"Host": host, "Authorization": "Bearer t"}
    return requests.post(url, json=event, headers=headers, timeout=10).status_code


def test_lines_are_whole_when_many_send_at_once(in_thread: Callable[..., Future[None]]) -> None:
    wide = "x" * 10_000  # more than a pipe takes at once

    def record(client: valued.Client, number: int) -> None:
        for event in range(50):
            client.action("a.b", {"user.id": f"{number}-{event}", "attributes.x": wide})

    with listening() as listener:
        clients = [valued.Client("t", listener.url) for _ in range(4)]
        for future in [in_thread(record, each, number) for number, each in enumerate(clients)]:
            future.result(30)
        assert all(client.close(30) for client in clients)
        lines = listener.end()
    ids = sorted(line["event"]["user"]["id"] for line in lines)
    assert ids == sorted(f"{number}-{event}" for number in range(4) for event in range(50))


def test_plain_output_has_where_it_listens_first_then_the_events() -> None:
    with plainly() as (process, url):
        pid = send_one(url)
        process.send_signal(signal.SIGTERM)
        shown, summary = process.communicate(timeout=10)
    heading, _, body = shown.partition("\n")
    assert heading.startswith("action a.b from python")
    assert f"(pid {pid}) on 127.0.0.1:" in heading
    event = json.loads(body)
    assert event.pop("occured_at")
    assert event == {"category": "action", "key": "a.b", "user": {"id": 1}}
    assert summary.startswith("1 event received")
    assert "secret-token" not in heading + body + summary
    assert process.returncode == 0


def test_terminal_shows_events_in_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with terminal() as screen:
        process = subprocess.Popen([*COMMAND, "listen", "--port", "0"], stdout=screen.file)
        try:
            shown = screen.until("/events\n".replace("\n", "\r\n"))
            pid = send_one(shown.split("Listening on ")[1].split()[0])
            shown = screen.until(f"(pid {pid})")
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
            shown = screen.rest()
        finally:
            process.kill()
            process.wait(10)
    assert "\x1b[" in shown
    assert '"a.b"' in shown


def test_reader_who_has_enough_ends_it_without_a_traceback() -> None:
    with plainly() as (process, url):
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        with valued.Client("t", url, retries=0) as client:
            client.action("a.b", {"user.id": 1})
            assert client.flush(10)
            assert client.stats()["failed"] == 1  # it was not shown, so it was not received
        assert process.wait(10) == 1
        assert process.stderr.read().startswith("0 events received, 0 refused, on 1 connection")


def test_port_that_is_taken_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert main(["listen", "--port", str(port)]) == 1
    assert capsys.readouterr().err == (
        f"valued: can't listen on 127.0.0.1:{port}: Address already in use\n"
    )


def test_handlers_of_signals_are_as_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(
        "valued._service.server.Listener.serve", lambda _self: signal.raise_signal(signal.SIGTERM)
    )
    assert main(["listen", "--port", "0"]) == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert sys.stdout is not None
    assert capsys.readouterr().err.startswith("0 events received")

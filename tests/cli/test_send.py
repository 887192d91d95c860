"""``valued send``: a file of events, line by line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import valued.testing
from tests.support.cli import COMMAND, listening, terminal
from tests.support.processes import run
from tests.support.server import Reply, Request, Server
from valued.cli import delivery as delivery_of_commands
from valued.cli import main, send

VISITS = Path(__file__).with_name("visits.jsonl")
TIME = "2026-11-23T10:00:00+01:00"


def event(number: int, **more: Any) -> dict[str, Any]:
    return {
        "category": "action", "key": "a.b", "user": {"id": number}, "occured_at": TIME, **more
    }  # fmt: skip


def written(path: Path, *lines: Any) -> str:
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(texts) + b"\n")
    return str(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


@pytest.fixture
def refusing(server: Server) -> Server:
    """A service that refuses events of the key ``refused``."""

    def script(request: Request) -> Reply:
        return Reply(422 if request.event.get("key") == "refused" else 204)

    server.script = script
    return server


def canonical(events: Any) -> list[str]:
    return sorted(json.dumps(event, sort_keys=True) for event in events)


@pytest.mark.parametrize("environment", ["production", "development", "test"])
def test_what_is_received_equals_the_lines_in_every_environment(
    environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_ENV", environment)
    with listening() as listener:
        ended = run("-m", "valued", "send", str(VISITS), "--token", "t", "--endpoint", listener.url)
        lines = listener.end()
    assert (ended.returncode, ended.stdout) == (0, "")
    assert ended.stderr == "40 delivered, 0 failed, 0 bad lines\n"
    visits = map(json.loads, VISITS.read_text(encoding="utf-8").splitlines())
    assert canonical(line["event"] for line in lines) == canonical(visits)


@pytest.mark.parametrize("environment", ["development", "test"])
def test_deliveries_are_side_by_side_in_every_environment(
    environment: str, server: Server, delivery: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_ENV", environment)
    together = threading.Event()

    def script(_request: Request) -> Reply | None:
        number = len(server.requests)
        if number == 1:
            time.sleep(0.05)  # so slow a service is given one more worker
            return Reply()
        if number >= 3:
            together.set()
        return Reply() if together.wait(9) else None

    server.script = script
    assert main(["send", str(VISITS), *delivery]) == 0
    assert len(server.requests) == 40
    assert os.environ["VALUED_ENV"] == environment


def test_each_category_arrives_as_it_is_written(
    path: Path, server: Server, delivery: list[str]
) -> None:
    goal = {"name": "First", "action_key": "a.b", "min_count": 5}
    source = {"source": {"url": "/x", "referrer": None}, "list": [1, {"a": 1.5}]}
    lines = [
        event(1, customer={"id": "c", "name": "Jörg \ud83d\ude00"}, extra={"a": [None, True]}),
        {"category": "pageview", "user": {"id": 1}, "attributes": source, "occured_at": TIME},
        {"category": "sync", "user": {"id": 2, "name": "x"}, "occured_at": TIME},
        {"category": "sync", "customer": {"id": 3}, "occured_at": TIME},
        {"category": "config", "data": {"goals": [goal], "signals": []}, "occured_at": TIME},
    ]
    assert main(["send", written(path, *lines), *delivery]) == 0
    assert canonical(server.events) == canonical(lines)


def test_dotted_keys_nest_and_a_missing_time_is_filled_in(
    path: Path, server: Server, delivery: list[str]
) -> None:
    line = {"category": "pageview", "user.id": 1, "attributes.source.url": "/x"}
    assert main(["send", written(path, line), *delivery]) == 0
    (received,) = server.events
    assert received.pop("occured_at")
    assert received == {
        "category": "pageview", "user": {"id": 1}, "attributes": {"source": {"url": "/x"}}
    }  # fmt: skip


def test_bad_lines_are_named_and_the_rest_goes_on(
    path: Path, server: Server, delivery: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {
        2: (b"{", "not JSON in UTF-8: "),
        3: (b"\xff", "not JSON in UTF-8: "),
        4: (b'{"a": NaN}', "not JSON in UTF-8: NaN is not JSON"),
        5: (b"[" * 100_000, "not JSON in UTF-8: "),
        6: (b"[1]", 'expected an object, such as {"category": …}, got list'),
        7: (b"{}", "category: expected one of"),
        8: (b'{"category": "action", "user": {"id": 1}}', "key: expected"),
        9: (b'{"category": "sync", "user": {"id": 1e999}}', "user.id: "),
        10: (b'{"category": "sync", "user": {"id": 1}, "customer": {"id": 1}}', "Cannot include"),
        11: (b'{"category": "action", "key": "a", "user": {"id": 1}, "user.id": {}}', "user.id: "),
        12: (b'{"category": "config", "data": {"goals": []}}', "config: "),
        13: (
            b'{"category": "config", "user": 1, "data": {"goals": [{"name": "a", "action_key": "b"}]}}',  # noqa: E501
            "user: a config has goals or signals, nothing else",
        ),
        14: (
            b'{"category": "sync", "user": {"id": 1}, "user": {"id": 2}}',
            'the key "user" occurs',
        ),
        15: (
            b'{"category": "action", "key": "a", "user": {"id": 1, "x": [{"id": 1, "id": 1}]}}',
            'the key "id" occurs twice in one object',
        ),
    }
    lines = [event(1), *(text for text, _ in bad.values()), event(16)]
    assert main(["send", written(path, *lines), *delivery]) == 1
    assert canonical(server.events) == canonical([event(1), event(16)])
    *named, last = capsys.readouterr().err.splitlines()
    assert len(named) == len(bad)
    for (number, (_, reason)), line in zip(bad.items(), named, strict=True):
        assert line.startswith(f"{path}:{number}: "), line
        assert reason in line
    assert last == "2 delivered, 0 failed, 14 bad lines"


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"", 0, "0 delivered, 0 failed, 0 bad lines"),
        (b"\xef\xbb\xbf\n\n", 0, "0 delivered, 0 failed, 0 bad lines"),
        (b"\xef\xbb\xbf%b\r\n\r\n \t\n{\n%b", 1, "2 delivered, 0 failed, 1 bad line"),
    ],
    ids=["empty", "no events", "two events"],
)
def test_blank_lines_bom_and_crlf_are_no_trouble(
    content: bytes,
    status: int,
    said: str,
    path: Path,
    server: Server,
    delivery: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    events = [event(1), event(2)] if b"%b" in content else []
    path.write_bytes(content % tuple(json.dumps(each).encode() for each in events))
    assert main(["send", str(path), *delivery]) == status
    assert canonical(server.events) == canonical(events)
    *named, last = capsys.readouterr().err.splitlines()
    assert [line.startswith(f"{path}:4: ") for line in named] == [True] * status
    assert last == said


def test_line_that_is_too_long_is_bad_and_the_next_one_is_sent(
    path: Path,
    server: Server,
    delivery: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(send, "CHUNK_BYTES", 200)
    lines = [b" " * 1000, event(2), b"x" * 199, event(4), b"{" * 500]
    assert main(["send", written(path, *lines), *delivery]) == 1
    assert canonical(server.events) == canonical([event(2), event(4)])
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == f"{path}:1: the line is longer than 200 bytes"
    assert shown[1].startswith(f"{path}:3: not JSON")
    assert shown[2] == f"{path}:5: the line is longer than 200 bytes"
    assert shown[3] == "2 delivered, 0 failed, 3 bad lines"


@pytest.mark.parametrize("bound", ["CHUNK_LINES", "CHUNK_BYTES"])
def test_chunk_is_settled_before_the_next_one_is_read(
    bound: str, path: Path, server: Server, delivery: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(json.dumps(event(100))) + 1
    monkeypatch.setattr(send, bound, 20 if bound == "CHUNK_LINES" else 20 * size)
    lines = [event(number) for number in range(100, 170)]
    assert main(["send", written(path, *lines), *delivery]) == 0
    users = [received["user"]["id"] for received in server.events]
    chunks = [sorted(users[start : start + 20]) for start in range(0, 70, 20)]
    assert chunks == [list(range(start, min(start + 20, 170))) for start in range(100, 170, 20)]


def test_chunks_are_far_below_what_a_client_holds() -> None:
    assert send.CHUNK_LINES * 5 <= 10_000
    # A chunk ends with the line that reaches its bound; as ASCII it is at most three times as long.
    assert 3 * 2 * send.CHUNK_BYTES < 64 * 1024 * 1024


def test_event_that_is_given_up_is_named_by_its_line(
    path: Path, refusing: Server, delivery: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    refused = event(1, key="refused")
    untimed = {name: refused[name] for name in ("category", "key", "user")}
    local = {**refused, "occured_at": "2026-11-23T10:00:00"}
    lines = [event(1), refused, event(2), untimed, refused, local, b"{", event(3)]
    assert main(["send", written(path, *lines), *delivery]) == 1
    lines = capsys.readouterr().err.splitlines()
    # What the library warns of comes at once; the lines' numbers with the end of their chunk.
    warned = [line.startswith("valued: 1 event failed permanently; the latest: ") for line in lines]
    assert warned.index(True) < len(lines) - 5
    shown = [line for line in lines if not line.startswith("valued: ")]
    assert shown[0].startswith(f"{path}:7: not JSON")
    for number, line in zip([2, 4, 5, 6], shown[1:-1], strict=True):
        assert line.startswith(f"{path}:{number}: not delivered: the service answered 422")
    assert shown[-1] == "3 delivered, 4 failed, 1 bad line"


def test_where_events_are_disabled_lines_are_checked_and_none_is_sent(
    path: Path,
    server: Server,
    delivery: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VALUED_DISABLED", "1")
    assert main(["send", written(path, event(1), event(2)), *delivery]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "0 delivered, 0 failed, 0 bad lines",
        "valued: nothing was sent: VALUED_DISABLED is set",
    ]
    assert main(["send", written(path, b"{", event(2)), "--endpoint", server.url]) == 1
    assert capsys.readouterr().err.splitlines()[1] == "0 delivered, 0 failed, 1 bad line"
    assert server.requests == []


def test_variables_that_let_bad_events_pass_leave_no_line_untold(
    path: Path,
    refusing: Server,
    delivery: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VALUED_INVALID", "log")
    monkeypatch.setenv("VALUED_ANONYMOUS", "drop")
    lines = [event(1), {"category": "action", "key": "a.b"}, event(2, key="refused")]
    assert main(["send", written(path, *lines), *delivery]) == 1
    shown = [it for it in capsys.readouterr().err.splitlines() if not it.startswith("valued: ")]
    assert shown[0].startswith(f"{path}:2: Missing user.id or customer.id")
    assert shown[1].startswith(f"{path}:3: not delivered: the service answered 422")
    assert shown[2] == "1 delivered, 1 failed, 1 bad line"


def test_lines_that_a_test_sends_are_recorded_by_it_and_counted(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with valued.testing.recorded() as events:
        assert main(["send", written(path, event(1), event(2))]) == 0
    said = "0 delivered, 0 failed, 0 bad lines, 2 recorded for a test\n"
    assert capsys.readouterr().err == said
    assert len(events) == 2


def test_file_that_is_not_there_is_one_line_and_status_2(
    tmp_path: Path, delivery: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing.jsonl"
    assert main(["send", str(missing), *delivery]) == 2
    assert capsys.readouterr().err == f"valued: can't read {missing}: No such file or directory\n"


def test_standard_input_that_is_closed_is_one_line_and_status_2(
    delivery: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert main(["send", "-", *delivery]) == 2
    assert capsys.readouterr().err == "valued: can't read standard input: it is closed\n"


def test_standard_input_is_read_where_the_file_is_a_dash(
    server: Server, delivery: list[str]
) -> None:
    text = f"{json.dumps(event(1))}\n{{\n"
    ended = run("-m", "valued", "send", "-", *delivery, input=text)
    assert ended.returncode == 1
    assert ended.stderr.startswith("<stdin>:2: not JSON")
    assert ended.stderr.endswith("1 delivered, 0 failed, 1 bad line\n")
    assert server.events == [event(1)]


@pytest.fixture
def sending(delivery: list[str]) -> Iterator[subprocess.Popen[str]]:
    """``valued send -``, with its standard input open."""
    process = subprocess.Popen(
        [*COMMAND, "send", "-", *delivery],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stderr is not None
    yield process
    process.kill()
    process.wait(10)
    process.stdin.close()
    process.stderr.close()


def feed(process: subprocess.Popen[str], *lines: Any) -> None:
    assert process.stdin is not None
    for line in lines:
        process.stdin.write(json.dumps(line) + "\n")
    process.stdin.flush()


def test_events_of_a_pipe_are_sent_as_they_come(
    server: Server, sending: subprocess.Popen[str]
) -> None:
    feed(sending, event(1))
    server.wait_for(1)
    feed(sending, event(2))
    server.wait_for(2)
    sending.send_signal(signal.SIGINT)
    assert sending.wait(10) == 130
    assert sending.stderr is not None
    assert sending.stderr.read() == "2 delivered, 0 failed, 0 bad lines\n"


def test_ctrl_c_tells_what_was_not_delivered(
    refusing: Server, sending: subprocess.Popen[str]
) -> None:
    answer = threading.Event()

    def script(request: Request) -> Reply | None:
        if request.event["key"] == "refused":
            return Reply(422)
        if request.event["user"]["id"] > 2:
            return Reply() if answer.wait(30) else None
        return Reply()

    refusing.script = script
    feed(sending, event(1), event(2), event(2, key="refused"))
    refusing.wait_for(3)
    feed(sending, *(event(number) for number in range(3, 33)), event(33, category="none"))
    refusing.wait_for(4)
    assert sending.stderr is not None
    bound = threading.Timer(60.0, sending.kill)  # bounds a failure: a pipe is read without one
    bound.start()
    shown = []
    while not any(line.startswith("<stdin>:34: ") for line in shown):  # so it has read all lines
        shown.append(sending.stderr.readline())
        assert shown[-1], "it ended"
    bound.cancel()
    sending.send_signal(signal.SIGINT)
    assert sending.wait(10) == 130
    answer.set()
    shown += sending.stderr.read().splitlines()
    assert any(line.startswith("<stdin>:3: not delivered: ") for line in shown)
    assert shown[-1] == "2 delivered, 1 failed, 1 bad line, 30 not delivered"


def test_a_slow_service_is_waited_for_in_silence_where_nobody_looks(
    path: Path, server: Server, delivery: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[bool] = []
    waited = threading.Event()
    flush = valued.Client.flush

    def look(client: valued.Client, timeout: float | None = 5.0) -> bool:
        looks.append(flush(client, timeout))
        if len(looks) == 2:
            waited.set()
        return looks[-1]

    server.script = lambda _request: Reply() if waited.wait(10) else None
    monkeypatch.setattr(valued.Client, "flush", look)
    monkeypatch.setattr(delivery_of_commands, "GLANCE", 0.01)
    assert main(["send", written(path, event(1)), *delivery]) == 0
    assert looks[:2] == [False, False]


@pytest.mark.parametrize("piped", [False, True])
def test_terminal_shows_progress(
    piped: bool, path: Path, server: Server, delivery: list[str]
) -> None:
    shown_half = threading.Event()

    def script(request: Request) -> Reply | None:
        return Reply() if request.event["user"]["id"] <= 20 or shown_half.wait(30) else None

    server.script = script
    name = written(path, *map(event, range(1, 41)))
    with terminal() as screen, path.open("rb") as events:
        # The size of a pipe is not known.
        pipe = subprocess.Popen(["cat"], stdin=events, stdout=subprocess.PIPE)
        process = subprocess.Popen(
            [*COMMAND, "send", "-" if piped else name, *delivery],
            stdin=pipe.stdout,
            stderr=screen.file,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
        )
        try:
            half = screen.until("20 delivered")
            shown_half.set()
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait(10)
            assert pipe.stdout is not None
            pipe.stdout.close()
            pipe.wait(10)
        shown = screen.rest()
    assert "100%" not in half
    assert ("100%" in shown) is not piped
    assert shown.endswith("40 delivered, 0 failed, 0 bad lines\n")

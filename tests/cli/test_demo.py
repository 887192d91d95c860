"""``valued demo``: the library's main job, in front of one's eyes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.cli import COMMAND, terminal
from tests.support.processes import run
from valued.cli import demo, main

HEADINGS = ["process", "pid", "sent", "arrived", "lost", "duplicated", "connections"]


def test_each_event_of_each_process_arrives_once() -> None:
    ended = run("-m", "valued", "demo", "--events", "20")
    assert ended.stderr == ""
    assert ended.returncode == 0
    heading, *rows, total, conclusion = ended.stdout.splitlines()
    assert heading.split() == HEADINGS
    figures = [row.rsplit(maxsplit=6) for row in rows]
    names = [name for name, *_ in figures if not name.startswith("pool")]
    assert names == ["parent, 3 threads", *(f"worker {n}" for n in range(1, 5)), "spawned"]
    assert len({pid for _, pid, *_ in figures}) == len(figures)
    for name, _, sent, arrived, lost, duplicated, connections in figures:
        assert (arrived, lost, duplicated) == (sent, "0", "0"), name
        assert int(connections) >= 1
    assert total.split()[:5] == ["total", "220", "220", "0", "0"]
    assert conclusion.startswith("Each event arrived once, from ")


def test_console_script_draws_a_table_and_heeds_nothing_of_the_environment(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "TERM": "xterm-256color",
        "COLUMNS": "100",
        "VALUED_ENV": "test",
        "VALUED_TOKEN": "",
        "VALUED_ENDPOINT": "http://127.0.0.1:9/nobody",
        "VALUED_OUTBOX": str(tmp_path / "outbox"),
        "VALUED_DISABLED": "1",
        "VALUED_INVALID": "nonsense",
        "VALUED_ANONYMOUS": "drop",
        "VALUED_RECORD": str(tmp_path),
        "http_proxy": "http://127.0.0.1:9",
    }
    script = Path(sys.executable).with_name("valued")
    with terminal() as screen:
        arguments = [script, "demo", "--events", "1"]
        process = subprocess.Popen(
            arguments, stdout=screen.file, stderr=subprocess.PIPE, env=environment
        )
        shown = screen.rest()
        _, said = process.communicate(timeout=10)
    assert (process.returncode, said) == (0, b"")
    assert "─" in shown
    assert "Each event arrived once" in shown
    assert list(tmp_path.iterdir()) == []


LEAVING = """
import atexit, os, sys
from valued.cli.delivery import variables
atexit.register(lambda: print(os.environ.get("no_proxy"), flush=True))
with variables(no_proxy="127.0.0.1"):
    if os.fork() == 0:
        sys.exit()
    os.wait()
"""


def test_worker_has_the_environment_until_it_has_delivered() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "no_proxy"}
    ended = run("-c", LEAVING, env=environment)
    assert (ended.stdout, ended.stderr) == ("127.0.0.1\nNone\n", "")


def test_listener_ends_when_the_demo_is_killed() -> None:
    process = subprocess.Popen([*COMMAND, "demo", "--events", "3000"], stdout=subprocess.DEVNULL)
    try:
        listeners: list[psutil.Process] = []
        while not listeners:  # until it is started
            assert process.poll() is None
            listeners = [
                child
                for child in psutil.Process(process.pid).children()
                if "--until-eof" in child.cmdline()
            ]
    finally:
        process.kill()
        process.wait(10)
    assert psutil.wait_procs(listeners, timeout=30)[1] == []


@pytest.fixture
def no_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows; also, a forked worker would leave through the tests."""
    monkeypatch.delattr(os, "fork")
    monkeypatch.setattr(demo.multiprocessing, "get_all_start_methods", lambda: ["spawn"])


@pytest.mark.usefixtures("no_fork")
def test_without_fork_the_rest_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--events", "1"]) == 0
    shown = capsys.readouterr().out
    assert "worker" not in shown
    assert "pool 1" in shown


@pytest.mark.usefixtures("no_fork")
def test_event_that_is_lost_is_told_and_the_status_is_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_pool", lambda _client, _count: [])
    monkeypatch.setattr(demo, "_spawned", lambda _client, _count: demo.Sent("gone", 7, ["x-1"]))
    assert main(["demo", "--events", "1"]) == 1
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1].split()[:5] == ["total", "5", "4", "1", "0"]
    assert shown.err == "valued: 1 event was lost, 0 arrived more than once\n"


def test_listener_that_does_not_start_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == "valued: the mock server did not start:\n"


def test_listener_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PATIENCE", 0.01)
    stubborn = "import signal; signal.signal(15, 1); print(flush=True); signal.pause()"
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", stubborn], text=True, **pipes)
    assert process.stdout is not None
    process.stdout.readline()  # from here on it ignores SIGTERM
    demo._end(process, os.getpid())
    assert process.returncode == -9


def line(
    identity: str, pid: int, by: int | None, connection: str = "c1", key: str = "k"
) -> dict[str, Any]:
    event = {"attributes": {"id": identity, "pid": pid}}
    key = f"{identity} {key}"
    return {"event": event, "pid": by, "connection": connection, "idempotency_key": key}


SENT = [demo.Sent("parent", 1, ["p-1", "p-2"]), demo.Sent("child", 2, ["c-1"])]
ARRIVED = [line("p-1", 1, 1), line("p-2", 1, None, "c2"), line("c-1", 2, 2, "c3")]


def test_account_of_what_went_well() -> None:
    rows, troubles = demo.compare(SENT, ARRIVED)
    assert rows == [
        ("parent", 1, 2, 2, 0, 0, 2),
        ("child", 2, 1, 1, 0, 0, 1),
        ("total", "", 3, 3, 0, 0, 3),
    ]
    assert troubles == []


def test_account_of_lost_and_duplicated_events_and_of_a_process_that_failed() -> None:
    sent = [SENT[0], SENT[1]._replace(status=1)]
    rows, troubles = demo.compare(sent, [ARRIVED[0], line("p-1", 1, 1, key="other"), ARRIVED[2]])
    assert rows[0] == ("parent", 1, 2, 1, 1, 1, 1)
    assert sorted(troubles) == [
        "1 event was lost, 1 arrived more than once",
        "child (pid 2) ended with status 1",
    ]


def test_a_request_that_came_again_with_its_key_is_said_and_is_no_duplicate(
    capsys: pytest.CaptureFixture[str],
) -> None:
    received = [*ARRIVED, line("p-1", 1, 1, "c4")]
    assert demo.compare(SENT, received)[0][0] == ("parent", 1, 2, 2, 0, 0, 3)
    assert demo._conclude(SENT, received, 0.0) == 0
    *_, said, conclusion = capsys.readouterr().out.splitlines()
    assert said == (
        "1 request came again with the same Idempotency-Key, as after a late answer. "
        "The service counts such an event once."
    )
    assert conclusion.startswith("Each event arrived once, from 2 processes")
    assert demo._conclude(SENT, ARRIVED, 0.0) == 0
    assert "came again" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "stray",
    [
        line("c-1", 1, 1),  # a child's event, recorded in the parent
        line("c-1", 2, 1),  # on a connection of the parent
        line("x-1", 2, 2),  # nobody's
    ],
)
def test_account_of_events_from_elsewhere(stray: dict[str, Any]) -> None:
    _, troubles = demo.compare(SENT, [*ARRIVED[:2], stray])
    assert troubles[-1] == "1 event came from another process than the one that recorded them"


FAILING = """
import os
from valued.cli import demo
pid = os.fork() or demo._work(None, "worker", ["w-1"], flushes=False)
print(demo._status(pid))
"""


def test_worker_that_fails_says_why_and_ends() -> None:
    ended = run("-c", FAILING)
    assert ended.stdout == "1\n"
    assert "AttributeError: 'NoneType' object has no attribute 'action'" in ended.stderr

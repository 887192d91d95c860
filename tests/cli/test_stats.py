"""``valued stats`` and ``valued top``: the counts of all processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import valued
from tests.support.cli import COMMAND
from tests.support.processes import run
from valued.cli import top


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory in which this process has written that it delivered three events."""
    place = tmp_path / "status"
    with valued.Client(lambda _event: None, status=place) as client:
        for number in range(3):
            client.action("recorded", {"user.id": number})
    return place


def command(*arguments: object) -> str:
    done = run("-m", "valued", *map(str, arguments))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_stats_are_a_table(place: Path) -> None:
    lines = [line.split() for line in command("stats", place).splitlines()]
    assert lines[0] == ["events", "count"]
    assert ["delivered", "3"] in lines
    assert lines[-1] == ["processes", "1"]


def test_directory_comes_from_the_environment(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VALUED_STATUS", str(place))
    assert json.loads(command("stats", "--json"))["totals"]["delivered"] == 3
    assert command("top", "--once").splitlines()[-1].split()[:3] == ["all", "0", "3"]


def test_json_has_the_totals_and_each_process(place: Path) -> None:
    found = json.loads(command("stats", place, "--json"))
    assert found["totals"]["delivered"] == 3
    assert [process["stats"]["delivered"] for process in found["processes"]] == [3]


def test_prometheus_reads_what_is_printed(place: Path) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    families = parser.text_string_to_metric_families(command("stats", place, "--prometheus"))
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }
    assert samples["valued_events_delivered_total",] == 3
    assert samples["valued_events_dropped_total", "overflow"] == 0
    assert samples["valued_events_pending",] == 0


@pytest.mark.parametrize("name", ["stats", "top"])
def test_directory_that_is_not_there_is_an_error(name: str, tmp_path: Path) -> None:
    done = run("-m", "valued", name, str(tmp_path / "missing"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "No such file or directory" in done.stderr


def test_without_a_directory_the_error_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VALUED_STATUS", raising=False)
    monkeypatch.delenv("VALUED_OUTBOX", raising=False)
    done = run("-m", "valued", "stats")
    assert done.returncode == 2
    assert "VALUED_STATUS" in done.stderr


@pytest.fixture
def listening(place: Path, where: str) -> Iterator[subprocess.Popen[str]]:
    program = subprocess.Popen(
        [*COMMAND, "stats", str(place), "--listen", where], stdout=subprocess.PIPE, text=True
    )
    yield program
    program.kill()
    program.communicate()


@pytest.mark.parametrize("where", ["0", ":0"])
def test_listen_answers_each_scrape_with_the_counts_of_that_moment(
    place: Path, listening: subprocess.Popen[str]
) -> None:
    assert listening.stdout is not None
    address = listening.stdout.readline().split()[-1]
    assert address.startswith("http://127.0.0.1:")  # and not on all interfaces
    for count in (3, 4):
        with urllib.request.urlopen(address, timeout=10) as answer:
            assert f"valued_events_delivered_total {count}\n" in answer.read().decode()
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        with valued.Client(lambda _event: None, status=place) as client:
            client.action("recorded", {"user.id": 1})
    (place / "v1" / "stats").rename(place / "gone")
    (place / "v1" / "stats").write_text("")
    with pytest.raises(urllib.error.HTTPError, match="500"):
        urllib.request.urlopen(address, timeout=10)
    listening.send_signal(signal.SIGINT)
    assert listening.wait(10) == 0


def test_a_port_that_is_taken_is_named(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("-m", "valued", "stats", str(place), "--listen", where)
    assert done.returncode == 1
    assert done.stderr.startswith(f"valued: can't listen on {where}: ")


def test_top_has_a_row_for_each_process_and_one_for_all(place: Path) -> None:
    head, process, total = command("top", place, "--once").splitlines()
    assert head.split()[:3] == ["pid", "command", "per"]
    assert process.split()[-4:] == ["3", "0", "0", "0"]
    assert total.split()[:3] == ["all", "0", "3"]


def test_top_prints_again_each_second_until_ctrl_c(place: Path) -> None:
    program = subprocess.Popen([*COMMAND, "top", str(place)], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    heads = [line for line, _ in zip(program.stdout, range(4), strict=False) if "pid" in line]
    assert len(heads) == 2
    program.send_signal(signal.SIGINT)
    program.stdout.read()
    program.stdout.close()
    assert program.wait(10) == 0


def test_top_redraws_the_table_on_a_terminal(place: Path) -> None:
    pytest.importorskip("rich")
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    program = subprocess.Popen([*COMMAND, "top", str(place)], stdout=follower, env=environment)
    os.close(follower)
    shown = b""
    while shown.count(b"per s") < 2:
        shown += os.read(leader, 65536)
    program.send_signal(signal.SIGINT)
    assert program.wait(10) == 0
    os.close(leader)
    assert b"\x1b[?1049h" in shown  # the screen of its own, which leaves the shell's as it was


def test_rates_are_of_what_a_process_wrote_last_and_fade_when_it_is_quiet() -> None:
    def found(at: float, delivered: int, **more: object) -> valued.ApplicationStats:
        stats = {"delivered": delivered, "failed": 0, "dropped": 0, "pending": 1}
        process = valued.ProcessStats(1, "h", "app", "alive", at, stats, None, "", None)
        return valued.ApplicationStats(stats, [process._replace(**more)])  # type: ignore[arg-type]

    now, seen = time.time(), dict[tuple[str, int], top.Seen]()
    assert top.rows(found(now - 2, 10), seen)[0][2] == 0
    assert top.rows(found(now - 1, 60), seen)[0][2] == 50
    assert top.rows(found(now - 1, 60), seen)[0][2] == 50  # it wrote nothing in between
    assert top.rows(found(now - 9, 70), {("h", 1): top.Seen(now - 19, 60, 5.0)})[0][2] == 0
    failing = found(now, 1, error="down\nup", error_at=now - 5, oldest=now - 600)
    assert top.rows(failing, {})[0][-1] == "10 min"
    assert top.errors(failing) == ["1: 5 s ago: down\\nup"]
    assert top.errors(found(now, 1)) == []


@pytest.mark.parametrize("on_terminal", [False, True])
def test_top_shows_the_latest_error_of_a_process_below_the_table(
    place: Path, on_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_event: object) -> None:
        raise valued.DeliveryError("no such account", 402)

    with valued.Client(refuse, status=place) as client:
        client.action("recorded", {"user.id": 1})
        assert client.park(10)  # which writes
        if on_terminal:
            pytest.importorskip("rich")
            monkeypatch.setenv("FORCE_COLOR", "1")
        said = command("top", "--once", str(place))
    assert f"{os.getpid()}: " in said
    assert said.rstrip().endswith("ago: no such account (1 attempt in 0.0 s)")

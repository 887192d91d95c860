"""The benchmarks run, with few events, and say all that they promise; never that it is fast."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docutils.core
import docutils.nodes
import docutils.writers.null
import psutil
import pytest

import benchmarks.__main__
from benchmarks import compare, plots, report, rows, servers
from benchmarks.bench import QUICK, Bench
from benchmarks.caller import units
from benchmarks.delivery import curve
from benchmarks.durability import outbox
from benchmarks.peers import behaviour
from benchmarks.processes import first_event, imports
from tests.support import browser
from tests.support.processes import run

ROOT = Path(__file__).parent.parent
PROGRAMS = {
    "broker": ["60"],
    "exits": ["1"],
    "kill": ["4", "20", "1", "0.05"],
    "listen_page": ["--events", "400", "--rate", "200", "--rounds", "1"],
    "soak": ["--events", "800", "--seconds", "20"],
    "stopped": ["--seconds", "0.5", "--around", "0.2"],
}

ROWS = [
    "caller's time, median",
    "caller's time, 99th percentile, sender at work",
    "caller's time, slowest, sender at work",
    "caller's time, median, a call each millisecond",
    "CPU of the whole process for a delivered event",
    "events a second, server answers at once",
    "events a second, server answers after 20 ms",
    "memory while 50 events wait, by tracemalloc",
    "memory while 50 events wait, resident pages",
    "fork in the parent, 20 waiting, 1 in flight",
    "a child's first event, fork to delivered",
    "a unit of work: isolated",
    "a unit of work: isolated, lazy user",
    "a unit of work: isolated, entered once more",
    "import valued",
    "wake-ups of an idle process that has sent an event",
]

OUTBOX_ROWS = [
    "caller's time, median",
    "of that, beyond the time in memory",
    'caller\'s time, median, durability="power"',
    "caller's time, 99th percentile, sender at work",
    "CPU of the whole process for a delivered event",
    "events a second, server answers at once",
    "fork in the parent, 20 waiting, 1 in flight",
    "memory to deliver 100 events of a dead process",
    "8 threads, 99.9th percentile of a call, 5 directories of others",
    "8 threads, slowest call, 5 directories of others",
    "the end of that process, 5 directories of others",
]
#: Groups of rows that two trees are not compared by.
NOT_COMPARED = (units.rows, imports.rows, outbox.fork_rows, outbox.adoption_rows)


@pytest.fixture(autouse=True)
def _without_coverage(monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes each process start and end later, and no line that is measured runs here only."""
    for name in [name for name in os.environ if "COV" in name]:
        monkeypatch.delenv(name)


def _finished(folder: Path, command: str) -> tuple[str, dict, Path]:
    """Run a command; what it printed, what it found, and the folder of its tables."""
    file, tables = folder / "found.json", folder / "cost"
    done = run("-m", "benchmarks", command, "--quick", "--json", str(file), "--rst", str(tables),
               cwd=ROOT, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(file.read_text("utf-8")), tables


def _is_sound(folder: Path, name: str) -> bool:
    """Whether docutils reads the file without a word, from the document that includes it."""
    document = folder.parent / f"{name}-page.rst"
    document.write_text(f".. include:: {folder.name}/{name}.rst\n", "utf-8")
    _read(document)
    return True


def _read(document: Path) -> None:
    docutils.core.publish_string(
        document.read_text("utf-8"),
        source_path=str(document),
        writer=docutils.writers.null.Writer(),
        settings_overrides={"halt_level": 2, "report_level": 2},
    )


def test_table_has_a_row_for_each_goal_with_its_yardstick(tmp_path: Path) -> None:
    printed, found, folder = _finished(tmp_path, "table")
    assert [row["what"] for row in found["table"]] == ROWS
    for row in found["table"]:
        assert row["what"] in printed
        assert row["yardstick_name"]
        # An idle process wakes up never, as a rule.
        assert row["ours"] > 0 or "wake-ups" in row["what"], row
        assert row["yardstick"] > 0 or "wake-ups" in row["what"], row
        assert row["met"] in (True, False)
    where = found["circumstances"]
    assert where["commit"]
    assert where["machine"]
    assert where["server"]
    assert "python -m benchmarks table --quick" in where["command"]
    assert _is_sound(folder, "table")


def test_outbox_has_a_row_for_each_cost(tmp_path: Path) -> None:
    printed, found, folder = _finished(tmp_path, "outbox")
    assert [row["what"] for row in found["outbox"]] == OUTBOX_ROWS
    for row in found["outbox"]:
        assert row["what"] in printed
        # What is a difference may be below nothing, as few calls are timed.
        assert row["ours"] > 0 or row["unit"] == "MB" or "beyond" in row["what"]
    assert _is_sound(folder, "outbox")


def test_forked_workers_are_counted_with_their_connections(tmp_path: Path) -> None:
    _printed, found, folder = _finished(tmp_path, "processes")
    rows = found["processes"]["rows"]
    assert [row["workers"] for row in rows] == [1, 2]
    for row in rows:
        for who in ("valued", "urllib3"):
            assert row[who].keys() == {"per_second", "cpu_us", "connections"}
            assert row[who]["connections"] >= row["workers"]
    assert ET.parse(folder / "processes-per-second.svg")
    assert _is_sound(folder, "processes")


def test_growth_has_all_of_its_parts(tmp_path: Path) -> None:
    _printed, found, folder = _finished(tmp_path, "growth")
    assert {name: list(points[0]) for name, points in found["growth"].items()} == {
        "attributes": ["size", "action", "json.dumps"],
        "nesting": ["size", "action", "json.dumps"],
        "queue length": ["size", "action", "delivery"],
        "nested scopes": ["size", "action", "nested block"],
        "converters": ["size", "action", "first after register"],
    }
    assert ET.parse(folder / "growth-queue-length.svg")
    assert _is_sound(folder, "growth")


def test_curve_follows_the_server_through_its_phases(tmp_path: Path) -> None:
    _printed, found, folder = _finished(tmp_path, "curve")
    assert "threads" in found["curve"]
    for one in found["curve"].values():
        assert [phase["delay_ms"] for phase in one["phases"]] == [0, 20, 0]
        for phase in one["phases"]:
            assert phase.keys() == {
                "delay_ms", "per_second", "in_use", "settled_after", "workers_after",
            }  # fmt: skip
        assert {point["delay_ms"] for point in one["points"]} == {0, 20}
    assert ET.parse(folder / "curve-per-second.svg")
    assert _is_sound(folder, "curve")


def test_profile_names_functions_and_lines_of_caller_and_worker(tmp_path: Path) -> None:
    printed, found, folder = _finished(tmp_path, "--profile")
    assert found["profile"].keys() == {"caller", "worker"}
    for part in found["profile"].values():
        assert part["us_per_event"] > 0
        assert part["samples"] > 0
        assert part.keys() >= {"own", "with_callees", "lines", "samples"}
    assert "caller: " in printed
    assert "worker: " in printed
    assert _is_sound(folder, "profile")


def test_two_trees_are_compared_by_their_rows_each_with_its_own_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = [group for _, each in benchmarks.__main__.ROWS.values() for group in each]
    compared = [group for _, group in compare.GROUPS]
    assert compared == [group for group in groups if group not in NOT_COMPARED]
    # One of each kind: all of them run in the tests above.
    some = (("", first_event.rows), ("outbox: ", outbox.delivery_rows))
    monkeypatch.setattr(compare, "GROUPS", some)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the command sets a handler
    other, file = tmp_path / "other", tmp_path / "found.json"
    shutil.copytree(ROOT / "valued", other / "valued", ignore=shutil.ignore_patterns("__pycache__"))
    arguments = ["compare", str(other), str(ROOT), "--quick", "--json", str(file)]
    assert benchmarks.__main__.main(arguments) == 0
    printed = capsys.readouterr().out
    assert f"{other}: commit" in printed
    found = json.loads(file.read_text("utf-8"))["compare"]
    assert list(found) == [ROWS[10], *(f"outbox: {what}" for what in OUTBOX_ROWS[4:6])]
    for what, one in found.items():
        assert what in printed
        for tree in ("old", "new"):
            assert len(one[tree]["ours"]) == len(one[tree]["yardstick"]) == 1


def test_trees_take_turns_in_each_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for tree in ("old", "new"):
        shutil.copytree(ROOT / "valued", tmp_path / tree / "valued")
    turns = []

    def of(group: str) -> Callable[[Bench], Iterator[rows.Row]]:
        def measure(bench: Bench) -> Iterator[rows.Row]:
            assert bench.scale.rounds == 1
            turns.append((group, (bench.folder / "valued").resolve().parent.name))
            figures = {"valued": {"n": len(turns)}, "other": {"n": 2}}
            yield rows.row(group, "us", figures, "n", "other")

        return measure

    monkeypatch.setattr(compare, "GROUPS", (("", of("a")), ("", of("b"))))
    scale = dataclasses.replace(QUICK, rounds=2)
    found = compare.measured(
        Bench(scale, servers.Nginx("", 0)), [tmp_path / "old", tmp_path / "new"]
    )
    assert turns == [(group, tree) for group in "ab" for tree in ("old", "new") * 2]
    assert found["a"]["old"] == {"ours": [1, 3], "yardstick": [2, 2]}
    assert found["a"]["new"] == {"ours": [2, 4], "yardstick": [2, 2]}


def test_measured_client_is_that_of_the_tree(tmp_path: Path) -> None:
    package = tmp_path / "tree" / "valued"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('this one')", "utf-8")
    bench = Bench(QUICK, servers.Nginx("", 0))
    with pytest.raises(subprocess.CalledProcessError):
        compare.measured(bench, [ROOT, package.parent])


@pytest.mark.parametrize("given", [["compare"], ["compare", str(ROOT), "/nowhere"], ["tables"]])
def test_what_can_not_be_measured_is_an_error_that_says_what_can(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        benchmarks.__main__.main(given)
    assert "expected" in capsys.readouterr().err


def _figures(program: str, file: Path) -> dict[str, Any]:
    done = run("-m", f"benchmarks.programs.{program}", *PROGRAMS[program], "--json", str(file),
               cwd=ROOT)  # fmt: skip
    assert "It held." in done.stdout or "It did not hold." in done.stdout, done.stderr
    figures: dict[str, Any] = json.loads(file.read_text("utf-8"))
    # How flat, or how fast, is for a quiet machine to tell.
    assert done.returncode == (1 if figures["not held"] else 0)
    return figures


def test_a_small_soak_loses_nothing(tmp_path: Path) -> None:
    figures = _figures("soak", tmp_path / "soak.json")
    assert figures["recorded"] == figures["accepted"] == 800
    assert figures["lost"] == figures["dropped"] == figures["repeats without that"] == 0
    assert figures["failed, not refused permanently"] == figures["told twice"] == 0
    assert figures["faults"]


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no such signal here")
def test_a_short_stop_loses_nothing(tmp_path: Path) -> None:
    figures = _figures("stopped", tmp_path / "stopped.json")
    assert figures["recorded"] == figures["delivered"] > 100
    assert figures["lost"] == figures["dropped"] == figures["failed"] == 0
    assert set(figures["calls, in ms"]) >= {"event call, server stopped", "bare call, after"}


@pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))
def test_page_of_the_mock_server_is_measured_in_a_browser(tmp_path: Path) -> None:
    figures = _figures("listen_page", tmp_path / "page.json")
    assert figures["from POST to row, ms"].keys() == figures["from click to event, ms"].keys()
    assert figures["memory of page and server, MiB"].keys() == {"start", "most kept", "end"}
    assert figures["throughput"].keys() == {"the page on", "a stream open", "--no-ui"}


def test_without_a_browser_the_page_is_not_measured_and_the_reason_is_said() -> None:
    done = run("-m", "benchmarks.programs.listen_page", cwd=ROOT, env={**os.environ, "PATH": ""})
    assert done.returncode == 2
    assert "it needs a browser, and " in done.stderr


def test_some_kills_lose_nothing() -> None:
    done = run("-m", "benchmarks.programs.kill", *PROGRAMS["kill"], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "4 kills" in done.stdout
    assert " 0 lost" in done.stdout


def test_ends_of_processes_are_timed_beside_a_bare_one() -> None:
    done = run("-m", "benchmarks.programs.exits", *PROGRAMS["exits"], cwd=ROOT)
    assert done.stdout.count(" ms ") == 3, done.stderr
    assert done.returncode == (0 if "It held." in done.stdout else 1)


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="there is no redis-server")
def test_delivery_through_a_broker_is_measured_beside_direct_delivery() -> None:
    pytest.importorskip("celery")
    done = run("-m", "benchmarks.programs.broker", *PROGRAMS["broker"], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    measured = r"^(.+?) {2,}[\d,]+ events a second +[\d,]+ us of CPU an event$"
    assert re.findall(measured, done.stdout, re.MULTILINE) == [
        "direct delivery",
        "into the broker",
        *(f"out of it, {count} delivery workers" for count in (1, 2, 4)),
    ]


def test_behaviour_of_a_client_is_seen_in_its_situations() -> None:
    counter = behaviour.Counter()
    for situation, keys in (("end", 500), ("fork", 100 + 1)):
        counter.seen.clear()
        done = behaviour.Run(sys.executable, "valued", situation, counter.url)
        assert counter.summary() == str(keys), done.errors
    counter.up_at = time.monotonic() + 3600
    assert counter.take(b"probe.p.0.x") == 503


def test_command_that_is_terminated_leaves_no_process() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", "curve", "--quick"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline()  # its server runs
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_without_nginx_another_server_answers_and_its_name_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(servers.shutil, "which", lambda *_args, **_kwargs: None)
    with servers.fast() as server:
        assert "no nginx" in server.name
        before = server.figures()
        request = urllib.request.Request(server.url, b"{}", method="POST")
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 204
        after = server.figures()
    assert after["requests"] - before["requests"] == 1
    assert after["connections"] - before["connections"] == 1


def test_server_owes_answers_for_as_long_as_it_is_told_to() -> None:
    with servers.delaying(0) as server:
        server.delay(3600)
        parts = urlsplit(server.url)
        with socket.create_connection((parts.hostname, parts.port)) as connection:
            connection.sendall(b"POST /events HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
            until = time.monotonic() + 10
            while not (figures := server.figures())["in_use"] and time.monotonic() < until:
                time.sleep(0.001)
        assert figures == {
            "requests": 0, "connections": 1, "under_way": 1, "most_under_way": 1, "in_use": 1,
        }  # fmt: skip


def test_phase_has_settled_when_what_it_ends_with_is_near() -> None:
    rates, workers = [100] * 10 + [1000] * 30, [10] * 20 + [1] * 20
    points = [
        {"seconds": 5 + number / 10, "per_second": rate, "in_use": many}
        for number, (rate, many) in enumerate(zip(rates, workers, strict=True))
    ]
    points[15]["per_second"] = 1  # an accident
    settled = curve.settle(points, 5)
    assert (settled["per_second"], settled["in_use"]) == (1000, 1)
    # Of five samples three are near: the median is.
    assert settled["settled_after"] == pytest.approx(0.8)
    assert settled["workers_after"] == pytest.approx(1.8)


def test_table_for_the_docs_shows_its_cells_as_they_are() -> None:
    cells = [["*_a_ `b` |c| \\d", ""], ["e_", "*"]]
    tree = docutils.core.publish_doctree(report._list_table("title", (["x", "y"], cells)))
    found = [entry.astext() for entry in tree.findall(docutils.nodes.entry)]
    assert found == ["x", "y", *cells[0], *cells[1]]


@pytest.mark.parametrize(
    ("goal", "met", "missed"),
    [(rows.at_most(1.25), (1.25, 1), (1.26, 1)), (rows.at_least(0.85), (85, 100), (84, 100))],
)
def test_goal_is_met_up_to_its_bound(
    goal: rows.Goal, met: tuple[float, float], missed: tuple[float, float]
) -> None:
    assert goal.is_met(*met)
    assert not goal.is_met(*missed)


def test_chart_holds_each_series_whatever_its_values_are() -> None:
    for logarithmic in (False, True):
        drawn = plots.svg(
            "<title>", "x", "y", {"one & two": [(1, 5), (10, 5)], "alone": [(3, 0.02)]},
            logarithmic=logarithmic,
        )  # fmt: skip
        tree = ET.fromstring(drawn)
        texts = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]
        assert {"<title>", "x", "y", "one & two", "alone"} <= set(texts)
        lines = list(tree.iter("{http://www.w3.org/2000/svg}polyline"))
        assert [len(line.attrib["points"].split()) for line in lines] == [2, 1]


def test_tables_of_costs_can_be_read_and_the_commands_of_their_page_exist(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = ROOT / "docs" / "explanation" / "cost.rst"
    for part in page.with_suffix("").glob("*.rst"):  # the page itself has roles of Sphinx's
        _read(part)
    with pytest.raises(SystemExit):
        benchmarks.__main__.main(["--help"])
    said = capsys.readouterr().out
    text = page.read_text("utf-8")
    named = {*re.findall(r"--[a-z]+", text.replace("--quiet --editable", ""))}
    named |= set(re.findall(r"python -m benchmarks ([a-z]+)", text))
    assert {"--quick", "--peers", "--rst", "outbox", "processes", "growth", "curve", "all"} <= named
    assert {word for word in named if word not in said} == set()

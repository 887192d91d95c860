"""Forked workers at one server: events a second in all, and the CPU time of one event."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import psutil

from benchmarks.bench import Bench, serve
from benchmarks.delivery.delivered import cpu_seconds
from benchmarks.plots import svg
from benchmarks.report import Table, number
from benchmarks.senders import sender

WARM_UP: Final = 20
FLAT: Final = 0.15  # by which the CPU time of an event may differ from that of one worker


def measured(bench: Bench) -> dict[str, Any]:
    """1, 2, 4 and 8 forked workers at one server, ours and the yardstick's."""

    def once(subject: str, workers: int) -> dict[str, Any]:
        before = bench.server.figures()["connections"]
        found = bench.measure(
            "processes.workers", subject=subject, workers=workers,
            events=max(bench.scale.events, workers), url=bench.server.url,
        )  # fmt: skip
        return {**found, "connections": bench.server.figures()["connections"] - before}

    rows: list[dict[str, Any]] = []
    for workers in bench.scale.workers:
        subjects = {name: partial(once, name, workers) for name in ("urllib3", "valued")}
        rows.append({"workers": workers, **bench.in_turns(subjects)})
    for row in rows:
        row["cpu_by_one_worker"] = row["valued"]["cpu_us"] / rows[0]["valued"]["cpu_us"]
        row["flat"] = abs(row["cpu_by_one_worker"] - 1) <= FLAT
    return {"cores": psutil.cpu_count(), "rows": rows}


def tables(found: dict[str, Any]) -> Iterator[tuple[str, Table]]:
    head = ("workers", "events a second", "urllib3's", "CPU of an event", "urllib3's",
            "by one worker's", "connections", "urllib3's")  # fmt: skip
    lines = [
        (
            str(row["workers"]),
            number(row["valued"]["per_second"]),
            number(row["urllib3"]["per_second"]),
            number(row["valued"]["cpu_us"], "us"),
            number(row["urllib3"]["cpu_us"], "us"),
            f"{row['cpu_by_one_worker']:.2f} x",
            number(row["valued"]["connections"]),
            number(row["urllib3"]["connections"]),
        )
        for row in found["rows"]
    ]
    yield "Forked workers", (head, lines)


def charts(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, title in (("per_second", "events a second"), ("cpu_us", "us of CPU an event")):
        series = {
            name: [(row["workers"], row[name][key]) for row in found["rows"]]
            for name in ("valued", "urllib3")
        }
        yield key, svg(f"Forked workers: {title}", "workers", title, series)


def worker(subject: str, events: int, url: str, start: int, results: int) -> None:
    """One worker: warms up, says so, waits until all may start, and says what it took."""
    sending = sender(subject, url)
    for _ in range(WARM_UP):
        sending.record()
    sending.finish()
    os.write(results, b"\n")
    os.read(start, 1)
    used = cpu_seconds()
    for _ in range(events):
        sending.record()
    sending.finish()
    line = json.dumps({"cpu": cpu_seconds() - used, "ended": time.monotonic()}) + "\n"
    os.write(results, line.encode())  # shorter than what a pipe takes whole


def main(subject: str, workers: int, events: int, url: str) -> dict[str, Any]:
    """*events* in all, by so many *workers*, which start at one time."""
    reader, results = os.pipe()
    start, go = os.pipe()
    pids = []
    for _ in range(workers):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                worker(subject, events // workers, url, start, results)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    os.close(results)
    with os.fdopen(reader) as lines:
        for _ in pids:
            lines.readline()
        started = time.monotonic()
        os.write(go, b"." * workers)
        ends = [json.loads(lines.readline()) for _ in pids]
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
    delivered = events // workers * workers
    return {
        "per_second": delivered / (max(end["ended"] for end in ends) - started),
        "cpu_us": sum(end["cpu"] for end in ends) / delivered * 1e6,
    }


if __name__ == "__main__":
    serve(main)

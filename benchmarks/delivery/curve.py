"""Throughput and connections in use, while the server's delay changes under load.

The program that is looked at records, so that events always wait; it ends with its standard input.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import psutil

import valued
from benchmarks.bench import Bench, environment
from benchmarks.plots import svg
from benchmarks.report import Table, number
from benchmarks.senders import DATA, KEY, TOKEN
from benchmarks.servers import Delaying, delaying

SAMPLE: Final = 0.1  # seconds between two looks at the server
STEADY: Final = 0.9  # of the throughput that a phase ends with: from there on it has settled
WINDOW: Final = 5  # samples
ENOUGH: Final = 1_000  # events that wait: more than any server here answers in a pause
PAUSE: Final = 0.02  # seconds between two looks of the program, so that it is no load of its own

Points = list[dict[str, float]]


def measured(bench: Bench) -> dict[str, Any]:
    """Once with threads, and where gevent is installed with greenlets."""
    program = ["-m", "benchmarks.delivery.curve"]
    found = {"threads": _curve(bench, program)}
    if importlib.util.find_spec("gevent") is not None:
        found["greenlets"] = _curve(bench, ["-m", "gevent.monkey", "--module", program[1]])
    return found


def tables(found: dict[str, Any]) -> Iterator[tuple[str, Table]]:
    head = ("server's delay", "events a second", "settled after", "connections in use",
            "settled after")  # fmt: skip
    for workers, one in found.items():
        lines = [
            (
                f"{phase['delay_ms']:g} ms",
                number(phase["per_second"]),
                f"{phase['settled_after']:.1f} s",
                number(phase["in_use"]),
                f"{phase['workers_after']:.1f} s",
            )
            for phase in one["phases"]
        ]
        yield f"A server that changes, and {workers}", (head, lines)


def charts(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, title in (("per_second", "events a second"), ("in_use", "connections in use")):
        series = {
            workers: [(point["seconds"], point[key]) for point in one["points"]]
            for workers, one in found.items()
        }
        if key == "in_use":
            points = found["threads"]["points"]
            series["server's delay, ms"] = [(one["seconds"], one["delay_ms"]) for one in points]
        yield key, svg(f"A server that changes: {title}", "seconds", title, series)


def _curve(bench: Bench, program: list[str]) -> dict[str, Any]:
    phases = bench.scale.phases
    with delaying(phases[0][0]) as server:
        process = subprocess.Popen(
            [sys.executable, *program, json.dumps({"url": server.url})],
            cwd=bench.folder, env=environment(), stdin=subprocess.PIPE,
        )  # fmt: skip
        with process:
            until = time.monotonic() + 10
            while not server.figures()["requests"] and time.monotonic() < until:
                time.sleep(0.01)
            points, settled = _observed(server, psutil.Process(process.pid), phases)
    return {"server": server.name, "points": points, "phases": settled}


def _observed(
    server: Delaying, process: psutil.Process, phases: tuple[tuple[float, float], ...]
) -> tuple[Points, Points]:
    started = last = time.monotonic()
    requests = server.figures()["requests"]
    points: Points = []
    settled = []
    for delay, lasts in phases:
        server.delay(delay)
        changed = time.monotonic()
        here = []
        while time.monotonic() < changed + lasts:
            time.sleep(SAMPLE)
            now, figures = time.monotonic(), server.figures()
            here.append(
                {
                    "seconds": now - started,
                    "delay_ms": delay * 1e3,
                    "per_second": (figures["requests"] - requests) / (now - last),
                    "in_use": figures["in_use"],
                    "threads": process.num_threads(),
                }
            )
            last, requests = now, figures["requests"]
        points += here
        settled.append({"delay_ms": delay * 1e3, **settle(here, changed - started)})
    return points, settled


def settle(points: Points, changed: float) -> dict[str, float]:
    """What a phase ends with, and after how many seconds it came near that.

    A median of some samples counts: a single one is often an accident of the machine.
    """
    tail = points[-max(1, len(points) // 4) :]
    end, workers = _median(tail, "per_second"), _median(tail, "in_use")

    def since(near: Callable[[Points], bool]) -> float:
        windows = (points[number : number + WINDOW] for number in range(len(points)))
        return next(filter(near, windows), tail)[0]["seconds"] - changed

    return {
        "per_second": end,
        "in_use": workers,
        "settled_after": since(lambda window: _median(window, "per_second") >= STEADY * end),
        "workers_after": since(
            lambda window: abs(_median(window, "in_use") - workers) <= max(1, workers / 4)
        ),
    }


def _median(points: Points, key: str) -> float:
    return statistics.median(point[key] for point in points)


def load(url: str) -> None:
    """Keep so many events waiting, until the standard input ends."""
    client = valued.Client(TOKEN, url, shutdown_timeout=0)
    # Looked up when it is called: gevent's, where that has patched it.
    while not select.select([sys.stdin], [], [], PAUSE)[0]:
        for _ in range(ENOUGH - client.stats()["pending"]):
            client.action(KEY, DATA)
    logging.disable()  # of what is not delivered at the end, as it should be


if __name__ == "__main__":
    load(**json.loads(sys.argv[1]))

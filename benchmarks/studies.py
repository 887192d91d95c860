"""What is no row of the table: forked workers, how costs grow, a server that changes."""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import psutil

from benchmarks.scale import Scale, in_turns
from benchmarks.servers import ROOT, Delaying, Server, delaying
from benchmarks.subprocesses import environment, measure

SAMPLE: Final = 0.1  # seconds between two looks at the server
STEADY: Final = 0.9  # of the throughput that a phase ends with: from there on it has settled
WINDOW: Final = 5  # samples
FLAT: Final = 0.15  # by which the CPU time of an event may differ from that of one worker


def processes(scale: Scale, server: Server) -> dict[str, Any]:
    """1, 2, 4 and 8 forked workers at one server, ours and the yardstick's."""

    def once(subject: str, workers: int) -> dict[str, Any]:
        before = server.figures()["connections"]
        events = max(scale.events, workers)
        found = measure(
            "forked_workers", subject=subject, workers=workers, events=events, url=server.url
        )
        return {**found, "connections": server.figures()["connections"] - before}

    rows: list[dict[str, Any]] = []
    for workers in scale.workers:
        figures = in_turns(
            scale.rounds,
            {subject: partial(once, subject, workers) for subject in ("urllib3", "valued")},
        )
        rows.append({"workers": workers, **figures})
    alone = rows[0]["valued"]["cpu_us"]
    for row in rows:
        row["cpu_by_one_worker"] = row["valued"]["cpu_us"] / alone
        row["flat"] = abs(row["cpu_by_one_worker"] - 1) <= FLAT
    return {"cores": psutil.cpu_count(), "rows": rows}


def growth(scale: Scale, _server: Server) -> dict[str, Any]:
    """Microseconds by size, for each part of `benchmarks.growing`."""
    found = {}
    for part, sizes in scale.growth:
        run = partial(measure, "growing", part=part, calls=scale.calls // 5)
        by_size = in_turns(scale.rounds, {str(size): partial(run, size=size) for size in sizes})
        found[part] = [{"size": size, **by_size[str(size)]} for size in sizes]
    return found


def curve(scale: Scale, _server: Server) -> dict[str, Any]:
    """Throughput and connections in use, while the server's delay changes under load.

    Once with threads, and where gevent is installed with greenlets.
    """
    found = {"threads": _curve(scale, ["-m", "benchmarks.loading"])}
    if importlib.util.find_spec("gevent") is not None:
        found["greenlets"] = _curve(
            scale, ["-m", "gevent.monkey", "--module", "benchmarks.loading"]
        )
    return found


def _curve(scale: Scale, program: list[str]) -> dict[str, Any]:
    with delaying(scale.phases[0][0]) as server:
        process = subprocess.Popen(
            [sys.executable, *program, json.dumps({"url": server.url})],
            cwd=ROOT, env=environment(), stdin=subprocess.PIPE,
        )  # fmt: skip
        with process:
            until = time.monotonic() + 10
            while not server.figures()["requests"] and time.monotonic() < until:
                time.sleep(0.01)
            points, settled = _observed(server, psutil.Process(process.pid), scale.phases)
    return {"server": server.name, "points": points, "phases": settled}


def _observed(
    server: Delaying, process: psutil.Process, phases: tuple[tuple[float, float], ...]
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    started = last = time.monotonic()
    requests = server.figures()["requests"]
    points: list[dict[str, float]] = []
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
        settled.append({"delay_ms": delay * 1e3, **_settled(here, changed - started)})
    return points, settled


def _settled(points: list[dict[str, float]], changed: float) -> dict[str, float]:
    """What a phase ends with, and after how many seconds it came near that.

    A median of some samples counts: a single one is often an accident of the machine.
    """
    tail = points[-max(1, len(points) // 4) :]
    end, workers = _median(tail, "per_second"), _median(tail, "in_use")

    def since(near: Callable[[list[dict[str, float]]], bool]) -> float:
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


def _median(points: list[dict[str, float]], key: str) -> float:
    return statistics.median(point[key] for point in points)

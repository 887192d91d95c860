"""What is no row of the table: forked workers, how costs grow, a server that changes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from functools import partial
from typing import Any, Final

import psutil

from benchmarks.scale import Scale, in_turns
from benchmarks.servers import ROOT, Delaying, Server, delaying
from benchmarks.subprocesses import environment, measure

SAMPLE: Final = 0.1  # seconds between two looks at the server
STEADY: Final = 0.9  # of the throughput that a phase ends with: from there on it has settled
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
    return {
        part: [
            {
                "size": size,
                **in_turns(
                    scale.rounds,
                    {
                        "us": partial(
                            measure, "growing", part=part, size=size, calls=scale.calls // 5
                        )
                    },
                )["us"],
            }
            for size in sizes
        ]
        for part, sizes in scale.growth
    }


def curve(scale: Scale, _server: Server) -> dict[str, Any]:
    """Throughput and requests at the same time, while the server's delay changes under load."""
    with delaying(scale.phases[0][0]) as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.loading", json.dumps({"url": server.url})],
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
                    "under_way": figures["most_under_way"],
                    "threads": process.num_threads(),
                }
            )
            last, requests = now, figures["requests"]
        points += here
        settled.append({"delay_ms": delay * 1e3, **_settled(here, changed - started)})
    return points, settled


def _settled(points: list[dict[str, float]], changed: float) -> dict[str, float]:
    """What a phase ends with, and after how many seconds it came near that, for good or nearly so.

    Three samples in a row count: a single one is often an accident of the machine.
    """
    tail = points[-max(1, len(points) // 4) :]
    end = statistics.median(point["per_second"] for point in tail)
    near = [point["per_second"] >= STEADY * end for point in points]
    first = next(
        (number for number in range(len(near)) if all(near[number : number + 3])), len(near) - 1
    )
    return {
        "per_second": end,
        "under_way": statistics.median(point["under_way"] for point in tail),
        "settled_after": points[first]["seconds"] - changed,
    }

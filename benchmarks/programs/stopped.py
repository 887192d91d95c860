"""A server that is stopped for half a minute (``kill -STOP``) while the application goes on.

A thread of the application records 200 events a second: 5 seconds with the server at work, 30 with
it stopped, 5 after ``kill -CONT``. Each call is timed; and in turns with it, on the same thread, so
is a bare one of about the same work (``json.dumps`` of the event, a few times), which tells what of
the slowest calls is the interpreter's lock and the machine's scheduler. Another process, without
the library, does the bare one alone meanwhile.

It holds when nothing is lost, nothing is dropped (``max_queue`` is not reached), and no event call
took 5 ms while the server stood still. The exit status says so.

    python -m benchmarks.programs.stopped [--seconds 30] [--around 5] [--rate 200] [--json FILE]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.programs.faulty_server import Running, running
from benchmarks.programs.verdict import verdict
from benchmarks.senders import EVENT
from benchmarks.servers import ROOT

#: Seconds, and how it begins.
Phase: TypeAlias = "tuple[float, Callable[[], Any]]"

#: Milliseconds that an event call may take.
BOUND = 5.0


def bare() -> None:
    for _ in range(16):
        json.dumps(EVENT)


def paced(
    functions: list[Callable[[], object]],
    rate: float,
    phases: list[Phase],
) -> list[list[list[float]]]:
    """Milliseconds of each call: by phase, by function."""
    taken: list[list[list[float]]] = []
    due = time.perf_counter()
    for seconds, begin in phases:
        begin()
        here: list[list[float]] = [[] for _ in functions]
        taken.append(here)
        end = due + seconds
        while due < end:
            due += 1 / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            for function, times in zip(functions, here, strict=True):
                started = time.perf_counter()
                function()
                times.append((time.perf_counter() - started) * 1e3)
    return taken


def summary(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    places = {"median": 0.5, "99th percentile": 0.99, "99.9th percentile": 0.999, "slowest": 1}
    last = len(ordered) - 1
    at = {name: round(ordered[int(last * share)], 3) for name, share in places.items()}
    return {"calls": len(ordered), **at}


class Application:
    """Records events, and counts them; *told*: the ids of those that ``on_error`` came for."""

    def __init__(self, port: int) -> None:
        import valued

        self.count = 0
        self.told: list[str] = []
        self.waiting = 0  # when the server went on
        self.client = valued.Client(
            "token",
            f"http://127.0.0.1:{port}/events",
            on_error=lambda _error, event: self.told.append(event["attributes"]["id"]),
        )

    def record(self) -> None:
        attributes = {"id": str(self.count), "format": "pdf"}
        self.client.action(
            "report.generated", {"user.id": 1, "customer.id": 2, "attributes": attributes}
        )
        self.count += 1

    def phases(self, server: Running, given: argparse.Namespace) -> list[Phase]:
        def go_on() -> None:
            self.waiting = self.client.stats()["pending"]
            server.process.send_signal(signal.SIGCONT)

        return [
            (given.around, gc.collect),
            (given.seconds, lambda: server.process.send_signal(signal.SIGSTOP)),
            (given.around, go_on),
        ]


def run(given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, bool]]:
    """The figures, and what is promised, each with whether it holds."""
    other = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.programs.stopped", "--alone",
         "--seconds", str(given.seconds), "--rate", str(given.rate)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with running() as server, other:
        application = Application(server.ports["port"])
        taken = paced([application.record, bare], given.rate, application.phases(server, given))
        began = time.monotonic()
        settled = application.client.flush(120)
        took = time.monotonic() - began
        stats, committed = application.client.stats(), server.end()["committed"]
        alone = json.loads(other.communicate(timeout=60)[0])
    lost = {str(number) for number in range(application.count)} - committed.keys()
    calls = {
        f"{what}, {when}": summary(taken[phase][function])
        for phase, when in enumerate(("before", "server stopped", "after"))
        for function, what in enumerate(("event call", "bare call"))
    }
    repeats = sum(committed.values()) - len(committed)
    figures: dict[str, Any] = {
        "recorded": application.count,
        **{name: stats[name] for name in ("delivered", "failed", "dropped", "pending", "retried")},
        "waiting when the server went on": application.waiting,
        "lost": len(lost),
        "repeats (read by the server after the client's timeout)": repeats,
        "seconds of the last flush": round(took, 1),
        "calls, in ms": {**calls, "bare call, another process": summary(alone)},
    }
    slowest = calls["event call, server stopped"]["slowest"]
    return figures, {
        "nothing is lost": settled and not lost and not application.told,
        "nothing is dropped": stats["dropped"] == 0,
        f"each event call under {BOUND:g} ms while the server was stopped": slowest < BOUND,
    }


def show(figures: dict[str, Any]) -> None:
    calls = figures["calls, in ms"]
    columns = list(next(iter(calls.values())))
    print(f"{'ms':34}" + "".join(f"{column:>19}" for column in columns))
    for name, row in calls.items():
        print(f"{name:34}" + "".join(f"{row[column]:19,}" for column in columns))
    for name, value in figures.items():
        if name != "calls, in ms":
            print(f"{name:70} {value}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--around", type=float, default=5.0, help="before it, and after")
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:  # the bare call in a process without the library
        print(json.dumps(paced([bare], given.rate, [(given.seconds, gc.collect)])[0][0]))
        return 0
    os.environ["VALUED_ENV"] = "production"
    figures, promises = run(given)
    show(figures)
    return verdict(figures, promises, given.json)


if __name__ == "__main__":
    sys.exit(main())

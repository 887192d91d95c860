"""A server that is stopped for half a minute (``kill -STOP``) while the application goes on.

A thread of the application records 200 events a second: 5 seconds with the server at work, 30 with
it stopped, 5 after ``kill -CONT``. Each call is timed; and in turns with it, on the same thread, so
is a bare one of about the same work (``json.dumps`` of the event, a few times), which tells what of
the slowest calls is the interpreter's lock and the machine's scheduler. Another process, without
the library, does the bare one alone meanwhile.

It holds when nothing is lost, nothing is dropped (``max_queue`` is not reached), and no event call
took 5 ms while the server stood still. The exit status says so.

    python benchmarks/stopped.py [--seconds 30] [--around 5] [--rate 200] [--json FILE]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Milliseconds that an event call may take.
BOUND = 5.0

EVENT = {
    "category": "action",
    "key": "report.generated",
    "user": {"id": 1},
    "customer": {"id": 2},
    "attributes": {"id": "12345", "format": "pdf"},
    "occured_at": "2026-11-23T10:00:00+01:00",
}


def bare() -> None:
    for _ in range(16):
        json.dumps(EVENT)


def paced(
    functions: list[Callable[[], object]],
    rate: float,
    phases: list[tuple[float, Callable[[], Any]]],
) -> list[list[list[float]]]:
    """Milliseconds of each call: by phase, by function. Each phase: seconds, and how it begins."""
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

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 3)

    return {
        "calls": len(ordered),
        "median": at(0.5),
        "99th percentile": at(0.99),
        "99.9th percentile": at(0.999),
        "slowest": round(ordered[-1], 3),
    }


def alone(seconds: float, rate: float) -> None:
    """The bare call in a process without the library; prints its times."""
    print(json.dumps(paced([bare], rate, [(seconds, lambda: None)])[0][0]))


def run(seconds: float, around: float, rate: float) -> dict[str, Any]:
    import valued

    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("faulty_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    other: subprocess.Popen[str] | None = None
    told: list[str] = []
    count = 0
    try:
        port = json.loads(server.stdout.readline())["port"]
        client = valued.Client(
            "token",
            f"http://127.0.0.1:{port}/events",
            on_error=lambda _error, event: told.append(event["attributes"]["id"]),
        )

        def record() -> None:
            nonlocal count
            client.action(
                "report.generated",
                {
                    "user.id": 1,
                    "customer.id": 2,
                    "attributes": {"id": str(count), "format": "pdf"},
                },
            )
            count += 1

        other = subprocess.Popen(
            [sys.executable, __file__, "--alone", "--seconds", str(seconds), "--rate", str(rate)],
            stdout=subprocess.PIPE,
            text=True,
        )
        most = 0

        def go_on() -> None:
            nonlocal most
            most = client.stats()["pending"]
            server.send_signal(signal.SIGCONT)

        phases = paced(
            [record, bare],
            rate,
            [
                (around, gc.collect),
                (seconds, lambda: server.send_signal(signal.SIGSTOP)),
                (around, go_on),
            ],
        )
        began = time.monotonic()
        settled = client.flush(120)
        took = time.monotonic() - began
        alone_times = json.loads(other.communicate(timeout=60)[0])
        stats = client.stats()
        books = json.loads(server.communicate("", timeout=60)[0])
    finally:
        server.send_signal(signal.SIGCONT)
        server.kill()
        server.wait()
        if other is not None:
            other.kill()
            other.wait()
    committed = books["committed"]
    lost = {str(number) for number in range(count)} - committed.keys()
    figures: dict[str, Any] = {
        "recorded": count,
        **{name: stats[name] for name in ("delivered", "failed", "dropped", "pending", "retried")},
        "waiting when the server went on": most,
        "lost": len(lost),
        "repeats (read by the server after the client's timeout)": sum(
            committed.values()
        ) - len(committed),
        "seconds of the last flush": round(took, 1),
        "calls, in ms": {
            f"{what}, {when}": summary(phases[phase][function])
            for phase, when in enumerate(("before", "server stopped", "after"))
            for function, what in enumerate(("event call", "bare call"))
        }
        | {"bare call, another process": summary(alone_times)},
    }  # fmt: skip
    slowest = figures["calls, in ms"]["event call, server stopped"]["slowest"]
    figures["not held"] = [
        what
        for what, holds in {
            "nothing is lost": settled and not lost and not told,
            "nothing is dropped": stats["dropped"] == 0,
            f"each event call under {BOUND:g} ms while the server was stopped": slowest < BOUND,
        }.items()
        if not holds
    ]
    figures["python"] = platform.python_version()
    figures["processors"] = os.cpu_count()
    return figures


def show(figures: dict[str, Any]) -> None:
    calls = figures["calls, in ms"]
    columns = list(next(iter(calls.values())))
    print(f"{'ms':34}" + "".join(f"{column:>19}" for column in columns))
    for name, row in calls.items():
        print(f"{name:34}" + "".join(f"{row[column]:19,}" for column in columns))
    for name, value in figures.items():
        if name != "calls, in ms":
            print(f"{name:70} {value}")
    print("It did not hold." if figures["not held"] else "It held.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--around", type=float, default=5.0, help="before it, and after")
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        alone(arguments.seconds, arguments.rate)
        return 0
    os.environ["VALUED_ENV"] = "production"
    figures = run(arguments.seconds, arguments.around, arguments.rate)
    show(figures)
    text = json.dumps(figures, indent=1)
    if arguments.json:
        arguments.json.write_text(text + "\n", "utf-8")
    else:
        print(text)
    return 1 if figures["not held"] else 0


if __name__ == "__main__":
    sys.exit(main())

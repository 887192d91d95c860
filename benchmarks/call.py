"""What an event call costs its caller, against work that every request handler does anyway.

Yardsticks, in the same run and in turns: ``json.dumps`` of the same event, and one line by
`logging` to a file that goes nowhere. Prints the medians, in microseconds, and the ratios.

    python benchmarks/call.py [ROUNDS]
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import valued

CALLS = 500
DATA: dict[str, Any] = {
    "user.id": 123,
    "customer.id": 12,
    "attributes": {"format": "pdf", "pages": 7, "tags": ["a", "b"], "plan": {"name": "pro"}},
}
EVENT = {
    "category": "action",
    "key": "report.generated",
    "user": {"id": 123},
    "customer": {"id": 12},
    "attributes": DATA["attributes"],
    "occured_at": "2026-11-23T10:00:00+01:00",
}


def once(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    for _ in range(CALLS):
        function()
    return (time.perf_counter() - started) / CALLS * 1e6


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    log = logging.getLogger("benchmark")
    log.propagate = False
    log.setLevel(logging.INFO)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        log.addHandler(logging.StreamHandler(nowhere))
        # The events are taken and thrown away by an executor that never runs its jobs, so that the
        # caller's part alone is measured; `drop_oldest` keeps the queue at its bound.
        client = valued.Client(
            lambda _event: None, executor=Never(), max_queue=1_000, overflow="drop_oldest"
        )
        scope = valued.Scope(client, {"user.id": 123, "customer.id": 12})
        subjects: dict[str, Callable[[], object]] = {
            "json.dumps of the event": lambda: json.dumps(EVENT),
            "a log line": lambda: log.info("report %s of user %s", "generated", 123),
            "valued: client.action": lambda: client.action("report.generated", DATA),
            "valued: scope.action": lambda: scope.action(
                "report.generated", {"attributes": DATA["attributes"]}
            ),
        }
        times: dict[str, list[float]] = {name: [] for name in subjects}
        for _ in range(rounds):
            for name, function in subjects.items():
                times[name].append(once(function))
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    print(f"Python {sys.version.split()[0]}, {rounds} rounds of {CALLS} calls")
    for name, taken in medians.items():
        ratios = "   ".join(
            f"{taken / medians[yardstick]:5.2f} x {yardstick}"
            for yardstick in ("json.dumps of the event", "a log line")
        )
        print(f"{name:26} {taken:7.1f} µs   {ratios}")


class Never:
    """An executor that takes each job and runs none."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> None:
        pass


if __name__ == "__main__":
    main()

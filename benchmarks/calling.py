"""What one call costs its caller, in microseconds: median, 99th percentile, slowest."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from benchmarks.events import DATA, EVENT, KEY
from benchmarks.senders import Never, sender
from benchmarks.subprocesses import serve

WARM_UP = 200


def alone(subject: str, calls: int, options: Mapping[str, Any]) -> Callable[[], object]:
    """What records an event that is not sent."""
    if subject == "yardstick":
        texts: queue.SimpleQueue[str] = queue.SimpleQueue()
        return lambda: texts.put(json.dumps(EVENT))
    import valued

    client = valued.Client(
        lambda _event: None, executor=Never(), max_queue=calls + WARM_UP, **options
    )
    return lambda: client.action(KEY, DATA)


def times(record: Callable[[], object], calls: int, pause: float = 0) -> list[int]:
    """Nanoseconds of each of *calls* calls, with *pause* seconds between two."""
    clock = time.perf_counter_ns
    taken = []
    for _ in range(calls):
        started = clock()
        record()
        taken.append(clock() - started)
        if pause:
            time.sleep(pause)
    return taken


def main(
    subject: str,
    calls: int,
    url: str = "",
    pause: float = 0,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Time *calls* calls. With *url*, events are sent meanwhile. *pause*: seconds between two.

    *options* are those of our client.
    """
    sending = sender(subject, url, **options) if url else None
    record = sending.record if sending is not None else alone(subject, calls, options)
    for _ in range(WARM_UP):
        record()
    if sending is not None:
        sending.finish()
    taken = times(record, calls, pause)
    if sending is not None:
        sending.finish()
    taken.sort()
    figures = {"median": taken[calls // 2], "p99": taken[calls * 99 // 100], "slowest": taken[-1]}
    return {name: value / 1e3 for name, value in figures.items()}


if __name__ == "__main__":
    serve(main)

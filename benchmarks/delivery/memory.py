"""What events that wait take of memory: what Python allocates for them, and pages."""

from __future__ import annotations

import gc
import json
import logging
import queue
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Final

from benchmarks.bench import Bench, serve
from benchmarks.rows import Row, at_most, row
from benchmarks.senders import EVENT, sender
from benchmarks.servers import delaying

FOREVER: Final = 3600.0
YARDSTICK: Final = "the JSON strings in a SimpleQueue"


def rows(bench: Bench) -> Iterator[Row]:
    waiting = bench.scale.waiting
    subjects = {YARDSTICK: {}, "valued": {}, **bench.peers}
    figures = bench.turns("delivery.memory", subjects, events=waiting)
    what = f"memory while {waiting:,} events wait"
    yield row(f"{what}, by tracemalloc", "MB", figures, "allocated", YARDSTICK, at_most(2))
    yield row(f"{what}, resident pages", "MB", figures, "resident", YARDSTICK)


def main(subject: str, events: int) -> dict[str, float]:
    """Record *events* while a server owes an answer to the first one; and, for pages, once more.

    What was there before (threads, connections) is not counted, since one event is under way then.
    """
    logging.disable()  # of what is not delivered at the end, as it should be
    with delaying(FOREVER) as server:
        if subject == YARDSTICK:
            waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
            record: Callable[[], object] = lambda: waiting.put(json.dumps(EVENT))  # noqa: E731
        else:
            record = sender(subject, server.url).record
            record()
            until = time.monotonic() + 10
            while not server.figures()["under_way"] and time.monotonic() < until:
                time.sleep(0.01)
        # Pages first, as `tracemalloc` takes some for itself.
        return {"resident": resident(record, events), "allocated": allocated(record, events)}


def allocated(record: Callable[[], object], events: int) -> float:
    """Megabytes, by `tracemalloc`."""
    gc.collect()
    tracemalloc.start()
    for _ in range(events):
        record()
    gc.collect()
    return tracemalloc.get_traced_memory()[0] / 1e6


def resident(record: Callable[[], object], events: int) -> float:
    """Megabytes, by the kernel."""
    import psutil

    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    for _ in range(events):
        record()
    gc.collect()
    return (process.memory_info().rss - before) / 1e6


if __name__ == "__main__":
    serve(main)

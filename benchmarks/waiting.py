"""What events that wait take of memory: what Python allocates for them, and pages."""

from __future__ import annotations

import gc
import json
import logging
import queue
import time
import tracemalloc
from collections.abc import Callable

from benchmarks.events import EVENT
from benchmarks.senders import sender
from benchmarks.servers import delaying
from benchmarks.subprocesses import serve

FOREVER = 3600.0


def main(subject: str, events: int) -> dict[str, float]:
    """Record *events* while a server owes an answer to the first one; and, for pages, once more.

    What was there before (threads, connections) is not counted, since one event is under way then.
    """
    logging.disable()  # of what is not delivered at the end, as it should be
    with delaying(FOREVER) as server:
        if subject == "yardstick":
            texts: queue.SimpleQueue[str] = queue.SimpleQueue()
            record: Callable[[], object] = lambda: texts.put(json.dumps(EVENT))  # noqa: E731
        else:
            record = sender(subject, server.url).record
            record()
            until = time.monotonic() + 10
            while not server.figures()["under_way"] and time.monotonic() < until:
                time.sleep(0.01)
        # Pages first, as `tracemalloc` takes some for itself.
        resident_pages = resident(record, events)
        return {"allocated": allocated(record, events), "resident": resident_pages}


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

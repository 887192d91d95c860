"""What it takes to deliver what a process that died left in an outbox: memory, and time."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

from benchmarks.bench import serve
from benchmarks.senders import DATA, KEY, never_sending, outbox_options

GLANCE = 0.005  # seconds between two looks at the memory


def leave(events: int, options: dict[str, Any]) -> None:
    """Let a child record *events*, and be killed."""
    pid = os.fork()
    if pid == 0:
        client = never_sending(100, overflow="drop_newest", **options)
        for _ in range(events):
            client.action(KEY, DATA)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def main(events: int) -> dict[str, float]:
    """Megabytes, at most, and seconds, to deliver *events* to a function that does nothing."""
    import psutil

    import valued

    options = outbox_options("process")
    leave(events, options)
    done = threading.Event()
    delivered = 0

    def deliver(_event: object) -> None:
        nonlocal delivered
        delivered += 1
        if delivered == events:
            done.set()

    client = valued.Client(deliver, max_workers=1, **options)
    process = psutil.Process()
    before = most = process.memory_info().rss
    started = time.perf_counter()
    client.adopt()
    while not done.wait(GLANCE):
        most = max(most, process.memory_info().rss)
    took = time.perf_counter() - started
    client.close()
    return {"mb": (most - before) / 1e6, "seconds": took}


if __name__ == "__main__":
    serve(main)

"""What ``os.fork`` takes in the parent, with events that wait and requests in flight."""

from __future__ import annotations

import logging
import os
import statistics
import threading
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from benchmarks.events import DATA, KEY, TOKEN
from benchmarks.servers import Delaying, delaying
from benchmarks.subprocesses import serve

PATIENCE = 10.0  # seconds that the default pool has to send as many at once as there should be


def fork() -> float:
    """Microseconds that `os.fork` took in the parent."""
    started = time.perf_counter()
    pid = os.fork()
    took = time.perf_counter() - started
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return took * 1e6


def same_size(events: int, in_flight: int) -> list[Any]:
    """What makes this process as large as one with the library: its memory, and its threads."""
    import requests

    ballast: list[Any] = [requests, [os.urandom(130).hex() for _ in range(events)]]
    for _ in range(in_flight):
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
    return ballast


def filled(server: Delaying, events: int, in_flight: int, options: Mapping[str, Any]) -> Any:
    """A client with *events* waiting and *in_flight* requests that are not answered."""
    import valued

    options = {"max_queue": 2 * events, "shutdown_timeout": 0, **options}
    client = valued.Client(TOKEN, server.url, **options)
    # The server is slow first, so that the pool grows, and then it answers no more.
    until = time.monotonic() + PATIENCE
    while server.figures()["most_under_way"] < in_flight and time.monotonic() < until:
        for _ in range(min(100, events - client.stats()["pending"])):
            client.action(KEY, DATA)
        time.sleep(0.05)
    server.delay(3600)
    while server.figures()["under_way"] < in_flight and time.monotonic() < until:
        time.sleep(0.05)
    for _ in range(events - client.stats()["pending"]):
        client.action(KEY, DATA)
    return client


def main(
    subject: str,
    events: int,
    in_flight: int,
    forks: int,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, float]:
    """The median of *forks* forks, for ``valued``, or for a ``bare`` process of the same size."""
    import psutil

    logging.disable()  # of what is not delivered at the end, as it should be
    with delaying(0.02) as server:
        kept: Any = (
            filled(server, events, in_flight, options)
            if subject == "valued"
            else same_size(events, in_flight)
        )
        took = statistics.median(fork() for _ in range(forks))
        pending = kept.stats()["pending"] if subject == "valued" else events
        return {
            "us": took,
            "pending": pending,
            "in_flight": server.figures()["under_way"],
            "resident_mb": psutil.Process().memory_info().rss / 1e6,
        }


if __name__ == "__main__":
    serve(main)

"""What ``os.fork`` takes in the parent, with events that wait and requests in flight."""

from __future__ import annotations

import logging
import os
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

from benchmarks.bench import Bench, serve
from benchmarks.rows import Goal, Row, row
from benchmarks.senders import DATA, KEY, TOKEN, outbox_options
from benchmarks.servers import Delaying, delaying

PATIENCE: Final = 10.0  # seconds that the default pool has to send as many at once as it should


def sizes(bench: Bench) -> tuple[str, dict[str, int]]:
    """What a row says of what is waiting at the fork, and the arguments for that."""
    scale = bench.scale
    sizes = {"events": scale.queued, "in_flight": scale.in_flight, "forks": scale.forks}
    what = f"fork in the parent, {scale.queued:,} waiting, {scale.in_flight} in flight"
    return what, sizes


def rows(bench: Bench) -> Iterator[Row]:
    what, arguments = sizes(bench)
    figures = bench.turns("processes.fork", {"bare": {}, "valued": {}}, **arguments)
    ours, bare = figures["valued"], figures["bare"]
    yield row(
        what, "us", figures, "us", "bare",
        Goal("at most 1 ms more", lambda ours, bare: ours <= bare + 1_000),
        name="a bare fork of a process of that size",
        note=f"reached: {ours['pending']:.0f} pending, {ours['in_flight']:.0f} in flight, "
        f"{ours['resident_mb']:.0f} MB resident; the bare one has {bare['resident_mb']:.0f} MB.",
    )  # fmt: skip


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


def filled(server: Delaying, events: int, in_flight: int, durability: str) -> Any:
    """A client with *events* waiting and *in_flight* requests that are not answered."""
    import valued

    client = valued.Client(
        TOKEN, server.url, max_queue=2 * events, shutdown_timeout=0, **outbox_options(durability)
    )
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
    subject: str, events: int, in_flight: int, forks: int, durability: str = ""
) -> dict[str, float]:
    """The median of *forks* forks, for ``valued``, or for a ``bare`` process of the same size."""
    import psutil

    logging.disable()  # of what is not delivered at the end, as it should be
    with delaying(0.02) as server:
        ours = subject == "valued"
        kept: Any = (filled(server, events, in_flight, durability) if ours
                     else same_size(events, in_flight))  # fmt: skip
        return {
            "us": statistics.median(fork() for _ in range(forks)),
            "pending": kept.stats()["pending"] if ours else events,
            "in_flight": server.figures()["under_way"],
            "resident_mb": psutil.Process().memory_info().rss / 1e6,
        }


if __name__ == "__main__":
    serve(main)

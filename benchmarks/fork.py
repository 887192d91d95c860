"""What a fork costs the parent with 10,000 events queued and 10 requests in flight.

Prints the median of ``os.fork()`` in the parent, in microseconds, for four states of one process,
and what each costs against the second: a process of the same size, with as many threads, in which
the library was not even imported. (A fork copies page tables, whoever filled the pages.)

    python benchmarks/fork.py [ROUNDS]
"""

from __future__ import annotations

import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable

EVENTS = 10_000
IN_FLIGHT = 10


def black_hole() -> tuple[socket.socket, str, threading.Semaphore]:
    """A server that reads and never answers; the semaphore counts its connections."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    arrived = threading.Semaphore(0)
    kept: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                kept.append(listener.accept()[0])
            except OSError:
                return
            arrived.release()

    threading.Thread(target=accept, daemon=True).start()
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}/events", arrived


def fork() -> float:
    """Seconds that `os.fork` took in the parent."""
    started = time.perf_counter()
    pid = os.fork()
    took = time.perf_counter() - started
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return took


def median(rounds: int, state: Callable[[], object]) -> float:
    state()
    return statistics.median(fork() for _ in range(rounds)) * 1e6


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    figures: list[tuple[str, float]] = []

    figures.append(("a process of its own", median(rounds, lambda: None)))

    ballast = [os.urandom(200).hex() for _ in range(EVENTS)]
    idle = [threading.Thread(target=time.sleep, args=(3600,), daemon=True) for _ in range(10)]
    figures.append(
        ("the same, 10,000 texts, 10 threads", median(rounds, lambda: [t.start() for t in idle]))
    )
    import valued

    listener, url, arrived = black_hole()
    client = valued.Client("token", url, shutdown_timeout=0)
    figures.append(("a client that has sent nothing", median(rounds, lambda: None)))

    def fill() -> None:
        for number in range(EVENTS):
            client.action("event", {"user.id": number, "attributes.text": ballast[number][:200]})
            if number >= IN_FLIGHT and number % 100 == 0 and client.stats()["accepted"] < 2_000:
                time.sleep(0.02)  # workers are added while events wait
        for _ in range(IN_FLIGHT):
            assert arrived.acquire(timeout=30)

    figures.append(("10,000 queued, 10 in flight", median(rounds, fill)))
    pending = client.stats()["pending"]
    listener.close()

    yardstick = figures[1][1]
    print(f"Python {sys.version.split()[0]}, {rounds} forks a state, {pending} events pending")
    for name, took in figures:
        print(f"{name:38} {took:8.0f} µs   {took / yardstick:5.2f} x   {took - yardstick:+6.0f} µs")


if __name__ == "__main__":
    main()

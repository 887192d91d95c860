"""What an outbox costs: the caller, the deliveries, a fork, and the memory to take 100,000 over.

    python benchmarks/outbox.py [caller|power|delivery|fork|memory]...

Without an argument, all of them. The outbox lies in a temporary directory: set ``TMPDIR`` to choose
its file system.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import valued

CALLS = 500
ROUNDS = 60
LEFT = 100_000
DATA: dict[str, Any] = {
    "user.id": 123,
    "customer.id": 12,
    "attributes": {"format": "pdf", "pages": 7, "note": "n" * 300},
}


class Never:
    """An executor that takes each job and runs none: the caller's part alone is measured."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> None:
        pass


def once(client: valued.Client, calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        client.action("report.generated", DATA)
    return (time.perf_counter() - started) / calls * 1e6


def caller() -> None:
    """Medians of rounds in turns: the queue is emptied between them, outside of the time."""
    _calls("caller", {"in memory": {}, "with an outbox": {"outbox": True}}, CALLS)


def power() -> None:
    options = {"in memory": {}, "power": {"outbox": True, "durability": "power"}}
    _calls("power", options, 20)


def _calls(title: str, kinds: dict[str, dict[str, Any]], calls: int) -> None:
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        clients = {}
        for kind, options in kinds.items():
            if options.get("outbox"):
                options = {**options, "outbox": os.path.join(folder, "outbox")}
            clients[kind] = valued.Client(
                lambda _event: None, executor=Never(), max_queue=100_000, **options
            )
            once(clients[kind], 20)
        for _ in range(ROUNDS):
            for kind, client in clients.items():
                times[kind].append(once(client, calls))
                client.flush(0)
        for client in clients.values():
            client.close(0)
    medians = {kind: statistics.median(taken) for kind, taken in times.items()}
    least = {kind: min(taken) for kind, taken in times.items()}
    first, second = kinds
    print(
        f"{title}: {first} {medians[first]:.1f} µs a call, {second} {medians[second]:.1f} µs: "
        f"{medians[second] - medians[first]:+.1f} µs in the median, "
        f"{least[second] - least[first]:+.1f} µs at best"
    )


def delivery() -> None:
    """Events a second that a transport gets which does nothing, and so at the most it can cost."""
    rates: dict[str, list[float]] = {"in memory": [], "with an outbox": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(5):
            for kind, rate in rates.items():
                options: dict[str, Any] = {}
                if kind != "in memory":
                    options["outbox"] = os.path.join(folder, str(turn))
                client = valued.Client(lambda _event: None, max_queue=100_000, **options)
                started = time.perf_counter()
                for _ in range(10_000):
                    client.action("report.generated", DATA)
                assert client.flush(60)
                rate.append(10_000 / (time.perf_counter() - started))
                client.close()
    memory, disk = (statistics.median(rate) for rate in rates.values())
    print(
        f"delivery: {memory:,.0f} events a second in memory, {disk:,.0f} with an outbox "
        f"({disk / memory:.2f} x), recorded and delivered by a transport that does nothing"
    )


def fork() -> None:
    times: dict[str, list[float]] = {"in memory": [], "with an outbox": []}
    with tempfile.TemporaryDirectory() as folder:
        clients = {
            "in memory": valued.Client(lambda _event: None),
            "with an outbox": valued.Client(
                lambda _event: None, outbox=os.path.join(folder, "outbox")
            ),
        }
        for kind, client in clients.items():
            for _ in range(100):
                client.action("master.started", DATA)
                assert client.park()
                started = time.perf_counter()
                pid = os.fork()
                if pid == 0:
                    os._exit(0)
                times[kind].append((time.perf_counter() - started) * 1e6)
                os.waitpid(pid, 0)
    memory, disk = (statistics.median(taken) for taken in times.values())
    print(f"fork: {memory:.0f} µs in memory, {disk:.0f} µs with an outbox")


_LEAVE = """
import os, sys, valued
client = valued.Client(lambda event: None, executor=type("Never", (), {"submit": print})(),
                       outbox=sys.argv[1])
sys.stdout = open(os.devnull, "w")
for _ in range(int(sys.argv[2])):
    client.action("report.generated", {"user.id": 1, "attributes.note": "n" * 400})
os.kill(os.getpid(), 9)
"""

_ADOPT = """
import re, sys, time, valued
delivered = 0
def deliver(event):
    global delivered
    delivered += 1
def most():  # not of `getrusage`, which counts what the parent had, too
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
client = valued.Client(deliver, max_workers=1, outbox=sys.argv[1])
before = most()
started = time.perf_counter()
client.adopt()
while delivered < int(sys.argv[2]):
    time.sleep(0.01)
took = time.perf_counter() - started
client.close()
print(f"{delivered:,} events taken over in {took:.1f} s, {most() - before:.1f} MiB more")
"""


def memory() -> None:
    with tempfile.TemporaryDirectory() as folder:
        arguments = [os.path.join(folder, "outbox"), str(LEFT)]
        subprocess.run([sys.executable, "-c", _LEAVE, *arguments], check=False)
        done = subprocess.run(
            [sys.executable, "-c", _ADOPT, *arguments], check=True, capture_output=True, text=True
        )
    print(f"memory: {done.stdout.strip()}")


def main() -> None:
    os.environ["VALUED_ENV"] = "production"
    parts = {part.__name__: part for part in (caller, power, delivery, fork, memory)}
    print(f"Python {sys.version.split()[0]}")
    for name in sys.argv[1:] or parts:
        parts[name]()


if __name__ == "__main__":
    main()

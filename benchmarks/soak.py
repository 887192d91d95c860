"""A bad minute: 4 forked processes, every fault in turn, 100,000 events; who is lost, or doubled?

One client, made before the forks, is used by four children. A server in a process of its own
injects its faults into one request of ten (of a hundred, where a fault holds a worker for long),
each in its turn, four rounds in all; one event of fifty goes to a server behind TLS, which
shows a wrong certificate to every other connection. At the end, the ids that the server committed
are compared with those that the clients accepted, and with what ``on_error`` was told.

It holds when nothing is lost, nothing is dropped, only what the server refused permanently failed,
an event came more than once only where the server had committed it before it broke the
connection, and the memory of no process grows by more than 3 % from its second
fifth of the run, when it has warmed up, to its last. The exit status says
so. The whole takes a minute at most: where the machine can't do all events in that time, recording
ends early, and the figures say at how many.

    python benchmarks/soak.py [--events 100000] [--seconds 60] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

PROCESSES = 4

#: Seconds for one attempt: a fault that holds a worker holds it for so long.
TIMEOUT = 2.0

#: Of the seconds there are, those in which events are recorded; the rest is for the last retries.
RECORDING = 0.85

#: One event of so many goes over TLS.
TLS_EVERY = 50

#: Seconds between two looks at a process's memory.
LOOK = 0.25

#: Growth of a process, from its second fifth of the run to its last, that is noise.
FLAT = 0.03


def start_server(folder: str, turn: int) -> tuple[subprocess.Popen[str], dict[str, int]]:
    certificates: list[str] = []
    try:
        import trustme
    except ImportError:
        print("without TLS: trustme is not installed (pip install trustme)")
    else:
        ours, strangers = trustme.CA(), trustme.CA()
        for name, authority in (("right", ours), ("wrong", strangers)):
            file = Path(folder, f"{name}.pem")
            issued = authority.issue_cert("127.0.0.1")
            issued.private_key_and_cert_chain_pem.write_to_path(str(file))
            certificates.append(str(file))
        bundle = Path(folder, "authority.pem")
        ours.cert_pem.write_to_path(str(bundle))
        os.environ["REQUESTS_CA_BUNDLE"] = str(bundle)
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("faulty_server.py"), *certificates],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "FAULTS": "1", "TURN": str(turn)},
    )
    assert server.stdout is not None
    return server, json.loads(server.stdout.readline())


class Child:
    """What one process does, and finds out."""

    def __init__(self, number: int, clients: list[Any], arguments: argparse.Namespace) -> None:
        self._number = number
        self._clients = clients
        self._share = arguments.events // PROCESSES
        self._began = arguments.began
        self._seconds = arguments.seconds
        self._memory: list[tuple[float, int]] = []  # seconds since the beginning, bytes

    def run(self, file: Path, told: list[tuple[str, int | None]]) -> None:
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(over,), daemon=True)
        watcher.start()
        recorded = self._record()
        until = self._began + self._seconds
        left = [client.flush(max(0.0, until - time.monotonic())) for client in self._clients]
        over.set()
        watcher.join()
        figures = [client.stats() for client in self._clients]
        file.write_text(
            json.dumps(
                {
                    "recorded": recorded,
                    "settled": all(left),
                    "told": told,
                    "memory": self._memory,
                    "stats": {
                        name: sum(one[name] for one in figures)
                        for name in (
                            "accepted", "delivered", "failed", "dropped", "pending", "retried"
                        )
                    },
                }
            ),
            "utf-8",
        )  # fmt: skip

    def _record(self) -> int:
        plain, *behind_tls = self._clients
        until = self._began + self._seconds * RECORDING
        for number in range(self._share):
            if time.monotonic() > until:
                return number
            client = behind_tls[0] if behind_tls and number % TLS_EVERY == 0 else plain
            client.action(
                "report.generated",
                {
                    "user.id": number,
                    "customer.id": self._number,
                    "attributes": {"id": f"{self._number}-{number}", "format": "pdf"},
                },
            )
        return self._share

    def _watch(self, over: threading.Event) -> None:
        import psutil

        me = psutil.Process()
        while not over.wait(LOOK):
            self._memory.append((time.monotonic() - self._began, me.memory_info().rss))


def growth(memory: list[tuple[float, int]]) -> tuple[float, float]:
    """MiB after warm-up, and at the end: medians of the second and the last fifth of the time."""
    fifth = max(1, len(memory) // 5)
    sizes = [size / 2**20 for _, size in memory]
    return statistics.median(sizes[fifth : 2 * fifth] or sizes), statistics.median(sizes[-fifth:])


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    import valued

    told: list[tuple[str, int | None]] = []

    def on_error(error: valued.DeliveryError, event: dict[str, Any]) -> None:
        told.append((event["attributes"]["id"], error.status))

    with tempfile.TemporaryDirectory() as folder:
        server, ports = start_server(folder, max(10, arguments.events // 100))
        try:
            arguments.began = time.monotonic()
            endpoints = [f"http://127.0.0.1:{ports['port']}/events"]
            if "tls" in ports:
                endpoints.append(f"https://127.0.0.1:{ports['tls']}/events")
            clients = [
                valued.Client(
                    "token", endpoint, timeout=TIMEOUT, max_queue=1_000, overflow="block",
                    on_error=on_error,
                )
                for endpoint in endpoints
            ]  # fmt: skip
            files = [Path(folder, f"{number}.json") for number in range(PROCESSES)]
            pids = []
            for number, file in enumerate(files):
                sys.stdout.flush()
                pid = os.fork()
                if pid == 0:
                    status = 1
                    try:
                        Child(number, clients, arguments).run(file, told)
                        status = 0
                    finally:
                        os._exit(status)
                pids.append(pid)
            statuses = [os.waitpid(pid, 0)[1] for pid in pids]
            took = time.monotonic() - arguments.began
            books, _ = server.communicate("", timeout=60)
        finally:
            server.kill()
            server.wait()
        assert statuses == [0] * PROCESSES, f"children ended with {statuses}"
        children = [json.loads(file.read_text("utf-8")) for file in files]
    return compare(children, json.loads(books), took, arguments)


def compare(
    children: list[dict[str, Any]], books: dict[str, Any], took: float, given: argparse.Namespace
) -> dict[str, Any]:
    recorded = {
        f"{number}-{one}"
        for number, child in enumerate(children)
        for one in range(child["recorded"])
    }
    told = [tuple(one) for child in children for one in child["told"]]
    committed, broken, refused = books["committed"], books["broken"], set(books["refused"])
    given_up = {id for id, _ in told}
    repeats = {id: count - 1 for id, count in committed.items() if count > 1}
    stats = {name: sum(child["stats"][name] for child in children) for name in children[0]["stats"]}
    memory = [growth(child["memory"]) for child in children]
    lost = recorded - committed.keys() - given_up
    figures: dict[str, Any] = {
        "wanted": given.events,
        "recorded": len(recorded),
        "seconds": round(took, 1),
        "events a second": round(len(recorded) / took),
        **stats,
        "arrived": len(committed.keys() & recorded),
        "lost": len(lost),
        "failed, refused permanently": len(given_up & refused),
        "failed, not refused permanently": len(given_up - refused),
        "told twice": len(told) - len(given_up),
        "repeats": sum(repeats.values()),
        "repeats where the server broke off after it had committed": sum(
            min(count, broken.get(id, 0)) for id, count in repeats.items()
        ),
        "repeats without that": sum(
            max(0, count - broken.get(id, 0)) for id, count in repeats.items()
        ),
        "requests": books["requests"],
        "connections": books["connections"],
        "faults": books["faults"],
        "memory, MiB": [[round(size, 1) for size in pair] for pair in memory],
        "memory, most growth": f"{max(end / warm - 1 for warm, end in memory):+.1%}",
    }
    figures["not held"] = [
        what
        for what, holds in {
            "nothing is lost": not lost,
            "all was settled in time": all(child["settled"] for child in children),
            "nothing is dropped": stats["dropped"] == 0,
            "accepted is what was recorded": stats["accepted"] == len(recorded),
            "what failed was refused permanently, told once": (
                given_up <= refused and len(told) == len(given_up) == stats["failed"]
            ),
            "repeats where the server broke off only": figures["repeats without that"] == 0,
            "memory is flat": all(end <= warm * (1 + FLAT) for warm, end in memory),
        }.items()
        if not holds
    ]
    figures["lost ids"] = sorted(lost)[:10]
    figures["python"] = platform.python_version()
    figures["processors"] = os.cpu_count()
    return figures


def show(figures: dict[str, Any]) -> None:
    for name, value in figures.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {count}" for key, count in value.items())
        print(f"{name:58} {value:,}" if isinstance(value, int) else f"{name:58} {value}")
    if figures["recorded"] < figures["wanted"]:
        print(
            f"This machine did {figures['recorded']:,} of {figures['wanted']:,} events in the time."
        )
    print("It did not hold." if figures["not held"] else "It held.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    os.environ["VALUED_ENV"] = "production"
    figures = run(arguments)
    show(figures)
    text = json.dumps(figures, indent=1)
    if arguments.json:
        arguments.json.write_text(text + "\n", "utf-8")
    else:
        print(text)
    return 1 if figures["not held"] else 0


if __name__ == "__main__":
    sys.exit(main())

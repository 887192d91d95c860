"""A bad minute: 4 forked processes, every fault in turn, 100,000 events; what is lost, or doubled?

One client, made before the forks, is used by four children. A server in a process of its own
injects its faults into one request of ten (of a hundred, where a fault holds a worker for long),
each in its turn, four rounds in all; one event of fifty goes to a server behind TLS, which
shows a wrong certificate to every other connection. At the end, the ids that the server committed
are compared with those that the clients accepted, and with what ``on_error`` was told.

It holds when nothing is lost, nothing is dropped, only what the server refused permanently failed,
an event came more than once only where the server had committed it before it broke the
connection, and the memory of no process grows by more than 3 % from its second fifth of the run,
when it has warmed up, to its last. The exit status says so. The whole takes a minute at most: where
the machine can't do all events in that time, recording ends early, and the figures say at how many.

    python -m benchmarks.programs.soak [--events 100000] [--seconds 60] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.programs.faulty_server import Running, running
from benchmarks.programs.verdict import verdict

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

COUNTS = ("accepted", "delivered", "failed", "dropped", "pending", "retried")


def certificates(folder: str) -> list[str]:
    """Files with a right certificate, which is trusted from here on, and with a wrong one."""
    try:
        import trustme
    except ImportError:
        print("without TLS: trustme is not installed (pip install trustme)")
        return []
    ours, other = trustme.CA(), trustme.CA()
    for name, authority in (("right", ours), ("wrong", other)):
        issued = authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem
        issued.write_to_path(str(Path(folder, f"{name}.pem")))
    bundle = str(Path(folder, "authority.pem"))
    ours.cert_pem.write_to_path(bundle)
    os.environ["REQUESTS_CA_BUNDLE"] = bundle
    return [str(Path(folder, f"{name}.pem")) for name in ("right", "wrong")]


class Child:
    """What one process does, and finds out."""

    def __init__(self, number: int, clients: list[Any], given: argparse.Namespace) -> None:
        self._number = number
        self._clients = clients
        self._share: int = given.events // PROCESSES
        self._began = given.began
        self._seconds = given.seconds
        self._memory: list[tuple[float, int]] = []  # seconds since the beginning, bytes

    def run(self, file: Path, told: list[str]) -> None:
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(over,), daemon=True)
        watcher.start()
        recorded = self._record()
        until = self._began + self._seconds
        settled = [client.flush(max(0.0, until - time.monotonic())) for client in self._clients]
        over.set()
        watcher.join()
        stats = [client.stats() for client in self._clients]
        found = {
            "recorded": recorded,
            "settled": all(settled),
            "told": told,
            "memory": self._memory,
            "stats": {name: sum(one[name] for one in stats) for name in COUNTS},
        }
        file.write_text(json.dumps(found), "utf-8")

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


def run(given: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any], float]:
    """What each child found, what the server committed, and how many seconds all took."""
    turn = str(max(10, given.events // 100))
    with (
        tempfile.TemporaryDirectory() as folder,
        running(*certificates(folder), FAULTS="1", TURN=turn) as server,
    ):
        given.began = time.monotonic()
        files = _children(folder, server, given)
        took = time.monotonic() - given.began
        return [json.loads(file.read_text("utf-8")) for file in files], server.end(), took


def _children(folder: str, server: Running, given: argparse.Namespace) -> list[Path]:
    """Run the children to their end; the files in which each says what it found."""
    import valued

    told: list[str] = []
    endpoints = [
        f"{'https' if name == 'tls' else 'http'}://127.0.0.1:{port}/events"
        for name, port in server.ports.items()
    ]
    clients = [
        valued.Client(
            "token", endpoint, timeout=TIMEOUT, max_queue=1_000, overflow="block",
            on_error=lambda _error, event: told.append(event["attributes"]["id"]),
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
                Child(number, clients, given).run(file, told)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    statuses = [os.waitpid(pid, 0)[1] for pid in pids]
    assert statuses == [0] * PROCESSES, f"children ended with {statuses}"
    return files


def compare(
    children: list[dict[str, Any]], books: dict[str, Any], took: float, wanted: int
) -> tuple[dict[str, Any], dict[str, bool]]:
    """The figures, and what is promised, each with whether it holds."""
    recorded = {
        f"{number}-{one}"
        for number, child in enumerate(children)
        for one in range(child["recorded"])
    }
    told = [id_ for child in children for id_ in child["told"]]
    committed, broken, refused = books["committed"], books["broken"], set(books["refused"])
    failed = set(told)
    repeats = {id_: count - 1 for id_, count in committed.items() if count > 1}
    excused = sum(min(count, broken.get(id_, 0)) for id_, count in repeats.items())
    stats = {name: sum(child["stats"][name] for child in children) for name in COUNTS}
    memory = [growth(child["memory"]) for child in children]
    lost = recorded - committed.keys() - failed
    figures: dict[str, Any] = {
        "wanted": wanted,
        "recorded": len(recorded),
        "seconds": round(took, 1),
        "events a second": round(len(recorded) / took),
        **stats,
        "arrived": len(committed.keys() & recorded),
        "lost": len(lost),
        "failed, refused permanently": len(failed & refused),
        "failed, not refused permanently": len(failed - refused),
        "told twice": len(told) - len(failed),
        "repeats": sum(repeats.values()),
        "repeats where the server broke off after it had committed": excused,
        "repeats without that": sum(repeats.values()) - excused,
        "requests": books["requests"],
        "connections": books["connections"],
        "faults": books["faults"],
        "memory, MiB": [[round(size, 1) for size in pair] for pair in memory],
        "memory, most growth": f"{max(end / warm - 1 for warm, end in memory):+.1%}",
        "lost ids": sorted(lost)[:10],
    }
    return figures, {
        "nothing is lost": not lost,
        "all was settled in time": all(child["settled"] for child in children),
        "nothing is dropped": stats["dropped"] == 0,
        "accepted is what was recorded": stats["accepted"] == len(recorded),
        "what failed was refused permanently, told once": (
            failed <= refused and len(told) == len(failed) == stats["failed"]
        ),
        "repeats where the server broke off only": sum(repeats.values()) == excused,
        "memory is flat": all(end <= warm * (1 + FLAT) for warm, end in memory),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    os.environ["VALUED_ENV"] = "production"
    figures, promises = compare(*run(given), given.events)
    for name, value in figures.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {count}" for key, count in value.items())
        print(f"{name:58} {value:,}" if isinstance(value, int) else f"{name:58} {value}")
    if figures["recorded"] < given.events:
        print(f"This machine did {figures['recorded']:,} of {given.events:,} events in the time.")
    return verdict(figures, promises, given.json)


if __name__ == "__main__":
    sys.exit(main())

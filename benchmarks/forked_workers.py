"""Forked workers at one server: events a second in all, and the CPU time of one event."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from benchmarks.delivering import cpu_seconds
from benchmarks.senders import sender
from benchmarks.subprocesses import serve

WARM_UP = 20


def worker(subject: str, events: int, url: str, start: int, results: int) -> None:
    """One worker: warms up, says so, waits until all may start, and says what it took."""
    sending = sender(subject, url)
    for _ in range(WARM_UP):
        sending.record()
    sending.finish()
    os.write(results, b"\n")
    os.read(start, 1)
    used = cpu_seconds()
    for _ in range(events):
        sending.record()
    sending.finish()
    line = json.dumps({"cpu": cpu_seconds() - used, "ended": time.monotonic()}) + "\n"
    os.write(results, line.encode())  # shorter than what a pipe takes whole


def main(subject: str, workers: int, events: int, url: str) -> dict[str, Any]:
    """*events* in all, by so many *workers*, which start at one time."""
    reader, results = os.pipe()
    start, go = os.pipe()
    pids = []
    for _ in range(workers):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                worker(subject, events // workers, url, start, results)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    os.close(results)
    with os.fdopen(reader) as lines:
        for _ in pids:
            lines.readline()
        started = time.monotonic()
        os.write(go, b"." * workers)
        ends = [json.loads(lines.readline()) for _ in pids]
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
    delivered = events // workers * workers
    return {
        "per_second": delivered / (max(end["ended"] for end in ends) - started),
        "cpu_us": sum(end["cpu"] for end in ends) / delivered * 1e6,
    }


if __name__ == "__main__":
    serve(main)

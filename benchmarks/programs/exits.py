"""What the end of a process takes with nothing pending, against a bare process's.

Each is a fresh process, in turns: one that imports the library and makes nothing, one with a client
that recorded nothing, one whose event was delivered. Prints medians, in milliseconds, from the last
line of the program to the end of its process. It holds when both are within 50 ms of the bare one.

    python -m benchmarks.programs.exits [ROUNDS]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from benchmarks.programs.verdict import verdict
from benchmarks.servers import ROOT, delaying

BOUND = 50.0

PROGRAM = """
import sys, time, requests, valued
if sys.argv[2] != "bare":
    client = valued.Client("token", sys.argv[1])
if sys.argv[2] == "one event, delivered":
    client.action("a", {"user.id": 1})
    assert client.flush(20)
print(time.time(), flush=True)
"""
SUBJECTS = ("bare", "a client, no event", "one event, delivered")


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    times: dict[str, list[float]] = {subject: [] for subject in SUBJECTS}
    with delaying(0) as server:
        for _ in range(rounds):
            for subject, taken in times.items():
                done = subprocess.run(
                    [sys.executable, "-c", PROGRAM, server.url, subject], cwd=ROOT,
                    stdout=subprocess.PIPE, text=True, check=True, timeout=60,
                    env={**os.environ, "VALUED_ENV": "production"},
                )  # fmt: skip
                taken.append((time.time() - float(done.stdout)) * 1e3)
    medians = {subject: statistics.median(taken) for subject, taken in times.items()}
    print(f"Python {sys.version.split()[0]}, {rounds} rounds")
    for subject, took in medians.items():
        print(f"{subject:22} {took:7.1f} ms   {took - medians['bare']:+6.1f} ms")
    limit = medians["bare"] + BOUND
    in_time = {f"{subject}: in time": took < limit for subject, took in medians.items()}
    return verdict({}, in_time, None)


if __name__ == "__main__":
    sys.exit(main())

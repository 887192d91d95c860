"""A process whose outbox holds thousands of directories that dead processes have left.

Eight threads record a hundred events a second each, while the process delivers what was left. Each
call is timed, the first one included, and so is the end of the process: from the last line of its
program until it is gone.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.bench import Bench, serve
from benchmarks.rows import Goal, Row, row
from benchmarks.senders import DATA, KEY, ROOM, TOKEN, never_sending
from benchmarks.servers import ROOT

THREADS: Final = 8
PAUSE: Final = 0.01  # seconds from one event of a thread to its next
AT_ONCE: Final = 100  # clients of one child: each has some files open
PROGRAM: Final = "program"  # the first argument of a process that is looked at
MEMORY: Final = "in memory"
FAST: Final = Goal("under 5 ms", lambda ours, _: ours < 5)
#: A client's default `shutdown_timeout`, and half a second.
IN_TIME: Final = Goal("at most 5.5 s", lambda ours, _: ours <= 5_500)


def rows(bench: Bench) -> Iterator[Row]:
    scale = bench.scale
    figures = bench.turns(
        "durability.crowd", {MEMORY: {"directories": 0}, "valued": {}},
        directories=scale.directories, seconds=scale.crowd_seconds, url=bench.server.url,
    )  # fmt: skip
    where = f"{scale.directories:,} directories of others"
    yield row(f"{THREADS} threads, 99.9th percentile of a call, {where}", "ms", figures, "p99.9",
              MEMORY, FAST)  # fmt: skip
    yield row(f"{THREADS} threads, slowest call, {where}", "ms", figures, "slowest", MEMORY, FAST)
    yield row(f"the end of that process, {where}", "ms", figures, "end", MEMORY, IN_TIME)


def leave(directories: int, outbox: Path) -> None:
    """Let children record with so many clients, each of which has a directory, and be killed."""
    apart = Path(tempfile.mkdtemp())
    # So that no child has to import what the first event needs.
    with never_sending(10, outbox=str(apart / "parent")) as client:
        client.action(KEY, DATA)
    for first in range(0, directories, AT_ONCE):
        # In an outbox of their own at first: a crowd would slow down its own making.
        own = apart / str(first)
        pid = os.fork()
        if pid == 0:
            clients = [
                never_sending(10, outbox=str(own)) for _ in range(min(AT_ONCE, directories - first))
            ]
            for client in clients:
                client.action(KEY, DATA)
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        _merge(own, outbox)
    shutil.rmtree(apart)
    left = sum(len(files) for _, _, files in os.walk(outbox))
    assert left >= directories, f"{left} files of {directories} clients"


def _merge(source: Path, target: Path) -> None:
    """Move what is in *source*; directories that both have are merged. No layout is assumed."""
    if not target.exists():
        source.rename(target)
        return
    if source.is_dir():
        for entry in source.iterdir():
            _merge(entry, target / entry.name)


def main(subject: str, directories: int, seconds: float, url: str) -> dict[str, float]:
    """Milliseconds, of a process in memory if there are to be no *directories*."""
    outbox = Path(tempfile.mkdtemp(), "outbox")
    leave(directories, outbox)
    arguments = {"url": url, "outbox": str(outbox) if directories else "", "seconds": seconds}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.durability.crowd", PROGRAM, json.dumps(arguments)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    ended = time.time()
    found: dict[str, float] = json.loads(done.stdout)
    return {**found, "end": (ended - found["end"]) * 1e3}


def program(url: str, outbox: str, seconds: float) -> None:
    """Be a process that is looked at; it prints when it came to its end, in seconds."""
    import valued

    options: dict[str, Any] = {"outbox": outbox} if outbox else {}
    client = valued.Client(TOKEN, url, max_queue=ROOM, **options)
    taken: list[list[float]] = [[] for _ in range(THREADS)]
    together = threading.Barrier(THREADS)

    def record(times: list[float]) -> None:
        together.wait()
        began = time.perf_counter()
        for due in itertools.count(began, PAUSE):
            if due > began + seconds:
                return
            time.sleep(max(0.0, due - time.perf_counter()))
            started = time.perf_counter()
            client.action(KEY, DATA)
            times.append(time.perf_counter() - started)

    threads = [threading.Thread(target=record, args=(times,)) for times in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ordered = sorted(one * 1e3 for times in taken for one in times)
    figures = {"p99.9": ordered[int((len(ordered) - 1) * 0.999)], "slowest": ordered[-1]}
    print(json.dumps({**figures, "calls": len(ordered), "end": time.time()}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == PROGRAM:
        program(**json.loads(sys.argv[2]))
    else:
        serve(main)

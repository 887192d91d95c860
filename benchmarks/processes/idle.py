"""How often an idle process wakes up: voluntary context switches of all of its threads."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.bench import Bench
from benchmarks.rows import Goal, Row, row
from benchmarks.senders import sender

SETTLE: Final = 1.0  # seconds that a process has to come to rest


def rows(bench: Bench) -> Iterator[Row]:
    figures = bench.in_turns(
        {"bare": lambda: _idling(bench, "bare"), "valued": lambda: _idling(bench, "valued")}
    )
    seconds = f"in {bench.scale.idle:g} s"
    yield row("wake-ups of an idle process that has sent an event", seconds, figures, "times",
              "bare", Goal("none", lambda ours, bare: ours <= bare),
              name="a process without the library")  # fmt: skip


def _idling(bench: Bench, subject: str) -> dict[str, float]:
    seconds = bench.scale.idle
    with bench.start("processes.idle", subject=subject, url=bench.server.url) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "idle\n"
        time.sleep(min(SETTLE, seconds))
        before = wake_ups(process.pid)
        time.sleep(seconds)
        return {"times": wake_ups(process.pid) - before}


def wake_ups(pid: int) -> int:
    """Voluntary context switches so far; on Linux of every thread, else what psutil knows."""
    statuses = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    if not statuses:
        import psutil

        return int(psutil.Process(pid).num_ctx_switches().voluntary)
    lines = [line for status in statuses for line in status.splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary"))


def main(subject: str, url: str) -> None:
    """Be such a process, with or without the library, until the standard input ends."""
    if subject != "bare":
        sending = sender(subject, url)
        sending.record()
        sending.finish()
    print("idle", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))

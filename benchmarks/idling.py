"""How often an idle process wakes up: voluntary context switches of all of its threads."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.senders import sender
from benchmarks.servers import ROOT
from benchmarks.subprocesses import environment

SETTLE = 1.0  # seconds that a process has to come to rest


def wake_ups(pid: int) -> int:
    """Voluntary context switches so far; on Linux of every thread, else what psutil knows."""
    statuses = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    if not statuses:
        import psutil

        return int(psutil.Process(pid).num_ctx_switches().voluntary)
    lines = [line for status in statuses for line in status.splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary"))


def main(subject: str, seconds: float, url: str) -> dict[str, float]:
    """Wake-ups a second of a process that has delivered an event, or has not even the library."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.idling", json.dumps([subject, url])],
        cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "idle\n"
        time.sleep(min(SETTLE, seconds))
        before = wake_ups(process.pid)
        time.sleep(seconds)
        return {"per_second": (wake_ups(process.pid) - before) / seconds}


def idle(subject: str, url: str) -> None:
    """Be such a process, until the standard input ends."""
    sending = None if subject == "bare" else sender(subject, url)
    if sending is not None:
        sending.record()
        sending.finish()
    print("idle", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    idle(*json.loads(sys.argv[1]))

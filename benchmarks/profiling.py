"""Where a caller's and a worker's microseconds go: by sampling, so that nothing is distorted.

A timer of the process's CPU time interrupts; what is seen then is where that time goes. The main
thread looks: at itself, where the caller is profiled, and at the worker's thread, where that is. A
function of C counts to the line that called it.
"""

from __future__ import annotations

import collections
import linecache
import logging
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import valued
from benchmarks.events import DATA, KEY, TOKEN
from benchmarks.senders import Never
from benchmarks.subprocesses import serve

INTERVAL = 0.001  # seconds of CPU time; the kernel may make it 4 ms
OFTEN = 1e-6  # seconds after which a thread that waits for the interpreter's lock demands it


class Profile:
    """Samples, as stacks of (file, function, line), innermost first."""

    def __init__(self) -> None:
        self.stacks: list[list[tuple[str, str, int]]] = []

    def add(self, frame: FrameType | None) -> None:
        """Add one sample."""
        stack = []
        while frame is not None:
            stack.append((frame.f_code.co_filename, frame.f_code.co_name, frame.f_lineno or 0))
            frame = frame.f_back
        self.stacks.append(stack)

    def figures(self, microseconds: float, top: int) -> dict[str, Any]:
        """What each function, and each line, has of the *microseconds* that an event takes."""
        own: collections.Counter[str] = collections.Counter()
        all_in_all: collections.Counter[str] = collections.Counter()
        lines: collections.Counter[str] = collections.Counter()
        for stack in self.stacks:
            file, function, line = stack[0]
            own[_name(file, function)] += 1
            text = linecache.getline(file, line).strip()
            lines[f"{_name(file, function)}:{line}  {text}"] += 1
            all_in_all.update({_name(file, function) for file, function, _ in stack})
        unit = microseconds / max(1, len(self.stacks))
        return {
            "samples": len(self.stacks),
            "us_per_event": microseconds,
            **{
                name: [(place, count * unit) for place, count in counter.most_common(top)]
                for name, counter in {
                    "own": own, "with_callees": all_in_all, "lines": lines
                }.items()
            },
        }  # fmt: skip


def _name(file: str, function: str) -> str:
    parts = Path(file).parts
    return f"{'/'.join(parts[-2:])} {function}"


def _measured(
    profile: Profile, events: int, look: Callable[[FrameType | None], None], work: Callable[[], Any]
) -> float:
    """Run *work* while samples are taken; microseconds of CPU time that an event took."""
    signal.signal(signal.SIGPROF, lambda _number, frame: look(frame))
    before = resource.getrusage(resource.RUSAGE_SELF)
    signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)
    try:
        work()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds / events * 1e6


def caller(events: int, top: int) -> dict[str, Any]:
    """The caller's: events are recorded, and not sent."""
    logging.disable()  # of what is not delivered at the end, as it should be
    profile = Profile()
    clients = [
        valued.Client(lambda _event: None, executor=Never(), shutdown_timeout=0)
        for _ in range(-(-events // 10_000))
    ]

    def work() -> None:
        left = events
        for client in clients:
            for _ in range(min(left, 10_000)):
                client.action(KEY, DATA)
            left -= 10_000

    return profile.figures(_measured(profile, events, profile.add, work), top)


def worker(events: int, top: int, url: str) -> dict[str, Any]:
    """A worker's, alone, on its thread of the default pool: what waits is delivered."""
    profile = Profile()
    client = valued.Client(TOKEN, url, max_workers=1, max_queue=events + 10)
    # Its thread is started with the timer's signal blocked, so that the main thread gets them all.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF})
    client.action(KEY, DATA)
    assert client.flush(10)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})

    def look(_frame: FrameType | None) -> None:
        sys.setswitchinterval(1000)  # or the stack would change while it is read
        frames = sys._current_frames()  # noqa: SLF001 - the documented way, in spite of its name
        for thread in threading.enumerate():
            if thread.name.startswith("valued") and thread.ident in frames:
                profile.add(frames[thread.ident])
        sys.setswitchinterval(OFTEN)

    # While events are recorded the worker gets the interpreter's lock hardly ever, so that they
    # wait; then so often that the main thread sees what it does when the timer comes.
    sys.setswitchinterval(1000)
    for _ in range(events):
        client.action(KEY, DATA)
    left = client.stats()["pending"]
    sys.setswitchinterval(OFTEN)
    started = time.perf_counter()
    figures = profile.figures(_measured(profile, left, look, lambda: client.flush(600)), top)
    figures["wall_us_per_event"] = (time.perf_counter() - started) / left * 1e6
    figures["events"] = left
    return figures


def main(part: str, events: int, top: int = 25, url: str = "") -> dict[str, Any]:
    """Profile *part*, ``caller`` or ``worker``."""
    return caller(events, top) if part == "caller" else worker(events, top, url)


if __name__ == "__main__":
    serve(main)

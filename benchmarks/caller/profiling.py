"""Where a caller's and a worker's microseconds go: by sampling, which distorts nothing.

A timer of the process's CPU time interrupts the main thread; what a thread does then is where that
time goes: the main thread itself, where the caller is profiled, or the worker's. A function of C
counts for the line that called it.
"""

from __future__ import annotations

import collections
import linecache
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

import valued
from benchmarks.bench import Bench, serve
from benchmarks.report import Table, number
from benchmarks.senders import DATA, KEY, TOKEN, never_sending

INTERVAL: Final = 0.001  # seconds of CPU time; the kernel may make it 4 ms
OFTEN: Final = 1e-6  # seconds after which a thread that waits for the interpreter's lock demands it
NEVER: Final = 1000.0
TOP: Final = 25
TITLES: Final = {"own": "its own", "with_callees": "with what it calls", "lines": "by line"}


def measured(bench: Bench) -> dict[str, Any]:
    sizes = {"caller": bench.scale.profiled, "worker": bench.scale.worker_profiled}
    return {
        part: bench.measure("caller.profiling", part=part, events=events, url=bench.server.url)
        for part, events in sizes.items()
    }


def tables(found: dict[str, Any]) -> Iterator[tuple[str, Table]]:
    for part, figures in found.items():
        of = f"{number(figures['us_per_event'], 'us')} an event"
        for kind, title in TITLES.items():
            lines = [(number(us), place) for place, us in figures[kind]]
            none = [("", "no sample was taken: profile more events")]
            yield (
                f"{part}: {of}, {title}, {figures['samples']} samples",
                (("us", "where"), lines or none),
            )


class Samples:
    """How often each function, and each line, was seen."""

    def __init__(self) -> None:
        self.count = 0
        self.kinds: dict[str, collections.Counter[str]] = {
            kind: collections.Counter() for kind in TITLES
        }

    def add(self, frame: FrameType | None) -> None:
        """Add one sample: the stack from *frame* outwards."""
        if frame is None:
            return
        self.count += 1
        line = frame.f_lineno or 0
        text = linecache.getline(frame.f_code.co_filename, line).strip()
        self.kinds["own"][_name(frame)] += 1
        self.kinds["lines"][f"{_name(frame)}:{line}  {text}"] += 1
        stack = set()
        while frame is not None:
            stack.add(_name(frame))
            frame = frame.f_back
        self.kinds["with_callees"].update(stack)

    def take(self, events: int, look: Callable[[FrameType | None], None], work: Any) -> Any:
        """Run *work* while samples are taken; what each has of an event's microseconds of CPU."""
        signal.signal(signal.SIGPROF, lambda _number, frame: look(frame))
        before = resource.getrusage(resource.RUSAGE_SELF)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)
        work()
        signal.setitimer(signal.ITIMER_PROF, 0)
        after = resource.getrusage(resource.RUSAGE_SELF)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        us = seconds / events * 1e6
        return {
            "samples": self.count,
            "us_per_event": us,
            "events": events,
            **{
                kind: [(place, us * n / self.count) for place, n in counter.most_common(TOP)]
                for kind, counter in self.kinds.items()
            },
        }


def _name(frame: FrameType) -> str:
    return f"{'/'.join(Path(frame.f_code.co_filename).parts[-2:])} {frame.f_code.co_name}"


def caller(events: int) -> Any:
    """The caller's: events are recorded, and not sent."""
    samples = Samples()
    clients = [never_sending(10_000) for _ in range(-(-events // 10_000))]

    def work() -> None:
        for number_of_event in range(events):
            clients[number_of_event // 10_000].action(KEY, DATA)

    return samples.take(events, samples.add, work)


def worker(events: int, url: str) -> Any:
    """A worker's, alone, on its thread of the default pool: what waits is delivered."""
    samples = Samples()
    client = valued.Client(TOKEN, url, max_workers=1, max_queue=events + 10)
    # Its thread is started with the timer's signal blocked, so that the main thread gets them all.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF})
    client.action(KEY, DATA)
    assert client.flush(10)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})

    def look(_frame: FrameType | None) -> None:
        sys.setswitchinterval(NEVER)  # or the stack would change while it is read
        frames = sys._current_frames()  # noqa: SLF001 - the documented way, in spite of its name
        for thread in threading.enumerate():
            if thread.name.startswith("valued") and thread.ident in frames:
                samples.add(frames[thread.ident])
        sys.setswitchinterval(OFTEN)

    # While events are recorded the worker hardly ever gets the interpreter's lock, so that they
    # wait; then so often that the main thread sees what it does when the timer comes.
    sys.setswitchinterval(NEVER)
    for _ in range(events):
        client.action(KEY, DATA)
    left = client.stats()["pending"]
    sys.setswitchinterval(OFTEN)
    return samples.take(left, look, lambda: client.flush(600))


def main(part: str, events: int, url: str) -> Any:
    """Profile *part*, ``caller`` or ``worker``."""
    return caller(events) if part == "caller" else worker(events, url)


if __name__ == "__main__":
    serve(main)

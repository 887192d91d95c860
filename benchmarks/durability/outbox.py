"""What an outbox on disk costs: the same as in the table, with one and without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from benchmarks.bench import Bench, Figures
from benchmarks.durability.beside import WRITE
from benchmarks.processes.fork import sizes
from benchmarks.rows import Goal, Row, at_least, at_most, row

MEMORY: Final = "in memory"
#: Megabytes that it may take to deliver what was left: 32 MiB.
TO_ADOPT: Final = 32 * 1024 * 1024 / 1e6


def _both(bench: Bench, module: str, **arguments: Any) -> Figures:
    subjects = {MEMORY: {"subject": "valued"}, "valued": {"durability": "process"}}
    return bench.turns(module, subjects, **arguments)


def caller_rows(bench: Bench) -> Iterator[Row]:
    """The caller's time."""
    calls = bench.scale.calls
    beside = bench.in_turns({"": lambda: bench.measure("durability.beside", calls=calls)})[""]
    figures: Figures = {
        MEMORY: {"median": beside["in memory"]},
        "valued": {"median": beside["outbox"], "beyond": beside["beyond"]},
        WRITE: {"median": beside["write"], "beyond": beside["beyond, write"]},
    }
    yield row("caller's time, median", "us", figures, "median", MEMORY,
              Goal("at most 3 us more", lambda ours, memory: ours <= memory + 3))  # fmt: skip
    yield row("of that, beyond the time in memory", "us", figures, "beyond", WRITE,
              name="a bare write")  # fmt: skip
    figures["valued"] = bench.measure(
        "caller.calls", subject="valued", calls=calls, durability="power"
    )
    yield row('caller\'s time, median, durability="power"', "us", figures, "median", MEMORY,
              note="each event waits for the disk.")  # fmt: skip
    figures = _both(bench, "caller.calls", calls=calls, url=bench.server.url)
    yield row("caller's time, 99th percentile, sender at work", "us", figures, "p99", MEMORY)


def delivery_rows(bench: Bench) -> Iterator[Row]:
    """CPU time of an event, and events a second."""
    figures = _both(bench, "delivery.delivered", events=bench.scale.events, url=bench.server.url)
    yield row("CPU of the whole process for a delivered event", "us", figures, "cpu_us", MEMORY)
    yield row("events a second, server answers at once", "1/s", figures, "per_second", MEMORY,
              at_least(0.9))  # fmt: skip


def fork_rows(bench: Bench) -> Iterator[Row]:
    """A fork, in the parent."""
    what, arguments = sizes(bench)
    figures = _both(bench, "processes.fork", **arguments)
    yield row(what, "us", figures, "us", MEMORY, at_most(1.1))


def adoption_rows(bench: Bench) -> Iterator[Row]:
    """What a process that died has left."""
    left = bench.scale.left
    found = bench.measure("durability.adopt", events=left)
    figures: Figures = {"valued": found, "bound": {"mb": TO_ADOPT}}
    yield row(f"memory to deliver {left:,} events of a dead process", "MB", figures, "mb", "bound",
              at_most(1), name="32 MiB", note=f"it took {found['seconds']:.1f} s.")  # fmt: skip

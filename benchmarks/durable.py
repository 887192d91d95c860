"""What an outbox on the disk costs: the same as in the table, with one and without."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from benchmarks.pairing import WRITE
from benchmarks.scale import Scale, in_turns
from benchmarks.servers import Server
from benchmarks.subprocesses import measure
from benchmarks.table import NO_GOAL, Row, at_least, at_most, row

MEMORY: Final = ("in memory", "in memory")
#: Megabytes that it may take to deliver what was left: 32 MiB.
TO_ADOPT: Final = 32 * 1024 * 1024 / 1e6


def rows(scale: Scale, server: Server) -> Iterator[Row]:
    """All rows. The outbox lies where ``TMPDIR`` says."""
    with tempfile.TemporaryDirectory(prefix="valued-benchmarks-") as folder:
        for group in (caller, delivery, fork, adoption):
            yield from group(scale, server, folder)


def _in(folder: str, durability: str, module: str, **arguments: Any) -> Any:
    """`measure`, with an outbox that is empty."""
    options = {"outbox": tempfile.mkdtemp(dir=folder), "durability": durability}
    return measure(module, options=options, **arguments)


def _both(scale: Scale, folder: str, module: str, **arguments: Any) -> dict[str, Any]:
    arguments = {"subject": "valued", **arguments}
    subjects = {
        "in memory": partial(measure, module, **arguments),
        "valued": partial(_in, folder, "process", module, **arguments),
    }
    return in_turns(scale.rounds, subjects)


def caller(scale: Scale, server: Server, folder: str) -> Iterator[Row]:
    """The caller's time."""
    runs = [_in(folder, "process", "pairing", calls=scale.calls) for _ in range(scale.rounds)]
    figures: dict[str, dict[str, Any]] = {
        name: {key: statistics.median(run[name][key] for run in runs) for key in found}
        for name, found in runs[0].items()
    }
    yield row("caller's time, median", "us", figures, "median", MEMORY,
              ("at most 3 us more", lambda ours, memory: ours <= memory + 3))  # fmt: skip
    yield row("of that, beyond the time in memory", "us", figures, "beyond",
              (WRITE, "a bare write"), NO_GOAL)  # fmt: skip
    figures["valued"] = _in(folder, "power", "calling", subject="valued", calls=scale.calls)
    yield row('caller\'s time, median, durability="power"', "us", figures, "median", MEMORY,
              NO_GOAL, "each event waits for the disk.")  # fmt: skip
    figures = _both(scale, folder, "calling", calls=scale.calls, url=server.url)
    yield row("caller's time, 99th percentile, sender at work", "us", figures, "p99", MEMORY,
              NO_GOAL)  # fmt: skip


def delivery(scale: Scale, server: Server, folder: str) -> Iterator[Row]:
    """CPU time of an event, and events a second."""
    figures = _both(scale, folder, "delivering", events=scale.events, url=server.url)
    yield row("CPU of the whole process for a delivered event", "us", figures, "cpu_us", MEMORY,
              NO_GOAL)  # fmt: skip
    yield row("events a second, server answers at once", "1/s", figures, "per_second", MEMORY,
              at_least(0.9))  # fmt: skip


def fork(scale: Scale, _server: Server, folder: str) -> Iterator[Row]:
    """A fork, in the parent."""
    sizes = {"events": scale.queued, "in_flight": scale.in_flight, "forks": scale.forks}
    figures = _both(scale, folder, "forking", **sizes)
    yield row(f"fork in the parent, {scale.queued:,} waiting, {scale.in_flight} in flight", "us",
              figures, "us", MEMORY, at_most(1.1))  # fmt: skip


def adoption(scale: Scale, _server: Server, folder: str) -> Iterator[Row]:
    """What a process that died has left."""
    figures = in_turns(
        1, {"valued": partial(_in, folder, "process", "adopting", events=scale.left)}
    )
    figures["bound"] = {"mb": TO_ADOPT, "seconds": None}
    seconds = figures["valued"]["seconds"]
    yield row(f"memory to deliver {scale.left:,} events of a dead process", "MB", figures, "mb",
              ("bound", "32 MiB"), at_most(1), f"it took {seconds:.1f} s.")  # fmt: skip

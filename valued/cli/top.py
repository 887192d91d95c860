"""``valued top``: a row for each process, redrawn every second."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

import valued
from valued._service import render

if TYPE_CHECKING:
    import argparse

#: Seconds between two looks.
INTERVAL = 1.0

#: Seconds after which a process that wrote nothing delivers nothing. It writes once a second.
QUIET = 3.0

HEADINGS = ("pid", "command", "per s", "delivered", "failed", "dropped", "pending", "oldest")


class Seen(NamedTuple):
    """What was seen of a process when it had written last."""

    at: float
    delivered: int
    rate: float


def run(arguments: argparse.Namespace) -> int:
    """Run the command in *arguments*; returns the exit status."""
    if arguments.directory is not None:
        os.stat(arguments.directory)  # a wrong path would show zeros
    status = valued.Status(arguments.directory)
    seen: dict[tuple[str, int], Seen] = {}
    if arguments.once:
        found = status.read()
        render.table(sys.stdout, HEADINGS, rows(found, seen), errors(found))
        return 0
    try:
        with render.redrawn(sys.stdout, HEADINGS) as show:
            while True:
                found = status.read()
                show(rows(found, seen), errors(found))
                time.sleep(INTERVAL)
    except KeyboardInterrupt:
        return 0  # its normal end


def rows(found: valued.ApplicationStats, seen: dict[tuple[str, int], Seen]) -> list[list[object]]:
    """A row for each process, and one for all. *seen*: what the call before this one left in it."""
    now = time.time()
    shown: list[list[object]] = []
    before, rates = dict(seen), 0.0
    seen.clear()
    for process in found.processes:
        key = process.host, process.pid
        seen[key] = _seen(process, before.get(key))
        rate = seen[key].rate if now - process.at < QUIET else 0.0
        rates += rate
        counts, oldest = _counts(process.stats), _age(process.oldest, now)
        shown.append([process.pid, process.command, round(rate), *counts, oldest])
    first = min((one.oldest for one in found.processes if one.oldest is not None), default=None)
    shown.append(["", "all", round(rates), *_counts(found.totals), _age(first, now)])
    return shown


def errors(found: valued.ApplicationStats) -> list[str]:
    """A line for the latest error of each process that has one."""
    now = time.time()
    return [
        f"{one.pid}: {_age(one.error_at, now)} ago: {render.line(one.error)}"
        for one in found.processes
        if one.error
    ]


def _seen(process: valued.ProcessStats, before: Seen | None) -> Seen:
    delivered = process.stats["delivered"]
    if before is None:
        return Seen(process.at, delivered, 0.0)
    if process.at <= before.at:
        return before
    rate = (delivered - before.delivered) / (process.at - before.at)
    return Seen(process.at, delivered, max(0.0, rate))


def _counts(stats: dict[str, int]) -> list[int]:
    return [stats[name] for name in ("delivered", "failed", "dropped", "pending")]


def _age(moment: float | None, now: float) -> str:
    if moment is None:
        return ""
    seconds = round(max(0.0, now - moment))
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"

"""`Status`: the stats of all processes of an application."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from valued._errors import ValidationError
from valued._options import outbox_path, status_path
from valued._outbox.owners import ALIVE, ELSEWHERE
from valued._process.clock import CLOCK
from valued._status.files import StatusDirectory, add, no_stats

if TYPE_CHECKING:
    from os import PathLike

    from valued._status.files import Written


Samples = list[tuple[dict[str, str], float]]

#: The counters without labels, by their key in the stats: name and description.
_COUNTERS: Final = {
    "accepted": ("valued_events_accepted", "Events that were checked and counted."),
    "delivered": ("valued_events_delivered", "Events that were delivered."),
    "failed": ("valued_events_failed", "Events that failed permanently."),
    "retried": ("valued_retries", "Attempts after the first, of all events."),
    "adopted": ("valued_events_adopted", "Events taken over from other processes."),
    "handed_over": ("valued_events_handed_over", "Events left to other processes."),
    "unsaved": ("valued_events_unsaved", "Events that the disk did not take."),
}

_OLDEST: Final = "How long the oldest pending event has waited."

#: Why events were not accepted.
_REFUSALS: Final = ("disabled", "invalid", "anonymous", "refused")


class Metric(NamedTuple):
    """A metric, as `ApplicationStats.metrics` returns it.

    ``name`` (str): without the ending ``_total`` that Prometheus has for counters. ``kind``:
    ``"counter"`` or ``"gauge"``. ``text``: what it counts. ``samples``: labels (a dict) and value.
    """

    name: str
    kind: str
    text: str
    samples: Samples


class ProcessStats(NamedTuple):
    """What one process wrote last, as `Status.read` returns it.

    ``pid`` (int), ``host`` (str), ``command`` (str): which process. ``state``: ``"alive"``,
    or ``"elsewhere"`` (on another host or in another container). ``at``: when it wrote this, in
    seconds since the epoch.
    ``stats``: its counts, as in `Client.stats`. ``oldest``: when its oldest pending event was
    accepted, or None. ``error`` (str): why an attempt failed last; empty if none has.
    ``error_at``: when that was, or None.
    """

    pid: int
    host: str
    command: str
    state: str
    at: float
    stats: dict[str, Any]
    oldest: float | None
    error: str
    error_at: float | None


class ApplicationStats(NamedTuple):
    """The stats of an application, as `Status.read` returns them.

    ``totals``: the sums, by the keys of `Client.stats`, without ``pid`` and ``started``. Its
    counters, all but ``pending``, include processes that have ended, and never go back.
    ``pending``: of the living only. ``processes``: a `ProcessStats` for each that may live.
    """

    totals: dict[str, Any]
    processes: list[ProcessStats]

    def metrics(self) -> list[Metric]:
        """The same as metrics, named by the conventions of Prometheus."""
        totals = self.totals
        found = [
            Metric(name, "counter", text, _one(totals[key]))
            for key, (name, text) in _COUNTERS.items()
        ]
        dropped: Samples = [({"reason": it}, n) for it, n in totals["dropped_by_reason"].items()]
        refused: Samples = [({"reason": it}, totals[it]) for it in _REFUSALS]
        oldest = min((it.oldest for it in self.processes if it.oldest is not None), default=None)
        age = 0.0 if oldest is None else max(0.0, CLOCK.wall() - oldest)
        return [
            *found,
            Metric("valued_events_dropped", "counter", "Events no longer tried.", dropped),
            Metric("valued_events_not_accepted", "counter", "Events not accepted.", refused),
            Metric("valued_events_pending", "gauge", "Events to deliver.", _one(totals["pending"])),
            Metric("valued_events_oldest_pending_seconds", "gauge", _OLDEST, _one(age)),
            Metric("valued_processes", "gauge", "Living processes.", _one(len(self.processes))),
        ]


def _one(value: float) -> Samples:
    return [({}, value)]


class Status:
    """The stats of all processes that write them in one directory, seen from any process.

    >>> status = valued.Status("/var/lib/myapp/valued")
    >>> status.read().totals["delivered"]

    *path*: the directory that clients get as *status* or as *outbox* (default ``VALUED_STATUS``,
    else ``VALUED_OUTBOX``). Raises `ValidationError` if none is given. Any thread may call.
    """

    def __init__(self, path: str | PathLike[str] | None = None) -> None:
        given = status_path(path) or outbox_path(None)
        if given is None:
            raise ValidationError("status: none was given; pass a path, or set VALUED_STATUS")
        self._directory = StatusDirectory(given, private=True)

    def __repr__(self) -> str:
        return f"Status({self._directory.path!r})"

    def read(self) -> ApplicationStats:
        """What the processes wrote, at most a second ago; also what the dead wrote last.

        Without an outbox, what a killed process had pending is in no count but ``accepted``. All
        are zero where nothing was written yet. Raises `OSError` if this process can't look.
        """
        directory = self._directory
        with contextlib.suppress(OSError):  # it may only look
            directory.fold()
        found = directory.read()
        totals = no_stats()
        add(totals, found.totals)
        processes = []
        for written in found.processes.values():
            state = directory.state(written)
            lives = state in (ALIVE, ELSEWHERE)
            add(totals, written.stats, pending=lives)
            if lives:
                processes.append(_process(written, state))
        return ApplicationStats(
            totals, sorted(processes, key=lambda process: (process.host, process.pid))
        )


def _process(written: Written, state: str) -> ProcessStats:
    return ProcessStats(
        written.identity.pid,
        written.identity.host,
        written.command,
        state,
        written.at,
        written.stats,
        written.oldest,
        written.error,
        written.error_at,
    )

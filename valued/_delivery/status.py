"""What a pipeline needs of what writes its stats for other processes, and what it says of itself.

The pipeline knows no files: the client passes a maker of something that has these methods.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from valued._process.clock import CLOCK

if TYPE_CHECKING:
    from valued._delivery.queue import Queue
    from valued._process.reporting import Reporter


class Status(Protocol):
    """Writes the stats of one client in this process. Any thread may call; nothing raises."""

    def note(self, *, later: bool = False) -> None:
        """An attempt has ended: write the stats, if that is due by now, and not *later*."""

    def next_due(self) -> float | None:
        """When to call `tend`, by `CLOCK.monotonic`; None: there is nothing to write."""

    def tend(self, *, now: bool = False) -> None:
        """Write what is due; *now*: what has changed."""

    def finish(self) -> None:
        """Write now: there may be no later opportunity."""


class NoStatus:
    """Writes nothing: the stats are for this process only."""

    def note(self, *, later: bool = False) -> None:
        """See `Status.note`."""

    def next_due(self) -> float | None:
        """See `Status.next_due`."""
        return None

    def tend(self, *, now: bool = False) -> None:
        """See `Status.tend`."""

    def finish(self) -> None:
        """See `Status.finish`."""


#: Runs a function on a thread. Raises `RuntimeError` where none idles and none can be started.
Submit = Callable[[Callable[[], None]], object]

#: Makes it of a function that returns the figures of this process, of one that tells whether
#: `Status.tend` will be called when something is due, and of what runs a last write.
StatusMaker = Callable[[Callable[[], dict[str, Any]], Callable[[], bool], Submit], Status]


def no_status(
    _figures: Callable[[], dict[str, Any]], _has_monitor: Callable[[], bool], _submit: Submit
) -> Status:
    """Where no directory is given."""
    return NoStatus()


def figures(queue: Queue, reporter: Reporter) -> dict[str, Any]:
    """The counts; when the oldest pending event was accepted; the latest error, and its time."""
    with queue.lock:
        found = queue.figures()
        oldest = queue.accepted_first() if found["pending"] else None
    if oldest is not None:
        oldest = CLOCK.wall() - (queue.clock() - oldest)
    return {**found, "oldest": oldest, "error": reporter.latest_error}

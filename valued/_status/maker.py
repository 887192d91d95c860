"""Where the stats of a client's processes are written, by its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from valued._options import Options
    from valued._status.writer import ClientStatus, Submit


def maker(
    options: Options, refused: Callable[[], dict[str, int]]
) -> Callable[[Callable[[], dict[str, Any]], Callable[[], bool], Submit], ClientStatus] | None:
    """What makes the `ClientStatus` of each process; None: nothing is written.

    *refused*: the counts of events that were not accepted.
    """
    path = options.status or options.outbox
    if path is None:
        return None
    from valued._status.files import StatusDirectory  # what few need
    from valued._status.writer import ClientStatus

    # What is in an outbox belongs to its user only, or it can't be used.
    directory = StatusDirectory(str(path), private=path == options.outbox)

    def make(
        figures: Callable[[], dict[str, Any]], has_monitor: Callable[[], bool], submit: Submit
    ) -> ClientStatus:
        return ClientStatus(directory, lambda: {**figures(), **refused()}, has_monitor, submit)

    return make

"""What went wrong, said: on the logger ``valued``, a few lines a minute, and by ``on_error``."""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from valued._errors import DeliveryError
    from valued._typing import OnError

# No `NullHandler` on it: where an application configures no logging at all, Python prints warnings
# on stderr, and a lost event is one that somebody should hear of.
log: Final = logging.getLogger("valued")

#: Seconds between two log lines of one kind. A broken endpoint then costs a line a minute, which
#: is enough to alarm and too little to fill a disk.
QUIET: Final = 60.0


class Reporter:
    """One process's voice. Any thread may call; the log and ``on_error`` may raise what they like.

    Between two lines of one kind it counts, and the next line tells how many there were.
    """

    def __init__(
        self, on_error: OnError | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._on_error = on_error
        self._clock = clock
        # Each operation on both is atomic, so there is no lock that a signal handler, or a child
        # that ``on_error`` forked, could find taken.
        self._said: dict[str, float] = {}
        self._unsaid: dict[str, collections.deque[int]] = {}
        self._lines: dict[str, tuple[str, tuple[object, ...], bool]] = {}

    def warn(
        self, kind: str, message: str, *args: object, count: int = 1, traceback: bool = False
    ) -> None:
        """Log *message*, whose first argument will be how many there were since the last line."""
        self._lines[kind] = message, args, traceback
        self._unsaid.setdefault(kind, collections.deque()).append(count)
        now = self._clock()
        if now - self._said.get(kind, -QUIET) < QUIET:
            return
        self._said[kind] = now
        self._say(kind)

    def rest(self) -> None:
        """Say what was lost, counted and not said: there may be no next time."""
        for kind in list(self._unsaid):
            if kind != "retry":  # by now delivered, or among the lost
                self._say(kind)

    def _say(self, kind: str) -> None:
        unsaid = self._unsaid[kind]
        total = 0
        with contextlib.suppress(IndexError):  # when it is empty; another thread may help with it
            while True:
                total += unsaid.popleft()
        if total:
            message, args, traceback = self._lines[kind]
            _log_safely(logging.WARNING, message, total, *args, exc_info=traceback)

    def retrying(self, error: DeliveryError) -> None:
        """An attempt failed, another will follow."""
        self.warn("retry", "%d deliveries failed and are tried again; the latest: %s", error)

    def overflown(self, count: int, max_queue: int, overflow: str) -> None:
        """*count* events found no room."""
        self.warn(
            "overflow",
            "%d events were dropped: max_queue (%d) or 64 MiB were waiting (overflow=%r)",
            max_queue,
            overflow,
            count=count,
        )

    def lost(self, count: int, shutdown_timeout: float) -> None:
        """The process ends, and with it *count* events."""
        log.warning(
            "the process ends with %d events not delivered: shutdown_timeout (%g s) is over",
            count,
            shutdown_timeout,
        )

    def too_late(self) -> None:
        """An event came when nothing can be sent any more; said once."""
        if "too late" not in self._said:
            self._said["too late"] = self._clock()
            log.warning(
                "events that are recorded while Python takes itself apart, as by objects that it "
                "finalizes then, are dropped: record them in an atexit handler, or earlier"
            )

    def gave_up(self, error: DeliveryError, body: bytes) -> None:
        """An event was given up: tell the log, and whoever asked to hear of it."""
        self.warn("failed", "%d events were given up; the latest: %s", error)
        _log_safely(logging.DEBUG, "given up: %s", body)
        if self._on_error is None:
            return
        try:
            self._on_error(error, json.loads(body))
        except Exception:  # noqa: BLE001 - it is the user's
            self.warn(
                "on_error", "on_error raised %d times; the events stay given up", traceback=True
            )


def _log_safely(level: int, message: str, *args: object, exc_info: bool = False) -> None:
    # A filter or handler of the application's may raise, and no event is to be lost for that.
    # There is nowhere left to say it.
    with contextlib.suppress(Exception):
        log.log(level, message, *args, exc_info=exc_info)

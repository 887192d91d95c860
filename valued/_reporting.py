"""What went wrong, said: on the logger ``valued``, a few lines a minute, and by ``on_error``."""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from valued._errors import DeliveryError
    from valued._typing import OnError

# No handler on it, not even a `NullHandler`: where an application configures no logging at all,
# Python prints warnings on stderr, and a lost event is one that somebody should hear of.
log: Final = logging.getLogger("valued")

#: How a line begins that tells of one of what the message has more of.
_OF_ONE: Final = {
    "deliveries failed and are ": "delivery failed and is ",
    "events are ": "event is ",
    "events were dropped: they were ": "event was dropped: it was ",
    "events were ": "event was ",
    "events not ": "event not ",
    "of the oldest files of rejected events were ": "of the oldest files of rejected events was ",
    "places in the outbox are damaged, and were ": "place in the outbox is damaged, and was ",
    "rejected events ": "rejected event ",
    "times ": "time ",
    "times;": "time;",
}


def counted(message: str, count: int) -> str:
    """*message*, which has ``%d`` and then a plural, as it is to be for *count* of them."""
    if count == 1:
        for plural, singular in _OF_ONE.items():
            message = message.replace(f"%d {plural}", f"%d {singular}", 1)
    return message


def _handlers() -> Iterator[logging.Handler]:
    """Those that a record of ours goes to, as `logging` finds them."""
    logger: logging.Logger | None = log
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None


def _is_closed(handler: logging.Handler | None) -> bool:
    return bool(getattr(getattr(handler, "stream", None), "closed", False))


class _Lines(logging.Filter):
    """Sees each record of ours before all handlers. Holds nothing, and is no handler of its own."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether `logging` is to go on with *record*; False: it was seen to."""
        handlers = list(_handlers())
        usable = [handler for handler in handlers if not _is_closed(handler)]
        if not usable:
            # It comes on stderr without the logger's name, amid what the application says there.
            record.msg = f"valued: {record.msg}"
        if len(usable) == len(handlers) and (handlers or not _is_closed(logging.lastResort)):
            return True
        # At the end of a process, or of a test, a stream may be closed already. Its handler would
        # print a traceback in place of the line.
        for handler in usable or (logging.lastResort,):
            if handler and not _is_closed(handler) and record.levelno >= handler.level:
                handler.handle(record)
        return False


log.addFilter(_Lines())

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
        """Log *message*, whose first argument will be how many there were since the last line.

        It is in the plural; see `counted`.
        """
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
            line = counted(message, total)
            _log_safely(logging.WARNING, line, total, *args, exc_info=traceback)

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
        line = "the process ends with %d events not delivered: shutdown_timeout (%g s) is over"
        log.warning(counted(line, count), count, shutdown_timeout)

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

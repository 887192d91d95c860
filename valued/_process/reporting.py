"""Reports what went wrong: on the logger ``valued``, a few lines a minute, and to ``on_error``."""

from __future__ import annotations

import collections
import contextlib
import json
import logging
from typing import TYPE_CHECKING, Any, Final

from valued._process import shutdown
from valued._process.clock import CLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from valued._errors import DeliveryError
    from valued._typing import OnError

    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter  # before Python 3.11 it takes no parameter

# No handler on it, not even a `NullHandler`: where an application configures no logging at all,
# Python prints warnings on stderr, and a lost event is worth a warning.
_logger: Final = logging.getLogger("valued")


class _Log(_Adapter):
    """The logger; writing to it raises nothing."""

    def log(self, level: int, msg: object, *args: object, **options: Any) -> None:
        # A filter or handler of the application may raise, and no event may be lost because of
        # that. There is no place left to report it.
        with contextlib.suppress(Exception):
            super().log(level, msg, *args, **options)


log: Final = _Log(_logger, None)

#: The beginning of a message in the plural, and the same in the singular.
_OF_ONE: Final = {
    "deliveries failed ": "delivery failed ",
    "events are ": "event is ",
    "events failed ": "event failed ",
    "events were dropped: they were ": "event was dropped: it was ",
    "events were ": "event was ",
    "events not ": "event not ",
    "files of the outbox were damaged, and were ": "file of the outbox was damaged, and was ",
    "of the oldest files of rejected events were ": "of the oldest files of rejected events was ",
    "places in the outbox are damaged, and were ": "place in the outbox is damaged, and was ",
    "rejected events ": "rejected event ",
    "times ": "time ",
    "times;": "time;",
}


def counted(message: str, count: int) -> str:
    """*message*, which has ``%d`` and then a plural, in the singular if *count* is 1."""
    if count == 1:
        for plural, singular in _OF_ONE.items():
            message = message.replace(f"%d {plural}", f"%d {singular}", 1)
    return message


def _handlers() -> Iterator[logging.Handler]:
    """The handlers that get our log records, found in the way that `logging` finds them."""
    logger: logging.Logger | None = _logger
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None


def _is_usable(handler: logging.Handler | None) -> bool:
    if handler is None or getattr(getattr(handler, "stream", None), "closed", False):
        return False
    if not shutdown.is_over() or handler.lock is None:
        return True
    # The interpreter is being finalized, and this is the only thread that runs, untraced. A thread
    # that was stopped while it wrote a line keeps the lock for ever.
    is_free = handler.lock.acquire(blocking=False)  # pragma: no cover - untraced
    if is_free:  # pragma: no cover - untraced
        handler.lock.release()
    return is_free  # pragma: no cover - untraced


class _Lines(logging.Filter):
    """Sees each of our log records before any handler does. It isn't a handler itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether `logging` should go on with *record*; False: this method has handled it."""
        handlers = list(_handlers())
        usable = [handler for handler in handlers if _is_usable(handler)]
        if not usable:
            # It appears on stderr without the logger's name, between lines of the application.
            record.msg = f"valued: {record.msg}"
        if len(usable) == len(handlers) and (handlers or _is_usable(logging.lastResort)):
            return True
        # At the end of a process, or of a test, a stream may be closed already. Its handler would
        # print a traceback instead of the line.
        for handler in usable or (logging.lastResort,):
            if handler and _is_usable(handler) and record.levelno >= handler.level:
                handler.handle(record)
        return False


_logger.addFilter(_Lines())

#: Seconds between two log lines of one kind. A broken endpoint then costs one line a minute, enough
#: to be noticed and too little to fill a disk.
QUIET: Final = 60.0


class Reporter:
    """Writes the log lines of one process, and calls ``on_error``, whatever these two raise.

    Any thread may call. Between two lines of one kind it counts; the next line says how many.
    """

    def __init__(
        self, on_error: OnError | None, clock: Callable[[], float] = CLOCK.monotonic
    ) -> None:
        self._on_error = on_error
        self._clock = clock
        # Each operation on both is atomic, so there is no lock that a signal handler, or a child
        # that ``on_error`` forked, could find taken.
        self._logged_at: dict[str, float] = {}
        self._unlogged: dict[str, collections.deque[int]] = {}
        self._lines: dict[str, tuple[str, tuple[object, ...], bool]] = {}
        #: When an attempt failed last, in seconds since the epoch, and why.
        self.latest_error: tuple[float, str] | None = None

    def warn(
        self, kind: str, message: str, *args: object, count: int = 1, traceback: bool = False
    ) -> None:
        """Log *message*; its first argument will be the count since the last line of this kind.

        *message* is in the plural; see `counted`. The *args* are kept until it is logged, so none
        of them may be an exception: its traceback keeps the frames of a delivery, and the client.
        """
        self._lines[kind] = message, args, traceback
        self._unlogged.setdefault(kind, collections.deque()).append(count)
        now = self._clock()
        if now - self._logged_at.get(kind, -QUIET) < QUIET:
            return
        self._logged_at[kind] = now
        self._log_counted(kind)

    def log_remaining(self) -> None:
        """Log what was counted and not logged yet: there may be no later opportunity."""
        for kind in list(self._unlogged):
            if kind != "retry":  # by now delivered, or counted as lost
                self._log_counted(kind)

    def _log_counted(self, kind: str) -> None:
        unlogged = self._unlogged[kind]
        total = 0
        with contextlib.suppress(IndexError):  # when it is empty; another thread may help with it
            while True:
                total += unlogged.popleft()
        if total:
            message, args, traceback = self._lines[kind]
            line = counted(message, total)
            log.log(logging.WARNING, line, total, *args, exc_info=traceback)

    def retrying(self, error: DeliveryError) -> None:
        """An attempt failed; another one will follow."""
        self.latest_error = CLOCK.wall(), str(error)
        self.warn("retry", "%d deliveries failed and will be retried; the latest: %s", str(error))

    def overflown(self, count: int, max_queue: int, overflow: str) -> None:
        """*count* events were dropped because the queue was full."""
        self.warn(
            "overflow",
            "%d events were dropped: max_queue (%d) or 64 MiB were waiting (overflow=%r)",
            max_queue,
            overflow,
            count=count,
        )

    def lost(self, count: int, shutdown_timeout: float) -> None:
        """*count* events are lost, because the process ends."""
        line = "the process ends with %d events not delivered: shutdown_timeout (%g s) is over"
        log.warning(counted(line, count), count, shutdown_timeout)

    def too_late(self) -> None:
        """An event was recorded when nothing can be sent any more; logged once."""
        if "too late" not in self._logged_at:
            self._logged_at["too late"] = self._clock()
            log.warning(
                "events recorded while the Python interpreter shuts down, for example by objects "
                "finalized then, are dropped: record them in an atexit handler, or earlier"
            )

    def gave_up(self, error: DeliveryError, body: bytes) -> None:
        """An event failed permanently: log it, and call ``on_error``."""
        self.latest_error = CLOCK.wall(), str(error)
        self.warn("failed", "%d events failed permanently; the latest: %s", str(error))
        log.log(logging.DEBUG, "failed permanently: %s", body)
        if self._on_error is None:
            return
        try:
            self._on_error(error, json.loads(body))
        except Exception:  # noqa: BLE001 - it is the user's
            self.warn(
                "on_error", "on_error raised %d times; its events stay failed", traceback=True
            )

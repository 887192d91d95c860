"""What went wrong, said: on the logger ``valued``, a few lines a minute, and by ``on_error``."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from valued._errors import DeliveryError
    from valued._typing import OnError

log: Final = logging.getLogger("valued")

#: Seconds between two log lines of one kind. A broken endpoint then costs a line a minute, which
#: is enough to alarm and too little to fill a disk.
QUIET: Final = 60.0


class Reporter:
    """One process's voice. Any thread may call; two that do so at once may both be heard."""

    def __init__(
        self, on_error: OnError | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._on_error = on_error
        self._clock = clock
        self._said: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}

    def warn(self, kind: str, message: str, *args: object, count: int = 1) -> None:
        """Log *message*, whose first argument will be how many there were since the last line."""
        count += self._unsaid.pop(kind, 0)
        now = self._clock()
        if now - self._said.get(kind, -QUIET) < QUIET:
            self._unsaid[kind] = count
            return
        self._said[kind] = now
        log.warning(message, count, *args)

    def retrying(self, error: DeliveryError) -> None:
        """An attempt failed, another will follow."""
        self.warn("retry", "%d deliveries failed and are tried again; the latest: %s", error)

    def gave_up(self, error: DeliveryError, body: bytes) -> None:
        """An event was given up: tell the log, and whoever asked to hear of it."""
        self.warn("failed", "%d events were given up; the latest: %s", error)
        log.debug("given up: %s", body)
        if self._on_error is None:
            return
        try:
            self._on_error(error, json.loads(body))
        except Exception:
            log.exception("on_error raised; the event stays given up")

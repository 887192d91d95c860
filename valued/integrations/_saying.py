"""Log lines of the integrations: one a minute of each kind, as in the rest of the library."""

from __future__ import annotations

import logging
import time
from typing import Final

#: Seconds between two lines of one kind.
QUIET: Final = 60.0

#: Kinds that are told apart, at most: they hold names of the application's.
MOST_KINDS: Final = 100

_said: Final[dict[str, float]] = {}  # each operation on it is atomic: threads need no lock


def say(message: str, *args: object) -> None:
    """Warn, unless this very line was logged within the last minute."""
    line = message % args
    kind = line if line in _said or len(_said) < MOST_KINDS else ""
    now = time.monotonic()
    if now - _said.get(kind, -QUIET) >= QUIET:
        _said[kind] = now
        logging.getLogger("valued").warning("%s", line)

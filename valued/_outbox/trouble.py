"""What is done about a disk that fails, and about damaged files: log it, go on, try again."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from valued._outbox.marks import new_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from valued._outbox.disk import Disk
    from valued._process.reporting import Reporter

#: Seconds until the disk is tried again after an error.
RETRY_INTERVAL: Final = 1.0


class Trouble:
    """Any thread may call; nothing raises an `Exception`. *folder*: for damaged files."""

    def __init__(
        self, folder: str, reporter: Reporter, disk: Disk, clock: Callable[[], float]
    ) -> None:
        self._folder = folder
        self._reporter = reporter
        self._disk = disk
        self._clock = clock
        self._resting_until = -RETRY_INTERVAL
        self._skipped: set[str] = set()  # damaged files that couldn't be set aside

    def is_resting(self) -> bool:
        """Whether the disk failed a moment ago, and isn't to be used now."""
        return self._clock() < self._resting_until

    def retry_at(self) -> float | None:
        """When the disk is tried again, by the clock; None: it may be used."""
        return self._resting_until if self.is_resting() else None

    def refuse(self, error: OSError) -> None:
        """The disk can't be used: go on in memory, and try again soon."""
        self._resting_until = self._clock() + RETRY_INTERVAL
        self._reporter.warn(
            "disk", "%d times the outbox could not be used, events wait in memory: %s", error
        )

    def set_aside(self, path: str) -> None:
        """Move a damaged file out of the way. Raises nothing."""
        if path in self._skipped:
            return
        folder, name = os.path.split(path)
        name = f"{os.path.basename(folder)}.{name[:100]}.{new_name()[:8]}"
        try:
            self._disk.rename(path, os.path.join(self._folder, name))
        except FileNotFoundError:
            return
        except OSError:
            self._skipped.add(path)
        self._reporter.warn(
            "set aside",
            "%d files of the outbox were damaged, and were set aside in %s",
            self._folder,
        )

    def is_skipped(self, path: str) -> bool:
        """Whether it is damaged, and couldn't be set aside."""
        return path in self._skipped

    def report_damage(self, places: int) -> None:
        """So many damaged parts of files were skipped."""
        if places:
            message = "%d places in the outbox are damaged, and were skipped"
            self._reporter.warn("damaged", message, count=places)

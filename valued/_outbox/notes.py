"""Writing down which events are settled: one small append for each, at once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from valued._outbox import records
from valued._outbox.disk import AppendFile, LeaseLostError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from valued._outbox.segments import Segment
    from valued._outbox.workspace import Workspace

#: How many files of notes are kept open; those of the other files are opened for each note.
OPEN_FILES: Final = 16


class Notes:
    """Any thread may call; nothing raises an `Exception`."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        # A thread takes a file out while it writes, so no other thread closes it meanwhile.
        self._open: dict[Segment, AppendFile] = {}  # the one that was used last comes last
        self._failed: dict[Segment, None] = {}  # with events that are not noted yet

    def settled(self, segment: Segment, number: int) -> None:
        """See `Journal.settled`."""
        if segment.removed:
            return
        try:
            self._write(segment, (number,))
        except OSError as error:
            with self._workspace.lock:
                segment.unnoted.append(number)
                self._failed[segment] = None
            self._workspace.trouble.refuse(error)

    def is_behind(self) -> bool:
        """Whether there are events to be noted."""
        return bool(self._failed)

    def catch_up(self) -> None:
        """Try again to note what could not be noted. Raises `OSError`."""
        for segment in list(self._failed):
            with self._workspace.lock:
                numbers, segment.unnoted = segment.unnoted, []
                self._failed.pop(segment, None)
            try:
                if not segment.removed:
                    self._write(segment, numbers)
            except BaseException:
                with self._workspace.lock:
                    segment.unnoted += numbers
                    self._failed[segment] = None
                raise

    def _write(self, segment: Segment, numbers: Iterable[int]) -> None:
        workspace = self._workspace
        record = records.encode_numbers(numbers, workspace.wall())
        with workspace.lock:
            file = self._open.pop(segment, None)
        try:
            if file is None:
                file = AppendFile(workspace.disk, segment.notes, os.O_CREAT)
            file.write(record)
        except (FileNotFoundError, LeaseLostError):
            # The directory was removed, or another process owns it by now. Its notes that were
            # removed by hand are begun again with the next event.
            self._close(file)
        except BaseException:
            self._close(file)
            raise
        else:
            self._keep(segment, file)

    def _keep(self, segment: Segment, file: AppendFile) -> None:
        superfluous: list[AppendFile | None] = []
        with self._workspace.lock:
            # Another thread may have opened it as well. After a hand-over it isn't kept open.
            if segment.removed or segment.lost:
                superfluous.append(file)
            else:
                superfluous.append(self._open.pop(segment, None))
                self._open[segment] = file
            while len(self._open) > OPEN_FILES:
                superfluous.append(self._open.pop(next(iter(self._open))))
        for one in superfluous:
            self._close(one)

    def close(self, segment: Segment) -> None:
        """Keep the notes of *segment* open no more."""
        with self._workspace.lock:
            file = self._open.pop(segment, None)
        self._close(file)

    @staticmethod
    def _close(file: AppendFile | None) -> None:
        if file is not None:
            file.close()

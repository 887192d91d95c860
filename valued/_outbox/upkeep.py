"""What is due from time to time: removing finished files, and keeping the directory small."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from valued._outbox.segments import BEGINNING, Segment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from valued._outbox.notes import Notes
    from valued._outbox.reader import Reader
    from valued._outbox.workspace import Ownership, Workspace

#: Seconds after which an event that is in a file, and that the pipeline doesn't know of, is taken
#: for one whose call was interrupted. A caller needs microseconds from the one to the other.
GRACE: Final = 10.0

#: How many files one step removes; with their directories they may take a millisecond each.
FILES: Final = 64

#: How many directories one step measures.
DIRECTORIES: Final = 256


class Removal:
    """Removes files whose events are all settled. One thread at a time may call."""

    def __init__(self, workspace: Workspace, notes: Notes, reader: Reader) -> None:
        self._workspace = workspace
        self._notes = notes
        self._reader = reader

    def due(self, owner: Ownership) -> list[Segment]:
        """The files to be looked at now. Looks at memory only."""
        found = []
        now = self._workspace.clock()
        for segment in owner.segments():
            seen = segment.surplus_since
            is_to_close = segment.sealed and not segment.writers and segment.file is not None
            is_done = segment.is_done() and (seen is None or now >= seen + GRACE)
            if is_to_close or (is_done and not self._reader.is_reading(segment)):
                found.append(segment)
        return found

    def next_due(self, owner: Ownership) -> float | None:
        """When a file is to be looked at again, by the clock."""
        seen = [
            segment.surplus_since
            for segment in owner.segments()
            if segment.surplus_since is not None
            and segment.is_done()
            and not self._reader.is_reading(segment)
        ]
        return min(seen) + GRACE if seen else None

    def remove(self, owner: Ownership, *, final: bool = False) -> None:
        """Remove what is due. *final*: nothing will be looked at again. Raises `OSError`."""
        due = self.due(owner)
        for segment in due if final else due[:FILES]:
            if segment.file is not None:
                segment.close()
            if not segment.is_done():
                continue
            if self._has_surplus(segment):
                if not final:
                    self._wait_or_adopt(owner, segment)
                continue
            self._notes.close(segment)
            self._workspace.remove(owner, segment)

    def _has_surplus(self, segment: Segment) -> bool:
        """Whether there are events in the file that the pipeline doesn't know of."""
        if segment.removed:
            return False
        try:
            size = self._workspace.disk.lstat(segment.path).st_size
        except FileNotFoundError:
            return False
        return size > len(BEGINNING) + segment.known + segment.waste

    def _wait_or_adopt(self, owner: Ownership, segment: Segment) -> None:
        """A caller was interrupted before the pipeline knew of its event, or it is just late."""
        workspace = self._workspace
        now = workspace.clock()
        if segment.surplus_since is None:
            segment.surplus_since = now
        if now < segment.surplus_since + GRACE:
            return
        # Read it like a file of another process: what is not settled will be delivered.
        again = Segment(segment.directory, segment.name)
        again.adopted = again.sealed = True
        again.counted = again.reported = False
        self._notes.close(segment)
        with workspace.lock:
            workspace.withdraw(owner, segment, "handed_over")
            segment.directory.segments[again] = None
            owner.uncounted.append(again)


class Bound:
    """Keeps the directory within its size. One thread at a time may call."""

    def __init__(self, workspace: Workspace, reader: Reader, max_size: int) -> None:
        self._workspace = workspace
        self._reader = reader
        self._max_size = max_size
        self._names: Iterator[str] | None = None
        self._total = 0

    def is_due(self) -> bool:
        """Whether there is something to measure."""
        return self._names is not None or self._workspace.size_is_due

    def advance(self, owner: Ownership, notes: Callable[[Segment], object]) -> None:
        """Measure some directories; after the last one, drop the oldest events if needed.

        *notes*: closes the notes of a file. Raises `OSError`.
        """
        workspace = self._workspace
        if self._names is None:
            workspace.size_is_due = False
            self._total = 0
            self._names = iter(workspace.disk.listdir(workspace.paths.events))
        for _ in range(DIRECTORIES):
            name = next(self._names, None)
            if name is None:
                self._names = None
                self._drop(owner, self._total - self._max_size, notes)
                return
            self._total += self._measure(os.path.join(workspace.paths.events, name))

    def _measure(self, path: str) -> int:
        disk = self._workspace.disk
        size = 0
        try:
            for name in disk.listdir(path):
                size += disk.lstat(os.path.join(path, name)).st_size
        except OSError:  # it changes hands meanwhile
            pass
        return size

    def _drop(self, owner: Ownership, excess: int, notes: Callable[[Segment], object]) -> None:
        workspace = self._workspace
        for segment in owner.segments():
            if excess <= 0:
                return
            with workspace.lock:
                is_used = segment.writers or not segment.sealed or not segment.counted
            if is_used or self._reader.is_reading(segment):
                continue
            excess -= len(BEGINNING) + segment.known
            notes(segment)
            workspace.remove(owner, segment, reason="size")

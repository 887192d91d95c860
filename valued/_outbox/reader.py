"""Reading events that are on the disk only: the overflow of this process, and claimed files."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from valued._outbox import records
from valued._outbox.disk import SHORTAGE, exists
from valued._outbox.records import Damage
from valued._outbox.segments import Batch, EventFile, Loaded

if TYPE_CHECKING:
    from valued._outbox.segments import Segment
    from valued._outbox.workspace import Workspace


class Reader:
    """Any thread may call; nothing raises an `Exception`."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._reading: Final = threading.Lock()  # never waited for
        self._batch: Batch | None = None  # read, and not confirmed yet

    def load(self, events: int, size: int) -> Batch | None:
        """See `Journal.load`."""
        if not self._reading.acquire(blocking=False):
            return None  # another thread reads
        try:
            batch = self._batch
            if batch is None or batch.file.lost:
                batch = self._batch = self._next(events, size)
            return batch
        except OSError as error:  # it is about this process, not about the file
            self._workspace.trouble.refuse(error)
            return None
        finally:
            self._reading.release()

    def loaded(self, batch: Batch) -> None:
        """See `Journal.loaded`."""
        batch.file.position = batch.position
        if self._batch is batch:
            self._batch = None

    def is_reading(self, segment: Segment) -> bool:
        """Whether events of *segment* were read, and are not confirmed yet."""
        batch = self._batch
        return batch is not None and batch.file is segment

    def _next(self, events: int, size: int) -> Batch | None:
        workspace = self._workspace
        for segment in list(workspace.vanished):
            if segment.unread > 0:
                return Batch(segment, (), segment.position, segment.unread)
        owner = workspace.owner
        if owner is None or workspace.trouble.is_resting():
            return None
        for segment in [*owner.spilled, *owner.claimed]:
            if segment.unread > 0 and (batch := self._read(segment, events, size)) is not None:
                return batch
        return None

    def _read(self, segment: Segment, events: int, size: int) -> Batch | None:
        """The next events of *segment*; None: there are none now. Raises `OSError`."""
        workspace = self._workspace
        with workspace.lock:  # before the file is read: what is unread now is in it
            unread, writing = segment.unread, segment.writers > 0
        try:
            batch, is_end = self._scan(segment, min(events, unread), size)
        except OSError as error:
            if segment.lost:  # handed over meanwhile
                return None
            if error.errno in SHORTAGE:
                raise
            if not exists(workspace.disk, segment.directory.path):
                workspace.lose(workspace.owner)
                return None
            if not isinstance(error, FileNotFoundError):
                with workspace.lock:  # what is written to it would be set aside, too
                    workspace.seal(workspace.owner, segment)
                workspace.trouble.set_aside(segment.path)
            batch, is_end, writing = Batch(segment, (), segment.position, 0), True, False
            segment.removed = True
        if is_end and not writing and len(batch.events) < unread:
            return batch._replace(missing=unread - len(batch.events))
        if not batch.events:  # all up to there is settled, or damaged
            segment.position = batch.position
            return None
        return batch

    def _scan(self, segment: Segment, events: int, size: int) -> tuple[Batch, bool]:
        found: list[Loaded] = []
        position = segment.position
        is_end = True
        with EventFile(self._workspace.disk, segment.path) as file:
            for record in file.scan(position):
                if isinstance(record, Damage):
                    # Its events are missing at the end, and are reported then.
                    if record.torn:  # or a thread is writing it
                        break
                elif record.kind == records.EVENT and record.number not in segment.skip:
                    found.append(Loaded(record.number, record.time, record.payload))
                    size -= len(record.payload)
                position = record.end
                if len(found) >= events or size <= 0:
                    is_end = False
                    break
        return Batch(segment, tuple(found), position, 0), is_end

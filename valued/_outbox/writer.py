"""Appending events: one write each, to the file that this process has open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from valued._outbox import records
from valued._outbox.disk import IncompleteWriteError, LeaseLostError, remove
from valued._outbox.marks import HEARTBEAT_INTERVAL
from valued._outbox.segments import Segment, Stored

if TYPE_CHECKING:
    from valued._outbox.disk import AppendFile
    from valued._outbox.workspace import Ownership, Workspace

#: Bytes after which a new file is begun: some thousands of events, so that few are read again
#: after a crash, and files are few.
SEGMENT_SIZE: Final = 4 * 1024 * 1024

#: How often a file is chosen for one event. More than once if another thread begins a file at the
#: same moment, or if the directory was taken over.
TRIES: Final = 5


class Writer:
    """Any thread may call; nothing raises an `Exception`, and nothing scans a directory."""

    def __init__(self, workspace: Workspace, segment_size: int) -> None:
        self._workspace = workspace
        self._segment_size = segment_size
        # Looked up once, since each event call uses them.
        self._lock = workspace.lock
        self._wall = workspace.wall

    def append(self, body: bytes, *, spill: bool) -> Stored | None:
        """See `Journal.append`."""
        workspace = self._workspace
        for _ in range(TRIES):
            wall = self._wall()
            with self._lock:
                owner = workspace.owner
                segment = None if owner is None else owner.current[spill]
                if segment is not None:
                    segment.writers += 1
            if owner is None or segment is None or self._is_to_change(owner, segment, wall):
                if segment is not None:
                    self._leave(segment, 0, 0)
                if not self._prepare(spill=spill):
                    return None
                continue
            number = next(owner.event_numbers)
            record = records.encode(records.EVENT, number, wall, body)
            try:
                return self._write(segment, record, number)
            except LeaseLostError:
                if not workspace.lose_file(owner, segment):
                    return None
            except OSError as error:
                with self._lock:  # or it would be written to again, and may fill the disk
                    workspace.seal(owner, segment)
                workspace.trouble.refuse(error)
                return None
        return None

    def _is_to_change(self, owner: Ownership, segment: Segment, wall: float) -> bool:
        """Whether there is something to do before *segment* is written to."""
        is_heartbeat_due = not 0 <= wall - owner.heartbeat_at < HEARTBEAT_INTERVAL
        return segment.written >= self._segment_size or is_heartbeat_due

    def _write(self, segment: Segment, record: bytes, number: int) -> Stored:
        """Write to *segment*, for which this thread is registered. Raises `OSError`."""
        written = waste = 0
        try:
            file = segment.file
            assert file is not None  # it is closed when no thread is registered
            file.write(record)
            written = len(record)
            if self._workspace.syncs:
                self._sync(file)
            return Stored(segment, number, written)
        except IncompleteWriteError as error:
            written = waste = error.written
            raise
        finally:
            self._leave(segment, written, waste)

    def _leave(self, segment: Segment, written: int, waste: int) -> None:
        with self._lock:
            segment.writers -= 1
            segment.written += written
            segment.waste += waste
            late = (segment.lost or segment.removed) and not segment.writers
        if late:  # handed over, or gone, meanwhile
            segment.close()

    def _sync(self, file: AppendFile) -> None:
        try:
            file.sync()
        except OSError as error:  # it may be on the disk all the same, and is written in any case
            self._workspace.trouble.refuse(error)

    def _prepare(self, *, spill: bool) -> bool:
        """Make sure that there is a file to write to; False: the disk can't be used now."""
        workspace = self._workspace
        if workspace.trouble.is_resting() or not workspace.token.is_current():
            return False
        owner = None
        try:
            owner = workspace.begin()
            if workspace.is_heartbeat_due(owner):
                workspace.heartbeat(owner)
            current = owner.current[spill]
            if current is None or current.written >= self._segment_size:
                self._rotate(owner, current, spill=spill)
        except LeaseLostError:
            workspace.lose(owner)
        except FileExistsError:
            # The names are unique. So a signal handler has forked within this call, and the child
            # has returned from it, too, and was faster: start over, with other names.
            pass
        except OSError as error:
            if owner is workspace.owner:
                workspace.trouble.refuse(error)
                return False
            # Else another thread has released the journal meanwhile: start over.
        return workspace.token.is_current()

    def _rotate(self, owner: Ownership, before: Segment | None, *, spill: bool) -> None:
        """Begin a new file instead of *before*."""
        workspace = self._workspace
        made = Segment(owner.own, f"{next(owner.file_numbers):010d}")
        try:
            made.create(workspace.disk)
        except FileNotFoundError as error:
            raise LeaseLostError(*error.args) from error
        try:
            workspace.sync_directory(owner.own.path)
        except BaseException:
            made.close()
            remove(workspace.disk, made.path)
            raise
        with self._lock:
            current = workspace.owner is owner and owner.current[spill] is before
            if current:
                owner.own.segments[made] = None
                owner.current[spill] = made
                if spill:
                    owner.spilled.append(made)
                if before is not None:
                    before.sealed = True
                    workspace.size_is_due = True
        if not current:  # another thread was faster
            made.close()
            remove(workspace.disk, made.path)

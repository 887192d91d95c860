"""The files that this process has open: events are appended, noted as settled, and read again.

Nothing here scans a directory, raises an `Exception`, or waits for another thread.
"""

from __future__ import annotations

import collections
import contextlib
import os
import threading
from typing import TYPE_CHECKING, Final

from valued._outbox import records
from valued._outbox.disk import (
    SHORTAGE,
    AppendFile,
    IncompleteWriteError,
    LeaseLostError,
    exists,
    remove,
)
from valued._outbox.records import Damage
from valued._outbox.segments import Batch, Loaded, Segment, Stored, read_events

if TYPE_CHECKING:
    from valued._outbox.segments import Ownership
    from valued._outbox.store import Store

#: Bytes after which a new file is begun: some thousands of events, so that few are read again
#: after a crash, and files are few.
SEGMENT_SIZE: Final = 4 * 1024 * 1024

#: How often a file is chosen for one event. More than once if another thread begins a file at the
#: same moment, or if the directory was taken over.
TRIES: Final = 5

#: How many files of notes are kept open; those of the other files are opened for each note.
OPEN_FILES: Final = 16


class Writer:
    """Appends events: one write each, to the file that this process has open."""

    def __init__(self, store: Store, segment_size: int) -> None:
        self._store = store
        self._segment_size = segment_size
        # Looked up once, since each event call uses them.
        self._lock = store.lock
        self._wall = store.wall

    def append(self, body: bytes, *, spill: bool) -> Stored | None:
        """See `Journal.append`."""
        store = self._store
        for _ in range(TRIES):
            wall = self._wall()
            with self._lock:
                owner = store.owner
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
                if not store.lose_file(owner, segment):
                    return None
            except OSError as error:
                with self._lock:  # or it would be written to again, and may fill the disk
                    owner.seal(segment)
                store.trouble.refuse(error)
                return None
        return None

    def _is_to_change(self, owner: Ownership, segment: Segment, wall: float) -> bool:
        """Whether there is something to do before *segment* is written to."""
        return segment.written >= self._segment_size or self._store.is_heartbeat_due(owner, wall)

    def _write(self, segment: Segment, record: bytes, number: int) -> Stored:
        """Write to *segment*, for which this thread is registered. Raises `OSError`."""
        written = waste = 0
        try:
            file = segment.file
            assert file is not None  # it is closed when no thread is registered
            file.write(record)
            written = len(record)
            if self._store.syncs:
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
            self._store.trouble.refuse(error)

    def _prepare(self, *, spill: bool) -> bool:
        """Make sure that there is a file to write to; False: the disk can't be used now."""
        store = self._store
        if store.trouble.is_resting() or not store.token.is_current():
            return False
        owner = None
        try:
            owner = store.begin()
            if store.is_heartbeat_due(owner, store.wall()):
                store.heartbeat(owner)
            current = owner.current[spill]
            if current is None or current.written >= self._segment_size:
                self._rotate(owner, current, spill=spill)
        except LeaseLostError:
            store.lose(owner)
        except FileExistsError:
            # The names are unique. So a signal handler has forked within this call, and the child
            # has returned from it, too, and was faster: start over, with other names.
            pass
        except OSError as error:
            if owner is store.owner:
                store.trouble.refuse(error)
                return False
            # Else another thread has released the journal meanwhile: start over.
        return store.token.is_current()

    def _rotate(self, owner: Ownership, before: Segment | None, *, spill: bool) -> None:
        """Begin a new file instead of *before*."""
        store = self._store
        made = Segment(owner.own, f"{next(owner.file_numbers):010d}")
        try:
            made.create(store.disk)
        except FileNotFoundError as error:
            raise LeaseLostError(*error.args) from error
        is_current = False
        try:
            store.sync_directory(owner.own.path)
            with self._lock:
                if store.owner is owner and owner.current[spill] is before:  # no other was faster
                    owner.own.segments[made] = None
                    owner.current[spill] = made
                    is_current = True
                    if spill:
                        store.spilled[made] = None
                    if before is not None:
                        before.sealed = True
                        store.size_is_due = True
        finally:
            if not is_current:
                made.close()
                remove(store.disk, made.path)


class Notes:
    """Writes down which events are settled: one small append for each, at once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # A thread takes a file out while it writes, so no other thread closes it meanwhile. At most
        # as many are open for a segment as threads wrote to it at once.
        self._open: dict[Segment, list[AppendFile]] = {}
        self._late: collections.deque[tuple[Segment, int]] = collections.deque()  # not noted yet

    def settled(self, segment: Segment, number: int) -> None:
        """See `Journal.settled`."""
        if segment.removed:
            return
        try:
            self._write(segment, number)
        except OSError as error:
            self._late.append((segment, number))
            self._store.trouble.refuse(error)

    def is_behind(self) -> bool:
        """Whether there are events to be noted."""
        return bool(self._late)

    def catch_up(self) -> None:
        """Try again to note what could not be noted. Raises `OSError`."""
        while self._late:
            segment, number = late = self._late[0]
            if not segment.removed:
                self._write(segment, number)
            # After an interruption, or by two threads, it is noted twice, which is harmless.
            with contextlib.suppress(ValueError):
                self._late.remove(late)

    def _write(self, segment: Segment, number: int) -> None:
        store = self._store
        record = records.encode_numbers((number,), store.wall())
        with store.lock:
            file = self._take(segment)
        is_kept = False
        try:
            if file is None:
                file = AppendFile(store.disk, segment.notes, os.O_CREAT)
            file.write(record)
            with store.lock:
                is_kept = (
                    sum(map(len, self._open.values())) < OPEN_FILES
                    and not segment.removed and not segment.lost  # handed over, or dropped
                )  # fmt: skip
                if is_kept:
                    self._open.setdefault(segment, []).append(file)
        except (FileNotFoundError, LeaseLostError):
            # The directory was removed, or another process owns it by now. Its notes that were
            # removed by hand are begun again with the next event.
            pass
        finally:
            if file is not None and not is_kept:
                file.close()

    def _take(self, segment: Segment) -> AppendFile | None:
        """Take out a file; None: none is open that no thread writes to. With the lock."""
        files = self._open.get(segment)
        return files.pop() if files else None

    def close(self, segment: Segment) -> None:
        """Keep the notes of *segment* open no more."""
        with self._store.lock:
            files = self._open.pop(segment, [])
        for file in files:
            file.close()


class Reader:
    """Reads events that are on the disk only: the overflow of this process, and claimed files."""

    def __init__(self, store: Store) -> None:
        self._store = store
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
            self._store.trouble.refuse(error)
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
        store = self._store
        owner = store.owner
        is_resting = store.trouble.is_resting()
        for segment in [*store.spilled, *store.claimed]:
            if segment.unread <= 0:
                continue
            if segment.removed:
                return Batch(segment, (), segment.position, segment.unread)
            if owner is None or is_resting or segment.directory not in owner.directories:
                continue
            batch = self._read(owner, segment, events, size)
            if batch is not None:
                return batch
        return None

    def _read(self, owner: Ownership, segment: Segment, events: int, size: int) -> Batch | None:
        """The next events of *segment*; None: there are none now. Raises `OSError`."""
        store = self._store
        with store.lock:  # before the file is read: what is unread now is in it
            unread, writing = segment.unread, segment.writers > 0
        try:
            batch, is_end = self._scan(segment, min(events, unread), size)
        except OSError as error:
            if segment.lost:  # handed over meanwhile
                return None
            if error.errno in SHORTAGE:
                raise
            if not exists(store.disk, segment.directory.path):
                store.lose(owner)
                return None
            if not isinstance(error, FileNotFoundError):
                with store.lock:  # what is written to it would be set aside, too
                    owner.seal(segment)
                store.trouble.set_aside(segment.path)
            batch, is_end, writing = Batch(segment, (), segment.position, 0), True, False
            segment.removed = True
        if is_end and not writing and len(batch.events) < unread:
            return batch._replace(missing=unread - len(batch.events))
        if not batch.events:  # all up to there is settled, or damaged
            segment.position = batch.position
            return None
        return batch

    def _scan(self, segment: Segment, events: int, size: int) -> tuple[Batch, bool]:
        """Its next events, and whether these are the last ones. Raises `OSError`."""
        found: list[Loaded] = []
        position = segment.position
        is_end = True
        for record in read_events(self._store.disk, segment.path, position):
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

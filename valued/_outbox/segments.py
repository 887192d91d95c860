"""Segments: the files of events, each with the notes of what is settled; and who owns them here."""

from __future__ import annotations

import collections
import contextlib
import errno
import itertools
import math
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from valued._outbox import records
from valued._outbox.disk import NEW, AppendFile, read_file, remove
from valued._outbox.owners import EVENTS, SETTLED
from valued._outbox.records import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from valued._outbox.disk import Disk
    from valued._outbox.records import Damage

#: The beginning of each file of events.
BEGINNING: Final = b"valued1\n"


class OwnedDirectory:
    """A directory of segments that this process owns."""

    __slots__ = ("origin", "path", "segments")

    def __init__(self, origin: str, path: str) -> None:
        self.origin: Final = origin
        self.path = path
        self.segments: dict[Segment, None] = {}  # those not removed, oldest first


class Segment:
    """One file of events. The first seven attributes are those that the pipeline counts in.

    The rest is guarded by the lock of the store.
    """

    __slots__ = (
        "adopted", "awaited", "counted", "directory", "file", "known", "look_at", "lost", "name",
        "origin", "position", "removed", "reported", "sealed", "skip", "unread", "unsettled",
        "waste", "writers", "written",
    )  # fmt: skip

    def __init__(self, directory: OwnedDirectory, name: str, *, adopted: bool = False) -> None:
        self.origin: Final = directory.origin
        self.unsettled = 0
        self.unread = 0
        self.known = 0
        self.adopted = adopted
        self.awaited = True
        self.lost = ""

        self.directory: Final = directory
        self.name: Final = name
        self.file: AppendFile | None = None  # while it is open for writing
        self.writers = 0  # threads that have chosen it, and have not written yet
        self.written = 0  # bytes that this process wrote to it
        self.waste = 0  # those of them that belong to incomplete records
        self.sealed = adopted  # whether no more threads may choose it
        self.removed = False  # whether there is no file any more
        self.counted = not adopted  # whether `unread` is right: it was read once
        self.reported = not adopted  # whether the pipeline knows it
        self.position = len(BEGINNING)  # up to which it was read
        self.skip: frozenset[int] = frozenset()  # settled before this process owned it
        self.look_at = -math.inf  # when it may be removed, by the clock, once all is settled

    @property
    def path(self) -> str:
        """The file of events."""
        return os.path.join(self.directory.path, self.name + EVENTS)

    @property
    def notes(self) -> str:
        """The file of what is settled."""
        return os.path.join(self.directory.path, self.name + SETTLED)

    def create(self, disk: Disk) -> None:
        """Make the file, open for writing. Raises `OSError`."""
        self.file = file = AppendFile(disk, self.path, NEW)
        try:
            file.write(BEGINNING)
        except BaseException:
            # Else it is its parent's.
            if file.is_current():  # pragma: no branch - no tool sees a frame after its fork
                remove(disk, self.path)
            self.close()
            raise

    def close(self) -> None:
        """Close the file, if it is open. Call it when no thread writes."""
        file, self.file = self.file, None
        if file is not None:
            file.close()

    def delete(self, disk: Disk, sync: Callable[[str], object]) -> None:
        """Remove both files. Raises `OSError`: the events are still there.

        The events first: a crash in between must not make settled ones unsettled. *sync*: called
        in between with the directory, so that a power failure doesn't undo the first removal only.
        """
        self.close()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            disk.unlink(self.path)
            sync(self.directory.path)
        self.removed = True
        remove(disk, self.notes)

    def is_done(self) -> bool:
        """Whether all its events that are known are settled, and none will be written."""
        return (
            self.sealed and self.counted and not self.writers
            and self.unread <= 0 and self.unsettled <= 0
        )  # fmt: skip


class Ownership:
    """What this process owns under one name, from its first event until all is handed over.

    Guarded by the lock of the store. It is detached from there with one assignment; from then on no
    other thread adds anything to it.
    """

    def __init__(self, name: str, directory: OwnedDirectory, now: float) -> None:
        self.name: Final = name
        self.own: Final = directory  # of the events that this process accepted
        self.directories: dict[OwnedDirectory, None] = {directory: None}
        #: Files to append to: for events that wait in memory, and for those on the disk only.
        self.current: list[Segment | None] = [None, None]
        self.uncounted: collections.deque[Segment] = collections.deque()  # claimed, not read yet
        self.heartbeat_at = now  # by the wall clock
        self.event_numbers: Final = itertools.count(1)
        self.file_numbers: Final = itertools.count(1)

    def segments(self) -> Iterator[Segment]:
        """All its files, oldest first: claimed ones, then its own. Some may go meanwhile."""
        claimed = [one for one in list(self.directories) if one is not self.own]
        for directory in (*claimed, self.own):
            yield from list(directory.segments)

    def seal(self, *segments: Segment | None) -> None:
        """No thread may choose these files any more."""
        for segment in segments:
            if segment is not None:
                segment.sealed = True
        self.current = [None if one in segments else one for one in self.current]


class Stored(NamedTuple):
    """Where an event was stored: the file, its number there, and how many bytes it takes."""

    file: Segment
    number: int
    size: int


class Loaded(NamedTuple):
    """An event that was read from a file; *accepted*: `time.time` when that was."""

    number: int
    accepted: float
    body: bytes


class Batch(NamedTuple):
    """Events that were read from one file, in their order."""

    file: Segment
    events: Sequence[Loaded]
    #: Where reading goes on.
    position: int
    #: Events that should be there and are not.
    missing: int


def read_events(disk: Disk, path: str, position: int = len(BEGINNING)) -> Iterator[Record | Damage]:
    """The records of a file of events, and its damaged parts. Raises `OSError` at once."""
    return records.scan(read_file(disk, path, position), position)


def check(disk: Disk, path: str, beginning: bytes = BEGINNING) -> None:
    """Raise `OSError` unless the file begins like that, as far as it goes."""
    if not beginning.startswith(read_file(disk, path)[: len(beginning)]):
        raise OSError(errno.EINVAL, "no file of an outbox", path)


def read_settled(disk: Disk, path: str) -> frozenset[int]:
    """The numbers in a file of what is settled; none if it doesn't exist. Raises `OSError`."""
    found: set[int] = set()
    try:
        for record in read_events(disk, path, 0):
            if isinstance(record, Record) and record.kind == records.SETTLED:
                found.update(records.decode_numbers(record))
        if not found:
            check(disk, path, records.MARKER)
    except FileNotFoundError:
        pass
    return frozenset(found)

"""Segments: the files of events, each with the notes of what is settled."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final, NamedTuple, final

from valued._outbox import records
from valued._outbox.disk import NEW, AppendFile, open_for_reading, remove
from valued._outbox.paths import EVENTS, SETTLED
from valued._outbox.records import Damage, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from valued._outbox.disk import Disk

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

    The rest is guarded by the lock of the workspace.
    """

    __slots__ = (
        "adopted", "awaited", "counted", "directory", "file", "inode", "known", "lost", "name",
        "origin", "position", "removed", "reported", "sealed", "skip", "surplus_since", "unnoted",
        "unread", "unsettled", "waste", "writers", "written",
    )  # fmt: skip

    def __init__(self, directory: OwnedDirectory, name: str) -> None:
        self.origin: Final = directory.origin
        self.unsettled = 0
        self.unread = 0
        self.known = 0
        self.adopted = False
        self.awaited = True
        self.lost = ""

        self.directory: Final = directory
        self.name: Final = name
        self.file: AppendFile | None = None  # while it is open for writing
        self.inode = 0  # 0: it was not looked at yet
        self.writers = 0  # threads that have chosen it, and have not written yet
        self.written = 0  # bytes that this process wrote to it
        self.waste = 0  # those of them that belong to incomplete records
        self.sealed = False  # whether no more threads may choose it
        self.removed = False  # whether there is no file any more
        self.counted = True  # whether `unread` is right: of a claimed file, when it was read once
        self.reported = True  # whether the pipeline knows it
        self.position = len(BEGINNING)  # up to which it was read
        self.skip: frozenset[int] = frozenset()  # settled before this process owned it
        self.unnoted: list[int] = []  # settled, and could not be written down yet
        self.surplus_since: float | None = None  # when it was first seen to have unknown events

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
        self.inode = file.inode
        try:
            file.write(BEGINNING)
        except BaseException:
            # Else it is its parent's.
            if file.is_current():  # pragma: no branch - no tool sees a frame after its fork
                remove(disk, self.path)
            self.close()
            raise

    def is_there(self, disk: Disk) -> bool:
        """Whether the file still has its name, and no other file has it."""
        if self.removed:
            return False
        try:
            return self.inode in (0, disk.lstat(self.path).st_ino)
        except OSError as error:
            return not isinstance(error, (FileNotFoundError, NotADirectoryError))

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


class BrokenFileError(OSError):
    """A file that contains no record, and doesn't begin as it should."""


@final
class EventFile:
    """A file of events, open for reading. A context manager. Raises `OSError`."""

    def __init__(self, disk: Disk, path: str) -> None:
        self._disk = disk
        self._path = path
        self._descriptor, status = open_for_reading(disk, path)
        self.size, self.inode = status.st_size, status.st_ino

    def __enter__(self) -> EventFile:
        return self

    def __exit__(self, *raised: object) -> None:
        self._disk.close(self._descriptor)

    def _read_at(self, count: int, position: int) -> bytes:
        return self._disk.pread(self._descriptor, count, position)

    def scan(self, position: int = len(BEGINNING)) -> Iterator[Record | Damage]:
        """The records from *position* on, and the damaged parts."""
        return records.scan(self._read_at, position, self.size)

    def check_beginning(self, beginning: bytes = BEGINNING) -> None:
        """Raise `BrokenFileError` unless it begins like that, as far as it goes."""
        if not beginning.startswith(self._read_at(len(beginning), 0)):
            raise BrokenFileError(f"{self._path} is no file of an outbox")


def read_settled(disk: Disk, path: str) -> frozenset[int]:
    """The numbers in a file of what is settled; none if it doesn't exist. Raises `OSError`."""
    found: set[int] = set()
    try:
        with EventFile(disk, path) as file:
            for record in file.scan(0):
                if isinstance(record, Record) and record.kind == records.SETTLED:
                    found.update(records.decode_numbers(record))
            if not found:
                file.check_beginning(records.MARKER)
    except FileNotFoundError:
        pass
    return frozenset(found)

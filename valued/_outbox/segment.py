"""Segments: the files that contain events. One process appends, the process that delivers reads."""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import sys
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from valued._outbox import records as _records
from valued._outbox.descriptors import APPEND, CLOSED, OWN, Calls, Descriptor
from valued._outbox.owners import EVENTS, NEW, PRIVATE, SETTLED
from valued._outbox.records import Damage, Record
from valued._process.fork import Birthplace

if sys.platform != "win32":
    import fcntl  # here, since no event call may import: see `holding_calls`

if TYPE_CHECKING:
    from collections.abc import Iterable

    from valued._outbox.owners import Owner

#: Bytes after which a new segment is begun: some thousands of events, so that few are read again
#: after a crash, and files are few.
SEGMENT: Final = 4 * 1024 * 1024

#: The beginning of each file.
BEGINNING: Final = b"valued1\n"


class RobbedError(OSError):
    """The segment doesn't belong to this process any more: its lease expired, or it was removed."""


class Holding:
    """A directory of segments that this process owns. Guarded by the outbox's lock."""

    __slots__ = ("_owner", "born", "in_flight", "origin", "parting", "path", "segments")

    def __init__(self, path: str, origin: str, owner: Owner | None) -> None:
        self.path: Final = path
        self.origin: Final = origin
        self._owner: Final = owner  # None: this process only reads
        self.born: Final = Birthplace()
        self.segments: dict[Segment, None] = {}  # those not removed, oldest first
        self.in_flight = 0  # its events that were taken, and are not settled or postponed
        self.parting = False  # whether it is being handed over to other processes

    @property
    def owner(self) -> Owner:
        """The owner: this process."""
        assert self._owner is not None
        return self._owner


class Backlog:
    """Segments still to be read, oldest first, and how many of their events are in memory."""

    __slots__ = ("busy", "loaded", "not_before", "segments")

    def __init__(self) -> None:
        self.segments: collections.deque[Segment] = collections.deque()
        self.loaded = 0
        self.busy = False  # whether a thread is reading
        self.not_before = 0.0  # when to try again, after a failure to read

    def wants(self, few: int, now: float) -> bool:
        """Whether to read on: at most *few* of its events are left in memory."""
        return (
            bool(self.segments) and self.loaded <= few and not self.busy and now >= self.not_before
        )


class Loaded(NamedTuple):
    """What was read of a segment, up to which position, and whether that was all so far."""

    records: list[Record]
    at_end: bool
    position: int
    damaged: int  # number of damaged parts that were skipped


class Segment:
    """One file of events, and how many of them are settled.

    The counts are guarded by the lock of the outbox. Methods that do I/O are called without it.
    """

    __slots__ = (
        "_base", "_calls", "_descriptor", "_opened", "_skip", "backlog", "begun", "closed", "gone",
        "holding", "loaded", "position", "settled", "size", "unrecorded", "writing",
    )  # fmt: skip

    _descriptor: Descriptor  # of one that is written to

    def __init__(self, holding: Holding, name: str, backlog: Backlog | None = None) -> None:
        self._base = os.path.join(holding.path, name)
        self.holding: Final = holding
        #: The backlog for which it is read; None: its events are in memory, too.
        self.backlog: Final = backlog
        self._calls: Calls | None = None
        self._opened: list[Descriptor] = []  # that one, and others that racing threads opened
        self.begun = 0  # how many events it contains, as far as this process knows
        #: Those that a thread is writing; added with the lock, and removed without it.
        self.writing: dict[object, None] = {}
        self.settled = 0
        self.unrecorded: list[int] = []  # numbers of settled events, not on the disk yet
        self.closed = False  # whether none will be added, and all that it contains are known
        self.gone = ""  # why its events must not be delivered any more
        self.size = 0  # of the file, as of the last look
        self.position = len(BEGINNING)  # up to which it was read
        self.loaded = 0  # events that were read from it
        self._skip: frozenset[int] | None = None  # settled by owners before this one

    # -- writing -----------------------------------------------------------------------------------

    def create(self, calls: Calls | None = None) -> None:
        """Make the file. *calls*: see `Descriptor`. Raises `OSError`."""
        self._calls = calls
        self._check_here()
        self._descriptor = descriptor = Descriptor(self._base + EVENTS, NEW, calls)
        self._opened.append(descriptor)
        try:
            # In two parts: if the second doesn't follow the first, appends do use the offset.
            written = descriptor.append(BEGINNING[:4]) + descriptor.append(BEGINNING[4:])
            if os.fstat(descriptor.number).st_size != written:
                problem = "this file system can't append as Linux does"
                raise OSError(errno.ENOTSUP, problem, self._base)
        except BaseException:  # from a signal handler, too
            self.remove()
            raise

    def append(self, record: bytes) -> None:
        """Write *record*. Raises `OSError`: it is missing or incomplete."""
        descriptor = self._descriptor
        try:
            written = descriptor.append(record)
        except OSError as error:
            if error.errno not in CLOSED:
                raise
            self._descriptor = another = self._reopened(descriptor)
            written = another.append(record)
        self.size += written

    def sync(self) -> None:
        """Wait until what was written is on the disk. Raises `OSError`."""
        number = self._descriptor.number
        if number >= 0:
            _sync(number)

    def _reopened(self, before: Descriptor) -> Descriptor:
        self._check_here()
        try:
            descriptor = Descriptor(self._base + EVENTS, 0, self._calls)
        except FileNotFoundError as error:
            raise RobbedError(*error.args) from error
        before.forget()
        with contextlib.suppress(ValueError):  # another thread was faster
            self._opened.remove(before)
        if descriptor.file != before.file:
            descriptor.close()
            raise RobbedError(errno.ESTALE, "another file has its name", self._base)
        self._opened.append(descriptor)
        return descriptor

    def _check_here(self) -> None:
        if not self.holding.born.is_here():
            # A signal handler has forked, and returns in the child.
            raise RobbedError(errno.EBADF, "it belongs to the parent process", self._base)

    def close(self) -> None:
        """Close all descriptors. Call it when no thread writes."""
        opened, self._opened = self._opened, []
        for descriptor in opened:
            descriptor.close()

    def record_settled(self, numbers: Iterable[int]) -> None:
        """Write down that these events are settled. Raises `OSError`."""
        record = _records.encode_numbers(numbers, time.time())
        descriptor = os.open(self._base + SETTLED, APPEND | os.O_CREAT, PRIVATE)
        try:
            written = os.write(descriptor, record)
        finally:
            os.close(descriptor)
        if written != len(record):  # a reader skips an incomplete record
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._base + SETTLED)

    def remove(self) -> None:
        """Remove the files. The events first: a crash in between must not make them unsettled."""
        self.close()
        for name in (EVENTS, SETTLED):
            with contextlib.suppress(OSError):
                os.unlink(self._base + name)

    # -- reading -----------------------------------------------------------------------------------

    def load(self, most: int, size: int) -> Loaded:
        """The next events that are not settled, from `position` on.

        At most *most* of them, and not many more bytes than *size*. Raises `OSError`.
        """
        if self._skip is None:
            self._skip = frozenset(self._read_settled())
        loaded: list[Record] = []
        position, damaged = self.position, 0
        try:
            descriptor = os.open(self._base + EVENTS, os.O_RDONLY | OWN)
        except FileNotFoundError:
            return Loaded(loaded, at_end=True, position=position, damaged=damaged)
        with open(descriptor, "rb", buffering=0) as file:
            self.size = os.fstat(descriptor).st_size
            for found in _records.read(file, position):
                if isinstance(found, Damage):
                    if found.torn:  # or a thread is writing it
                        break
                    damaged += 1
                elif found.kind == _records.EVENT and found.number not in self._skip:
                    loaded.append(found)
                    size -= len(found.payload)
                position = found.end
                if len(loaded) >= most or size <= 0:
                    return Loaded(loaded, at_end=False, position=position, damaged=damaged)
        return Loaded(loaded, at_end=True, position=position, damaged=damaged)

    def next(self, most: int, size: int) -> Loaded:
        """`load`, and move on: for reading without adopting."""
        found = self.load(most, size)
        self.position = found.position
        return found

    def _read_settled(self) -> Iterable[int]:
        try:
            descriptor = os.open(self._base + SETTLED, os.O_RDONLY | OWN)
        except FileNotFoundError:
            return
        with open(descriptor, "rb", buffering=0) as file:
            for found in _records.read(file):
                if isinstance(found, Record) and found.kind == _records.SETTLED:
                    yield from _records.decode_numbers(found)

    def count_unread(self) -> int:
        """Read the rest of the file, and return how many events that were."""
        count, at_end = 0, False
        with contextlib.suppress(OSError):
            while not at_end:
                found = self.next(1000, _records.CHUNK)
                count, at_end = count + len(found.records), found.at_end
        return count

    def length(self) -> int:
        """Bytes of the file; 0 if it doesn't exist."""
        try:
            return os.stat(self._base + EVENTS).st_size
        except OSError:
            return 0

    def unread(self) -> int:
        """How many of its events are not in memory yet; for a segment of a backlog."""
        return self.begun - len(self.writing) - self.loaded

    def is_finished(self) -> bool:
        """Whether all its events are settled, and none will be added."""
        return self.closed and not self.writing and self.settled == self.begun


def _sync(descriptor: int) -> None:
    if hasattr(fcntl, "F_FULLFSYNC"):  # pragma: no cover - macOS, where fsync stops at the drive
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(descriptor)


def sync_directory(path: str) -> None:
    """Make the names in a directory survive a power failure. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def segments_in(holding: Holding, backlog: Backlog) -> list[Segment]:
    """The segments of an adopted directory, oldest first. Raises `OSError`."""
    names = [name for name in os.listdir(holding.path) if name.endswith(EVENTS)]
    return [Segment(holding, name.removesuffix(EVENTS), backlog) for name in sorted(names)]


def remove_directory(directory: str) -> None:
    """Remove a directory whose segments are gone, with files that a crash may have left."""
    with contextlib.suppress(OSError):
        names = os.listdir(directory)
        if not any(name.endswith(EVENTS) for name in names):
            for name in names:
                if name.endswith(SETTLED):
                    os.unlink(os.path.join(directory, name))
            os.rmdir(directory)

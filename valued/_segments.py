"""Segments: the files that hold events, appended to by one process, read by whoever delivers."""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import sys
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from valued import _records
from valued._descriptors import APPEND, CLOSED, OWN, Calls, Descriptor
from valued._fork import Birthplace
from valued._owners import EVENTS, NEW, PRIVATE, SETTLED
from valued._records import Damage, Record

if sys.platform != "win32":
    import fcntl  # here, as no event call is to import: see `holding_calls`

if TYPE_CHECKING:
    from collections.abc import Iterable

    from valued._owners import Owner

#: Bytes after which a segment is followed by a new one: some thousands of events, so that few are
#: read again after a crash, and files are few.
SEGMENT: Final = 4 * 1024 * 1024

#: How each file begins.
BEGINNING: Final = b"valued1\n"


class RobbedError(OSError):
    """The segment is this process's no more: its lease ran out, or somebody removed it."""


class Holding:
    """A directory of segments that this process owns. Guarded as a segment's figures are."""

    __slots__ = ("_owner", "born", "in_flight", "origin", "parting", "path", "segments")

    def __init__(self, path: str, origin: str, owner: Owner | None) -> None:
        self.path: Final = path
        self.origin: Final = origin
        self._owner: Final = owner  # None: this process only looks
        self.born: Final = Birthplace()
        self.segments: dict[Segment, None] = {}  # those not removed, oldest first
        self.in_flight = 0  # events of it that were taken, and are not settled or postponed
        self.parting = False  # whether it is for others to deliver what is left

    @property
    def owner(self) -> Owner:
        """This process, as others see it."""
        assert self._owner is not None
        return self._owner


class Backlog:
    """Segments to be read, oldest first, and how many of their events are in memory."""

    __slots__ = ("busy", "loaded", "not_before", "segments")

    def __init__(self) -> None:
        self.segments: collections.deque[Segment] = collections.deque()
        self.loaded = 0
        self.busy = False  # whether a thread reads
        self.not_before = 0.0  # when to try again, after it could not be read

    def wants(self, few: int, now: float) -> bool:
        """Whether it is to be read on, as so *few* of its events are left in memory."""
        return (
            bool(self.segments) and self.loaded <= few and not self.busy and now >= self.not_before
        )


class Loaded(NamedTuple):
    """What was read of a segment: up to which place, and whether that was all up to now."""

    records: list[Record]
    at_end: bool
    position: int
    damaged: int  # places that were skipped


class Segment:
    """One file of events, and how many of them are settled.

    The figures are guarded by the lock of the outbox. What does I/O is called without it.
    """

    __slots__ = (
        "_base", "_calls", "_descriptor", "_opened", "_skip", "backlog", "begun", "closed", "gone",
        "holding", "loaded", "position", "settled", "size", "unrecorded", "writing",
    )  # fmt: skip

    _descriptor: Descriptor  # of one that is written to

    def __init__(self, holding: Holding, name: str, backlog: Backlog | None = None) -> None:
        self._base = os.path.join(holding.path, name)
        self.holding: Final = holding
        #: What it is read for; None: what is in it is in memory, too.
        self.backlog: Final = backlog
        self._calls: Calls | None = None
        self._opened: list[Descriptor] = []  # that one, and what else was: threads may meet there
        self.begun = 0  # events that are in it, as far as they are known to this process
        #: Those of them that a thread is writing; it is put in with the lock, and out without.
        self.writing: dict[object, None] = {}
        self.settled = 0
        self.unrecorded: list[int] = []  # numbers of settled events that it doesn't say of yet
        self.closed = False  # whether none will be added, and all that are in it are known
        self.gone = ""  # why its events are not to be delivered any more
        self.size = 0  # of the file, as of the last look
        self.position = len(BEGINNING)  # up to which it was read
        self.loaded = 0  # events that were read from it
        self._skip: frozenset[int] | None = None  # settled by owners before this one

    # -- writing -----------------------------------------------------------------------------------

    def create(self, calls: Calls | None = None) -> None:
        """Make the file, to be written by *calls* where others would run. Raises `OSError`."""
        self._calls = calls
        self._check_here()
        self._descriptor = descriptor = Descriptor(self._base + EVENTS, NEW, calls)
        self._opened.append(descriptor)
        try:
            # In two parts: where the second doesn't follow the first, appends do need their place.
            written = descriptor.append(BEGINNING[:4]) + descriptor.append(BEGINNING[4:])
            if os.fstat(descriptor.number).st_size != written:
                problem = "this file system can't append as Linux does"
                raise OSError(errno.ENOTSUP, problem, self._base)
        except BaseException:  # out of a signal handler, too
            self.remove()
            raise

    def append(self, record: bytes) -> None:
        """Write *record*. Raises `OSError`: it is not there, or not whole."""
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
        """Wait until the disk has what was written. Raises `OSError`."""
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
            raise RobbedError(errno.ESTALE, "another file is in its place", self._base)
        self._opened.append(descriptor)
        return descriptor

    def _check_here(self) -> None:
        if not self.holding.born.is_here():
            # A signal handler has forked, and comes back in the child.
            raise RobbedError(errno.EBADF, "it is the parent's", self._base)

    def close(self) -> None:
        """Close what is open; when no thread writes."""
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
        if written != len(record):  # what is there of it is skipped by who reads
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._base + SETTLED)

    def remove(self) -> None:
        """Remove the file: the events first, or they would all be there again after a crash."""
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
                    if found.torn:  # or being written
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
        """`load`, and go on behind that: for who only looks."""
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
        """How many events it holds that were not read yet, which they are by that."""
        count, at_end = 0, False
        with contextlib.suppress(OSError):
            while not at_end:
                found = self.next(1000, _records.CHUNK)
                count, at_end = count + len(found.records), found.at_end
        return count

    def length(self) -> int:
        """Bytes of the file; none if it is not there."""
        try:
            return os.stat(self._base + EVENTS).st_size
        except OSError:
            return 0

    def unread(self) -> int:
        """How many events are in it that are not in memory; of a segment to be read."""
        return self.begun - len(self.writing) - self.loaded

    def is_finished(self) -> bool:
        """Whether all that is in it is settled, and nothing will be added."""
        return self.closed and not self.writing and self.settled == self.begun


def _sync(descriptor: int) -> None:
    if hasattr(fcntl, "F_FULLFSYNC"):  # pragma: no cover - macOS, where fsync stops at the drive
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(descriptor)


def sync_directory(path: str) -> None:
    """Make the names in a directory outlive a failure of power. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def segments_in(holding: Holding, backlog: Backlog) -> list[Segment]:
    """The segments of a directory that was taken over, oldest first. Raises `OSError`."""
    names = [name for name in os.listdir(holding.path) if name.endswith(EVENTS)]
    return [Segment(holding, name.removesuffix(EVENTS), backlog) for name in sorted(names)]


def remove_directory(directory: str) -> None:
    """Remove a directory whose segments are gone, with what a crash may have left of them."""
    with contextlib.suppress(OSError):
        names = os.listdir(directory)
        if not any(name.endswith(EVENTS) for name in names):
            for name in names:
                if name.endswith(SETTLED):
                    os.unlink(os.path.join(directory, name))
            os.rmdir(directory)

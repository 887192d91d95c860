"""Files as the outbox uses them: opened without waiting, appended with one write, set aside.

All I/O goes through a `Disk`, which is `os` unless a test passes another one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from typing import TYPE_CHECKING, Final, Protocol

from valued._process.fork import PerProcess

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Set

#: Permissions: read and write, for the user only.
PRIVATE: Final = 0o600

# Windows has none of these; there this module is imported and not used. Opening a FIFO would wait
# for its other end, hence O_NONBLOCK; regular files ignore it.
_SAFELY: Final = (
    getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
)
READ: Final = os.O_RDONLY | _SAFELY
APPEND: Final = os.O_WRONLY | os.O_APPEND | _SAFELY
NEW: Final = os.O_CREAT | os.O_EXCL

#: Errors that are about this process, and say nothing about a file.
SHORTAGE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class Disk(Protocol):
    """The functions of `os` that the outbox uses."""

    def open(self, path: str, flags: int, mode: int = 0o777, /) -> int: ...
    def read(self, descriptor: int, count: int, /) -> bytes: ...
    def pread(self, descriptor: int, count: int, position: int, /) -> bytes: ...
    def write(self, descriptor: int, data: bytes, /) -> int: ...
    def close(self, descriptor: int, /) -> None: ...
    def fstat(self, descriptor: int, /) -> os.stat_result: ...
    def fsync(self, descriptor: int, /) -> None: ...
    def fdatasync(self, descriptor: int, /) -> None: ...
    def lstat(self, path: str, /) -> os.stat_result: ...
    def listdir(self, path: str, /) -> list[str]: ...
    def mkdir(self, path: str, mode: int = 0o777, /) -> None: ...
    def rmdir(self, path: str, /) -> None: ...
    def rename(self, source: str, target: str, /) -> None: ...
    def unlink(self, path: str, /) -> None: ...
    def utime(self, path: str, /) -> None: ...


class LeaseLostError(OSError):
    """The file doesn't belong to this process any more: its lease expired, or it was removed."""


class IncompleteWriteError(OSError):
    """Only a part of a record was written, *written* bytes: mostly the disk is full."""

    def __init__(self, path: str, written: int) -> None:
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        self.written = written


class AppendFile:
    """A file that this process appends to, each time with one write.

    The descriptor belongs to the process that opened it. Code that closes all descriptors may close
    it, and its number may be used again. So device and inode are compared before each write; where
    they differ, the file is opened again, and the number is neither used nor closed.

    *flags*: in addition to those for appending. Raises `OSError`. Any thread may call, without a
    lock, except for `close`: no thread may write then.
    """

    __slots__ = ("_disk", "_file", "_flags", "_numbers", "_path", "inode", "number")

    def __init__(self, disk: Disk, path: str, flags: int) -> None:
        files = _open.get()
        self._disk = disk
        self._path = path
        self.number = disk.open(path, flags | APPEND, PRIVATE)
        self._numbers = {self.number}  # that one, and others that racing threads opened
        try:
            status = disk.fstat(self.number)
        except BaseException:
            disk.close(self.number)
            raise
        self._file = status.st_ino, status.st_dev
        self.inode = status.st_ino
        files.add(self)
        if not self.is_current():  # pragma: no cover - no tool sees a frame after its fork
            self.close_numbers()
            raise self._other_process()

    def write(self, record: bytes) -> None:
        """Append. Raises `OSError`: *record* is missing or incomplete."""
        number = self.number
        try:
            status = self._disk.fstat(number)
        except OSError:  # other code closed it
            status = None
        if status is None or (status.st_ino, status.st_dev) != self._file:
            number = self._open_again(number)
        elif not status.st_nlink:
            raise LeaseLostError(errno.ENOENT, "it was removed", self._path)
        try:
            written = self._disk.write(number, record)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            # It was closed just now; or other code has the same file open there, for reading.
            written = self._disk.write(self._open_again(number), record)
        if written != len(record):  # a reader skips an incomplete record
            raise IncompleteWriteError(self._path, written)

    def sync(self) -> None:
        """Wait until what was written is on the disk. Raises `OSError`."""
        if hasattr(fcntl, "F_FULLFSYNC"):  # pragma: no cover - macOS, where fsync stops too early
            fcntl.fcntl(self.number, fcntl.F_FULLFSYNC)
        else:
            self._disk.fdatasync(self.number)

    def _open_again(self, closed: int) -> int:
        self._numbers.discard(closed)
        if not self.is_current():
            raise self._other_process()
        try:
            number = self._disk.open(self._path, APPEND, PRIVATE)
        except FileNotFoundError as error:
            raise LeaseLostError(*error.args) from error
        status = self._disk.fstat(number)
        if (status.st_ino, status.st_dev) != self._file:
            self._disk.close(number)
            raise LeaseLostError(errno.ESTALE, "another file has its name", self._path)
        self._numbers.add(number)
        self.number = number
        return number

    def is_current(self) -> bool:
        """Whether this process has it open.

        Else it is closed; or a signal handler has forked within a call that returns in the child.
        """
        return self in (_open.peek() or ())

    def _other_process(self) -> LeaseLostError:
        return LeaseLostError(errno.EBADF, "it belongs to another process", self._path)

    def close(self) -> None:
        """Close it. Raises nothing."""
        _open.get().discard(self)
        self.close_numbers()

    def close_numbers(self) -> None:
        """Close the descriptors that are still those of the file. Raises nothing."""
        numbers, self._numbers = self._numbers, set()
        self.number = -1
        for number in numbers:
            # An error: other code closed it; or it is closed, and an earlier write had failed.
            with contextlib.suppress(OSError):
                status = self._disk.fstat(number)
                if (status.st_ino, status.st_dev) == self._file:
                    self._disk.close(number)


def _close_inherited(files: Set[AppendFile]) -> None:
    for file in list(files):
        file.close_numbers()


# A child closes inherited descriptors: they would keep the parent's removed files on the disk.
_open: Final[PerProcess[set[AppendFile]]] = PerProcess(set, _close_inherited)


def open_for_reading(disk: Disk, path: str) -> tuple[int, os.stat_result]:
    """A descriptor of a regular file, and what `os.fstat` says of it. Raises `OSError`."""
    descriptor = disk.open(path, READ)
    try:
        status = disk.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
    except BaseException:
        disk.close(descriptor)
        raise
    return descriptor, status


def write_file(disk: Disk, path: str, content: bytes) -> None:
    """Make a new file. Raises `OSError`, and leaves none then."""
    descriptor = disk.open(path, NEW | APPEND, PRIVATE)
    try:
        try:
            written = disk.write(descriptor, content)
        finally:
            disk.close(descriptor)
        if written != len(content):
            raise IncompleteWriteError(path, written)
    except BaseException:
        remove(disk, path)
        raise


def append_once(disk: Disk, path: str, record: bytes) -> None:
    """Append to a file, made if needed, that isn't kept open. Raises `OSError`."""
    descriptor = disk.open(path, os.O_CREAT | APPEND, PRIVATE)
    try:
        written = disk.write(descriptor, record)
    finally:
        disk.close(descriptor)
    if written != len(record):
        raise IncompleteWriteError(path, written)


def remove(disk: Disk, path: str) -> None:
    """Remove a file, if it is there and can be removed. Raises nothing."""
    with contextlib.suppress(OSError):
        disk.unlink(path)


def exists(disk: Disk, path: str) -> bool:
    """Whether there is such a name. Raises `OSError` if this process can't look."""
    try:
        disk.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def sync_directory(disk: Disk, path: str) -> None:
    """Make the names in a directory survive a power failure. Raises `OSError`."""
    descriptor = disk.open(path, READ | getattr(os, "O_DIRECTORY", 0))
    try:
        disk.fsync(descriptor)
    finally:
        disk.close(descriptor)

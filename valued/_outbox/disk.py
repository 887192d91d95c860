"""Files as the outbox uses them: opened without waiting, appended with one write, set aside.

All I/O goes through a `Disk`, which is `os` unless a test passes another one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from typing import TYPE_CHECKING, Any, Final, Protocol

from valued._process.descriptors import move_up
from valued._process.fork import PerProcess

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Set

    from valued._process.reporting import Reporter

#: Permissions: read and write, for the user only.
PRIVATE: Final = 0o600

# Windows has none of these; there only the stats use this module. Opening a FIFO would wait
# for its other end, hence O_NONBLOCK; regular files ignore it.
_SAFELY: Final = (
    getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
)
READ: Final = os.O_RDONLY | _SAFELY
APPEND: Final = os.O_WRONLY | os.O_APPEND | _SAFELY
NEW: Final = os.O_CREAT | os.O_EXCL

#: Errors that are about this process, and say nothing about a file.
SHORTAGE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})

#: Bytes above which a file isn't one of the outbox: those have 4 MiB and one event at most. A file
#: is read as a whole.
LARGEST: Final = 256 * 1024 * 1024

#: Seconds until the disk is tried again after an error.
RETRY_INTERVAL: Final = 1.0


class OpeningDisk(Protocol):
    """The functions of `os` that `opened` uses."""

    def open(self, path: str, flags: int, mode: int = 0o777, /) -> int: ...
    def close(self, descriptor: int, /) -> None: ...
    def fstat(self, descriptor: int, /) -> os.stat_result: ...


class Disk(OpeningDisk, Protocol):
    """The functions of `os` that the outbox uses."""

    def pread(self, descriptor: int, count: int, position: int, /) -> bytes: ...
    def write(self, descriptor: int, data: bytes, /) -> int: ...
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


class Descriptor:
    """The *number* of something open, maybe of a *socket*. It is closed only while it is its own.

    Code that closes all descriptors may close it, and its number may be used again. So device and
    inode are compared. A child closes those that it inherits. Raises `OSError`.
    """

    __slots__ = ("_disk", "identity", "number", "socket")

    def __init__(self, disk: OpeningDisk, number: int, socket: Any = None) -> None:
        self._disk = disk
        self.number = number
        self.socket = socket
        try:
            status = disk.fstat(number)
        except BaseException:
            disk.close(number)
            raise
        self.identity = status.st_ino, status.st_dev
        _open.get().add(self)

    def is_there(self) -> bool:
        """Whether the number is still its own."""
        try:
            status = self._disk.fstat(self.number)
        except OSError:  # other code closed it
            return False
        return (status.st_ino, status.st_dev) == self.identity

    def forget(self) -> None:
        """Leave it open: the number is not its own any more."""
        _open.get().discard(self)

    def close(self) -> None:
        """Close it. Raises nothing."""
        try:
            self.close_number()
        finally:  # not before: a child that is forked in between closes it as well
            self.forget()

    def close_number(self) -> None:
        """Close it, in any process. Raises nothing."""
        if self.socket is not None:
            self.socket.detach()  # else it closes the number by itself, whatever that is by then
        # An error: other code closed it; or it is closed, and an earlier write had failed.
        with contextlib.suppress(OSError):
            is_its_own = True
            try:
                is_its_own = self.is_there()
            finally:  # a signal handler may raise in there
                if is_its_own:
                    self._disk.close(self.number)
        self.number = -1


def _close_inherited(descriptors: Set[Descriptor]) -> None:
    for descriptor in list(descriptors):
        descriptor.close_number()


# A child closes inherited descriptors: they would keep the parent's removed files on the disk.
_open: Final[PerProcess[set[Descriptor]]] = PerProcess(set, _close_inherited)


def open_file(disk: OpeningDisk, path: str, flags: int, mode: int = PRIVATE) -> Descriptor:
    """Open a file; to write, under a high number. Raises `OSError`."""
    number = disk.open(path, flags, mode)
    writes = disk is os and flags & (os.O_WRONLY | os.O_RDWR)
    descriptor = Descriptor(disk, move_up(number) if writes else number)
    if writes and sys.platform != "win32":  # there, the two may differ on a network drive
        try:
            named = os.lstat(path)
        except BaseException:  # it was removed in this instant, or a signal handler raised
            descriptor.close()
            raise
        if (named.st_ino, named.st_dev) != descriptor.identity:  # pragma: no cover - rare
            # Other code closed the number just now, and something else has it: it isn't ours.
            descriptor.forget()
            raise OSError(errno.EBADF, "other code closed it", path)
    return descriptor


@contextlib.contextmanager
def opened(
    disk: OpeningDisk, path: str, flags: int, mode: int = PRIVATE
) -> Generator[int, None, None]:
    """The number of a file that is open for a moment. Raises `OSError`."""
    descriptor = open_file(disk, path, flags, mode)
    try:
        yield descriptor.number
    finally:
        descriptor.close()


class AppendFile:
    """A file that this process appends to, each time with one write.

    If its descriptor was closed by other code, the file is opened again. *flags*: in addition to
    those for appending. Raises `OSError`. Any thread may call, without a lock, except for `close`:
    no thread may write then.
    """

    __slots__ = ("_all", "_descriptor", "_disk", "_made_in", "_path")

    def __init__(self, disk: Disk, path: str, flags: int) -> None:
        self._made_in = _open.get()  # the descriptors of this process: another one has others
        self._disk = disk
        self._path = path
        self._all: set[Descriptor] = set()  # several, if threads open it again together
        self._descriptor = self._open(flags)

    @property
    def number(self) -> int:
        """Of the descriptor."""
        return self._descriptor.number

    def write(self, record: bytes) -> None:
        """Append. Raises `OSError`: *record* is missing or incomplete."""
        descriptor = self._descriptor
        try:
            status = self._disk.fstat(descriptor.number)
        except OSError:  # other code closed it
            status = None
        if status is None or (status.st_ino, status.st_dev) != descriptor.identity:
            descriptor = self._open_again(descriptor)
        elif not status.st_nlink:
            raise LeaseLostError(errno.ENOENT, "it was removed", self._path)
        try:
            written = self._disk.write(descriptor.number, record)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            # It was closed just now; or other code has the same file open there, for reading.
            written = self._disk.write(self._open_again(descriptor).number, record)
        if written != len(record):  # a reader skips an incomplete record
            raise IncompleteWriteError(self._path, written)

    def sync(self) -> None:
        """Wait until what was written is on the disk. Raises `OSError`."""
        if hasattr(fcntl, "F_FULLFSYNC"):  # pragma: no cover - macOS, where fsync stops too early
            fcntl.fcntl(self.number, fcntl.F_FULLFSYNC)
        else:
            self._disk.fdatasync(self.number)

    def _open(self, flags: int) -> Descriptor:
        descriptor = open_file(self._disk, self._path, flags | APPEND)
        self._all.add(descriptor)
        if not self.is_current():  # pragma: no cover - no tool sees a frame after its fork
            self.close()
            raise self._other_process()
        return descriptor

    def _open_again(self, closed: Descriptor) -> Descriptor:
        self._all.discard(closed)
        closed.forget()
        if not self.is_current():
            raise self._other_process()
        try:
            descriptor = self._open(0)
        except FileNotFoundError as error:
            raise LeaseLostError(*error.args) from error
        if descriptor.identity != closed.identity:
            self._all.discard(descriptor)
            descriptor.close()
            raise LeaseLostError(errno.ESTALE, "another file has its name", self._path)
        self._descriptor = descriptor
        return descriptor

    def is_current(self) -> bool:
        """Whether this process made it.

        Else a signal handler has forked within a call that returns in the child, too.
        """
        return _open.peek() is self._made_in

    def _other_process(self) -> LeaseLostError:
        return LeaseLostError(errno.EBADF, "it belongs to another process", self._path)

    def close(self) -> None:
        """Close it. Raises nothing."""
        descriptors, self._all = self._all, set()
        for descriptor in descriptors:
            descriptor.close()


def read_file(disk: Disk, path: str, position: int = 0) -> bytes:
    """What a regular file has from *position* on. Raises `OSError`."""
    with opened(disk, path, READ) as number:
        status = disk.fstat(number)
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
            raise OSError(errno.EINVAL, "no file of an outbox", path)
        content = b""
        while more := disk.pread(number, max(0, status.st_size - position), position):
            content += more
            position += len(more)
    return content


def append(disk: Disk, path: str, record: bytes, flags: int = os.O_CREAT) -> None:
    """Append to a file that isn't kept open, made if needed. Raises `OSError`."""
    with opened(disk, path, flags | APPEND) as number:
        written = disk.write(number, record)
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
    with opened(disk, path, READ | getattr(os, "O_DIRECTORY", 0)) as number:
        disk.fsync(number)


class Trouble:
    """What is done about a disk that fails, and about damaged files: log it, go on, try again.

    Any thread may call; nothing raises an `Exception`. *folder*: for damaged files.
    """

    def __init__(
        self, folder: str, reporter: Reporter, disk: Disk, clock: Callable[[], float]
    ) -> None:
        self._folder = folder
        self._reporter = reporter
        self._disk = disk
        self._clock = clock
        self._resting_until = -RETRY_INTERVAL

    def is_resting(self) -> bool:
        """Whether the disk failed a moment ago, and isn't to be used now."""
        return self._clock() < self._resting_until

    def retry_at(self) -> float | None:
        """When the disk is tried again, by the clock; None: it may be used."""
        return self._resting_until if self.is_resting() else None

    def refuse(self, error: OSError) -> None:
        """The disk can't be used: go on in memory, and try again soon."""
        self._resting_until = self._clock() + RETRY_INTERVAL
        self._reporter.warn(
            "disk", "%d times the outbox could not be used, events wait in memory: %s", error
        )

    def set_aside(self, path: str) -> None:
        """Move a damaged file out of the way. Raises nothing; if it stays, each scan tries."""
        folder, name = os.path.split(path)
        name = f"{os.path.basename(folder)}.{name[:100]}.{os.urandom(4).hex()}"
        try:
            self._disk.rename(path, os.path.join(self._folder, name))
        except FileNotFoundError:
            return
        except OSError as error:
            message = "%d files of the outbox were damaged, and were not set aside: %s"
            self._reporter.warn("not set aside", message, error)
            return
        self._reporter.warn(
            "set aside",
            "%d files of the outbox were damaged, and were set aside in %s",
            self._folder,
        )

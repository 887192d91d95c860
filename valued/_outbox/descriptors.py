"""File descriptors for appending: each belongs to one process, and to one file.

An append is one ``write`` to a descriptor in append mode, so threads need no lock, and the written
bytes outlive the process. A descriptor belongs to the process that opened it. Code that closes all
descriptors may close it, and its number may be used again. So it is checked before each write. On
Linux the check uses the file offset, which appends neither use nor move there: it is set to a
random one of a trillion values, which no other descriptor has. Comparing inodes with ``fstat``
costs three times as much: after a file's times were read, the next change must write them.

A write takes a microsecond or two while it only goes to the system's cache. ``os.pwrite`` releases
the interpreter's lock meanwhile. If a thread waits for the lock, a worker that delivers for
example, it runs, and the caller of the event then has to wait for the lock: next to a busy worker
one call in a hundred took 170 us longer, and each event 20 us more CPU time, than with a write that
keeps the lock. So after slow writes the following ones are made by ctypes, which keeps the lock. If
those are slow too, the disk is slow, and the lock is released again, so that no thread has to wait.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import random
import sys
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from valued._outbox.owners import PRIVATE
from valued._process.fork import PerProcess

if TYPE_CHECKING:
    from collections.abc import Callable

#: Whether ``pwrite`` to a descriptor in append mode appends, and ignores its offset argument: Linux
#: documents that as a bug that will stay.
APPENDS_ANYWHERE: Final = sys.platform == "linux"

#: Bytes of a file offset, in a C library whose functions of these names take one of 64 bits.
LONG_PLACE: Final = 8

#: The random offsets are between this and twice this: sizes that each file system allows.
PLACES: Final = 2**40

#: A write that releases the lock is slow if it takes more seconds than this: some 50 times what it
#: takes if no thread waits for the lock.
LONG: Final = 100e-6

#: Seconds within which two of them must be slow. A single one means nothing: the machine ran
#: another process.
TWICE: Final = 0.1

#: A write that keeps the lock is slow if it takes more seconds than this: 200 times the usual. A
#: single one means nothing here either.
SLOW: Final = 500e-6

#: If two of so many writes are slow, the disk is slow.
NEAR: Final = 8

#: Seconds until either is measured again.
AGAIN: Final = 60.0

#: The errors of a write, or of reading the offset, if the number is closed or used by other code.
CLOSED: Final = frozenset({errno.EBADF, errno.ESPIPE})

# Windows has neither of these; there this module is imported and not used.
OWN: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
APPEND: Final = os.O_WRONLY | os.O_APPEND | OWN

# Looked up once, since each event call uses them.
_lseek: Final = os.lseek
_pwrite: Final[Callable[..., int]] = getattr(os, "pwrite", os.write)  # Windows has none
_monotonic: Final = time.monotonic


class Calls(NamedTuple):
    """``lseek`` and ``pwrite`` of the C library: they return -1 where they fail."""

    seek: Callable[[int, int, int], int]
    write: Callable[[int, bytes, int, int], int]


def holding_calls() -> Calls | None:
    """Calls that keep the interpreter's lock; None: they are not available, or not safe.

    It imports, for some milliseconds. So it is called when a client is made: a child that is forked
    while a thread imports a module can never import that module.
    """
    if not APPENDS_ANYWHERE:
        return None
    try:
        import ctypes

        if ctypes.sizeof(ctypes.c_long) != LONG_PLACE:
            return None
        library = ctypes.PyDLL(None)
        seek, write = library.lseek, library.pwrite
    except Exception:  # noqa: BLE001 - there may be no ctypes, or a hook may forbid it
        return None
    # No `argtypes`: converting them costs as much as the call. An int is passed as a C int, which
    # libffi widens if needed; bytes as their address.
    seek.restype, write.restype = ctypes.c_long, ctypes.c_ssize_t
    return Calls(seek, write)


class Descriptor:
    """A descriptor of this process, and the file for which it was opened.

    *flags*: in addition to those for appending. *calls*: for writes that keep the interpreter's
    lock. Raises `OSError`. Any thread may call, without a lock.
    """

    __slots__ = (
        "_calls", "_held_until", "_long_at", "_path", "_released_until", "_wary", "file", "number",
        "place",
    )  # fmt: skip

    def __init__(self, path: str, flags: int, calls: Calls | None) -> None:
        self.number = os.open(path, flags | APPEND, PRIVATE)  # -1: it was closed
        self._path = path
        status = os.fstat(self.number)
        self.file = status.st_ino, status.st_dev
        self.place = -1
        self._calls = calls
        self._long_at = -math.inf  # when the latest slow write with the lock released began
        self._wary = 0  # after a slow write: for how many more writes a slow one is the second
        self._held_until = 0.0
        self._released_until = 0.0
        if APPENDS_ANYWHERE:
            self.place = PLACES + random.SystemRandom().randrange(PLACES)
            os.lseek(self.number, self.place, os.SEEK_SET)
        _open.get().add(self)

    def append(self, record: bytes) -> int:
        """Append; returns how many bytes. Raises `OSError`: *record* is missing or incomplete.

        The errno is in `CLOSED` if the number isn't ours any more.
        """
        number, began = self.number, _monotonic()
        if began < self._held_until or self.place < 0:
            written = self._append_otherwise(record, began)
        elif _lseek(number, 0, 1) == self.place:
            written = _pwrite(number, record, 0)
            if _monotonic() - began > LONG:
                self._took_long(began)
        else:
            raise _strange()
        if written != len(record):  # a reader skips an incomplete record
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
        return written

    def _append_otherwise(self, record: bytes, began: float) -> int:
        if self.place < 0 or self._calls is None:
            if not self.is_ours():
                raise _strange()
            return os.write(self.number, record)
        seek, write = self._calls
        if seek(self.number, 0, 1) != self.place:
            raise _strange()
        written = write(self.number, record, len(record), 0)
        if self._wary or _monotonic() - began > SLOW:
            self._beware(began)
        if written < 0:
            return _pwrite(self.number, record, 0)  # for the exception
        return written

    def _took_long(self, began: float) -> None:
        before, self._long_at = self._long_at, began
        wanted = began - before < TWICE and began >= self._released_until
        if wanted and self._calls is not None:
            self._held_until = began + AGAIN

    def _beware(self, began: float) -> None:
        if _monotonic() - began <= SLOW:
            self._wary -= 1
        elif not self._wary:
            self._wary = NEAR
        else:
            self._wary = 0
            self._held_until, self._released_until = 0.0, began + AGAIN

    def is_ours(self) -> bool:
        """Whether the number still refers to the file. Raises nothing."""
        try:
            if self.place >= 0:
                return os.lseek(self.number, 0, os.SEEK_CUR) == self.place
            status = os.fstat(self.number)
        except OSError:  # other code closed it; or the number is a pipe or a socket by now
            return False
        return (status.st_ino, status.st_dev) == self.file

    def close(self) -> None:
        """Close it, if it is ours. Raises nothing."""
        self.forget()
        self.close_number()

    def forget(self) -> None:
        """Don't close it in children: other code closed it, and the number may be reused."""
        _open.get().discard(self)

    def close_number(self) -> None:
        """Close it, if it is ours, in a child that inherited it. Raises nothing."""
        if self.is_ours():
            number, self.number = self.number, -1
            with contextlib.suppress(OSError):  # an error of earlier writes; it is closed anyway
                os.close(number)


def _strange() -> OSError:
    return OSError(errno.EBADF, "the descriptor refers to another file")


def _close_inherited(descriptors: set[Descriptor]) -> None:
    for descriptor in list(descriptors):
        descriptor.close_number()


# A child closes inherited descriptors: they would keep the parent's removed files on the disk.
_open: Final[PerProcess[set[Descriptor]]] = PerProcess(set, _close_inherited)

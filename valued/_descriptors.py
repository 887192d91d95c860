"""Descriptors of files that are appended to: each belongs to one process, and to one file.

An append is one ``write`` to a descriptor in append mode, so threads need no lock, and what it has
written outlives the process. A descriptor belongs to the process that opened it. It may have been
closed by somebody who closes them all, and its number be used again; so before each write it is
compared with what was opened. On Linux that is done by the place that a descriptor stands at, which
appends there neither use nor move: it is set to a random one, of a trillion, that no stranger's
descriptor stands at. To compare inodes by ``fstat`` costs three times as much, since a file whose
times somebody looked at gets them written with the next change.

A write takes a microsecond or two, as long as it goes to the system's cache. ``os.pwrite`` lets
other threads of the interpreter run meanwhile. Where one waits for that, a worker that delivers for
example, it goes on, and the caller of the event waits for it in its turn: beside a busy worker one
call of a hundred took 170 us, and each event 20 us more of CPU time, than with a write that lets
nobody run. So where writes take long, those that follow are made by ctypes, which does not let the
interpreter go; and where such ones take long, too, it is the disk, and for that nobody else is made
to wait.
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

from valued._fork import PerProcess
from valued._owners import PRIVATE

if TYPE_CHECKING:
    from collections.abc import Callable

#: Whether ``pwrite`` to a descriptor in append mode appends, whatever place it is given: Linux
#: documents it as a bug that will stay.
APPENDS_ANYWHERE: Final = sys.platform == "linux"

#: Bytes of a place, in a C library that takes one of 64 bits by the names that are called here.
LONG_PLACE: Final = 8

#: Places of a descriptor are from here to twice as far: a size that each file system allows.
PLACES: Final = 2**40

#: Seconds of a write that let others run: some 50 times what it takes where nobody waits to.
LONG: Final = 100e-6

#: Seconds within which there are two of those: a single one is the machine's, which had another
#: process to run.
TWICE: Final = 0.1

#: Seconds of a write that let nobody run: 200 times what it takes. A single one is the machine's,
#: here too.
SLOW: Final = 500e-6

#: Writes within which two of those are the disk's.
NEAR: Final = 8

#: Seconds until either is found out anew.
AGAIN: Final = 60.0

#: What a write, or a look at its place, says of a number that is closed, or a stranger's.
CLOSED: Final = frozenset({errno.EBADF, errno.ESPIPE})

# Windows has neither of these, and there nothing of this is used, but imported.
OWN: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
APPEND: Final = os.O_WRONLY | os.O_APPEND | OWN

# Looked up once: an event call waits for them.
_lseek: Final = os.lseek
_pwrite: Final[Callable[..., int]] = getattr(os, "pwrite", os.write)  # Windows has none
_monotonic: Final = time.monotonic


class Calls(NamedTuple):
    """``lseek`` and ``pwrite`` of the C library: they return -1 where they fail."""

    seek: Callable[[int, int, int], int]
    write: Callable[[int, bytes, int, int], int]


def holding_calls() -> Calls | None:
    """Calls that let no other thread run; None: there are none that are sure to be right.

    It imports, for some milliseconds. So it is for who makes a client: a child that is forked while
    a thread imports can't import that ever.
    """
    if not APPENDS_ANYWHERE:
        return None
    try:
        import ctypes

        if ctypes.sizeof(ctypes.c_long) != LONG_PLACE:
            return None
        library = ctypes.PyDLL(None)
        seek, write = library.lseek, library.pwrite
    except Exception:  # noqa: BLE001 - there may be no ctypes, or a hook that forbids it
        return None
    # No `argtypes`: to convert them costs as much as the call. An int is passed as one of C, which
    # libffi extends to what is wider; bytes as their address.
    seek.restype, write.restype = ctypes.c_long, ctypes.c_ssize_t
    return Calls(seek, write)


class Descriptor:
    """A number of this process, and the file that it was opened for.

    *flags*: beside those for appending; *calls*: those by which it may be written to so that nobody
    runs. Raises `OSError`. Any thread may call, without a lock.
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
        self._long_at = -math.inf  # when the latest one began
        self._wary = 0  # for how many writes one that is slow is the second
        self._held_until = 0.0
        self._released_until = 0.0
        if APPENDS_ANYWHERE:
            self.place = PLACES + random.SystemRandom().randrange(PLACES)
            os.lseek(self.number, self.place, os.SEEK_SET)
        _open.get().add(self)

    def append(self, record: bytes) -> int:
        """Append; how many bytes. Raises `OSError`: it is not there, or not whole.

        That one is of `CLOSED` where the number is not ours any more.
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
        if written != len(record):  # what is there of it is skipped by who reads
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
        """Whether the number still stands for the file. Raises nothing."""
        try:
            if self.place >= 0:
                return os.lseek(self.number, 0, os.SEEK_CUR) == self.place
            status = os.fstat(self.number)
        except OSError:  # closed by somebody, or a stranger's pipe or socket
            return False
        return (status.st_ino, status.st_dev) == self.file

    def close(self) -> None:
        """Close it, if it is ours. Raises nothing."""
        self.forget()
        self.close_number()

    def forget(self) -> None:
        """It was closed by somebody: the number may be that of another one on the same file."""
        _open.get().discard(self)

    def close_number(self) -> None:
        """The same, in a child that inherited it."""
        if self.is_ours():
            number, self.number = self.number, -1
            with contextlib.suppress(OSError):  # what it says of earlier writes; it is closed
                os.close(number)


def _strange() -> OSError:
    return OSError(errno.EBADF, "the descriptor stands for something else")


def _close_inherited(descriptors: set[Descriptor]) -> None:
    for descriptor in list(descriptors):
        descriptor.close_number()


# A child closes what it inherited: that would keep files of its parent's alive that are removed.
_open: Final[PerProcess[set[Descriptor]]] = PerProcess(set, _close_inherited)

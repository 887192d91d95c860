"""A directory with the stats of each process of an application, and the totals of the dead.

===============================  ===================================================================
in the directory                 what
===============================  ===================================================================
``v1/stats/NAME/stats.json``     what one process wrote last; NAME is used once in the world
``v1/stats/totals.json``         the sums of dead processes, and their NAMEs as long as they are
                                 still there, so that none is counted twice
``v1/stats/lock``                locked while the dead are added to the totals
===============================  ===================================================================

No counter ever goes back. A process that dies while it adds to the totals has either replaced their
file or not; what is left of the dead is removed later by another one. A reader takes no lock: it
reads once more if the totals have changed meanwhile. Each process has a directory, and not a file,
since a listing may miss a file that is replaced at that moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any, Final, NamedTuple, Protocol

from valued._outbox.disk import OpeningDisk, opened
from valued._outbox.owners import (
    ALIVE,
    DEAD,
    ELSEWHERE,
    EXPIRED,
    LEASE,
    ProcessIdentity,
    SystemProcesses,
)
from valued._process.clock import CLOCK

if sys.platform != "win32":  # pragma: no branch - Windows
    import fcntl

#: The counts that only rise. All others are of one moment.
COUNTERS: Final = (
    "accepted", "delivered", "failed", "dropped", "retried", "adopted", "handed_over", "unsaved",
    "disabled", "invalid", "anonymous", "refused",
)  # fmt: skip

#: How often a reader begins once more, as the totals have changed meanwhile. They change when a
#: process has died.
TRIES: Final = 100


class Disk(OpeningDisk, Protocol):
    """The functions of `os` that change something."""

    def write(self, descriptor: int, data: bytes, /) -> int: ...
    def fsync(self, descriptor: int, /) -> None: ...
    def mkdir(self, path: str, mode: int = 0o777, /) -> None: ...
    def replace(self, source: str, target: str, /) -> None: ...
    def unlink(self, path: str, /) -> None: ...
    def rmdir(self, path: str, /) -> None: ...


class Written(NamedTuple):
    """What one process wrote last."""

    identity: ProcessIdentity
    #: The name of its program.
    command: str
    #: Seconds since the epoch.
    at: float
    #: Whether it wrote this at its end.
    ended: bool
    stats: dict[str, Any]
    #: When the oldest event that is pending was accepted, in seconds since the epoch.
    oldest: float | None
    error: str
    error_at: float | None


class Found(NamedTuple):
    """What all processes wrote."""

    totals: dict[str, Any]  # of those whose files are gone
    ended: int  # how many these are
    processes: dict[str, Written]  # by name


def no_stats() -> dict[str, Any]:
    """Counts that are all zero."""
    return {**dict.fromkeys(COUNTERS, 0), "pending": 0, "dropped_by_reason": {}}


def add(total: dict[str, Any], stats: dict[str, Any], *, pending: bool = False) -> None:
    """Add the counters of *stats* to *total*. *pending*: what is pending, too."""
    for name in (*COUNTERS, *(("pending",) if pending else ())):
        total[name] += int(stats.get(name, 0))
    reasons = total["dropped_by_reason"]
    for reason, count in stats["dropped_by_reason"].items():
        reasons[reason] = reasons.get(reason, 0) + int(count)


class StatusDirectory:
    """Any thread and any process may call. *disk*: another one is given by tests only."""

    def __init__(self, path: str, *, private: bool = False, disk: Disk = os) -> None:
        self.path = path
        self._mode = 0o700 if private else 0o777
        self._disk = disk
        self._stats = os.path.join(path, "v1", "stats")
        self._totals = os.path.join(self._stats, "totals.json")
        self._processes = SystemProcesses()

    # -- writing -----------------------------------------------------------------------------------

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Replace what the process *name* wrote before. Raises `OSError`."""
        path = os.path.join(self._stats, name, "stats.json")
        identity = self._processes.here()._asdict()
        data = json.dumps({"identity": identity, "at": CLOCK.wall(), **content}).encode()
        try:
            self._replace(path, data)
        except FileNotFoundError:  # it is the first time, or the directory was removed
            self._make(os.path.dirname(path))
            self._replace(path, data)

    def _replace(self, path: str, data: bytes) -> None:
        new = f"{path}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0)
        with opened(self._disk, new, flags, 0o666) as number:
            written = self._disk.write(number, data)
            if path == self._totals:  # the only place of what it counts: a power failure may come
                self._disk.fsync(number)
        if written != len(data):
            raise OSError(f"{new}: only a part was written; the disk may be full")
        self._disk.replace(new, path)

    def _make(self, path: str) -> None:
        above = os.path.dirname(path)
        if not os.path.isdir(above):
            self._make(above)
        with contextlib.suppress(FileExistsError):
            inside = path.startswith(self.path)
            self._disk.mkdir(path, self._mode if inside else 0o777)

    # -- reading -----------------------------------------------------------------------------------

    def read(self) -> Found:
        """What all processes wrote. Raises `OSError` if it can't look."""
        before = self._read(self._totals)
        for _ in range(TRIES):  # pragma: no branch - it ends by a return
            totals, ended, names = _totals_of(before)
            processes = self._written(besides=names)
            after = self._read(self._totals)
            if after == before:
                break
            before = after
        return Found(totals, ended, processes)

    def _written(self, besides: set[str]) -> dict[str, Written]:
        found = {}
        for name in self._names():
            written = None if name in besides else self._written_by(name)
            if written is not None:
                found[name] = written
        return found

    def _names(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return sorted(
                name for name in os.listdir(self._stats) if "." not in name and "-" in name
            )
        return []

    def _written_by(self, name: str) -> Written | None:
        """What a process wrote; None: nothing that this user can read. Raises other `OSError`."""
        # After another error, such as too many open files, it would look as if it had counted
        # nothing: counters went back.
        with contextlib.suppress(PermissionError, NotADirectoryError, IsADirectoryError):
            return _written_of(self._read(os.path.join(self._stats, name, "stats.json")))
        return None

    def _read(self, path: str) -> bytes:
        """What a file holds; empty if there is none."""
        try:
            with open(path, "rb") as file:
                return file.read()
        except FileNotFoundError:
            return b""

    def state(self, written: Written) -> str:
        """The state of a process."""
        try:
            alive = self._processes.is_alive(written.identity)
        except OSError:  # it is there; or, as the system refuses to tell, may be
            return ALIVE
        if alive is None:
            is_late = CLOCK.wall() - written.at > LEASE
            return DEAD if written.ended and is_late else EXPIRED if is_late else ELSEWHERE
        return ALIVE if alive else DEAD

    # -- the dead ----------------------------------------------------------------------------------

    def fold(self) -> None:
        """Add the counters of dead processes to the totals, and remove what they wrote.

        Does nothing if another process does so at this moment, for another user, who could lock
        the owner out, and on Windows. Raises `OSError`.
        """
        if sys.platform == "win32":  # pragma: no cover - Windows; readers add up all files
            return
        if not os.path.isdir(self._stats) or os.stat(self._stats).st_uid != os.geteuid():
            return
        path = os.path.join(self._stats, "lock")
        with (
            opened(self._disk, path, os.O_RDWR | os.O_CREAT, 0o666) as lock,
            contextlib.suppress(BlockingIOError),
        ):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                self._fold()
            finally:
                # A child that is forked meanwhile by C code has the same lock, and keeps it.
                fcntl.flock(lock, fcntl.LOCK_UN)

    def _fold(self) -> None:
        totals, ended, counted = _totals_of(self._read(self._totals))
        there = set(self._names())
        dead: dict[str, Written] = {}
        for name in there - counted:
            written = self._written_by(name)
            if written is None:
                self._remove_empty(name)
            elif self.state(written) == DEAD:
                # Once more: it may have written again before it died.
                dead[name] = self._written_by(name) or written
        if dead:
            for written in dead.values():
                add(totals, written.stats)
            counted = (counted & there) | dead.keys()
            content = {"stats": totals, "ended": ended + len(dead), "names": sorted(counted)}
            self._replace(self._totals, json.dumps(content).encode())
        for name in counted & there:
            self._remove(name)

    def _remove(self, name: str) -> None:
        folder = os.path.join(self._stats, name)
        for file in ("stats.json", "stats.json.new"):
            with contextlib.suppress(FileNotFoundError):
                self._disk.unlink(os.path.join(folder, file))
        self._disk.rmdir(folder)

    def _remove_empty(self, name: str) -> None:
        """Remove what a process left that died before it had written anything."""
        with contextlib.suppress(OSError):
            self._read(os.path.join(self._stats, name, "stats.json"))  # else it isn't for this user
            if CLOCK.wall() - os.stat(os.path.join(self._stats, name)).st_mtime > LEASE:
                self._remove(name)


def _totals_of(data: bytes) -> tuple[dict[str, Any], int, set[str]]:
    """The totals, of how many processes, and the names of those that may still be there."""
    totals = no_stats()
    try:
        content = json.loads(data)
        add(totals, content["stats"])
        return totals, int(content["ended"]), set(content["names"])
    except (ValueError, TypeError, KeyError, AttributeError):  # none yet, or damaged
        return no_stats(), 0, set()


def _written_of(data: bytes) -> Written | None:
    """What a process wrote; None: nothing that can be read."""
    try:
        content = json.loads(data)
        # Without what a later version may add.
        identity = ProcessIdentity(*(content["identity"][it] for it in ProcessIdentity._fields))
        written = Written(identity, *(content[it] for it in Written._fields[1:]))
        add(no_stats(), written.stats, pending=True)
        _ = int(identity.pid), float(written.at), float(written.oldest or 0)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return written

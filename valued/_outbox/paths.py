"""The directory of an outbox, and the paths in it.

=====================================  =============================================================
in the directory                       what
=====================================  =============================================================
``v1/owners/OWNER``                    the mark of a process; its heartbeat touches the mark once a
                                       minute while it has events (the lease is ten minutes)
``v1/events/ORIGIN.OWNER/``            files of events that ORIGIN accepted and OWNER delivers;
                                       OWNER is ``unclaimed`` after they were handed over
``v1/events/…/NNNN.events``            accepted events, as records
``v1/events/…/NNNN.settled``           the numbers of those that are settled
``v1/rejected/``                       events that the service refused permanently
``v1/damaged/``                        files that can't be read, set aside
=====================================  =============================================================
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from valued._outbox.disk import Disk

#: The owner in the name of a directory that was handed over: any process may claim it.
UNCLAIMED: Final = "unclaimed"

#: The endings of the names of the two files of a segment.
EVENTS: Final = ".events"
SETTLED: Final = ".settled"

#: Permissions of a directory: for the user only.
_OWN: Final = 0o700


class OutboxPaths:
    """The paths in an outbox. Creates nothing before `make`."""

    def __init__(self, path: str) -> None:
        self.path: Final = path
        self.owners: Final = os.path.join(path, "v1", "owners")
        self.events: Final = os.path.join(path, "v1", "events")
        self.rejected: Final = os.path.join(path, "v1", "rejected")
        self.damaged: Final = os.path.join(path, "v1", "damaged")

    def directories(self) -> tuple[str, ...]:
        """All directories, each before those in it."""
        inside = self.owners, self.events, self.rejected, self.damaged
        return self.path, os.path.dirname(self.owners), *inside

    def mark(self, owner: str) -> str:
        """The mark of *owner*."""
        return os.path.join(self.owners, owner)

    def owned(self, origin: str, owner: str) -> str:
        """The directory of the events that *origin* accepted, while *owner* owns them."""
        return os.path.join(self.events, f"{origin}.{owner}")

    def above(self) -> list[str]:
        """The parent directories, from the nearest up to the first one that exists."""
        above = [os.path.dirname(self.path)]
        while not os.path.lexists(above[-1]):
            above.append(os.path.dirname(above[-1]))
        return above

    def make(self, disk: Disk) -> None:
        """Create the missing directories, for this user only. Raises `OSError`."""
        for path in reversed(self.above()[:-1]):
            with contextlib.suppress(FileExistsError):
                disk.mkdir(path, 0o777)
        for path in self.directories():
            with contextlib.suppress(FileExistsError):
                disk.mkdir(path, _OWN)
            if problem := _directory_problem(disk, path):
                raise NotADirectoryError(f"{path}: {problem}")

    def problems(self) -> list[str]:
        """Why this process can't use the directory, and how to fix it."""
        problem = _directory_problem(os, self.path)
        if problem is None and os.path.lexists(self.path):
            problem = _writable_problem(self.path)
        elif problem is None:
            above = self.above()[-1]
            if not os.path.isdir(above):
                problem = f"{above} is not a directory; choose another place"
            else:
                problem = _writable_problem(above)
        return [] if problem is None else [f"outbox: {self.path}: {problem}"]


def split(name: str) -> tuple[str, str] | None:
    """Origin and owner in the name of a directory of events; None: it isn't one."""
    origin, _, owner = name.partition(".")
    return (origin, owner) if origin and owner else None


def _directory_problem(disk: Disk, path: str) -> str | None:
    try:
        status = disk.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{error.strerror}; choose another place"
    if stat.S_ISLNK(status.st_mode):
        return "a symbolic link, which is not followed; give the path that it points to"
    if not stat.S_ISDIR(status.st_mode):
        return "not a directory; move it away, or choose another place"
    if status.st_uid != os.geteuid():
        return (
            f"it belongs to the user {status.st_uid}, this process is {os.geteuid()}; change its "
            "owner, or give each user a directory"
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        return f"it is open to others (mode {mode:04o}); events are private: chmod 0700"
    return None


def _writable_problem(path: str) -> str | None:
    if os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=_BY_EFFECTIVE_IDS):
        return None
    read_only = os.statvfs(path).f_flag & os.ST_RDONLY
    if read_only:
        return "its file system is mounted read-only; choose another place, or mount it for writing"
    return f"this process may not write in {path}; change its mode or owner, or choose another"


_BY_EFFECTIVE_IDS: Final = os.access in os.supports_effective_ids

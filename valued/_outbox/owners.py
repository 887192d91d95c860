"""Owners of an outbox directory: who owns which events, who is alive, and how events are claimed.

=====================================  =============================================================
in the directory                       what
=====================================  =============================================================
``v1/owners/OWNER``                    the mark of a process; its heartbeat touches the mark once a
                                       minute while it has events (the lease is ten minutes)
``v1/events/ORIGIN.OWNER/``            segments with events that ORIGIN accepted and OWNER delivers;
                                       OWNER is ``unclaimed`` after they were handed over
``v1/rejected/``                       events that the service refused permanently
=====================================  =============================================================

An owner is dead when its process is dead. The start time of the process tells a reused pid apart. A
process that can't be seen from here, on another host or in another container, counts as dead when
its lease has expired. A claim is one ``rename`` of the directory of segments, so only one of all
claiming processes gets it. An owner that slept longer than its lease checks that its directory is
still there before it goes on.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from valued._process.fork import Mark, PerProcess, lives

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Seconds after its last heartbeat in which an owner that can't be seen keeps its events. Longer
#: than the usual pauses of a machine, short for events that may be seven days old.
LEASE: Final = 600.0

#: Seconds between two heartbeats; a tenth of the lease, so that nine may fail.
BEAT: Final = 60.0

#: The owner in the name of a directory that was handed over: any process may claim it.
UNCLAIMED: Final = "unclaimed"

#: Permissions: read and write, for the user only.
PRIVATE: Final = 0o600

#: The endings of the names of a segment's files: accepted events, and which of them are settled.
EVENTS: Final = ".events"
SETTLED: Final = ".settled"

NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL


class Place:
    """The directory of an outbox, and the paths in it. Creates nothing before `make`."""

    def __init__(self, path: str) -> None:
        self.path: Final = path
        self.owners: Final = os.path.join(path, "v1", "owners")
        self.events: Final = os.path.join(path, "v1", "events")
        self.rejected: Final = os.path.join(path, "v1", "rejected")

    def directories(self) -> tuple[str, ...]:
        """All directories, each before those in it."""
        inside = self.owners, self.events, self.rejected
        return self.path, os.path.dirname(self.owners), *inside

    def holding(self, origin: str, owner: str) -> str:
        """The directory of the segments that *origin* accepted, while *owner* owns them."""
        return os.path.join(self.events, f"{origin}.{owner}")

    def above(self) -> list[str]:
        """The parent directories, from the nearest up to the first one that exists."""
        above = [os.path.dirname(self.path)]
        while not os.path.lexists(above[-1]):
            above.append(os.path.dirname(above[-1]))
        return above

    def make(self) -> None:
        """Create the missing directories, for this user only. Raises `OSError`."""
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        for path in self.directories():
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            if problem := _directory_problem(path):
                raise NotADirectoryError(f"{path}: {problem}")

    def problems(self) -> list[str]:
        """Why this process can't use the directory, and how to fix it."""
        problem = _directory_problem(self.path)
        if problem is None and os.path.lexists(self.path):
            problem = _writable_problem(self.path)
        elif problem is None:
            above = self.above()[-1]
            if not os.path.isdir(above):
                problem = f"{above} is not a directory; choose another place"
            else:
                problem = _writable_problem(above)
        return [] if problem is None else [f"outbox: {self.path}: {problem}"]


def _directory_problem(path: str) -> str | None:
    try:
        status = os.lstat(path)
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


#: The owner names of this process. A mark with its pid and another name was made before an
#: ``exec`` replaced the program.
_names: Final[PerProcess[set[str]]] = PerProcess(set)


class Owner:
    """This process as an owner: its name, its mark, its heartbeat."""

    def __init__(self, place: Place, name: str) -> None:
        """Create the mark. Raises `OSError`."""
        self.name: Final = name
        self._mark = os.path.join(place.owners, name)
        _names.get().add(name)
        self._write()

    def _write(self) -> None:
        content = json.dumps({**Mark.of_this_process()._asdict(), "lease": LEASE}).encode()
        descriptor = os.open(self._mark, NEW | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE)
        try:
            if os.write(descriptor, content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._mark)
        except OSError:
            self.leave()
            raise
        finally:
            os.close(descriptor)

    def beat(self) -> float:
        """Touch the mark (the heartbeat). Returns the file system's time. Raises `OSError`.

        If the mark was removed, by a clean-up of old files for example, it is created again: the
        names of the directories show what this owner owns.
        """
        try:
            os.utime(self._mark)
        except FileNotFoundError:
            self._write()
        return os.stat(self._mark).st_mtime

    def leave(self) -> None:
        """Remove the mark: this owner owns nothing any more."""
        _names.get().discard(self.name)
        with contextlib.suppress(OSError):
            os.unlink(self._mark)


class Left(NamedTuple):
    """A directory of segments, and its owner."""

    origin: str
    owner: str
    path: str


#: The states of an owner: it is alive; it is dead; it can't be seen from here and its lease is
#: valid; it can't be seen from here and its lease has expired.
ALIVE: Final = "alive"
DEAD: Final = "dead"
ELSEWHERE: Final = "elsewhere"
EXPIRED: Final = "expired"


def state(place: Place, owner: str, path: str, now: float) -> str:
    """The state of *owner*, whose segments are at *path*; *now*: by the file system's clock."""
    if owner == UNCLAIMED:
        return DEAD
    mark = os.path.join(place.owners, owner)
    content = read_mark(mark)
    if content is None:
        # Not completely written, or removed by hand: only the age is known.
        return EXPIRED if now - _changed(mark, path) > LEASE else ELSEWHERE
    if content[0] == Mark.of_this_process():
        return ALIVE if is_here(owner) else DEAD
    try:
        alive = lives(content[0])
    except PermissionError:  # the pid exists; whether it is the same process can't be read
        return ALIVE
    if alive is None:
        return EXPIRED if now - _changed(mark, path) > content[1] else ELSEWHERE
    return ALIVE if alive else DEAD


def is_here(owner: str) -> bool:
    """Whether *owner* is this process, with this client or with another one."""
    return owner in _names.get()


#: Errors that are about this process, and say nothing about the mark.
_HERE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO})


def read_mark(path: str) -> tuple[Mark, float] | None:
    """The process of a mark, and its lease in seconds; None: it isn't a valid mark.

    Raises `OSError` if it may be valid and this process can't read it now.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content: dict[str, Any] = json.loads(file.read(4096))
        lease = float(content["lease"])
        mark = Mark(**{name: content[name] for name in Mark._fields})
    except OSError as error:
        if error.errno in _HERE:
            raise
        return None
    except (ValueError, TypeError, KeyError):
        return None
    return (mark, lease) if isinstance(mark.pid, int) else None


def _changed(*paths: str) -> float:
    """When the first of *paths* that exists was changed; now, if none exists."""
    for path in paths:
        with contextlib.suppress(OSError):
            return os.lstat(path).st_mtime
    return time.time()


def all_left(place: Place) -> Iterator[Left]:
    """The directories of segments, of all owners, sorted by name.

    Raises `OSError` if this process can't look. There are none if *place* doesn't exist.
    """
    try:
        names = sorted(os.listdir(place.events))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        origin, dot, owner = name.partition(".")
        if dot and origin and owner:
            yield Left(origin, owner, os.path.join(place.events, name))


def claim(place: Place, left: Left, owner: str) -> bool:
    """Claim *left* for *owner*; False: another owner did, or it is gone. Raises `OSError`."""
    try:
        os.rename(left.path, place.holding(left.origin, owner))
    except FileNotFoundError:
        return False
    return True


def release(left: Left) -> None:
    """Hand *left* over to other processes, although its owner lives."""
    parent = os.path.dirname(left.path)
    with contextlib.suppress(OSError):
        os.rename(left.path, os.path.join(parent, f"{left.origin}.{UNCLAIMED}"))


def sweep(place: Place, now: float) -> int:
    """Remove the marks of dead owners that own nothing.

    Returns how many marks of other processes are left. Raises `OSError`.
    """
    owning = {left.owner for left in all_left(place)}
    gone = []
    others = 0
    for name in os.listdir(place.owners):
        mark = os.path.join(place.owners, name)
        found = ALIVE if name in owning else state(place, name, mark, now)
        # An incomplete mark belongs to a process that owns nothing yet.
        cut = found == ELSEWHERE and read_mark(mark) is None and now - _changed(mark) > BEAT
        if found in (DEAD, EXPIRED) or cut:
            gone.append(name)
        else:
            others += not is_here(name)
    # Look again: since it was found to own nothing, a process may have made a directory and died.
    # Without a mark that directory would have to wait until a lease has expired.
    owning = {left.owner for left in all_left(place)} if gone else owning
    for name in gone:
        if name in owning:
            others += 1
        else:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(place.owners, name))
    return others

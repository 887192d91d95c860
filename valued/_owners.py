"""Who owns which events of a directory, whether that process lives, and how they change hands.

=====================================  =============================================================
under the directory                    what
=====================================  =============================================================
``v1/owners/OWNER``                    the mark of a process, touched once a minute while it has
                                       events (a lease of ten minutes)
``v1/events/ORIGIN.OWNER/``            segments that ORIGIN accepted, and OWNER is to deliver
``v1/rejected/``                       events that the service refused for good
=====================================  =============================================================

An owner is dead when its process is: a pid that is used again has another start. What can't be seen
from here, on another host or in another container, counts as dead when its lease has run out. A
claim is one ``rename`` of the directory of segments, so that one of all who try gets it. An owner
that slept longer than its lease looks whether its directory is where it was, before it goes on.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from valued._fork import Mark, PerProcess, lives

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Seconds after its last sign of life in which the events of an owner that can't be seen are its
#: own. Longer than any pause of a machine that goes on afterwards, short for events that may be
#: seven days old.
LEASE: Final = 600.0

#: Seconds between two signs of life; a tenth of the lease, so that nine may fail.
BEAT: Final = 60.0

#: In an owner's place: whoever comes first.
NOBODY: Final = "nobody"

#: Read and write, for the user alone.
PRIVATE: Final = 0o600

#: How the names of segments end: of what was accepted, and of what is settled of it.
EVENTS: Final = ".events"
SETTLED: Final = ".settled"

NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL


class Place:
    """The directory of an outbox. Makes nothing before `make`."""

    def __init__(self, path: str) -> None:
        self.path: Final = path
        self.owners: Final = os.path.join(path, "v1", "owners")
        self.events: Final = os.path.join(path, "v1", "events")
        self.rejected: Final = os.path.join(path, "v1", "rejected")

    def directories(self) -> tuple[str, ...]:
        """All of it, each before what is in it."""
        inside = self.owners, self.events, self.rejected
        return self.path, os.path.dirname(self.owners), *inside

    def holding(self, origin: str, owner: str) -> str:
        """Where the segments are that *origin* accepted, while they are *owner*'s."""
        return os.path.join(self.events, f"{origin}.{owner}")

    def above(self) -> list[str]:
        """Where it is, and where that is to be made, up to the first directory that is there."""
        above = [os.path.dirname(self.path)]
        while not os.path.lexists(above[-1]):
            above.append(os.path.dirname(above[-1]))
        return above

    def make(self) -> None:
        """Make what is missing of it, for this user alone. Raises `OSError`."""
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        for path in self.directories():
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            if problem := _directory_problem(path):
                raise NotADirectoryError(f"{path}: {problem}")

    def problems(self) -> list[str]:
        """What keeps this process from using it, and the fix."""
        problem = _directory_problem(self.path)
        if problem is None and os.path.lexists(self.path):
            problem = _writable_problem(self.path)
        elif problem is None:
            above = self.above()[-1]
            if not os.path.isdir(above):
                problem = f"{above} is no directory; choose another place"
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
        return "a symbolic link, which is not followed; give the path that it leads to"
    if not stat.S_ISDIR(status.st_mode):
        return "no directory; move it away, or choose another place"
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


#: Names that are this process's. A mark of its pid under another one was made before it was
#: replaced by ``exec``.
_names: Final[PerProcess[set[str]]] = PerProcess(set)


class Owner:
    """This process, in the eyes of others: its name, its mark, its signs of life."""

    def __init__(self, place: Place, name: str) -> None:
        """Make the mark. Raises `OSError`."""
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
        """Give a sign of life; the time of the file system. Raises `OSError`.

        A mark that somebody removed, who cleans up what is old for one, is made anew: what it
        stands for is seen by the names of the directories.
        """
        try:
            os.utime(self._mark)
        except FileNotFoundError:
            self._write()
        return os.stat(self._mark).st_mtime

    def leave(self) -> None:
        """Remove the mark: nothing is owned any more."""
        _names.get().discard(self.name)
        with contextlib.suppress(OSError):
            os.unlink(self._mark)


class Left(NamedTuple):
    """A directory of segments, and whose they are."""

    origin: str
    owner: str
    path: str


#: What is known of an owner: it lives; it is dead; it is elsewhere, and its lease runs; or it has
#: run out.
ALIVE: Final = "alive"
DEAD: Final = "dead"
ELSEWHERE: Final = "elsewhere"
EXPIRED: Final = "expired"


def state(place: Place, owner: str, path: str, now: float) -> str:
    """What is known of *owner*, whose segments are at *path*; *now*: of the file system's clock."""
    if owner == NOBODY:
        return DEAD
    mark = os.path.join(place.owners, owner)
    content = read_mark(mark)
    if content is None:
        # Cut as it was made, or removed by hand: all that is left is how old it is.
        return EXPIRED if now - _changed(mark, path) > LEASE else ELSEWHERE
    if content[0] == Mark.of_this_process():
        return ALIVE if is_here(owner) else DEAD
    try:
        alive = lives(content[0])
    except PermissionError:  # there is one, and nobody may say that it is another
        return ALIVE
    if alive is None:
        return EXPIRED if now - _changed(mark, path) > content[1] else ELSEWHERE
    return ALIVE if alive else DEAD


def is_here(owner: str) -> bool:
    """Whether *owner* is this process, by this client or by another one."""
    return owner in _names.get()


#: What keeps this process from looking, and says nothing of the mark.
_HERE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO})


def read_mark(path: str) -> tuple[Mark, float] | None:
    """The process of a mark, and its lease in seconds; None: it can't be read as one.

    Raises `OSError` where it may well be one, and this process can't look now.
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
    """When the first of *paths* that exists was changed; now, if none does."""
    for path in paths:
        with contextlib.suppress(OSError):
            return os.lstat(path).st_mtime
    return time.time()


def all_left(place: Place) -> Iterator[Left]:
    """The directories of segments, whoever owns them, in the order of their names.

    Raises `OSError` where this process can't look; none are there where the place is not.
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
    """Take *left* over for *owner*; False: somebody else did, or it is gone. Raises `OSError`."""
    try:
        os.rename(left.path, place.holding(left.origin, owner))
    except FileNotFoundError:
        return False
    return True


def release(left: Left) -> None:
    """Let others have *left*, though its owner lives."""
    parent = os.path.dirname(left.path)
    with contextlib.suppress(OSError):
        os.rename(left.path, os.path.join(parent, f"{left.origin}.{NOBODY}"))


def sweep(place: Place, now: float) -> int:
    """Remove the marks of dead owners that own nothing; how many of other processes are left.

    Raises `OSError`.
    """
    owning = {left.owner for left in all_left(place)}
    gone = []
    others = 0
    for name in os.listdir(place.owners):
        mark = os.path.join(place.owners, name)
        found = ALIVE if name in owning else state(place, name, mark, now)
        # One that was cut as it was made belongs to a process that has nothing yet.
        cut = found == ELSEWHERE and read_mark(mark) is None and now - _changed(mark) > BEAT
        if found in (DEAD, EXPIRED) or cut:
            gone.append(name)
        else:
            others += not is_here(name)
    # Once more, as it may have made a directory, and died, since it was found to own none. Without
    # a mark that would have to wait for the end of a lease.
    owning = {left.owner for left in all_left(place)} if gone else owning
    for name in gone:
        if name in owning:
            others += 1
        else:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(place.owners, name))
    return others

"""Which process owns which events, where they are, and whether that process lives.

An owner is one client in one process. It has a mark, which says who its process is. An owner is
dead when its process is dead; the start time of the process tells a reused pid apart. A process
that can't be seen from here, on another host or in another container, counts as dead when its lease
has expired.

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
import errno
import json
import os
import stat
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from valued._outbox.disk import NEW, SHORTAGE, append, read_file, remove
from valued._process.fork import PerProcess, current_pid

if TYPE_CHECKING:
    from collections.abc import Set

    from valued._outbox.disk import Disk

#: The owner in the name of a directory that was handed over: any process may claim it.
UNCLAIMED: Final = "unclaimed"

#: The endings of the names of the two files of a segment.
EVENTS: Final = ".events"
SETTLED: Final = ".settled"

#: Permissions of a directory: for the user only.
_OWN: Final = 0o700

#: Seconds after its last heartbeat in which an owner that can't be seen keeps its events. Longer
#: than the usual pauses of a machine, short for events that may be seven days old.
LEASE: Final = 600.0

#: Seconds between two heartbeats; a tenth of the lease, so that nine may fail.
HEARTBEAT_INTERVAL: Final = 60.0

#: The states of an owner: it is alive; it is dead; it can't be seen from here and its lease is
#: valid; it can't be seen from here and its lease has expired.
ALIVE: Final = "alive"
DEAD: Final = "dead"
ELSEWHERE: Final = "elsewhere"
EXPIRED: Final = "expired"


class ProcessIdentity(NamedTuple):
    """Identifies a process.

    A pid may be reused, but not together with the start time of its process. Both are valid only
    where the same pids are visible: *boot*, *namespace* and *host* say where that is.
    """

    pid: int
    #: On Linux in ticks since the boot, as the kernel counts them: a time since the epoch,
    #: calculated from it, would change when the clock is set.
    start: str
    boot: str
    namespace: str
    host: str


class Processes(Protocol):
    """Which processes there are, and which names this one has as an owner."""

    def here(self) -> ProcessIdentity:
        """This process. Raises `OSError` if it can't look."""

    def is_alive(self, other: ProcessIdentity) -> bool | None:
        """Whether *other* is alive, maybe stopped; None: it can't be seen from here.

        A process that has ended, and that its parent hasn't waited for (a zombie), isn't alive.
        Raises `PermissionError` if the pid exists and no more can be read, `OSError` if this
        process can't look.
        """

    def names(self) -> set[str]:
        """The owner names of this process, of all its clients.

        An owner with its pid and another name was there before an ``exec`` replaced the program.
        """


class SystemProcesses:
    """The processes of this machine."""

    def here(self) -> ProcessIdentity:
        """See `Processes.here`."""
        found = _identity.get()
        if not found:
            found.append(identify(current_pid()))
        return found[0]

    def is_alive(self, other: ProcessIdentity) -> bool | None:
        """See `Processes.is_alive`."""
        if other[2:] != self.here()[2:] or not other.start:
            return None
        return _start(other.pid) == other.start

    def names(self) -> set[str]:
        """See `Processes.names`."""
        return _names.get()


# Each is filled by the first call that needs it, since reading it may fail.
_identity: Final[PerProcess[list[ProcessIdentity]]] = PerProcess(list)
_names: Final[PerProcess[set[str]]] = PerProcess(set, lambda names: _inherit(names))

# The names of the nearest process above that had some when it forked.
_inherited: Final[set[str]] = set()


def _inherit(names: set[str]) -> None:
    if names:
        _inherited.clear()
        _inherited.update(names)


def names_of_parent() -> Set[str]:
    """The owner names that the parent had when it forked this process, or the next one above."""
    _names.get()  # after a fork that ran no hook
    return _inherited


def identify(pid: int) -> ProcessIdentity:
    """The identity of the process *pid*, which is visible from here. Raises `OSError`."""
    return ProcessIdentity(pid, _start(pid) or "", *_pid_space(), _host())


def _host() -> str:
    if sys.platform == "win32":  # pragma: no cover - there, no two hosts share a directory of ours
        return ""
    return os.uname().nodename


def _pid_space() -> tuple[str, str]:
    """The id of the boot, and the pid namespace; empty if the system has none."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            return file.read().strip(), os.readlink("/proc/self/ns/pid")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return "", ""  # any other error, such as too many open files, proves nothing: it is raised


def _start(pid: int) -> str | None:
    """When the process *pid* was started, in a form for comparison; None: there is no such process.

    Raises `OSError` if this process can't look, and `PermissionError` if it may not.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in parentheses, may contain anything.
            fields = file.read().rpartition(b")")[2].split()
    except FileNotFoundError:
        return None if os.path.exists("/proc/self/stat") else _start_by_psutil(pid)
    except ProcessLookupError:  # it ended between `open` and `read`
        return None
    # A process whose main thread has ended while other threads run isn't dead.
    state, threads, start = fields[0], int(fields[17]), fields[19]
    return None if state in b"ZX" and threads <= 1 else start.decode()


def _start_by_psutil(pid: int) -> str | None:
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return repr(process.create_time())
    except psutil.AccessDenied as error:
        raise PermissionError(errno.EACCES, "the process exists, and it is hidden") from error
    except psutil.Error:
        return None


def new_name() -> str:
    """A name for an owner, unique in the world."""
    return os.urandom(16).hex()


def write_mark(disk: Disk, path: str, processes: Processes) -> None:
    """Make the mark of this process. Raises `OSError`."""
    content = json.dumps({**processes.here()._asdict(), "lease": LEASE})
    try:
        append(disk, path, content.encode(), NEW)
    except FileExistsError:
        raise
    except BaseException:
        remove(disk, path)
        raise


def read_mark(disk: Disk, path: str) -> tuple[ProcessIdentity, float] | None:
    """The process of a mark, and its lease in seconds; None: it isn't a valid mark.

    Raises `OSError` if it may be valid and this process can't read it now.
    """
    try:
        content: dict[str, Any] = json.loads(read_file(disk, path))
        lease = float(content["lease"])
        identity = ProcessIdentity(**{name: content[name] for name in ProcessIdentity._fields})
    except OSError as error:
        if error.errno in SHORTAGE:
            raise
        return None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return (identity, lease) if isinstance(identity.pid, int) else None


def state(
    disk: Disk, paths: OutboxPaths, processes: Processes, owner: str, path: str, now: float
) -> str:
    """The state of *owner*, whose events are at *path*; *now*: by the file system's clock.

    Raises `OSError` if this process can't look.
    """
    if owner == UNCLAIMED:
        return DEAD
    mark = paths.mark(owner)
    content = read_mark(disk, mark)
    if content is None:
        # Not completely written, or removed by hand: only the age is known.
        return EXPIRED if now - changed(disk, now, mark, path) > LEASE else ELSEWHERE
    identity, lease = content
    if identity == processes.here():
        return ALIVE if owner in processes.names() else DEAD
    try:
        alive = processes.is_alive(identity)
    except PermissionError:  # the pid exists; whether it is the same process can't be read
        return ALIVE
    if alive is None:
        return EXPIRED if now - changed(disk, now, mark, path) > lease else ELSEWHERE
    return ALIVE if alive else DEAD


def changed(disk: Disk, now: float, *paths: str) -> float:
    """When the first of *paths* that exists was changed; *now*, if none exists."""
    for path in paths:
        with contextlib.suppress(OSError):
            return disk.lstat(path).st_mtime
    return now


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

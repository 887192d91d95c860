"""Owners: which process owns events, whether it lives, and whose events others may take over.

An owner is one client in one process. It has a mark, which says who its process is. An owner is
dead when its process is dead; the start time of the process tells a reused pid apart. A process
that can't be seen from here, on another host or in another container, counts as dead when its lease
has expired.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from valued._outbox.disk import NEW, SHORTAGE, append, read_file, remove
from valued._outbox.paths import UNCLAIMED
from valued._process.fork import PerProcess, current_pid

if TYPE_CHECKING:
    from collections.abc import Set

    from valued._outbox.disk import Disk
    from valued._outbox.paths import OutboxPaths

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
    return ProcessIdentity(pid, _start(pid) or "", *_pid_space(), os.uname().nodename)


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

"""Marks: who owns events, who is alive, and whose events other processes may take over.

An owner is dead when its process is dead. The start time of the process tells a reused pid apart. A
process that can't be seen from here, on another host or in another container, counts as dead when
its lease has expired.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any, Final

from valued._outbox.disk import SHORTAGE, open_for_reading, write_file
from valued._outbox.identity import ProcessIdentity
from valued._outbox.paths import UNCLAIMED

if TYPE_CHECKING:
    from valued._outbox.disk import Disk
    from valued._outbox.identity import Processes
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


def write_mark(disk: Disk, path: str, processes: Processes) -> None:
    """Make the mark of this process. Raises `OSError`."""
    content = json.dumps({**processes.here()._asdict(), "lease": LEASE})
    write_file(disk, path, content.encode())


def read_mark(disk: Disk, path: str) -> tuple[ProcessIdentity, float] | None:
    """The process of a mark, and its lease in seconds; None: it isn't a valid mark.

    Raises `OSError` if it may be valid and this process can't read it now.
    """
    try:
        descriptor, _ = open_for_reading(disk, path)
        try:
            content: dict[str, Any] = json.loads(disk.read(descriptor, 4096))
        finally:
            disk.close(descriptor)
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


def new_name() -> str:
    """A name for an owner, unique in the world."""
    return os.urandom(16).hex()

"""`Outbox`: the directory of an outbox, looked at from outside. Works while applications run."""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from valued._errors import ValidationError
from valued._options import outbox_path
from valued._outbox import records
from valued._outbox.journal import Journal
from valued._outbox.owners import (
    EVENTS,
    SETTLED,
    UNCLAIMED,
    OutboxPaths,
    SystemProcesses,
    read_mark,
    split,
    state,
)
from valued._outbox.records import Record
from valued._outbox.rejected import read_rejected, rejected_paths
from valued._outbox.segments import read_events, read_settled
from valued._process.reporting import Reporter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

    from valued._typing import JSONObject

#: About how many events `Outbox.purge` takes over at a time.
_PORTION: Final = 10_000


class Owned(NamedTuple):
    """What one owner, a client in one process, has in the outbox, as `Outbox.owners` returns it.

    ``owner``: its name in the directory. ``state``: ``"alive"``; ``"dead"`` (also what an owner
    released: ``pid`` is None); ``"elsewhere"`` (on another host or in another container, within its
    lease); ``"expired"``, which counts as dead.
    ``pid`` (int) and ``host`` (str): None if they are not known. ``events``: how many are not
    settled, or not marked as settled yet. ``bytes``: of its files. ``oldest``: seconds since the
    epoch when the first of these events was accepted, or None.
    """

    owner: str
    state: str
    pid: int | None
    host: str | None
    events: int
    bytes: int
    oldest: float | None


class Rejected(NamedTuple):
    """An event that the service refused permanently, as `Outbox.rejected` returns it.

    ``at``: seconds since the epoch. ``status`` (int or None), ``reason`` and ``body``: as in the
    `DeliveryError`. ``idempotency_key``: the header of its attempts. ``event``: the event, a dict.
    """

    at: float
    status: int | None
    reason: str
    body: str
    idempotency_key: str
    event: JSONObject


class Outbox:
    """The directory of an outbox, seen from outside, while applications use it.

    >>> outbox = valued.Outbox("/var/lib/myapp/valued")
    >>> sum(owned.events for owned in outbox.owners())

    *path*: the directory that clients get as *outbox* (default ``VALUED_OUTBOX``). Reading changes
    nothing, and delays no process. Raises `ValidationError` if there is no such directory, or if
    this process can't use it; its methods raise `OSError` if it can't be looked at, and skip single
    files that can't be read. Not on Windows. Any thread may call.
    """

    def __init__(self, path: str | PathLike[str] | None = None) -> None:
        given = outbox_path(path)
        if given is None:
            raise ValidationError("outbox: none was given; pass a path, or set VALUED_OUTBOX")
        if os.name == "nt":  # pragma: no cover - Windows
            raise ValidationError("outbox: it needs Linux or macOS")
        self._paths = OutboxPaths(given)
        problems = self._paths.problems()
        if not problems and not os.path.isdir(given):
            problems = [f"outbox: {given}: there is no such directory"]
        if problems:
            raise ValidationError(*problems)

    def __repr__(self) -> str:
        return f"Outbox({self._paths.path!r})"

    def owners(self) -> list[Owned]:
        """What each process has in the outbox, sorted by its name; reads all files."""
        found: dict[str, list[str]] = {}
        with contextlib.suppress(FileNotFoundError):
            for name in sorted(os.listdir(self._paths.owners)):
                found[name] = []
        for owner, path in self._directories():
            found.setdefault(owner, []).append(path)
        return [self._owned(owner, directories) for owner, directories in found.items()]

    def _directories(self) -> list[tuple[str, str]]:
        """The owner and the path of each directory of events, sorted by name."""
        try:
            names = sorted(os.listdir(self._paths.events))
        except (FileNotFoundError, NotADirectoryError):
            return []
        path = self._paths.events
        return [(parts[1], os.path.join(path, name)) for name in names if (parts := split(name))]

    def _owned(self, owner: str, directories: list[str]) -> Owned:
        mark = self._paths.mark(owner)
        content = None if owner == UNCLAIMED else read_mark(os, mark)
        path = directories[0] if directories else mark
        known = state(os, self._paths, SystemProcesses(), owner, path, time.time())
        events, oldest, size = 0, None, 0
        for directory in directories:
            for record in _unsettled(directory):
                events += 1
                oldest = record.time if oldest is None else min(oldest, record.time)
            with contextlib.suppress(OSError), os.scandir(directory) as entries:
                size += sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
        pid, host = (content[0].pid, content[0].host) if content is not None else (None, None)
        return Owned(owner, known, pid, host, events, size, oldest)

    def events(self) -> Iterator[JSONObject]:
        """The events that are not settled, of all processes; within a process in their order."""
        for _, directory in self._directories():
            for record in _unsettled(directory):
                with contextlib.suppress(ValueError):  # its checksum is right: it was written so
                    yield json.loads(record.payload)

    def purge(self) -> int:
        """Delete the events of dead and expired owners, permanently; returns how many.

        Each of their directories is taken over first, as `Client.adopt` does. So nothing is deleted
        that another process is about to deliver.
        """
        self._paths.make(os)
        journal = Journal(self._paths.path, Reporter(None))
        count = 0
        try:
            while True:
                files = journal.claim(_PORTION)
                for file in files:
                    count += file.unread
                    file.unread = 0  # as if they were settled
                journal.maintain()
                if not journal.is_claim_due():
                    return count
        finally:
            journal.release()

    def rejected(self) -> Iterator[Rejected]:
        """The events that the service refused permanently, the oldest first."""
        for path in rejected_paths(os, self._paths):
            for found in read_rejected(os, path):
                with contextlib.suppress(ValueError, KeyError, TypeError):  # not written by us
                    content = json.loads(found.payload)
                    yield Rejected(
                        found.time,
                        content["status"],
                        content["reason"],
                        content["body"],
                        content["idempotency_key"],
                        content["event"],
                    )

    def forget_rejected(self) -> None:
        """Delete the events that `Outbox.rejected` returns."""
        for path in rejected_paths(os, self._paths):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError, PermissionError):
                os.unlink(path)


def _unsettled(directory: str) -> Iterator[Record]:
    """The events in a directory that are not settled. Files that can't be read are skipped."""
    names: list[str] = []
    with contextlib.suppress(OSError):  # it changes hands meanwhile
        names = sorted(os.listdir(directory))
    for name in names:
        if not name.endswith(EVENTS):
            continue
        path = os.path.join(directory, name)
        settled: frozenset[int] = frozenset()
        with contextlib.suppress(OSError):
            settled = read_settled(os, path.removesuffix(EVENTS) + SETTLED)
        with contextlib.suppress(OSError):
            for found in read_events(os, path):
                if (
                    isinstance(found, Record)
                    and found.kind == records.EVENT
                    and found.number not in settled
                ):
                    yield found

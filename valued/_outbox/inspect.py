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
from valued._outbox.owners import UNCLAIMED, Left, Owner, Place, all_left, read_mark, state
from valued._outbox.records import Record
from valued._outbox.segment import Backlog, Holding, segments_in
from valued._outbox.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

    from valued._typing import JSONObject

#: Events that are read at once.
_PORTION: Final = 200
_PORTION_BYTES: Final = 256 * 1024


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
    this process can't use it; its methods raise `OSError` if reading fails. Not on Windows. Any
    thread may call.
    """

    def __init__(self, path: str | PathLike[str] | None = None) -> None:
        given = outbox_path(path)
        if given is None:
            raise ValidationError("outbox: none was given; pass a path, or set VALUED_OUTBOX")
        if os.name == "nt":  # pragma: no cover - Windows
            raise ValidationError("outbox: it needs Linux or macOS")
        self._place = Place(given)
        problems = self._place.problems()
        if not problems and not os.path.isdir(given):
            problems = [f"outbox: {given}: there is no such directory"]
        if problems:
            raise ValidationError(*problems)

    def __repr__(self) -> str:
        return f"Outbox({self._place.path!r})"

    def owners(self) -> list[Owned]:
        """What each process has in the outbox, sorted by its name; reads all files."""
        found: dict[str, list[Left]] = {}
        with contextlib.suppress(FileNotFoundError):
            for name in sorted(os.listdir(self._place.owners)):
                found[name] = []
        for left in all_left(self._place):
            found.setdefault(left.owner, []).append(left)
        return [self._owned(owner, lefts) for owner, lefts in found.items()]

    def _owned(self, owner: str, lefts: list[Left]) -> Owned:
        mark = None if owner == UNCLAIMED else read_mark(os.path.join(self._place.owners, owner))
        path = lefts[0].path if lefts else os.path.join(self._place.owners, owner)
        known = state(self._place, owner, path, time.time())
        events, oldest, size = 0, None, 0
        for left in lefts:
            for record in _unsettled(left):
                events += 1
                oldest = record.time if oldest is None else min(oldest, record.time)
            with contextlib.suppress(OSError), os.scandir(left.path) as entries:
                size += sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
        pid, host = (mark[0].pid, mark[0].host) if mark is not None else (None, None)
        return Owned(owner, known, pid, host, events, size, oldest)

    def events(self) -> Iterator[JSONObject]:
        """The events that are not settled, of all processes; within a process in their order."""
        for left in all_left(self._place):
            for record in _unsettled(left):
                with contextlib.suppress(ValueError):  # its checksum is right: it was written so
                    yield json.loads(record.payload)

    def purge(self) -> int:
        """Delete the events of dead and expired owners, permanently; returns how many.

        Each of their directories is taken over first, as `Client.adopt` does. So nothing is deleted
        that another process is about to deliver.
        """
        store = Store(self._place.path, sync=False)
        self._place.make()
        owner = Owner(self._place, os.urandom(16).hex())
        count = 0
        try:
            for holding in store.claim(owner, Backlog()):
                try:
                    for segment in list(holding.segments):
                        count += segment.count_unread()
                        segment.remove()
                        del holding.segments[segment]
                finally:
                    store.part(holding)
        finally:
            owner.leave()
        return count

    def rejected(self) -> Iterator[Rejected]:
        """The events that the service refused permanently, the oldest first."""
        for path in self._rejected_paths():
            with contextlib.suppress(FileNotFoundError), open(path, "rb", buffering=0) as file:
                for found in records.read(file):
                    if isinstance(found, Record) and found.kind == records.REJECTED:
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
        for path in self._rejected_paths():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _rejected_paths(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            names = sorted(os.listdir(self._place.rejected))
            return [os.path.join(self._place.rejected, name) for name in names]
        return []


def _unsettled(left: Left) -> Iterator[Record]:
    holding = Holding(left.path, left.origin, None)
    with contextlib.suppress(FileNotFoundError):  # it changes hands meanwhile
        for segment in segments_in(holding, Backlog()):
            at_end = False
            while not at_end:
                found = segment.next(_PORTION, _PORTION_BYTES)
                at_end = found.at_end
                yield from found.records

"""What one process does on the disk for its outbox: open, adopt, hand over, limit its size."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import time
from typing import TYPE_CHECKING, Final

from valued._outbox import records
from valued._outbox.owners import (
    DEAD,
    EXPIRED,
    PRIVATE,
    Left,
    Owner,
    Place,
    all_left,
    claim,
    is_here,
    release,
    state,
    sweep,
)
from valued._outbox.segment import Backlog, Holding, Segment, remove_directory, segments_in
from valued._outbox.segment import sync_directory as _sync_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from valued._errors import DeliveryError
    from valued._outbox.descriptors import Calls

#: Bytes of a file of rejected events, and of all such files. The oldest file is removed: after
#: thousands of rejected events the latest ones are the useful ones.
REJECTED_FILE: Final = 1024 * 1024
REJECTED_BYTES: Final = 16 * REJECTED_FILE


class Store:
    """Any thread may call; methods raise `OSError` unless they say otherwise.

    *sync*: whether what is written must survive a power failure; *calls*: see `Descriptor`.
    """

    def __init__(self, path: str, *, sync: bool, calls: Calls | None = None) -> None:
        self.place: Final = Place(path)
        self.sync: Final = sync
        self._calls: Final = calls
        #: How many owners are other processes, as of the last `claim`.
        self.others = 0
        self._names = itertools.count(1)
        self._rejected = itertools.count(1)
        self._rejected_path = ""

    def open(self) -> Holding:
        """Make a mark for this process, and a directory for the events that it accepts."""
        name = os.urandom(16).hex()
        above = self.place.above()
        self.place.make()
        owner = Owner(self.place, name)
        path = self.place.holding(name, name)
        try:
            os.mkdir(path, 0o700)
        except OSError:
            owner.leave()
            raise
        if self.sync:
            for directory in self.place.directories():
                _sync_directory(directory)
            for directory in above:
                # This process made nothing in a directory that it may not read.
                with contextlib.suppress(PermissionError):
                    _sync_directory(directory)
        return Holding(path, name, owner)

    def discard(self, holding: Holding) -> None:
        """Undo `open`: another thread was faster. Raises nothing."""
        remove_directory(holding.path)
        holding.owner.leave()

    def segment(self, holding: Holding, backlog: Backlog | None) -> Segment:
        """A new segment, open for writing."""
        segment = Segment(holding, f"{next(self._names):010d}", backlog)
        segment.create(self._calls)
        if self.sync:
            try:
                _sync_directory(holding.path)
            except BaseException:
                segment.remove()
                raise
        return segment

    def claim(self, owner: Owner, backlog: Backlog) -> Iterator[Holding]:
        """Adopt what dead owners left, one directory at a time, and remove their marks.

        An error with one of them is raised after the others were handled.
        """
        now = owner.beat()
        known: dict[str, str] = {}
        waiting = 0
        trouble = None
        for left in all_left(self.place):
            if left.owner == owner.name:
                continue
            try:
                if left.owner not in known:
                    known[left.owner] = state(self.place, left.owner, left.path, now)
                gone = known[left.owner] in (DEAD, EXPIRED)
                holding = self._claim(left, owner, backlog) if gone else None
            except OSError as error:
                trouble, gone, holding = error, False, None
            waiting += not gone and not is_here(left.owner)
            if holding is not None:
                yield holding
        marked = sweep(self.place, now)
        self.others = max(waiting, marked)
        if trouble is not None:
            raise trouble

    def _claim(self, left: Left, owner: Owner, backlog: Backlog) -> Holding | None:
        path = self.place.holding(left.origin, owner.name)
        try:
            if not claim(self.place, left, owner.name):
                return None
            holding = Holding(path, left.origin, owner)
            holding.segments = dict.fromkeys(segments_in(holding, backlog))
            return holding
        except BaseException:  # from a signal handler, too
            # Or no process would look at it again while this one lives.
            release(Left(left.origin, owner.name, path))
            raise

    def was_taken(self, holding: Holding) -> bool:
        """Whether another process owns *holding*, which has been moved. Raises nothing."""
        try:
            return any(
                left.origin == holding.origin and left.owner != holding.owner.name
                for left in all_left(self.place)
            )
        except OSError:  # this process can't look now, because of too many open files for example
            return True  # more likely than that it was removed by hand

    def part(self, holding: Holding) -> None:
        """Hand over what is left in *holding*; remove the directory if that is nothing."""
        if not holding.segments:
            remove_directory(holding.path)
        # Also if there are unknown files, made by a call that a signal handler interrupted.
        release(Left(holding.origin, holding.owner.name, holding.path))

    def size(self) -> int:
        """Bytes of all segments in the directory, of all owners. Raises nothing."""
        total = 0
        with contextlib.suppress(OSError):
            for left in all_left(self.place):
                with contextlib.suppress(OSError), os.scandir(left.path) as entries:
                    for entry in entries:
                        with contextlib.suppress(OSError):
                            total += entry.stat(follow_symlinks=False).st_size
        return total

    def reject(
        self, key: str, body: bytes, error: DeliveryError, forgotten: Callable[[], object]
    ) -> None:
        """Store an event that the service refused, with its answer.

        *forgotten* is called for each older file that is removed to make room. Raises whatever an
        event or answer of a user's transport raises that can't be written as JSON.
        """
        payload = {
            "idempotency_key": key,
            "status": error.status,
            "reason": error.reason,
            "body": error.body,
            "attempts": error.attempts,
            "event": json.loads(body),
        }
        # With a transport of the user the answer may be anything.
        text = json.dumps(payload, default=str).encode()
        record = records.encode(records.REJECTED, next(self._rejected), time.time(), text)
        path = self._rejected_path
        if not path or (os.path.lexists(path) and os.lstat(path).st_size >= REJECTED_FILE):
            path = os.path.join(self.place.rejected, f"{time.time_ns():020d}-{os.urandom(4).hex()}")
            self._bound_rejected(forgotten)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, PRIVATE)
        self._rejected_path = path
        try:
            written = os.write(descriptor, record)
        finally:
            os.close(descriptor)
        if written != len(record):  # a reader skips an incomplete record
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def _bound_rejected(self, forgotten: Callable[[], object]) -> None:
        names = sorted(os.listdir(self.place.rejected))
        paths = [os.path.join(self.place.rejected, name) for name in names]
        total = REJECTED_FILE
        for path in reversed(paths):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                total += os.lstat(path).st_size
                if total > REJECTED_BYTES:
                    os.unlink(path)
                    forgotten()

"""What one process does on the disk for its outbox: open, take over, hand over, keep in bounds."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import time
from typing import TYPE_CHECKING, Final

from valued import _records
from valued._owners import (
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
from valued._segments import Backlog, Holding, Segment, remove_directory, segments_in
from valued._segments import sync_directory as _sync_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from valued._descriptors import Calls
    from valued._errors import DeliveryError

#: Bytes of a file of rejected events, and of all of them. The oldest file goes: who has not looked
#: after thousands of rejected events needs the latest ones.
REJECTED_FILE: Final = 1024 * 1024
REJECTED_BYTES: Final = 16 * REJECTED_FILE


class Store:
    """Any thread may call; methods raise `OSError` unless they say otherwise.

    *sync*: whether what is written is to outlive a failure of power; *calls*: see `Descriptor`.
    """

    def __init__(self, path: str, *, sync: bool, calls: Calls | None = None) -> None:
        self.place: Final = Place(path)
        self.sync: Final = sync
        self._calls: Final = calls
        #: Owners that are other processes, as of the last `claim`.
        self.others = 0
        self._names = itertools.count(1)
        self._rejected = itertools.count(1)
        self._rejected_path = ""

    def open(self) -> Holding:
        """A mark for this process, and a directory for what it accepts."""
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
                # One that this process may not read is no place where it has just made something.
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
        """Take over what dead owners left, one after the other, and remove their marks.

        Trouble with one of them is raised when the others were seen to.
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
        except BaseException:  # out of a signal handler, too
            # Or nobody would look at it again while this process lives.
            release(Left(left.origin, owner.name, path))
            raise

    def was_taken(self, holding: Holding) -> bool:
        """Whether another process owns *holding*, which is not where it was. Raises nothing."""
        try:
            return any(
                left.origin == holding.origin and left.owner != holding.owner.name
                for left in all_left(self.place)
            )
        except OSError:  # this process can't look now: too many open files, say
            return True  # seldom is it that somebody removed it

    def part(self, holding: Holding) -> None:
        """Let others have what is left in *holding*, or remove it if that is nothing."""
        if not holding.segments:
            remove_directory(holding.path)
        # Where files are left that are not known here, as a signal broke off who made them, too.
        release(Left(holding.origin, holding.owner.name, holding.path))

    def size(self) -> int:
        """Bytes of all segments in the directory, whoever owns them. Raises nothing."""
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
        """Keep an event that the service refused, with its answer.

        *forgotten* is called for each file of earlier ones that is removed for it. Raises whatever
        a stranger's event or answer does that JSON can't hold.
        """
        payload = {
            "idempotency_key": key,
            "status": error.status,
            "reason": error.reason,
            "body": error.body,
            "attempts": error.attempts,
            "event": json.loads(body),
        }
        # The answer may be anything, where the transport is the user's.
        text = json.dumps(payload, default=str).encode()
        record = _records.encode(_records.REJECTED, next(self._rejected), time.time(), text)
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
        if written != len(record):  # what is there of it is skipped by who reads
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

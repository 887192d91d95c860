"""What the parts of a journal share: the directory, the clocks, and what this process owns."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import threading
from typing import TYPE_CHECKING, Final

from valued._outbox.announce import announce
from valued._outbox.disk import LeaseLostError, exists, remove, sync_directory
from valued._outbox.marks import HEARTBEAT_INTERVAL, new_name, write_mark
from valued._outbox.paths import EVENTS, SETTLED, UNCLAIMED, OutboxPaths, split
from valued._outbox.segments import OwnedDirectory, Segment
from valued._outbox.trouble import Trouble
from valued._process.fork import ProcessToken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from valued._outbox.disk import Disk
    from valued._outbox.identity import Processes
    from valued._process.reporting import Reporter

#: Why an event on the disk leaves this process: other processes deliver it.
HANDED_OVER: Final = "handed_over"


class Ownership:
    """What this process owns under one name, from its first event until all is handed over.

    Guarded by the lock of the workspace. It is detached from there with one assignment; from then
    on no other thread adds anything to it.
    """

    def __init__(self, name: str, directory: OwnedDirectory, now: float) -> None:
        self.name: Final = name
        self.own: Final = directory  # of the events that this process accepted
        self.directories: dict[OwnedDirectory, None] = {directory: None}
        #: Files to append to: for events that wait in memory, and for those on the disk only.
        self.current: list[Segment | None] = [None, None]
        self.spilled: list[Segment] = []  # files of events on the disk only, oldest first
        self.claimed: list[Segment] = []  # files of other origins, oldest first
        self.uncounted: collections.deque[Segment] = collections.deque()  # claimed, not read yet
        self.heartbeat_at = now  # by the wall clock
        self.event_numbers: Final = itertools.count(1)
        self.file_numbers: Final = itertools.count(1)

    def segments(self) -> list[Segment]:
        """All its files, oldest first: claimed ones, then its own."""
        directories = sorted(self.directories, key=lambda one: one is self.own)
        return [segment for directory in directories for segment in list(directory.segments)]

    def forget(self, segment: Segment) -> None:
        """*segment* isn't there any more, or isn't its own; with the lock."""
        segment.directory.segments.pop(segment, None)
        for files in (self.spilled, self.claimed):
            if segment in files:
                files.remove(segment)


class Workspace:
    """See the module. Any thread may call; methods raise `OSError` where they say so."""

    def __init__(
        self,
        path: str,
        reporter: Reporter,
        disk: Disk,
        clock: Callable[[], float],
        wall: Callable[[], float],
        processes: Processes,
        durability: str,
    ) -> None:
        self.paths: Final = OutboxPaths(path)
        self.reporter: Final = reporter
        self.trouble: Final = Trouble(self.paths.damaged, reporter, disk, clock)
        self.disk: Final = disk
        self.clock: Final = clock
        self.wall: Final = wall
        self.processes: Final = processes
        self.token: Final = ProcessToken()
        self.syncs: Final = durability == "power"
        # Guards all that is below, and in it. Held for list work only, never while reading or
        # writing. Re-entrant: a signal handler may record an event while its thread is in here.
        self.lock: Final = threading.RLock()
        self.owner: Ownership | None = None
        self.detached: list[Ownership] = []  # lost, and what became of it wasn't looked up yet
        self.vanished: list[Segment] = []  # removed by hand, with events on the disk only
        self.lost: list[tuple[Segment, str]] = []  # to be reported to the pipeline
        self.size_is_due = False  # whether the size of the directory is to be checked

    def begin(self) -> Ownership:
        """What this process owns; its mark and directory are made if needed. Raises `OSError`."""
        owner = self.owner
        if owner is not None:
            return owner
        made = self._make()
        with self.lock:
            owner = self.owner = self.owner or made
        if owner is not made:  # another thread was faster
            self.remove_directory(made.own)
            self.leave(made)
        else:
            announce(owner.name)
        return owner

    def _make(self) -> Ownership:
        name = new_name()
        above = self.paths.above()
        self.paths.make(self.disk)
        directory = OwnedDirectory(name, self.paths.owned(name, name))
        made = Ownership(name, directory, self.wall())
        self.processes.names().add(name)  # first: a mark without a name here is a dead process's
        try:
            write_mark(self.disk, self.paths.mark(name), self.processes)
            self.disk.mkdir(directory.path, 0o700)
            for path in self.paths.directories():
                self.sync_directory(path)
            for path in above:
                # This process made nothing in a directory that it may not read.
                with contextlib.suppress(PermissionError):
                    self.sync_directory(path)
        except BaseException:  # from a signal handler, too
            # Else it is its parent's.
            if self.token.is_current():  # pragma: no branch - no tool sees a frame after its fork
                with contextlib.suppress(OSError):
                    self.disk.rmdir(directory.path)
                self.leave(made)
            raise
        return made

    def sync_directory(self, path: str) -> None:
        """Let the names in a directory survive a power failure, if that is promised."""
        if self.syncs:
            sync_directory(self.disk, path)

    def leave(self, owner: Ownership) -> None:
        """Remove the mark of *owner*, which owns nothing any more. Raises nothing."""
        remove(self.disk, self.paths.mark(owner.name))
        self.processes.names().discard(owner.name)

    def is_heartbeat_due(self, owner: Ownership) -> bool:
        """Whether the last heartbeat was long ago; or the wall clock was set back since."""
        return not 0 <= self.wall() - owner.heartbeat_at < HEARTBEAT_INTERVAL

    def heartbeat(self, owner: Ownership) -> float:
        """Touch the mark. Returns the file system's time.

        If the mark was removed, by a clean-up of old files for example, it is created again: the
        names of the directories show what this process owns. Raises `OSError`, and
        `LeaseLostError` if its own directory isn't there any more.
        """
        mark = self.paths.mark(owner.name)
        owner.heartbeat_at = self.wall()
        if not exists(self.disk, owner.own.path):
            raise LeaseLostError(f"{owner.own.path} is not there any more")
        try:
            self.disk.utime(mark)
        except FileNotFoundError:
            write_mark(self.disk, mark, self.processes)
        return self.disk.lstat(mark).st_mtime

    def lose(self, owner: Ownership | None) -> None:
        """Its own directory is gone: `resolve` looks up why. The next event begins another one."""
        with self.lock:
            if owner is not None and self.owner is owner:
                self.owner = None
                self.detached.append(owner)
                self.seal(owner, *owner.current)

    @staticmethod
    def seal(owner: Ownership | None, *segments: Segment | None) -> None:
        """No thread may choose these files any more; with the lock."""
        for segment in segments:
            if segment is not None:
                segment.sealed = True
        if owner is not None:  # pragma: no branch - else it is being released just now
            owner.current = [None if one in segments else one for one in owner.current]

    def resolve(self, owner: Ownership) -> None:
        """Look up what became of each directory of a lost *owner*. Raises `OSError`."""
        names: list[str] = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # all of it was removed
            names = self.disk.listdir(self.paths.events)
        origins = {parts[0] for name in names if (parts := split(name))}
        for directory in list(owner.directories):
            if exists(self.disk, directory.path):
                self.hand_over(owner, directory)  # by now it may have begun under another name
                continue
            with self.lock:
                owner.directories.pop(directory, None)
                left = list(directory.segments)
                for segment in left:
                    if directory.origin in origins:
                        self.withdraw(owner, segment, HANDED_OVER)
                        continue
                    self._vanish(owner, segment)
            self.close(left)
        self.leave(owner)

    def withdraw(self, owner: Ownership, segment: Segment, reason: str) -> None:
        """The events of *segment* must not be delivered here any more; with the lock."""
        owner.forget(segment)
        segment.lost = reason
        if segment.reported:
            self.lost.append((segment, reason))

    def remove(self, owner: Ownership, segment: Segment, reason: str = "") -> None:
        """Remove a file whose events are all settled, or are dropped for a *reason*.

        After the last one of another origin its directory is removed as well. Raises `OSError`.
        """
        if not segment.removed:
            segment.delete(self.disk, self.sync_directory)
        with self.lock:
            if reason:
                self.withdraw(owner, segment, reason)
            owner.forget(segment)
        directory = segment.directory
        if directory is not owner.own and not directory.segments:
            self.hand_over(owner, directory)

    def lose_file(self, owner: Ownership, segment: Segment) -> bool:
        """A file to be written isn't there any more: lose it, or all if its directory is gone.

        Returns whether another one can be written to. Raises nothing.
        """
        if not self.token.is_current():
            return False  # a signal handler has forked within a call that returns in the child
        try:
            is_directory = exists(self.disk, segment.directory.path)
        except OSError as error:
            self.trouble.refuse(error)
            return False
        if not is_directory:
            self.lose(owner)
            return True
        with self.lock:
            self.seal(owner, segment)
            self._vanish(owner, segment)
        return True

    def _vanish(self, owner: Ownership, segment: Segment) -> None:
        """*segment* was removed by hand; with the lock.

        Its events in memory are the only copy, and are delivered.
        """
        if segment in owner.spilled or segment.unread:
            self.vanished.append(segment)
        segment.removed = True
        owner.forget(segment)

    @staticmethod
    def close(segments: Iterable[Segment]) -> None:
        """Close what no thread writes to; those that one writes to are closed after that."""
        for segment in segments:
            if not segment.writers:
                segment.close()

    def hand_over(self, owner: Ownership, directory: OwnedDirectory) -> None:
        """Let other processes claim *directory*; remove it if it is empty. Raises nothing."""
        gone = [one for one in list(directory.segments) if not one.is_there(self.disk)]
        with self.lock:
            owner.directories.pop(directory, None)
            for segment in gone:
                self._vanish(owner, segment)
            left = list(directory.segments)
            for segment in left:
                self.withdraw(owner, segment, HANDED_OVER)
        self.close([*gone, *left])
        if left or not self.remove_directory(directory):
            target = self.paths.owned(directory.origin, UNCLAIMED)
            with contextlib.suppress(OSError):
                self.disk.rename(directory.path, target)
                directory.path = target  # what is under way is noted there

    def remove_directory(self, directory: OwnedDirectory) -> bool:
        """Remove a directory whose events are gone, with notes that a crash may have left."""
        disk = self.disk
        try:
            names = disk.listdir(directory.path)
            if any(name.endswith(EVENTS) for name in names):
                return False
            for name in names:
                if name.endswith(SETTLED):
                    disk.unlink(os.path.join(directory.path, name))
            disk.rmdir(directory.path)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

"""What this process owns in the directory: how that begins, is kept, is lost, and is handed over.

The parts of a journal share a `Store`. Those that append, note and read are in `files`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Final

from valued._outbox.deaths import announce
from valued._outbox.disk import LeaseLostError, Trouble, exists, remove, sync_directory
from valued._outbox.owners import (
    EVENTS,
    HEARTBEAT_INTERVAL,
    SETTLED,
    UNCLAIMED,
    OutboxPaths,
    new_name,
    split,
    write_mark,
)
from valued._outbox.segments import OwnedDirectory, Ownership
from valued._process.fork import ProcessToken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from valued._outbox.disk import Disk
    from valued._outbox.owners import Processes
    from valued._outbox.segments import Segment
    from valued._process.reporting import Reporter

#: Why an event on the disk leaves this process: other processes deliver it.
HANDED_OVER: Final = "handed_over"


class Store:
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
        # Files with events on the disk only, oldest first: its own, and those of other origins.
        self.spilled: dict[Segment, None] = {}
        self.claimed: dict[Segment, None] = {}
        self.lost: list[tuple[Segment, str]] = []  # to be reported to the pipeline
        self.size_is_due = False  # whether the size of the directory is to be checked

    # -- owning ------------------------------------------------------------------------------------

    def begin(self) -> Ownership:
        """What this process owns; its mark and directory are made if needed. Raises `OSError`."""
        owner = self.owner
        if owner is not None:
            return owner
        made = self._make()
        with self.lock:
            owner = self.owner = self.owner or made
        if owner is not made:  # another thread was faster
            self._remove_directory(made.own)
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

    def is_heartbeat_due(self, owner: Ownership, wall: float) -> bool:
        """Whether the last heartbeat was long ago; or the wall clock was set back since."""
        return not 0 <= wall - owner.heartbeat_at < HEARTBEAT_INTERVAL

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

    # -- losing ------------------------------------------------------------------------------------

    def take_lost(self) -> Sequence[tuple[Segment, str]]:
        """The files whose events must not be delivered any more, each once, and why."""
        with self.lock:
            lost, self.lost = self.lost, []
        return lost

    def lose(self, owner: Ownership | None) -> None:
        """Its own directory is gone: `resolve` looks up why. The next event begins another one."""
        with self.lock:
            if owner is not None and self.owner is owner:
                self.owner = None
                self.detached.append(owner)
                owner.seal(*owner.current)

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
            owner.seal(segment)
            self._vanish(segment)
        return True

    def resolve(self) -> None:
        """Look up what became of the directories of lost owners. Raises `OSError`."""
        while self.detached:
            owner = self.detached[0]
            names: list[str] = []
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # all was removed
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
                            self.withdraw(segment, HANDED_OVER)
                        else:
                            self._vanish(segment)
                self._close(left)
            self.leave(owner)
            self.detached.pop(0)

    def withdraw(self, segment: Segment, reason: str) -> None:
        """The events of *segment* must not be delivered here any more; with the lock."""
        self._forget(segment)
        segment.lost = reason
        if segment.reported:
            self.lost.append((segment, reason))

    def _forget(self, segment: Segment) -> None:
        """*segment* isn't there any more, or isn't its own; with the lock."""
        for files in (segment.directory.segments, self.spilled, self.claimed):
            files.pop(segment, None)

    @staticmethod
    def _vanish(segment: Segment) -> None:
        """*segment* was removed by hand; with the lock.

        Its events in memory are the only copy, and are delivered. Those on the disk only are
        missing, when it is their turn to be read.
        """
        segment.removed = True
        segment.directory.segments.pop(segment, None)

    @staticmethod
    def _close(segments: Iterable[Segment]) -> None:
        """Close what no thread writes to; those that one writes to are closed after that."""
        for segment in segments:
            if not segment.writers:
                segment.close()

    # -- removing and handing over -----------------------------------------------------------------

    def remove(self, owner: Ownership, segment: Segment, reason: str = "") -> None:
        """Remove a file whose events are all settled, or are dropped for a *reason*.

        After the last one of another origin its directory is removed as well. Raises `OSError`.
        """
        if not segment.removed:
            segment.delete(self.disk, self.sync_directory)
        with self.lock:
            if reason:
                self.withdraw(segment, reason)
            self._forget(segment)
        directory = segment.directory
        if directory is not owner.own and not directory.segments:
            self.hand_over(owner, directory)

    def hand_over(self, owner: Ownership, directory: OwnedDirectory) -> None:
        """Let other processes claim *directory*; remove it if it is empty. Raises nothing."""
        files = list(directory.segments)
        gone = []
        for segment in files:
            with contextlib.suppress(OSError):
                if segment.removed or not exists(self.disk, segment.path):
                    gone.append(segment)
        with self.lock:
            owner.directories.pop(directory, None)
            for segment in gone:
                self._vanish(segment)
            left = list(directory.segments)
            for segment in left:
                self.withdraw(segment, HANDED_OVER)
        self._close(files)
        if left or not self._remove_directory(directory):
            target = self.paths.owned(directory.origin, UNCLAIMED)
            with contextlib.suppress(OSError):
                self.disk.rename(directory.path, target)
                directory.path = target  # what is under way is noted there

    def _remove_directory(self, directory: OwnedDirectory) -> bool:
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

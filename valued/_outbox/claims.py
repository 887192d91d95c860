"""Taking over what dead processes left, in portions.

A claim is one ``rename`` of a directory of events, so only one of all claiming processes gets it.
One look at all directories and marks goes on through several portions: each owner is judged once.
"""

from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING, Final

from valued._outbox import records
from valued._outbox.deaths import Deaths
from valued._outbox.disk import SHORTAGE, LeaseLostError
from valued._outbox.marks import (
    DEAD,
    ELSEWHERE,
    EXPIRED,
    HEARTBEAT_INTERVAL,
    changed,
    read_mark,
    state,
)
from valued._outbox.paths import EVENTS, SETTLED, split
from valued._outbox.records import Damage
from valued._outbox.segments import BEGINNING, EventFile, OwnedDirectory, Segment, read_settled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from valued._outbox.workspace import Ownership, Workspace

#: Seconds between two looks for what dead processes left.
SCAN_INTERVAL: Final = 30.0

#: How many directories one portion takes over, and how many names it looks at.
MOST_DIRECTORIES: Final = 256
MOST_NAMES: Final = 2048


class Scan:
    """One look at all directories, and then at all marks. Methods raise `OSError`."""

    def __init__(self, workspace: Workspace, now: float) -> None:
        self._workspace = workspace
        self._now = now
        self._states: dict[str, str] = {}
        self._directories = iter(sorted(workspace.disk.listdir(workspace.paths.events)))
        self._name: str | None = next(self._directories, None)
        self._marks: list[str] | None = None  # those to look at
        self._owning: set[str] = set()
        self.others: set[str] = set()  # owners that other processes are
        self.is_complete = False

    def next_directory(self, owner: Ownership) -> OwnedDirectory | None:
        """Look at one directory, and take it over if its owner is dead."""
        name = self._name
        assert name is not None  # see `has_directories`
        parts = split(name)
        directory = None if parts is None else self._take(owner, name, *parts)
        self._name = next(self._directories, None)  # after an error this one is looked at again
        return directory

    def has_directories(self) -> bool:
        """Whether there are directories to look at."""
        return self._name is not None

    def _take(self, owner: Ownership, name: str, origin: str, by: str) -> OwnedDirectory | None:
        workspace = self._workspace
        path = os.path.join(workspace.paths.events, name)
        if workspace.trouble.is_skipped(path):
            return None
        if by == owner.name:
            if any(one.origin == origin for one in list(owner.directories)):
                return None
        elif not self._is_dead(by, path):
            return None
        # Else it is one that an interrupted call has taken over.
        try:
            is_directory = stat.S_ISDIR(workspace.disk.lstat(path).st_mode)
            if not is_directory:
                workspace.trouble.set_aside(path)
                return None
            target = workspace.paths.owned(origin, owner.name)
            if path != target:
                workspace.disk.rename(path, target)
            names = self._names(target)
        except FileNotFoundError:  # another process was faster
            return None
        except OSError as error:  # one directory must not keep this process from the others
            if error.errno in SHORTAGE:
                raise
            message = "%d times events of other processes could not be taken over: %s"
            workspace.reporter.warn("claim", message, error)
            return None
        return self._adopt(owner, OwnedDirectory(origin, target), names)

    def _names(self, path: str) -> list[str]:
        try:
            return sorted(self._workspace.disk.listdir(path))
        except OSError as error:
            if error.errno not in SHORTAGE:
                self._workspace.trouble.set_aside(path)
            raise

    def _adopt(
        self, owner: Ownership, directory: OwnedDirectory, names: list[str]
    ) -> OwnedDirectory:
        workspace = self._workspace
        for name in names:
            if name.endswith(EVENTS):
                segment = Segment(directory, name.removesuffix(EVENTS))
                segment.adopted = segment.sealed = True
                segment.counted = segment.reported = False
                directory.segments[segment] = None
            elif not name.endswith(SETTLED):
                workspace.trouble.set_aside(os.path.join(directory.path, name))
        with workspace.lock:
            is_late = workspace.owner is not owner  # released meanwhile
            owner.directories[directory] = None
            if not is_late:
                owner.uncounted.extend(directory.segments)
        if is_late or not directory.segments:
            workspace.hand_over(owner, directory)
        return directory

    def _is_dead(self, owner: str, path: str) -> bool:
        found = self._states.get(owner)
        if found is None:
            workspace = self._workspace
            found = self._states[owner] = state(
                workspace.disk, workspace.paths, workspace.processes, owner, path, self._now
            )
            if found not in (DEAD, EXPIRED) and owner not in workspace.processes.names():
                self.others.add(owner)
        return found in (DEAD, EXPIRED)

    def sweep(self, most: int) -> None:
        """Look at some marks, and remove those of dead owners that own nothing."""
        workspace = self._workspace
        if self._marks is None:
            self._owning = self._owners()
            self._marks = sorted(workspace.disk.listdir(workspace.paths.owners), reverse=True)
        marks, self._marks = self._marks[-most:], self._marks[:-most]
        gone = [name for name in marks if name not in self._owning and self._is_left(name)]
        # Look again: since it was found to own nothing, a process may have made a directory and
        # died. Without a mark that directory would have to wait until a lease has expired.
        self._owning = self._owners() if gone else self._owning
        for name in gone:
            if name not in self._owning:
                self._remove(workspace.paths.mark(name))
        self.is_complete = not self._marks

    def _owners(self) -> set[str]:
        names = self._workspace.disk.listdir(self._workspace.paths.events)
        return {parts[1] for name in names if (parts := split(name))}

    def _is_left(self, name: str) -> bool:
        """Whether the mark of an owner that owns nothing is to be removed."""
        workspace = self._workspace
        mark = workspace.paths.mark(name)
        if name in workspace.processes.names() or workspace.trouble.is_skipped(mark):
            return False  # pragma: no cover - begun in this instant
        if self._is_dead(name, mark):
            return True
        # An incomplete mark belongs to a process that owns nothing yet.
        return (
            self._states[name] == ELSEWHERE
            and self._now - changed(workspace.disk, self._now, mark) > HEARTBEAT_INTERVAL
            and read_mark(workspace.disk, mark) is None
        )

    def _remove(self, mark: str) -> None:
        try:
            self._workspace.disk.unlink(mark)
        except FileNotFoundError:
            pass
        except OSError:  # a directory, for example
            self._workspace.trouble.set_aside(mark)


class Claims:
    """Any thread may call; nothing raises an `Exception`."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._claiming: Final = threading.Lock()  # never waited for
        self._scan: Scan | None = None
        self._has_others = False
        self._has_taken = False  # whether this scan took anything over
        self._found: list[Segment] = []  # counted, and not returned yet
        self._next_scan = workspace.clock()
        self._again = False  # whether a death became known since this scan began
        self._stopped = False
        self.deaths: Final = Deaths(workspace, self._look_again)
        #: How many directories the last `claim` took over.
        self.taken = 0

    def claim(self, events: int) -> Sequence[Segment]:
        """See `Journal.claim`."""
        if not self._claiming.acquire(blocking=False):
            return ()
        workspace = self._workspace
        owner = None
        is_whole = False
        self.taken = 0
        try:
            owner = workspace.begin()
            self._advance(owner, workspace.heartbeat(owner), events)
        except LeaseLostError:
            workspace.lose(owner)
        except OSError as error:
            if owner is workspace.owner:  # else it was released meanwhile
                workspace.trouble.refuse(error)
        else:
            is_whole = True
        finally:
            if not is_whole:
                self._scan = None  # what an interrupted call has taken over is found by a new look
            self._claiming.release()
        return self._report(owner)

    def _report(self, owner: Ownership | None) -> Sequence[Segment]:
        with self._workspace.lock:
            found, self._found = self._found, []
            # What was handed over meanwhile isn't there any more.
            found = [one for one in found if not one.lost and one in one.directory.segments]
            for segment in found:
                segment.reported = True
                if owner is not None:  # pragma: no branch - else nothing was found
                    owner.claimed.append(segment)
        return found

    def _advance(self, owner: Ownership, now: float, events: int) -> None:
        """Go on with the scan, until about *events* events are claimed. Raises `OSError`."""
        workspace = self._workspace
        names = 0
        while events > 0 and not self._stopped and workspace.owner is owner:
            if owner.uncounted:
                segment = owner.uncounted[0]
                if not segment.counted:
                    self._count(segment)
                if segment.unread:
                    self._found.append(segment)
                    events -= segment.unread
                else:
                    workspace.remove(owner, segment)
                owner.uncounted.popleft()
                continue
            if self._scan is None and names:
                return
            if self._scan is None:
                self._again = False
                self._scan = Scan(workspace, now)
            scan = self._scan
            if names >= MOST_NAMES or self.taken >= MOST_DIRECTORIES:
                return
            names += 1
            if scan.has_directories():
                if scan.next_directory(owner) is not None:
                    self.taken += 1
                    self._has_taken = True
                continue
            scan.sweep(MOST_DIRECTORIES)
            if scan.is_complete:
                self._has_others = bool(scan.others)
                self._scan = None
                self._next_scan = workspace.clock() + (0.0 if self._again else SCAN_INTERVAL)
                workspace.size_is_due |= self._has_taken
                self._has_taken = False
                self.deaths.see(owner.name, scan.others)

    def _count(self, segment: Segment) -> None:
        """Read a claimed file once, to know what is in it. Raises `OSError`."""
        workspace = self._workspace
        segment.skip = self._settled(segment)
        unread = damaged = settled = 0
        known = False
        try:
            with EventFile(workspace.disk, segment.path) as file:
                for found in file.scan():
                    if isinstance(found, Damage):
                        damaged += not found.torn
                    elif found.kind == records.EVENT:
                        known = True
                        is_settled = found.number in segment.skip
                        settled += is_settled
                        unread += not is_settled
                if not known:
                    file.check_beginning()
            segment.inode = file.inode
            # At least one event was in each damaged part, unless it was settled: `load` misses it,
            # and it counts as dropped.
            missing = max(0, damaged - (len(segment.skip) - settled))
            unread += missing
            damaged -= missing
            # All that is there is known, damaged or not.
            segment.known = max(0, file.size - len(BEGINNING))
        except FileNotFoundError:
            unread, segment.removed = 0, True
        except OSError as error:
            if error.errno in SHORTAGE:
                raise
            workspace.trouble.set_aside(segment.path)
            unread, segment.removed = 0, True
        workspace.trouble.report_damage(damaged)
        segment.unread = unread
        segment.counted = True

    def _settled(self, segment: Segment) -> frozenset[int]:
        workspace = self._workspace
        try:
            return read_settled(workspace.disk, segment.notes)
        except OSError as error:
            if error.errno in SHORTAGE:
                raise
            workspace.trouble.set_aside(segment.notes)
            return frozenset()

    # -- when --------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End a running `claim` after its present step, and let later ones do nothing."""
        self._stopped = True

    def restart(self) -> None:
        """Forget what was scanned, and allow `claim` again: all was released."""
        self._scan = None
        self._found = []
        self._stopped = False
        self._next_scan = self._workspace.clock()

    def _look_again(self) -> None:
        """Make a scan due: a process may have died, also after a scan that runs looked at it."""
        self._again = True
        self._next_scan = self._workspace.clock()

    def is_due(self) -> bool:
        """See `Journal.is_claim_due`."""
        owner = self._workspace.owner
        if owner is None or self._stopped or self._workspace.trouble.is_resting():
            return False
        if self._scan is not None or owner.uncounted or self._found:
            return True
        return self._workspace.clock() >= self._next_scan

    def next_due(self) -> float | None:
        """When the next scan is due by itself: only while other processes use the directory."""
        owner = self._workspace.owner
        if owner is None or self._stopped:
            return None
        return self._next_scan if self._has_others else None

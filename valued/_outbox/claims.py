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
from valued._outbox.owners import (
    DEAD,
    ELSEWHERE,
    EVENTS,
    EXPIRED,
    HEARTBEAT_INTERVAL,
    SETTLED,
    changed,
    read_mark,
    split,
    state,
)
from valued._outbox.records import Damage
from valued._outbox.segments import (
    BEGINNING,
    OwnedDirectory,
    Segment,
    check,
    read_events,
    read_settled,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from valued._outbox.segments import Ownership
    from valued._outbox.store import Store

#: Seconds between two looks for what dead processes left.
SCAN_INTERVAL: Final = 30.0

#: How many directories one portion takes over, and how many names it looks at.
MOST_DIRECTORIES: Final = 256
MOST_NAMES: Final = 2048


class Scan:
    """One look at all directories, and then at all marks, for *owner*, which is this process.

    *now*: by the file system's clock.
    """

    def __init__(self, store: Store, owner: Ownership, now: float) -> None:
        self.owner: Final = owner
        self.others: set[str] = set()  # owners that other processes are
        self.taken = 0  # directories
        #: Takes over what is left; each step says whether it did. Raises `OSError`.
        self.steps: Final = self._run()
        self._store = store
        self._now = now
        self._states: dict[str, str] = {}

    def _run(self) -> Iterator[bool]:
        store = self._store
        for name in sorted(store.disk.listdir(store.paths.events)):
            parts = split(name)
            is_taken = parts is not None and self._take(name, *parts)
            self.taken += is_taken
            yield is_taken
        marks = sorted(store.disk.listdir(store.paths.owners))
        owning = self._owning()
        for first in range(0, len(marks), MOST_DIRECTORIES):
            self._sweep(marks[first : first + MOST_DIRECTORIES], owning)
            yield False

    def _take(self, name: str, origin: str, by: str) -> bool:
        """Take over a directory, if its owner is dead."""
        store, owner = self._store, self.owner
        path = os.path.join(store.paths.events, name)
        if by == owner.name:
            if any(one.origin == origin for one in list(owner.directories)):
                return False
        elif not self._is_dead(by, path):
            return False
        # Else it is one that an interrupted call has taken over.
        target = store.paths.owned(origin, owner.name)
        try:
            if not stat.S_ISDIR(store.disk.lstat(path).st_mode):
                store.trouble.set_aside(path)
                return False
            if path != target:
                store.disk.rename(path, target)
            names = sorted(store.disk.listdir(target))
        except FileNotFoundError:  # another process was faster
            return False
        except OSError as error:  # one directory must not keep this process from the others
            if error.errno in SHORTAGE:
                raise
            message = "%d times events of other processes could not be taken over: %s"
            store.reporter.warn("claim", message, error)
            store.trouble.set_aside(target)  # if it is there, it can't be read
            return False
        self._adopt(OwnedDirectory(origin, target), names)
        return True

    def _adopt(self, directory: OwnedDirectory, names: list[str]) -> None:
        store, owner = self._store, self.owner
        for name in names:
            if name.endswith(EVENTS):
                segment = Segment(directory, name.removesuffix(EVENTS), adopted=True)
                directory.segments[segment] = None
            elif not name.endswith(SETTLED):
                store.trouble.set_aside(os.path.join(directory.path, name))
        with store.lock:
            is_late = store.owner is not owner  # released meanwhile
            owner.directories[directory] = None
            if not is_late:
                owner.uncounted.extend(directory.segments)
        if is_late or not directory.segments:
            store.hand_over(owner, directory)

    def _is_dead(self, owner: str, path: str) -> bool:
        found = self._states.get(owner)
        if found is None:
            store = self._store
            found = self._states[owner] = state(
                store.disk, store.paths, store.processes, owner, path, self._now
            )
            if found not in (DEAD, EXPIRED) and owner not in store.processes.names():
                self.others.add(owner)
        return found in (DEAD, EXPIRED)

    def _sweep(self, marks: list[str], owning: set[str]) -> None:
        """Remove those of these marks whose owners are dead, and own nothing."""
        gone = [name for name in marks if name not in owning and self._is_left(name)]
        # Look again: since it was found to own nothing, a process may have made a directory and
        # died. Without a mark that directory would have to wait until a lease has expired.
        owning = self._owning() if gone else owning
        for name in gone:
            if name not in owning:
                self._remove(self._store.paths.mark(name))

    def _owning(self) -> set[str]:
        names = self._store.disk.listdir(self._store.paths.events)
        return {parts[1] for name in names if (parts := split(name))}

    def _is_left(self, name: str) -> bool:
        """Whether the mark of an owner that owns nothing is to be removed."""
        store = self._store
        mark = store.paths.mark(name)
        if name in store.processes.names():
            return False  # pragma: no cover - begun in this instant
        if self._is_dead(name, mark):
            return True
        # An incomplete mark belongs to a process that owns nothing yet.
        return (
            self._states[name] == ELSEWHERE
            and self._now - changed(store.disk, self._now, mark) > HEARTBEAT_INTERVAL
            and read_mark(store.disk, mark) is None
        )

    def _remove(self, mark: str) -> None:
        try:
            self._store.disk.unlink(mark)
        except FileNotFoundError:
            pass
        except OSError:  # a directory, for example
            self._store.trouble.set_aside(mark)


class Claims:
    """Any thread may call; nothing raises an `Exception`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._claiming: Final = threading.Lock()  # never waited for
        self._scan: Scan | None = None
        self._has_others = False
        self._found: list[Segment] = []  # counted, and not returned yet
        self._next_scan = store.clock()
        self._again = False  # whether a death became known since this scan began
        self._stopped = False
        self.deaths: Final = Deaths(store.paths, store.disk, store.processes, self._look_again)
        #: How many directories the last `claim` took over.
        self.taken = 0

    def claim(self, events: int) -> Sequence[Segment]:
        """See `Journal.claim`."""
        if not self._claiming.acquire(blocking=False):
            return ()
        store = self._store
        owner = None
        is_whole = False
        self.taken = 0
        try:
            owner = store.begin()
            self._advance(owner, store.heartbeat(owner), events)
            is_whole = True
        except LeaseLostError:
            store.lose(owner)
        except OSError as error:
            if owner is store.owner:  # else it was released meanwhile
                store.trouble.refuse(error)
        finally:
            if not is_whole:
                self._scan = None  # what an interrupted call has taken over is found by a new look
            self._claiming.release()
        return self._report()

    def _report(self) -> Sequence[Segment]:
        store = self._store
        with store.lock:
            found, self._found = self._found, []
            # What was handed over meanwhile isn't there any more.
            found = [one for one in found if not one.lost and one in one.directory.segments]
            for segment in found:
                segment.reported = True
            store.claimed.update(dict.fromkeys(found))
        return found

    def _advance(self, owner: Ownership, now: float, events: int) -> None:
        """Go on with the scan, until about *events* events are claimed. Raises `OSError`."""
        store = self._store
        steps = 0
        while events > 0 and not self._stopped and store.owner is owner:
            if owner.uncounted:
                events -= self._count(owner, owner.uncounted[0])
                owner.uncounted.popleft()
                continue
            scan = self._scan
            if scan is None or scan.owner is not owner:
                if steps:
                    return
                self._again = False
                scan = self._scan = Scan(store, owner, now)
            if steps >= MOST_NAMES or self.taken >= MOST_DIRECTORIES:
                return
            steps += 1
            is_taken = next(scan.steps, None)
            if is_taken is None:
                self._end(scan)
            else:
                self.taken += is_taken

    def _end(self, scan: Scan) -> None:
        self._scan = None
        self._has_others = bool(scan.others)
        self._next_scan = self._store.clock() + (0.0 if self._again else SCAN_INTERVAL)
        self._store.size_is_due |= scan.taken > 0
        self.deaths.see(scan.owner.name, scan.others)

    def _count(self, owner: Ownership, segment: Segment) -> int:
        """How many events a claimed file has; it is read once, to know that. Raises `OSError`."""
        store = self._store
        if not segment.counted:
            segment.unread = self._read(segment)
            segment.counted = True
        if segment.unread:
            self._found.append(segment)
        else:
            store.remove(owner, segment)
        return segment.unread

    def _read(self, segment: Segment) -> int:
        store = self._store
        unread = damaged = settled = 0
        end = 0
        try:
            segment.skip = self._settled(segment)
            for found in read_events(store.disk, segment.path):
                end = found.end
                if isinstance(found, Damage):
                    damaged += not found.torn
                elif found.kind == records.EVENT:
                    is_settled = found.number in segment.skip
                    settled += is_settled
                    unread += not is_settled
            if not unread + settled:
                check(store.disk, segment.path)
        except OSError as error:
            if error.errno in SHORTAGE:
                raise
            segment.removed = True
            if not isinstance(error, FileNotFoundError):
                store.trouble.set_aside(segment.path)
            return 0
        # All that is there is known, damaged or not. At least one event was in each damaged part,
        # unless it was settled: `load` misses it, and it counts as dropped.
        segment.known = max(0, end - len(BEGINNING))
        missing = min(damaged, max(0, damaged - (len(segment.skip) - settled)))
        if damaged > missing:
            message = "%d places in the outbox are damaged, and were skipped"
            store.reporter.warn("damaged", message, count=damaged - missing)
        return unread + missing

    def _settled(self, segment: Segment) -> frozenset[int]:
        try:
            return read_settled(self._store.disk, segment.notes)
        except OSError as error:
            if error.errno in SHORTAGE:
                raise
            self._store.trouble.set_aside(segment.notes)
            return frozenset()

    # -- when --------------------------------------------------------------------------------------

    def watch(self) -> bool:
        """See `Journal.watch`."""
        owner = self._store.owner
        if owner is None or not self.deaths.watch(owner.name):
            return False
        if self._store.owner is not owner:  # pragma: no cover - released in this instant
            self.deaths.unwatch()
        return True

    def stop(self) -> None:
        """End a running `claim` after its present step, and let later ones do nothing."""
        self._stopped = True

    def restart(self) -> None:
        """Forget what was scanned, and allow `claim` again: all was released."""
        self._scan = None
        self._found = []
        self._stopped = False
        self._next_scan = self._store.clock()

    def _look_again(self) -> None:
        """Make a scan due: a process may have died, also after a scan that runs looked at it."""
        self._again = True
        self._next_scan = self._store.clock()

    def is_due(self) -> bool:
        """See `Journal.is_claim_due`."""
        owner = self._store.owner
        if owner is None or self._stopped or self._store.trouble.is_resting():
            return False
        if self._scan is not None or owner.uncounted or self._found:
            return True
        return self._store.clock() >= self._next_scan

    def next_due(self) -> float | None:
        """When the next scan is due by itself: only while other processes use the directory."""
        if self._store.owner is None or self._stopped or not self._has_others:
            return None
        return self._next_scan

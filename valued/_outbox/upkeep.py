"""What is due from time to time: removing finished files, and keeping the directory small."""

from __future__ import annotations

import collections
import math
import os
from typing import TYPE_CHECKING, Final

from valued._outbox.segments import BEGINNING, Segment
from valued._outbox.store import HANDED_OVER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from valued._outbox.files import Notes, Reader
    from valued._outbox.segments import Ownership
    from valued._outbox.store import Store

#: Seconds after which an event that is in a file, and that the pipeline doesn't know of, is taken
#: for one whose call was interrupted. A caller needs microseconds from the one to the other.
GRACE: Final = 10.0

#: How many files one step removes; with their directories they may take a millisecond each.
FILES: Final = 64

#: Seconds between two looks at all files of this process, where these are more than `FILES`. A look
#: at 9,000 took 8 ms on a slow machine. Without a pause, each delivered event would have one.
FIND_INTERVAL: Final = 0.25

#: How many directories one step measures.
DIRECTORIES: Final = 256


class Upkeep:
    """Removes files. One thread at a time may call; methods raise `OSError` where they say so.

    *max_size*: bytes of the whole directory above which the oldest files are dropped.
    """

    def __init__(self, store: Store, notes: Notes, reader: Reader, max_size: int) -> None:
        self._store = store
        self._notes = notes
        self._reader = reader
        self._max_size = max_size
        self._measuring: Iterator[None] | None = None
        # Files that are due and were not removed yet; whose; and if that one has many files, when
        # to look at all of them again, by the clock.
        self._due: collections.deque[Segment] = collections.deque()
        self._due_of: Ownership | None = None
        self._find_again: float | None = None

    # -- files whose events are all settled --------------------------------------------------------

    def _find(self, owner: Ownership) -> tuple[list[tuple[float, Segment]], bool]:
        """The files to be looked at, and when, by the clock; whether there are many files.

        Looks at memory only.
        """
        found = []
        count = 0
        for segment in owner.segments():
            count += 1
            if segment.sealed and not segment.writers and segment.file is not None:
                found.append((-math.inf, segment))  # to be closed
            elif segment.is_done() and not self._reader.is_reading(segment):
                found.append((segment.look_at, segment))
        return found, count > FILES

    def next_due(self, owner: Ownership) -> float | None:
        """When to call `remove`, by the clock; None: of few files, none is to be removed."""
        if self._due and self._due_of is owner:
            return -math.inf
        again = self._find_again
        if again is None or self._due_of is not owner:
            found, are_many = self._find(owner)
            if not are_many:
                return min((at for at, _ in found), default=None)
            self._due_of, self._find_again = owner, (again := -math.inf)
        return again

    def _portion(self, owner: Ownership, now: float) -> list[Segment]:
        """Some of the files that are due."""
        may_wait = self._due_of is owner and (self._due or (self._find_again or now) > now)
        # Also before the size is measured: no event is to be dropped for the space of files whose
        # events are all settled.
        if not may_wait or self.is_size_due():
            found, are_many = self._find(owner)
            self._due = collections.deque(segment for at, segment in found if at <= now)
            self._due_of, self._find_again = owner, now + FIND_INTERVAL if are_many else None
        return [self._due.popleft() for _ in range(min(FILES, len(self._due)))]

    def remove(self, owner: Ownership, *, final: bool = False) -> None:
        """Remove what is due. *final*: nothing will be looked at again. Raises `OSError`."""
        now = self._store.clock()
        due = (
            [segment for at, segment in self._find(owner)[0] if at <= now]
            if final
            else self._portion(owner, now)
        )
        for segment in due:
            if segment not in segment.directory.segments:
                continue  # gone, or handed over, since it was found
            segment.close()
            if not segment.is_done() or self._reader.is_reading(segment):
                continue
            if not self._has_surplus(segment):
                self._notes.close(segment)
                self._store.remove(owner, segment)
            elif final or segment.look_at == -math.inf:
                segment.look_at = now + GRACE  # its caller may just be late
            else:
                self._adopt(owner, segment)

    def _has_surplus(self, segment: Segment) -> bool:
        """Whether there are events in the file that the pipeline doesn't know of."""
        if segment.removed:
            return False
        try:
            size = self._store.disk.lstat(segment.path).st_size
        except FileNotFoundError:
            return False
        return size > len(BEGINNING) + segment.known + segment.waste

    def _adopt(self, owner: Ownership, segment: Segment) -> None:
        """Read it like a file of another process: what is not settled will be delivered."""
        again = Segment(segment.directory, segment.name, adopted=True)
        self._notes.close(segment)
        with self._store.lock:
            self._store.withdraw(segment, HANDED_OVER)
            segment.directory.segments[again] = None
            owner.uncounted.append(again)

    # -- the size of the directory -----------------------------------------------------------------

    def is_size_due(self) -> bool:
        """Whether there is something to measure."""
        return self._measuring is not None or self._store.size_is_due

    def keep_size(self, owner: Ownership) -> None:
        """Measure some directories; after the last one, drop the oldest events if needed.

        Raises `OSError`.
        """
        if self._measuring is None:
            self._store.size_is_due = False
            self._measuring = self._keep_size(owner)
        measuring, self._measuring = self._measuring, None  # after an error it begins again
        for _ in measuring:
            self._measuring = measuring
            break

    def _keep_size(self, owner: Ownership) -> Iterator[None]:
        total = 0
        events = self._store.paths.events
        for count, name in enumerate(self._store.disk.listdir(events), 1):
            total += self._measure(os.path.join(events, name))
            if count % DIRECTORIES == 0:
                yield
        self._drop(owner, total - self._max_size)

    def _measure(self, path: str) -> int:
        disk = self._store.disk
        size = 0
        try:
            for name in disk.listdir(path):
                size += disk.lstat(os.path.join(path, name)).st_size
        except OSError:  # it changes hands meanwhile
            pass
        return size

    def _drop(self, owner: Ownership, excess: int) -> None:
        store = self._store
        for segment in owner.segments():
            if excess <= 0:
                return
            with store.lock:
                is_used = segment.writers or not segment.sealed or not segment.counted
            if is_used or self._reader.is_reading(segment):
                continue
            excess -= len(BEGINNING) + segment.known
            self._notes.close(segment)
            store.remove(owner, segment, reason="size")

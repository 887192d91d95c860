"""The files that one process holds for its outbox, and what is to be done to them.

What is decided under the outbox's lock is done to the disk outside of it: segments whose events are
all settled are removed, of other settled events a note is made in groups, and what is for others to
deliver is handed over.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from valued._owners import BEAT
from valued._segments import SEGMENT, Backlog, Holding, RobbedError, Segment

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from valued._reporting import Reporter
    from valued._store import Store

#: Settled events in a group: what is delivered and not noted when the process dies goes again.
GROUP: Final = 64

#: Seconds until the disk is tried again after it refused.
TRY_AGAIN: Final = 1.0

#: What became of events: they are for another process to deliver; their bytes are damaged; there
#: were too many of them.
LEFT: Final = "left"
DAMAGED: Final = "damaged"
SIZE: Final = "size"


class Files:
    """One process's. Any thread may call; with the *lock* where that is said.

    *unread* is called, with the lock, for events that are on the disk alone and are settled by what
    happened to their file: with the backlog that they were in, how many, and why.
    """

    def __init__(
        self,
        store: Store,
        max_size: int,
        lock: threading.RLock,
        unread: Callable[[Backlog, int, str], object],
        reporter: Reporter,
        clock: Callable[[], float],
    ) -> None:
        self.store: Final = store
        self._max_size = max_size
        self._lock = lock
        self._unread = unread
        self._reporter = reporter
        self._clock = clock
        self.beaten = 0.0  #: `time.time` of the last sign of life
        self._refused_until = 0.0  # when the disk is tried again
        self._note_again = 0.0  # when to note what is settled again, after that failed

        # All below is guarded by the lock, as is what hangs off it.
        self.own: Holding | None = None
        #: What is appended to: for events that wait in memory, and for those on the disk alone.
        self.current: list[Segment | None] = [None, None]
        self.spilled: Final = Backlog()
        self.inherited: Final = Backlog()
        self._holdings: dict[Holding, None] = {}
        self._sealed: list[Segment] = []  # to be closed
        self._finished: list[Segment] = []  # to be removed
        self._parted: dict[Holding, None] = {}  # to be handed over
        self._unrecorded: dict[Segment, None] = {}  # those with settled events to be noted
        self._unrecorded_events = 0

    # -- to write to -------------------------------------------------------------------------------

    def prepare(self, index: int) -> bool:
        """See to it that there is a segment to write to; False: the disk does not let us now."""
        if self._clock() < self._refused_until:
            return False
        own = None
        try:
            self.beat()  # which may find that this process has nothing any more
            own = self.begin()
            current = self.current[index]
            if current is None or current.size >= SEGMENT:
                self._rotate(own, index, current)
        except RobbedError:  # in a child, which has nothing to do with it
            return False
        except OSError as error:
            if own is None or own is self.own:
                self.refuse(error)
                return False
            # Else another thread closed the client meanwhile: then it is to begin anew.
        return True

    def begin(self) -> Holding:
        """This process's mark and directory, made where there are none. Raises `OSError`."""
        own = self.own
        if own is not None:
            return own
        made = self.store.open()
        with self._lock:
            own = self.own = self.own or made
            self._holdings[own] = None
        if own is made:
            self.beaten = time.time()
        else:
            self.store.discard(made)
        return own

    def beat(self) -> None:
        """Give a sign of life, where it is time. Raises `OSError`."""
        own, wall = self.own, time.time()
        if own is None or 0 <= wall - self.beaten < BEAT:
            return
        self.beaten = wall
        try:
            own.owner.beat()
            os.stat(own.path)
        except FileNotFoundError as error:
            self.lose(own, error)

    def _rotate(self, own: Holding, index: int, before: Segment | None) -> None:
        """Begin a new segment in the place of *before*."""
        made = self.store.segment(own, self.spilled if index else None)
        with self._lock:
            faster = self.own is not own or self.current[index] is not before
            if not faster:
                own.segments[made] = None
                self.current[index] = made
                self._seal(before)
        if faster:
            made.remove()
        else:
            self._bound()

    def seal(self, index: int) -> None:
        """Nothing will be added to the current segment; with the lock."""
        segment, self.current[index] = self.current[index], None
        self._seal(segment)

    def _seal(self, segment: Segment | None) -> None:
        if segment is None:
            return
        self._sealed.append(segment)
        if segment.backlog is not None:
            segment.backlog.segments.append(segment)  # it is closed when all of it was read
        else:
            segment.closed = True
            self.check(segment)

    def sync(self, segment: Segment) -> None:
        """Wait until the disk has what was written. Raises nothing."""
        try:
            segment.sync()
        except OSError as error:  # what was written may be there all the same
            self.refuse(error)

    def fail(self, segment: Segment, error: OSError) -> None:
        """*segment* can't be written to: begin another one when the disk is tried again."""
        with self._lock:
            if segment in self.current:  # or it would never go, and may be what fills the disk
                self.seal(self.current.index(segment))
        self.refuse(error)

    def refuse(self, error: OSError) -> None:
        """The disk doesn't take it: go on in memory, and try again soon."""
        self._refused_until = self._clock() + TRY_AGAIN
        self._reporter.warn(
            "disk", "%d times the outbox could not be used, events wait in memory: %s", error
        )

    def lose(self, own: Holding, error: OSError) -> None:
        """*own* is ours no more: another process took it over, or somebody removed it."""
        taken = self.store.was_taken(own)
        with self._lock:
            known = self.own is not own
            had = any(one.settled < one.begun for one in list(own.segments))
            if not known:
                self._lose(own, LEFT if taken else DAMAGED)
            owns = any(other.owner is own.owner for other in list(self._holdings))
        if not owns:  # its mark may have been made anew by a sign of life
            own.owner.leave()
        if had and not known:
            self._reporter.warn(
                "lost", "%d times the outbox of this process was taken over, or removed: %s", error
            )

    def _lose(self, own: Holding, reason: str) -> None:
        self.own = None
        self._sealed += filter(None, self.current)
        self.current = [None, None]
        for holding in [one for one in list(self._holdings) if one.owner is own.owner]:
            del self._holdings[holding]
            for segment in list(holding.segments):
                self._let_go(segment, reason)

    def _let_go(self, segment: Segment, reason: str) -> None:
        """Read nothing of *segment* any more, which is gone; with the lock."""
        # What is in memory of it is seen to when it is taken. Of what somebody removed there is no
        # other copy: that is delivered.
        segment.gone = reason
        segment.holding.segments.pop(segment, None)
        self._forget_notes(segment)
        backlog = segment.backlog
        if backlog is not None and not segment.closed:
            segment.closed = True
            if segment in backlog.segments:
                backlog.segments.remove(segment)
            self._unread(backlog, segment.unread(), reason)

    def _bound(self) -> None:
        """Drop the oldest events of this process while the directory is too large."""
        excess = self.store.size() - self._max_size
        with self._lock:
            holdings = sorted(self._holdings, key=lambda holding: holding is self.own)
            oldest = [one for holding in holdings for one in list(holding.segments)]
        for segment in oldest:
            size = segment.length() if excess > 0 else 0
            if size and self._drop(segment):
                excess -= size
                self._reporter.warn(
                    "size",
                    "%d times the oldest events were dropped: the outbox is larger than its "
                    "max_size, %d bytes",
                    self._max_size,
                )

    def _drop(self, segment: Segment) -> bool:
        backlog = segment.backlog
        with self._lock:
            current = segment in self.current
            if segment.gone or current or segment.writing or segment.holding.parting:
                return False
            if backlog is not None:
                if backlog.busy:
                    return False
                backlog.busy = True
        unread = segment.count_unread() if backlog is self.inherited else 0
        with self._lock:
            segment.begun += unread
            self._let_go(segment, SIZE)
            if backlog is not None:
                backlog.busy = False
        segment.remove()
        return True

    # -- settled -----------------------------------------------------------------------------------

    def settled(self, segment: Segment, number: int) -> None:
        """An event of *segment* is settled; with the lock."""
        segment.settled += 1
        if not segment.gone:
            segment.unrecorded.append(number)
            self._unrecorded[segment] = None
            self._unrecorded_events += 1
            if segment.closed:
                self.check(segment)

    def check(self, segment: Segment) -> None:
        """See whether *segment* can be removed; with the lock."""
        if segment.is_finished() and not segment.gone:
            segment.gone = "settled"
            segment.holding.segments.pop(segment, None)
            self._finished.append(segment)
            self._forget_notes(segment)
            holding = segment.holding
            if holding is not self.own and not holding.segments:
                self._part(holding)

    def _forget_notes(self, segment: Segment) -> None:
        self._unrecorded.pop(segment, None)
        self._unrecorded_events -= len(segment.unrecorded)
        segment.unrecorded = []

    def _part(self, holding: Holding) -> None:
        if not holding.parting:
            holding.parting = True
            if not holding.in_flight:
                self._parted[holding] = None

    def landed(self, segment: Segment) -> None:
        """An event of *segment* that was taken is so no more; with the lock."""
        holding = segment.holding
        holding.in_flight -= 1
        if holding.parting and not holding.in_flight:
            self._parted[holding] = None

    def tidy(self, *, idle: bool) -> None:
        """Do to the disk what is due; *idle*: note all that is settled, not only whole groups."""
        while self._do(idle=idle):
            pass

    def is_untidy(self, *, idle: bool) -> bool:
        """Whether `tidy` would do anything."""
        return bool(self._finished or self._parted or self._sealed) or self._is_due(idle=idle)

    def _is_due(self, *, idle: bool) -> bool:
        """Whether a note is to be made of what is settled."""
        if self._parted:
            # What is handed over is to say of all that is settled, or that would go again.
            return self._unrecorded_events > 0
        few = self._unrecorded_events < (1 if idle else GROUP)
        return not few and self._clock() >= self._note_again

    def _do(self, *, idle: bool) -> bool:
        """Do to the disk what is due; whether something came meanwhile that can't wait."""
        groups: list[tuple[Segment, list[int]]] = []
        with self._lock:
            sealed = [segment for segment in self._sealed if not segment.writing]
            self._sealed = [segment for segment in self._sealed if segment not in sealed]
            finished, self._finished = self._finished, []
            # Till a thread is done with it, none hands it over, or removes its directory.
            for segment in finished:
                segment.holding.in_flight += 1
            if self._is_due(idle=idle):
                for segment in self._unrecorded:
                    groups.append((segment, segment.unrecorded))
                    segment.unrecorded = []
                    segment.holding.in_flight += 1
                self._unrecorded = {}
                self._unrecorded_events = 0
        for segment in sealed:
            segment.close()
        for segment, numbers in groups:
            self._record(segment, numbers)
        for segment in finished:
            segment.remove()
        with self._lock:
            for segment in (*finished, *(segment for segment, _ in groups)):
                self.landed(segment)
            if any(one.holding in self._parted for one in (*self._unrecorded, *self._finished)):
                return True
            parted = [holding for holding in self._parted if not holding.in_flight]
            for holding in parted:
                del self._parted[holding]
        for holding in parted:
            self.store.part(holding)
            with self._lock:
                self._holdings.pop(holding, None)
                owns = any(other.owner is holding.owner for other in list(self._holdings))
            if not owns:  # else the mark says whose that is
                holding.owner.leave()
        return False

    def _record(self, segment: Segment, numbers: list[int]) -> None:
        try:
            segment.record_settled(numbers)
        except FileNotFoundError:  # removed, or handed over
            return
        except OSError as error:
            self.refuse(error)
            self._note_again = self._clock() + TRY_AGAIN
            with self._lock:
                # Later, as the disk may have recovered by then. There is no later for what is
                # handed over, and no need for what is gone.
                if not (segment.holding.parting or segment.gone):
                    segment.unrecorded += numbers
                    self._unrecorded[segment] = None
                    self._unrecorded_events += len(numbers)

    def claim(self) -> int:
        """Take over what dead owners left; from how many directories. Raises `OSError`."""
        self.beat()  # which may find that this process has nothing any more
        own = self.begin()
        count = 0
        for holding in self.store.claim(own.owner, self.inherited):
            count += 1
            with self._lock:
                late = self.own is not own  # it came to its end meanwhile
                if not late:
                    self._holdings[holding] = None
                    self.inherited.segments.extend(holding.segments)
                    if not holding.segments:
                        self._part(holding)
            if late:
                self.store.part(holding)
        if count:
            self._bound()  # a process that ends before its first file is full never looks else
        return count

    def retire(self) -> list[Holding]:
        """Write to nothing any more; what is held, for `part`; with the lock."""
        self.own = None
        for index in (0, 1):
            self.seal(index)
        return list(self._holdings)

    def part(self, holdings: list[Holding]) -> None:
        """Hand *holdings* over, or remove them where all is settled; with the lock."""
        for backlog in (self.spilled, self.inherited):
            for segment in [one for one in backlog.segments if one.holding in holdings]:
                backlog.segments.remove(segment)
                if backlog is self.spilled:
                    self._unread(backlog, segment.unread(), LEFT)
        for holding in holdings:
            self._part(holding)

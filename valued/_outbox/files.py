"""The files that one process has open for its outbox, and the I/O that they need.

Decisions are made under the outbox's lock, and the I/O is done without it: segments whose events
are all settled are removed, other settled events are written down in groups, and directories for
other processes are handed over.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from valued._outbox.owners import BEAT
from valued._outbox.segment import SEGMENT, Backlog, Holding, RobbedError, Segment

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from valued._outbox.store import Store
    from valued._process.reporting import Reporter

#: Settled events in a group: those not written down when the process dies are sent again.
GROUP: Final = 64

#: Seconds until the disk is tried again after an error.
TRY_AGAIN: Final = 1.0

#: What happened to events: handed over to another process; damaged; the directory was too large.
LEFT: Final = "handed_over"
DAMAGED: Final = "damaged"
SIZE: Final = "size"


class Files:
    """The segment files this process has open, and the I/O they still need.

    Any thread may call; with the *lock* where the method says so. *unread* is called, with the
    lock, for events on the disk only that are settled because something happened to their file. It
    gets their backlog, their number, and the reason.
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
        self.beaten = 0.0  #: `time.time` of the last heartbeat
        self._refused_until = 0.0  # when the disk is tried again
        self._note_again = 0.0  # when to write down settled events again, after a failure

        # All below is guarded by the lock, and so are the objects in it.
        self.own: Holding | None = None
        #: Segments to append to: for events that wait in memory, and for those on the disk only.
        self.current: list[Segment | None] = [None, None]
        self.spilled: Final = Backlog()
        self.inherited: Final = Backlog()
        self._holdings: dict[Holding, None] = {}
        self._sealed: list[Segment] = []  # to be closed
        self._finished: list[Segment] = []  # to be removed
        self._parted: dict[Holding, None] = {}  # to be handed over
        self._unrecorded: dict[Segment, None] = {}  # with settled events to be written down
        self._unrecorded_events = 0

    # -- writing -----------------------------------------------------------------------------------

    def prepare(self, index: int) -> bool:
        """Make sure that there is a segment to write to; False: the disk can't be used now."""
        if self._clock() < self._refused_until:
            return False
        own = None
        try:
            self.beat()  # this may find that this process owns nothing any more
            own = self.begin()
            current = self.current[index]
            if current is None or current.size >= SEGMENT:
                self._rotate(own, index, current)
        except RobbedError:  # in a child, which must not write here
            return False
        except OSError as error:
            if own is None or own is self.own:
                self.refuse(error)
                return False
            # Else another thread closed the client meanwhile: the caller starts over.
        return True

    def begin(self) -> Holding:
        """This process's mark and directory, created if needed. Raises `OSError`."""
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
        """Send a heartbeat if it is time. Raises `OSError`."""
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
        """Begin a new segment instead of *before*."""
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
        """Add nothing more to the current segment; with the lock."""
        segment, self.current[index] = self.current[index], None
        self._seal(segment)

    def _seal(self, segment: Segment | None) -> None:
        if segment is None:
            return
        self._sealed.append(segment)
        if segment.backlog is not None:
            segment.backlog.segments.append(segment)  # closed when all of it was read
        else:
            segment.closed = True
            self.check(segment)

    def sync(self, segment: Segment) -> None:
        """Wait until what was written is on the disk. Raises nothing."""
        try:
            segment.sync()
        except OSError as error:  # it may be on the disk all the same
            self.refuse(error)

    def fail(self, segment: Segment, error: OSError) -> None:
        """*segment* can't be written to: begin another one when the disk is tried again."""
        with self._lock:
            if segment in self.current:  # or it would never be removed, and may fill the disk
                self.seal(self.current.index(segment))
        self.refuse(error)

    def refuse(self, error: OSError) -> None:
        """The disk can't be used: go on in memory, and try again soon."""
        self._refused_until = self._clock() + TRY_AGAIN
        self._reporter.warn(
            "disk", "%d times the outbox could not be used, events wait in memory: %s", error
        )

    def lose(self, own: Holding, error: OSError) -> None:
        """*own* isn't ours any more: another process took it over, or it was removed."""
        taken = self.store.was_taken(own)
        with self._lock:
            known = self.own is not own
            had = any(one.settled < one.begun for one in list(own.segments))
            if not known:
                self._lose(own, LEFT if taken else DAMAGED)
            owns = any(other.owner is own.owner for other in list(self._holdings))
        if not owns:  # a heartbeat may have created its mark again
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
        """Stop reading *segment*, which is gone; with the lock."""
        # Its events in memory are handled when they are taken. If the file was removed, they are
        # the only copy, and are delivered.
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
        """Drop the oldest events of this process until the directory is small enough."""
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
                    "outbox_max_size, %d bytes",
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
        """An event of *segment* that was taken is settled or postponed; with the lock."""
        holding = segment.holding
        holding.in_flight -= 1
        if holding.parting and not holding.in_flight:
            self._parted[holding] = None

    def tidy(self, *, idle: bool) -> None:
        """Do the I/O that is due; *idle*: write down all settled events, not only whole groups."""
        while self._do(idle=idle):
            pass

    def is_untidy(self, *, idle: bool) -> bool:
        """Whether `tidy` would do anything."""
        return bool(self._finished or self._parted or self._sealed) or self._is_due(idle=idle)

    def _is_due(self, *, idle: bool) -> bool:
        """Whether settled events must be written down now."""
        if self._parted:
            # Before a directory is handed over, all that is settled must be written down, or it
            # would be sent again.
            return self._unrecorded_events > 0
        few = self._unrecorded_events < (1 if idle else GROUP)
        return not few and self._clock() >= self._note_again

    def _do(self, *, idle: bool) -> bool:
        """Do the I/O that is due. Whether something urgent was added meanwhile."""
        groups: list[tuple[Segment, list[int]]] = []
        with self._lock:
            sealed = [segment for segment in self._sealed if not segment.writing]
            self._sealed = [segment for segment in self._sealed if segment not in sealed]
            finished, self._finished = self._finished, []
            # Until this thread is done with it, no other hands it over or removes its directory.
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
            if not owns:  # else the mark is still needed
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
                # Try later, when the disk may have recovered. That is impossible after a hand-over,
                # and needless if the segment is gone.
                if not (segment.holding.parting or segment.gone):
                    segment.unrecorded += numbers
                    self._unrecorded[segment] = None
                    self._unrecorded_events += len(numbers)

    def claim(self) -> int:
        """Adopt what dead owners left. Returns from how many directories. Raises `OSError`."""
        self.beat()  # this may find that this process owns nothing any more
        own = self.begin()
        count = 0
        for holding in self.store.claim(own.owner, self.inherited):
            count += 1
            with self._lock:
                late = self.own is not own  # the client was closed meanwhile
                if not late:
                    self._holdings[holding] = None
                    self.inherited.segments.extend(holding.segments)
                    if not holding.segments:
                        self._part(holding)
            if late:
                self.store.part(holding)
        if count:
            self._bound()  # a process that ends before its first file is full doesn't check it else
        return count

    def retire(self) -> list[Holding]:
        """Stop writing. Returns the directories, for `part`; with the lock."""
        self.own = None
        for index in (0, 1):
            self.seal(index)
        return list(self._holdings)

    def part(self, holdings: list[Holding]) -> None:
        """Hand *holdings* over, or remove those in which all is settled; with the lock."""
        for backlog in (self.spilled, self.inherited):
            for segment in [one for one in backlog.segments if one.holding in holdings]:
                backlog.segments.remove(segment)
                if backlog is self.spilled:
                    self._unread(backlog, segment.unread(), LEFT)
        for holding in holdings:
            self._part(holding)

"""An outbox that also reads from the disk: its own overflow, and what dead processes left.

It reads a window at a time. Every half minute, a thread that delivers also looks for what dead
processes left. While nothing is delivered, the thread that waits for postponed events does that, if
other processes use the directory; a process that uses it alone needs no thread for that.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from valued._delivery.entries import Entry, Epoch
from valued._delivery.memory import MemoryOutbox
from valued._outbox.files import DAMAGED, LEFT, SIZE, Files
from valued._process.fork import Birthplace
from valued._process.reporting import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable

    from valued._options import Overflow
    from valued._outbox.segment import Backlog, Loaded, Segment
    from valued._outbox.store import Store

#: Seconds between two looks for what dead processes left.
LOOK: Final = 30.0

#: Seconds between two checks of the timers by a thread that takes events from memory. A timer may
#: be late by so much; in return, not every event pays for the check.
TEND: Final = 1.0

#: How many events, and bytes, are read from the disk before they are delivered.
WINDOW: Final = 500
WINDOW_BYTES: Final = 2 * 1024 * 1024

#: Seconds until a file that could not be read is tried again.
READ_AGAIN: Final = 1.0

#: The same, if a thread was writing at its end.
READ_SOON: Final = 0.01

#: Why events are dropped, in addition to the reasons of an outbox in memory: too old; the directory
#: was too large; damaged records.
REASONS: Final = ("age", SIZE, DAMAGED)

#: The epoch of adopted events: no flush waits for them.
NO_EPOCH: Final = -1


class ReadingOutbox(MemoryOutbox):
    """An outbox whose events outlive their process. Does no I/O before the first event.

    *max_age*: seconds after which an event is dropped; *max_size*: bytes of the whole directory
    above which the oldest events of this process are dropped. The rest is as in `MemoryOutbox`, and
    applies to what is in memory; *overflow* and *block* to events that can't be written.
    """

    __slots__ = (
        "_adopted", "_at_stake", "_born", "_files", "_foreign", "_held", "_left", "_looking",
        "_max_age", "_next_look", "_next_tend", "_on_disk", "_reporter", "_resting", "_spilling",
        "_syncs", "_unsaved", "_window",
    )  # fmt: skip

    patient = True

    def __init__(
        self,
        store: Store,
        max_age: float,
        max_size: int,
        max_events: int = 10_000,
        overflow: Overflow = "drop_newest",
        block: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(max_events, overflow=overflow, block=block, clock=clock)
        self._max_age = max_age
        self._window = max(1, min(WINDOW, max_events // 2))
        self._reporter = Reporter(None, clock)
        self._files = Files(store, max_size, self._lock, self._count_unread, self._reporter, clock)
        self._looking = threading.Lock()  # held while looking for dead processes; never awaited
        self._next_look = clock()
        self._next_tend = self._next_look
        self._born = Birthplace()
        self._syncs = store.sync

        # All below is guarded by `_lock`.
        self._reasons.update(dict.fromkeys(REASONS, 0))
        self._spilling = False  # whether new events go to the disk only
        self._foreign = Epoch(NO_EPOCH, 0)
        self._on_disk = 0  # events that it accepted and that are on the disk only
        self._held = 0  # events that are in memory
        self._adopted = 0
        self._left = 0  # events handed over to other processes
        self._unsaved = 0  # events that were accepted and could not be written
        self._at_stake = 0  # of those, how many are pending
        self._resting = False

    def __del__(self) -> None:
        # For a client that was dropped, not closed. Suppressed: the interpreter may be finalizing.
        with contextlib.suppress(Exception):
            self.rest()

    # -- counts ------------------------------------------------------------------------------------

    def _pending(self) -> int:
        return (
            self._accepted + self._adopted
            - self._delivered - self._failed - self._dropped - self._left
        )  # fmt: skip

    def _in_memory(self) -> int:
        return self._held

    def pending(self) -> int:
        """See `Outbox.pending`: without adopted events."""
        with self._lock:
            return self._pending() - self._foreign.unsettled

    def at_stake(self) -> int:
        """See `Outbox.at_stake`: what could not be written."""
        return self._at_stake

    def figures(self) -> dict[str, Any]:
        """All counts, of one moment."""
        with self._lock:
            return {
                **super().figures(),
                "adopted": self._adopted,
                "handed_over": self._left,
                "unsaved": self._unsaved,
            }

    def _count(self, outcome: str, events: int = 1) -> None:
        if outcome == LEFT:
            self._left += events
        else:
            super()._count(outcome, events)

    def _count_unread(self, backlog: Backlog, count: int, reason: str) -> None:
        """*count* events that are on the disk only are settled; with the lock."""
        self._count(reason, count)
        if backlog is self._files.inherited:
            self._adopted += count
            return
        self._on_disk -= count
        for epoch in self._epochs:  # the oldest first, as on the disk
            some = min(count, epoch.on_disk)
            epoch.on_disk -= some
            epoch.unsettled -= some
            count -= some
        self._settled.notify_all()

    def _tidy(self) -> None:
        idle = not self._held and not self._pending()
        # Not by a greenlet in a child: greenlets survive a fork.
        if self._files.is_untidy(idle=idle) and self._born.is_here():
            self._files.tidy(idle=idle)

    # -- reading -----------------------------------------------------------------------------------

    def _is_to_tend(self, now: float) -> bool:
        """Whether something else than the events in memory may be due; `_tend` looks closer."""
        files = self._files
        return (
            now >= self._next_tend
            or self._spilling
            or files.current[1] is not None
            or bool(files.spilled.segments or files.inherited.segments)
        )

    def _tend(self) -> None:
        """Read on, look for dead processes, send a heartbeat: what is due. Raises nothing."""
        now = self._clock()
        self._next_tend = now + TEND
        with self._lock:
            if self._resting:
                return
            if self._is_to_seal():
                self._spilling = False
                self._files.seal(1)
            backlog = self._wanting(now)
            idle = backlog is None and not self._waiting.is_ready()
        if now >= self._next_look + (0.0 if idle else LOOK):
            self._look()
            backlog = backlog or self._wanting(now)
        else:
            try:
                self._files.beat()
            except OSError as error:
                self._files.refuse(error)
        while backlog is not None and self._read(backlog):
            backlog = self._wanting(now)

    def _is_to_seal(self) -> bool:
        """Whether all overflow is in the current file, and would fit into memory."""
        files = self._files
        # Also without `_spilling`: a thread may have begun to write when another one reset it.
        spilled = self._spilling or files.current[1] is not None
        return spilled and not files.spilled.segments and self._has_room()

    def _has_room(self) -> bool:
        return self._in_memory() <= self._max_events // 2

    def _wanting(self, now: float) -> Backlog | None:
        """A backlog to read from; with the lock."""
        for backlog in (self._files.spilled, self._files.inherited):
            if backlog.wants(self._window // 2, now) and (
                backlog is self._files.inherited or self._has_room()
            ):
                return backlog
        return None

    def _read(self, backlog: Backlog) -> bool:
        """Read a window. Whether a segment was read to its end and had nothing to deliver."""
        with self._lock:
            if backlog.busy or not backlog.segments:
                return False
            backlog.busy = True
            backlog.not_before = 0.0
            segment = backlog.segments[0]
            writing = bool(segment.writing)  # it may be written behind what is read now
            most = self._window - backlog.loaded
        try:
            try:
                found = segment.load(most, WINDOW_BYTES)
            except OSError as error:
                backlog.not_before = self._clock() + READ_AGAIN
                self._files.refuse(error)
                return False
            if found.damaged:
                self._reporter.warn(
                    "damaged",
                    "%d places in the outbox are damaged, and were skipped",
                    count=found.damaged,
                )
            with self._lock:
                if segment in backlog.segments:  # else it was handed over, or dropped, meanwhile
                    self._add(backlog, segment, found)
                    if found.at_end and writing:
                        backlog.not_before = self._clock() + READ_SOON
                    elif found.at_end:
                        self._end(backlog, segment)
        finally:
            backlog.busy = False
        self._tidy()
        return found.at_end and not found.records and not writing

    def _add(self, backlog: Backlog, segment: Segment, found: Loaded) -> None:
        now, wall = self._clock(), time.time()
        for record in found.records:
            accepted_at = now - max(0.0, wall - record.time)
            number = record.number
            if backlog is self._files.inherited:
                self._last = number = self._last + 1
            entry = Entry(segment.holding.origin, number, record.payload, accepted_at)
            entry.written = record.number
            entry.segment = segment
            entry.epoch = epoch = self._epoch_of(record.number, backlog)
            size = len(record.payload)
            # From here on without a call: after an exception, reading starts again at `position`.
            segment.position = record.end
            self._held += 1
            self._bytes += size
            backlog.loaded += 1
            segment.loaded += 1
            if backlog is self._files.inherited:
                segment.begun += 1
                self._adopted += 1
                epoch.unsettled += 1
            else:
                self._on_disk -= 1
                epoch.on_disk -= 1
            self._waiting.add(entry)
        segment.position = found.position

    def _epoch_of(self, number: int, backlog: Backlog) -> Epoch:
        if backlog is self._files.inherited:
            return self._foreign
        return next(epoch for epoch in reversed(self._epochs) if epoch.first <= number)

    def _end(self, backlog: Backlog, segment: Segment) -> None:
        """All of *segment* was read; with the lock."""
        backlog.segments.remove(segment)
        segment.closed = True
        missing = segment.begun - segment.loaded
        if missing:  # its own events were written, and aren't there any more
            self._count_unread(backlog, missing, DAMAGED)
            segment.begun -= missing
        self._files.check(segment)

    # -- looking and waiting -----------------------------------------------------------------------

    def adopt(self) -> int:
        """See `Outbox.adopt`."""
        self._resting = False
        return self._look()

    def _look(self) -> int:
        if not self._born.is_here() or not self._looking.acquire(blocking=False):
            return 0
        try:
            self._next_look = self._clock() + LOOK
            return self._files.claim()
        except FileNotFoundError:
            # The mark of this process is gone: another thread has closed the client meanwhile, or
            # the mark was removed by hand, which the next event notices.
            return 0
        except OSError as error:
            self._files.refuse(error)
            return 0
        finally:
            self._looking.release()
            self._tidy()

    def ready(self) -> bool:
        """See `Outbox.ready`."""
        with self._lock:
            now = self._clock()
            self._waiting.advance(now)
            self._advance(now)
            if self._waiting.is_ready():
                return True
            return not self._resting and self._waiting.is_open() and self._is_readable(now)

    def _is_readable(self, now: float) -> bool:
        return self._wanting(now) is not None or self._is_to_seal()

    def _advance(self, now: float) -> None:
        """End the waits for files that may be read again at *now*."""
        for backlog in (self._files.spilled, self._files.inherited):
            if backlog.not_before <= now:
                backlog.not_before = 0.0

    def _next_due(self) -> float | None:
        moments = [self._waiting.next_change()]
        if not self._resting:
            backlogs = (self._files.spilled, self._files.inherited)
            moments += [one.not_before for one in backlogs if one.segments and one.not_before]
        return min((moment for moment in moments if moment is not None), default=None)

    def _next_task(self) -> float | None:
        due = self._next_due()
        if self._resting or not self._files.store.others:
            return due
        return self._next_look if due is None else min(due, self._next_look)

    def wait_until_due(self) -> bool:
        """See `Outbox.wait_until_due`. Looks for dead processes, too."""
        is_due = super().wait_until_due()
        with self._lock:
            self._advance(self._clock())
        if is_due and self._clock() >= self._next_look and not self._resting:
            self._look()
        return is_due

"""Keeps accepted events until each is settled, on the disk as well: they outlive their process.

An event is appended to a file before its call returns, and then waits in memory like any other. If
memory is full, it waits on the disk only. Which events are settled is written down in groups. When
a process ends, another one takes over what it has not delivered.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from valued._delivery.entries import Entry
from valued._errors import ValidationError
from valued._outbox import records
from valued._outbox.descriptors import holding_calls
from valued._outbox.files import LEFT, SIZE
from valued._outbox.owners import BEAT, Place
from valued._outbox.reading import ReadingOutbox
from valued._outbox.segment import SEGMENT, RobbedError, Segment
from valued._outbox.store import REJECTED_BYTES, Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from valued._errors import DeliveryError
    from valued._options import Options
    from valued._typing import Item, Outbox

#: Reasons for which an event on the disk is not dropped, but handed over.
AT_THE_END: Final = ("exit", "closed")

#: Seconds that the exit waits for threads that are writing an event, which takes microseconds.
LAST_WRITES: Final = 1.0


class DurableOutbox(ReadingOutbox):
    """An outbox whose events outlive their process. Does no I/O before the first event.

    *max_age*: seconds after which an event is dropped; *max_size*: bytes of the whole directory
    above which the oldest events of this process are dropped. The rest is as in `MemoryOutbox`, and
    applies to what is in memory; *overflow* and *block* to events that can't be written.
    """

    __slots__ = ()

    patient = True

    # -- accepting ---------------------------------------------------------------------------------

    def put(self, body: bytes) -> Item | None:
        """See `Outbox.put`. Makes one ``write``, and sometimes a new file."""
        wall = time.time()
        files = self._files
        current = files.current[self._spilling]
        if current is None or current.size >= SEGMENT or not 0 <= wall - files.beaten < BEAT:
            self._prepare()
        size = len(body)
        entry: Entry | None = None
        landed = False
        try:
            with self._lock:
                made = Entry(self.name, 0, body, self._clock())
                # From here on without a call, as in memory. Until now, a signal handler may have
                # recorded events, flushed, and begun another file. On Python 3.10 it may also run
                # at a jump: `_break_off` reverts what was counted by then.
                segment = files.current[self._spilling]
                made.epoch = epoch = self._epoch
                self._last = made.number = made.written = number = self._last + 1
                entry = made
                epoch.unsettled += 1
                self._accepted += 1
                if segment is not None:
                    made.origin = segment.holding.origin
                    made.segment = segment
                    segment.begun += 1
                    segment.writing[made] = None
                    if segment.backlog is None:
                        self._held += 1
                        self._bytes += size
                        if self._held > self._max_events or self._bytes - size >= self._max_bytes:
                            self._spilling = True  # the next ones, until there is room again
            if segment is None:
                segment = self._reserve(entry)
            if segment is not None:
                try:
                    segment.append(records.encode(records.EVENT, number, wall, body))
                except OSError as error:
                    segment = self._write_elsewhere(entry, segment, wall, error)
                if self._syncs and segment is not None:
                    files.sync(segment)
            if segment is None:
                with self._lock:
                    place = self._make_room if self._is_over(1, size) else self._waiting.add
                    landed = True
                    self._unsaved += 1
                    self._at_stake += 1
                    self._held += 1
                    self._bytes += size
                    return place(entry)
            if segment.backlog is not None:
                with self._lock:
                    landed = True  # or will be soon: until then it counts as being written
                    self._leave_on_disk(entry, segment)
                return None
            # Without the lock, which would add a tenth to the caller's cost of the disk: for other
            # threads each of these is one step, and first the event is added.
            landed = True
            self._waiting.add(entry)
            del segment.writing[entry]
            if segment.closed:  # closed meanwhile, and the event may be settled already
                self._check(segment)
            return None
        except BaseException:
            if entry is not None:
                self._break_off(entry, landed=landed)
            raise

    def _prepare(self) -> bool:
        """See `Files.prepare`."""
        if not self._born.is_here():
            return False  # in a child that a signal handler forked: the parent writes its event
        # While resting there is no file to write to. Reset last: `rest` may be called meanwhile.
        try:
            return self._files.prepare(self._spilling)
        finally:
            self._resting = False

    def _leave_on_disk(self, entry: Entry, segment: Segment) -> None:
        if segment.holding.parting and not segment.gone:
            # The file was handed over before the event was written, as the exit has a deadline: its
            # new owner may have read it already.
            size = len(entry.body)
            del segment.writing[entry]
            entry.segment = None
            self._unsaved += 1
            self._at_stake += 1
            self._held += 1
            self._bytes += size
            self._waiting.add(entry)
            return
        self._on_disk += 1
        entry.epoch.on_disk += 1
        del segment.writing[entry]
        if segment.gone and segment.backlog is not None:  # lost meanwhile, with all its events
            self._count_unread(segment.backlog, 1, segment.gone)

    def _break_off(self, entry: Entry, *, landed: bool) -> None:
        """A signal handler raised during `put`. What may be on the disk counts as accepted."""
        with self._lock:
            segment = entry.segment
            if segment is None:
                if not landed:
                    self._accepted -= 1
                    entry.epoch.unsettled -= 1
                    self._settled.notify_all()
                return
            if entry in segment.writing:
                if segment.backlog is not None:
                    self._leave_on_disk(entry, segment)
                    return
                if not landed:
                    self._waiting.add(entry)
                del segment.writing[entry]
        self._check(segment)

    def _check(self, segment: Segment) -> None:
        """Check *segment* again: a thread wrote to it while others had finished with it."""
        with self._lock:
            self._files.check(segment)
        self._tidy()

    def _reserve(self, entry: Entry) -> Segment | None:
        """A segment for *entry*, if another thread has changed the current one meanwhile."""
        size = len(entry.body)
        while self._prepare():
            with self._lock:
                segment = self._files.current[self._spilling]
                if segment is not None:
                    entry.origin = segment.holding.origin
                    entry.segment = segment
                    segment.begun += 1
                    segment.writing[entry] = None
                    if segment.backlog is None:
                        self._held += 1
                        self._bytes += size
                    return segment
        return None

    def _write_elsewhere(
        self, entry: Entry, segment: Segment, wall: float, error: OSError
    ) -> Segment | None:
        """Write *entry* elsewhere after *error*: its new segment; None: it is in memory only."""
        files = self._files
        if not self._born.is_here():
            return None  # in a child that a signal handler forked: the parent writes its event
        self._unreserve(entry)
        if not isinstance(error, RobbedError):
            files.fail(segment, error)
            return None
        files.lose(segment.holding, error)
        another = self._reserve(entry)
        if another is None:
            return None
        try:
            another.append(records.encode(records.EVENT, entry.number, wall, entry.body))
            return another
        except OSError as again:
            self._unreserve(entry)
            files.fail(another, again)
            return None

    def _unreserve(self, entry: Entry) -> None:
        size = len(entry.body)
        with self._lock:
            segment, entry.segment = entry.segment, None
            assert segment is not None
            segment.begun -= 1
            del segment.writing[entry]
            if segment.backlog is None:
                self._held -= 1
                self._bytes -= size
            self._files.check(segment)

    # -- delivering --------------------------------------------------------------------------------

    def take(self) -> Item | None:
        """See `Outbox.take`. Reads from the disk, and looks for dead processes, when it is time."""
        if not self._born.is_here():
            return None  # a greenlet in a child: greenlets survive a fork
        now = self._clock()
        # Take from memory without looking at anything else: that would make each event slower.
        if not self._is_to_tend(now) and (item := self._take_timely(now)) is not None:
            return item
        self._tend()
        item = self._take_timely(self._clock())
        self._tidy()
        return item

    def _take_timely(self, now: float) -> Entry | None:
        with self._lock:
            while (item := self._take(now)) is not None:
                if not (reason := self._too_late(item, now)):
                    if item.segment is not None:
                        item.segment.holding.in_flight += 1
                    break
                item.attempts -= 1  # there was no attempt
                self._retried -= item.attempts > 0
                self._settle(item, reason)
                self._waiting.pass_over()
            return item

    def _too_late(self, entry: Entry, now: float) -> str:
        segment = entry.segment
        # Events of a removed file are still delivered: this is their only copy.
        if segment is not None and segment.gone in (LEFT, SIZE):
            return segment.gone
        return "age" if now - entry.accepted_at > self._max_age else ""

    def postpone(self, item: Item, due: float) -> None:
        """See `Outbox.postpone`."""
        assert isinstance(item, Entry)
        with self._lock:
            self._landed(item)
            if item.segment is not None and item.segment.holding.parting:
                self._settle(item, LEFT)
            else:
                super().postpone(item, due)
        self._tidy()

    def failed(self, item: Item, error: DeliveryError | None = None) -> None:
        """Settle *item* as failed, and store it with the answer among the rejected events."""
        assert error is not None
        store = self._files.store
        try:
            store.reject(item.idempotency_key, item.body, error, self._say_forgotten)
        except Exception as trouble:  # noqa: BLE001 - a user's transport made event and answer
            self._reporter.warn("rejected", "%d rejected events could not be stored: %s", trouble)
        finally:
            self._land(item, "failed")

    def _say_forgotten(self) -> None:
        self._reporter.warn(
            "forgotten",
            "%d of the oldest files of rejected events were removed: together they exceeded %d "
            "bytes",
            REJECTED_BYTES,
        )

    def dropped(self, item: Item, reason: str) -> bool:
        """See `Outbox.dropped`: what is on the disk is handed over."""
        assert isinstance(item, Entry)
        kept = item.segment is not None and reason in AT_THE_END
        self._land(item, LEFT if kept else reason)
        return not kept

    def _land(self, item: Item, outcome: str) -> None:
        assert isinstance(item, Entry)
        with self._lock:
            self._landed(item)
            self._settle(item, outcome)
        self._tidy()

    def _landed(self, entry: Entry) -> None:
        if entry.segment is not None:
            self._files.landed(entry.segment)

    def _settle(self, item: Item, outcome: str) -> None:
        assert isinstance(item, Entry)
        super()._settle(item, outcome)
        segment = item.segment
        self._held -= 1
        if segment is None:
            self._at_stake -= 1
            return
        if segment.backlog is not None:
            segment.backlog.loaded -= 1
        if outcome != LEFT:
            self._files.settled(segment, item.written)

    # -- exit --------------------------------------------------------------------------------------

    def abandon(self, reason: str) -> int:
        """See `Outbox.abandon`: what is on the disk is handed over."""
        count = 0
        with self._lock:
            while (entry := self._waiting.pop_oldest()) is not None:
                kept = entry.segment is not None
                self._settle(entry, LEFT if kept else reason)
                count += not kept
            self._tell_earlier()
        return count

    def rest(self) -> None:
        """See `Outbox.rest`. Hands over what is left: any other process may claim it."""
        if not self._born.is_here():
            return  # a greenlet in a child: greenlets survive a fork
        kept = []
        with self._lock:
            self._resting = True
            self._spilling = False
            holdings = self._files.retire()
            deadline = self._clock() + LAST_WRITES
            while any(one.writing for holding in holdings for one in list(holding.segments)):
                if self._clock() >= deadline:
                    break
                self._settled.wait(LAST_WRITES / 100)  # a thread is about to have written
            for segment in [one for holding in holdings for one in list(holding.segments)]:
                self._files.check(segment)  # the last writer may not have got that far
            while (entry := self._waiting.pop_oldest()) is not None:
                # Events that were written to a new file meanwhile are not handed over.
                if entry.segment is None or entry.segment.holding not in holdings:
                    kept.append(entry)
                else:
                    self._settle(entry, LEFT)
            for entry in kept:
                self._waiting.add(entry)
            self._files.part(holdings)
            self._tell_earlier()
        self._files.tidy(idle=True)
        self._reporter.rest()


def durable(options: Options) -> Callable[[], Outbox]:
    """A function that makes the outbox of each process; the *options* name a directory.

    Checks the directory, and creates nothing. Raises `ValidationError`, with the fix.
    """
    path = str(options.outbox)
    if problems := Place(path).problems():
        raise ValidationError(*problems)
    calls = holding_calls()

    def build() -> Outbox:
        return DurableOutbox(
            Store(path, sync=options.durability == "power", calls=calls),
            options.outbox_max_age,
            options.outbox_max_size,
            options.max_queue,
            options.overflow,
            options.timeout,
        )

    return build

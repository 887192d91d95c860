"""Keeps accepted events in memory until each is settled: delivered, failed or dropped.

``accepted = delivered + failed + dropped + pending`` is true at every moment, because ``pending``
is calculated from the others. Bounded in events and in bytes. A forked child has its own outbox.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from valued._delivery.entries import Entry, Epoch
from valued._delivery.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Callable

    from valued._errors import DeliveryError
    from valued._options import Overflow
    from valued._typing import Item

#: How many bytes of encoded events may wait: 10,000 events, the default limit, of 6 KB each.
MAX_BYTES: Final = 64 * 1024 * 1024

#: Why an event is dropped: the outbox was full; the process ended; the client was closed.
DROP_REASONS: Final = ("overflow", "exit", "closed")


class MemoryOutbox:
    """An outbox in memory. *block*: seconds, for ``overflow="block"``; *clock* is monotonic."""

    # Slots, since an outbox on the disk has too many attributes for a fast instance dict.
    __slots__ = (
        "__weakref__", "_accepted", "_block", "_blocked", "_blocked_bytes", "_bytes", "_clock",
        "_delivered", "_dropped", "_earlier", "_epoch", "_epochs", "_failed", "_last", "_lock",
        "_max_bytes", "_max_events", "_overflow", "_overflown", "_reasons", "_retried", "_settled",
        "_waiting", "name",
    )  # fmt: skip

    patient = False

    def __init__(
        self,
        max_events: int = 10_000,
        max_bytes: int = MAX_BYTES,
        overflow: Overflow = "drop_newest",
        block: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._overflow = overflow
        self._block = block
        self._clock = clock
        #: Unique in the world, and so are idempotency keys: this name, followed by a number.
        self.name: Final = os.urandom(16).hex()

        # Guards all below. Held for short work on lists only; no other lock is taken inside.
        # Re-entrant: a signal handler or a __del__ may record an event while its own thread is in
        # here, after any call and at each turn of a loop. So no statement that changes a count
        # contains a call, and the body of a loop doesn't rely on what its condition found.
        self._lock = threading.RLock()
        self._settled = threading.Condition(self._lock)  # notified: an epoch is settled, or space
        self._earlier = threading.Condition(self._lock)  # notified: something is due earlier
        self._waiting: Schedule[Entry] = Schedule()
        self._bytes = 0
        self._last = 0  # number of the latest event
        self._epoch = Epoch(0, 1)
        self._epochs: list[Epoch] = [self._epoch]  # the current one, and marked, unsettled ones
        self._blocked = 0  # events whose callers wait for space
        self._blocked_bytes = 0
        self._accepted = 0
        self._delivered = 0
        self._failed = 0
        self._dropped = 0
        self._retried = 0
        self._reasons = dict.fromkeys(DROP_REASONS, 0)
        self._overflown = 0  # how many dropped for "overflow" were not logged yet

    # -- accepting ---------------------------------------------------------------------------------

    def put(self, body: bytes) -> Item | None:
        """See `Outbox.put`. Waits only with ``overflow="block"``, at most *block* seconds."""
        size = len(body)
        with self._lock:
            self._last = number = self._last + 1
            item = Entry(self.name, number, body, self._clock())
            place = self._make_room if self._is_over(1, size) else self._waiting.add
            # From here on without a call (and on Python 3.10 without a jump), where a signal
            # handler could run: its exception, such as a soft time limit, must not come between
            # counting the event and adding it.
            item.epoch = epoch = self._epoch
            epoch.unsettled += 1
            self._accepted += 1
            self._bytes += size
            return place(item)

    def refuse(self, reason: str) -> None:
        """See `Outbox.refuse`."""
        with self._lock:
            self._accepted += 1
            self._count(reason)

    def _is_over(self, events: int = 0, size: int = 0) -> bool:
        """Whether it is too full, or would be with so many more events of that size in total."""
        # Don't count those that wait for space, or two of them would wait for each other.
        events += self._in_memory() - self._blocked
        size += self._bytes - self._blocked_bytes
        return events > self._max_events or size > self._max_bytes

    def _make_room(self, item: Entry) -> Item | None:
        """Decide about an event for which there is no room; it is counted as accepted already."""
        if self._overflow == "caller_runs":
            return item
        try:
            if len(item.body) <= self._max_bytes:  # else even an empty outbox has no room for it
                if self._overflow == "block":
                    self._wait_for_space(len(item.body))
                elif self._overflow == "drop_oldest":
                    while self._is_over() and (oldest := self._waiting.pop_oldest()) is not None:
                        self._settle(oldest, "overflow")
            over = self._is_over()
        except BaseException:  # from a signal handler; without this it would never be settled
            self._settle(item, "overflow")
            raise
        if over:
            self._settle(item, "overflow")
        else:
            self._waiting.add(item)
        return None

    def _wait_for_space(self, size: int) -> None:
        deadline = self._clock() + self._block
        self._blocked += 1
        self._blocked_bytes += size
        try:
            while (left := deadline - self._clock()) > 0 and self._is_over(1, size):
                self._settled.wait(min(left, threading.TIMEOUT_MAX))
        finally:
            self._blocked -= 1
            self._blocked_bytes -= size

    # -- delivering --------------------------------------------------------------------------------

    def take(self) -> Item | None:
        """See `Outbox.take`. Postponed events that are due go first, since they are older."""
        with self._lock:
            return self._take(self._clock())

    def _take(self, now: float) -> Entry | None:
        if (item := self._waiting.take(now)) is not None:
            self._retried += item.attempts > 0
            item.attempts += 1
        return item

    def postpone(self, item: Item, due: float) -> None:
        """See `Outbox.postpone`."""
        assert isinstance(item, Entry)
        with self._lock:
            self._waiting.postpone(item, due)
            if self._waiting.next_change() == due:
                self._tell_earlier()

    def hold(self, until: float, probe: float) -> None:
        """See `Outbox.hold`."""
        with self._lock:
            self._waiting.hold(until, probe)
            self._tell_earlier()

    def resume(self) -> None:
        """See `Outbox.resume`."""
        with self._lock:
            self._waiting.resume()
            self._tell_earlier()

    def _tell_earlier(self) -> None:
        self._earlier.notify_all()
        self._settled.notify_all()

    def delivered(self, item: Item) -> None:
        """Settle *item* as delivered."""
        self._land(item, "delivered")

    def failed(self, item: Item, _error: DeliveryError | None = None) -> None:
        """Settle *item* as permanently failed."""
        self._land(item, "failed")

    def dropped(self, item: Item, reason: str) -> bool:
        """Settle *item* as dropped, counted by *reason*."""
        self._land(item, reason)
        return True

    def _land(self, item: Item, outcome: str) -> None:
        with self._lock:
            self._settle(item, outcome)

    def take_before(self, moment: float) -> Item | None:
        """See `Outbox.take_before`."""
        with self._lock:
            return self._waiting.pop_before(moment)

    def abandon(self, reason: str) -> int:
        """See `Outbox.abandon`."""
        count = 0
        with self._lock:
            # One by one: a signal handler might deliver the elements of a list meanwhile.
            while (item := self._waiting.pop_oldest()) is not None:
                self._settle(item, reason)
                count += 1
            self._earlier.notify_all()
        return count

    def _settle(self, item: Item, outcome: str) -> None:
        """Settle *item*; with the lock."""
        assert isinstance(item, Entry)
        size = len(item.body)
        self._count(outcome)
        self._bytes -= size
        epoch = item.epoch
        epoch.unsettled -= 1
        if self._blocked or (not epoch.unsettled and epoch is not self._epoch):
            self._settled.notify_all()

    def _count(self, outcome: str, events: int = 1) -> None:
        if outcome == "delivered":
            self._delivered += events
        elif outcome == "failed":
            self._failed += events
        else:
            self._dropped += events
            self._reasons[outcome] += events
            if outcome == "overflow":
                self._overflown += events

    # -- looking and waiting -----------------------------------------------------------------------

    def ready(self) -> bool:
        """See `Outbox.ready`."""
        with self._lock:
            self._waiting.advance(self._clock())
            return self._waiting.is_ready()

    def postponed(self) -> bool:
        """See `Outbox.postponed`."""
        with self._lock:
            return self._next_task() is not None

    def wait_until_due(self) -> bool:
        """See `Outbox.wait_until_due`."""
        with self._lock:
            while (due := self._next_task()) is not None:
                now = self._clock()
                if due <= now:
                    self._waiting.advance(now)
                    return True
                self._earlier.wait(min(due - now, threading.TIMEOUT_MAX))
            return False

    def _next_due(self) -> float | None:
        """When the next event becomes ready by time alone; with the lock."""
        return self._waiting.next_change()

    def _next_task(self) -> float | None:
        """When the next thing has to be done by time alone; with the lock."""
        return self._next_due()

    def hasten(self) -> None:
        """See `Outbox.hasten`."""
        with self._lock:
            self._waiting.hasten()
            self._tell_earlier()

    def pending(self) -> int:
        """How many events are accepted and not settled, including those being delivered."""
        with self._lock:
            return self._pending()

    def _pending(self) -> int:
        return self._accepted - self._delivered - self._failed - self._dropped

    def _in_memory(self) -> int:
        """How many of those are in memory."""
        return self._pending()

    def at_stake(self) -> int:
        """See `Outbox.at_stake`."""
        return self.pending()

    def mark(self) -> int:
        """See `Outbox.mark`."""
        with self._lock:
            marked = self._epoch
            if marked.unsettled:  # else an idle process that flushes often would collect epochs
                following = Epoch(marked.number + 1, self._last + 1)
                self._epochs.append(following)
                if self._epoch is marked:  # else a signal handler has made one meanwhile
                    self._epoch = following
                return marked.number
            return marked.number - 1

    def wait(self, mark: int, deadline: float | None) -> bool:
        """See `Outbox.wait`. *deadline*: by the clock; None: no limit."""
        with self._lock:
            while not self._is_settled(mark):
                left = threading.TIMEOUT_MAX if deadline is None else deadline - self._clock()
                if left <= 0:
                    return False
                self._settled.wait(min(left, threading.TIMEOUT_MAX))
            return True

    def wait_for_work(self, mark: int, deadline: float | None) -> bool:
        """See `Outbox.wait_for_work`."""
        with self._lock:
            while not self._is_settled(mark):
                now = self._clock()
                if deadline is not None and now >= deadline:
                    return False
                if self.ready():
                    return True
                due = self._next_due()
                until = [moment for moment in (deadline, due) if moment is not None]
                left = min(min(until) - now, threading.TIMEOUT_MAX) if until else None
                self._settled.wait(left)
            return True

    def _is_settled(self, mark: int) -> bool:
        for epoch in self._epochs.copy():
            # Earlier epochs get no more events, so a settled one stays settled.
            if not epoch.unsettled and epoch.number < self._epoch.number:
                with contextlib.suppress(ValueError):  # a signal handler has removed it meanwhile
                    self._epochs.remove(epoch)
        return all(epoch.number > mark or not epoch.unsettled for epoch in self._epochs)

    def overflown(self) -> int:
        """See `Outbox.overflown`."""
        with self._lock:
            count, self._overflown = self._overflown, 0
            return count

    def adopt(self) -> int:
        """See `Outbox.adopt`. Finds nothing: events in memory die with their process."""
        return 0

    def rest(self) -> None:
        """See `Outbox.rest`. There is nothing to release but memory."""

    def figures(self) -> dict[str, Any]:
        """All counts, of one moment."""
        with self._lock:
            return {
                "accepted": self._accepted,
                "delivered": self._delivered,
                "failed": self._failed,
                "dropped": self._dropped,
                "pending": self._pending(),
                "retried": self._retried,
                "dropped_by_reason": dict(self._reasons),
                **dict.fromkeys(("adopted", "handed_over", "unsaved"), 0),
            }

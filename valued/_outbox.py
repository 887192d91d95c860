"""Accepted events until each is settled: delivered, failed or dropped. In memory.

``accepted = delivered + failed + dropped + pending`` holds at every moment, because ``pending`` is
what is left of the others. Bounded in events and in bytes. Belongs to one process: a forked child
has an outbox of its own.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from valued._options import Overflow
    from valued._typing import Item

#: Bytes of encoded events that may wait; 10,000 events, the default bound, of 6 KB each.
MAX_BYTES: Final = 64 * 1024 * 1024

#: Why an event is dropped: the outbox was full; the process ended, or the client was closed, first.
DROP_REASONS: Final = ("overflow", "exit", "closed")


class _Epoch:
    """Events accepted between two marks: how many of them are not settled."""

    __slots__ = ("number", "unsettled")

    def __init__(self, number: int) -> None:
        self.number = number
        self.unsettled = 0


class _Item:
    __slots__ = ("_outbox", "accepted_at", "attempts", "body", "epoch", "number")

    def __init__(
        self, outbox: MemoryOutbox, number: int, body: bytes, accepted_at: float, epoch: _Epoch
    ) -> None:
        self._outbox = outbox
        self.number = number
        self.body = body
        self.accepted_at = accepted_at
        self.epoch = epoch
        self.attempts = 0

    @property
    def idempotency_key(self) -> str:
        # Not made and kept with each event: the caller would pay for it, and memory.
        return f"{self._outbox.name}-{self.number}"


class MemoryOutbox:
    """An outbox in memory. *block*: seconds, for ``overflow="block"``; *clock* is monotonic."""

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
        #: Unique in the world, so that idempotency keys are, with a number behind it.
        self.name: Final = uuid.uuid4().hex
        self._numbers = itertools.count(1)

        # Guards all below. Held for list work only; no other lock is taken inside. Re-entrant: a
        # signal handler or a __del__ may record an event while its own thread is in here. It can
        # come between any two calls, so each statement that changes a figure holds no call.
        self._lock = threading.RLock()
        self._settled = threading.Condition(self._lock)  # notified when an epoch, or space, is done
        self._earlier = threading.Condition(self._lock)  # notified when less is to be waited for
        self._ready: collections.deque[_Item] = collections.deque()
        self._later: list[tuple[float, int, _Item]] = []  # a heap, by due time
        self._bytes = 0
        self._epoch = _Epoch(0)
        self._epochs: list[_Epoch] = [self._epoch]  # oldest first; the last one is the current
        self._waiting_for_space = 0
        self._accepted = 0
        self._delivered = 0
        self._failed = 0
        self._dropped = 0
        self._retried = 0
        self._reasons = dict.fromkeys(DROP_REASONS, 0)

    # -- accepting ---------------------------------------------------------------------------------

    def put(self, body: bytes) -> Item | None:
        """See `Outbox.put`. Waits only with ``overflow="block"``, *block* seconds at most."""
        now = self._clock()
        with self._lock:
            item = _Item(self, next(self._numbers), body, now, self._epoch)
            item.epoch.unsettled += 1
            self._accepted += 1
            self._bytes += len(body)
            if self._is_over():
                return self._make_room(item)
            self._ready.append(item)
            return None

    def _is_over(self) -> bool:
        return self._pending() > self._max_events or self._bytes > self._max_bytes

    def _make_room(self, item: _Item) -> Item | None:
        """Decide about an event that is one too many; it counts as accepted already."""
        if self._overflow == "caller_runs":
            return item
        if self._overflow == "block":
            self._wait_for_space()
        elif self._overflow == "drop_oldest":
            while self._is_over() and self._ready:
                self._settle(self._ready.popleft(), "overflow")
        if self._is_over():
            self._settle(item, "overflow")
        else:
            self._ready.append(item)
        return None

    def _wait_for_space(self) -> None:
        deadline = self._clock() + self._block
        self._waiting_for_space += 1
        try:
            while self._is_over() and (left := deadline - self._clock()) > 0:
                self._settled.wait(left)
        finally:
            self._waiting_for_space -= 1

    # -- delivering --------------------------------------------------------------------------------

    def take(self) -> Item | None:
        """See `Outbox.take`: postponed events that are due go first, they are older."""
        with self._lock:
            if self._later:
                self._promote()
            if not self._ready:
                return None
            item = self._ready.popleft()
            if item.attempts:
                self._retried += 1
            item.attempts += 1
            return item

    def _promote(self) -> None:
        """Put what is due in front of what is ready: it is older."""
        now = self._clock()
        due = []
        while self._later and self._later[0][0] <= now:
            due.append(heapq.heappop(self._later)[2])
        self._ready.extendleft(reversed(due))

    def postpone(self, item: Item, due: float) -> None:
        """See `Outbox.postpone`."""
        assert isinstance(item, _Item)
        with self._lock:
            heapq.heappush(self._later, (due, item.number, item))
            if self._later[0][2] is item:
                self._earlier.notify_all()
                self._settled.notify_all()

    def delivered(self, item: Item) -> None:
        """Settle *item* as delivered."""
        self._settle(item, "delivered")

    def failed(self, item: Item) -> None:
        """Settle *item* as given up."""
        self._settle(item, "failed")

    def dropped(self, item: Item, reason: str) -> None:
        """Settle *item* as dropped, counted by *reason*."""
        self._settle(item, reason)

    def abandon(self, reason: str) -> int:
        """See `Outbox.abandon`."""
        with self._lock:
            items = [*self._ready, *(entry[2] for entry in self._later)]
            self._ready.clear()
            self._later.clear()
            self._earlier.notify_all()
            for item in items:
                self._settle(item, reason)
            return len(items)

    def _settle(self, item: Item, outcome: str) -> None:
        assert isinstance(item, _Item)
        with self._lock:
            if outcome == "delivered":
                self._delivered += 1
            elif outcome == "failed":
                self._failed += 1
            else:
                self._dropped += 1
                self._reasons[outcome] += 1
            self._bytes -= len(item.body)
            epoch = item.epoch
            epoch.unsettled -= 1
            if self._waiting_for_space or (not epoch.unsettled and epoch is not self._epoch):
                self._settled.notify_all()

    # -- looking and waiting -----------------------------------------------------------------------

    def ready(self) -> bool:
        """See `Outbox.ready`."""
        with self._lock:
            if self._later:
                self._promote()
            return bool(self._ready)

    def postponed(self) -> bool:
        """See `Outbox.postponed`."""
        with self._lock:
            return bool(self._later)

    def wait_until_due(self) -> bool:
        """See `Outbox.wait_until_due`."""
        with self._lock:
            while self._later:
                left = self._later[0][0] - self._clock()
                if left <= 0:
                    self._promote()
                    return True
                self._earlier.wait(left)
            return False

    def hasten(self) -> None:
        """See `Outbox.hasten`."""
        with self._lock:
            while self._later:
                self._ready.append(heapq.heappop(self._later)[2])
            self._earlier.notify_all()

    def pending(self) -> int:
        """How many events are accepted and not settled, those being delivered included."""
        with self._lock:
            return self._pending()

    def _pending(self) -> int:
        return self._accepted - self._delivered - self._failed - self._dropped

    def mark(self) -> int:
        """See `Outbox.mark`."""
        with self._lock:
            marked = self._epoch
            if marked.unsettled:  # else an idle process that flushes would collect epochs
                self._epoch = _Epoch(marked.number + 1)
                self._epochs.append(self._epoch)
                return marked.number
            return marked.number - 1

    def wait(self, mark: int, deadline: float | None) -> bool:
        """See `Outbox.wait`. *deadline* is of the clock; None: no bound."""
        with self._lock:
            while not self._is_settled(mark):
                left = None if deadline is None else deadline - self._clock()
                if left is not None and left <= 0:
                    return False
                self._settled.wait(left)
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
                until = [moment for moment in (deadline, self._next_due()) if moment is not None]
                self._settled.wait(min(until) - now if until else None)
            return True

    def _next_due(self) -> float | None:
        return self._later[0][0] if self._later else None

    def _is_settled(self, mark: int) -> bool:
        while len(self._epochs) > 1 and not self._epochs[0].unsettled:
            del self._epochs[0]
        return self._epochs[0].number > mark

    def figures(self) -> dict[str, Any]:
        """All figures of one moment."""
        with self._lock:
            return {
                "accepted": self._accepted,
                "delivered": self._delivered,
                "failed": self._failed,
                "dropped": self._dropped,
                "pending": self._pending(),
                "retried": self._retried,
                "dropped_by_reason": dict(self._reasons),
            }

"""What workers take events from, and when there is something to take.

That depends on the queue, on what is on the disk only, and on the circuit breaker.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Final, NamedTuple

from valued._delivery.journal import HANDED_OVER

if TYPE_CHECKING:
    from valued._delivery.backlog import Backlog
    from valued._delivery.entry import Entry, Run
    from valued._delivery.queue import Queue
    from valued._delivery.retry import CircuitBreaker
    from valued._options import Options


class Outlook(NamedTuple):
    """When a worker has something to do, by the clock. What is in the past can be done now."""

    #: When the next event can be sent; None: no event waits.
    event: float | None
    #: When events can be read from the disk; None: there are none to read, as things are.
    load: float | None

    def first(self) -> float | None:
        """The earlier one; None: time alone brings nothing to do."""
        return min((one for one in self if one is not None), default=None)


class Feed:
    """What the workers of one process take from. Call with the queue's lock."""

    def __init__(
        self, queue: Queue, breaker: CircuitBreaker, backlog: Backlog, options: Options
    ) -> None:
        self.queue: Final = queue
        self.backlog: Final = backlog
        self._breaker = breaker
        self._max_age = options.outbox_max_age
        self._probe: Entry | None = None  # the latest one

    def outlook(self) -> Outlook:
        """What there is to do, now or later. All that starts a worker or waits goes by this."""
        queue, allowed = self.queue, self._breaker.next_probe() or 0.0
        queue.absorb()
        queue.promote()
        oldest, load = queue.oldest(), self.backlog.next_load()
        event = queue.next_due() if oldest is None else max(oldest.accepted_at, oldest.due)
        return Outlook(
            None if event is None else max(event, allowed),
            None if load is None else max(load, allowed),
        )

    def take(self, run: weakref.ref[Run]) -> Entry | None:
        """Take the next event that can be sent for *run*."""
        queue, breaker, now = self.queue, self._breaker, self.queue.clock()
        queue.absorb()
        if not breaker.allows(now):
            return None
        queue.promote()
        # Probe with an event that was never tried, or a single one would use up its attempts in an
        # outage that many survive with one attempt each.
        entry = queue.take(run, fresh=breaker.is_open)
        if entry is None:
            queue.recover()
            entry = queue.take(run)
        if entry is not None:
            self._note(entry, now)
        return entry

    def allows(self) -> bool:
        """Whether the circuit breaker lets an event pass now."""
        return self._breaker.allows(self.queue.clock())

    def take_this(self, entry: Entry, run: weakref.ref[Run]) -> bool:
        """Take *entry* for *run*, if no other run has it. Call it if the breaker `allows` it."""
        taken = self.queue.take_this(entry, run)
        if taken:  # pragma: no branch - else a signal handler took it
            self._note(entry, self.queue.clock())
        return taken

    def _note(self, entry: Entry, now: float) -> None:
        if self._breaker.is_open:
            self._probe = entry
            self._breaker.passed(now)

    def pass_over(self, entry: Entry) -> None:
        """*entry* is not sent: if it was the probe, allow another one."""
        if entry is self._probe:
            self._breaker.returned()

    def reason_to_drop(self, entry: Entry) -> str:
        """Why *entry* must not be sent any more; empty: it is to be sent."""
        if entry.file.lost:
            return entry.file.lost
        if self.backlog.is_ending and not entry.file.awaited:  # pragma: no cover - just read
            return HANDED_OVER
        old = entry.is_stored and self.queue.clock() - entry.accepted_at > self._max_age
        return "age" if old else ""

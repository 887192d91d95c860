"""The order in which waiting events are taken, and when they may be taken at all.

Events are taken first in, first out. A postponed event waits until it is due, and then goes first,
since it is older. While the endpoint as a whole is down, the schedule is *on hold*: until a given
time nothing is taken, and then one event at a time, as a probe, until `resume` is called.

There is no lock in here: an outbox guards its schedule with its own. That lock is re-entrant, and a
signal handler may run after any call, and at each turn of a loop. So a loop's body doesn't rely on
what its condition found, and finding and taking an event is one expression.
"""

from __future__ import annotations

import collections
import contextlib
import heapq
import math
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable


class Numbered(Protocol):
    """What is scheduled: *number* is its position among all accepted events."""

    number: int
    accepted_at: float


N = TypeVar("N", bound=Numbered)


class Schedule(Generic[N]):
    """Events that no thread has taken. All times are of `time.monotonic`, or the outbox's clock.

    Call with the outbox's lock. Nothing here waits or raises.
    """

    __slots__ = ("_later", "_open", "_probe", "_ready", "_until", "add")

    def __init__(self) -> None:
        self._ready: collections.deque[N] = collections.deque()
        #: Add *item* behind all that wait already. A single step that needs no lock, so that an
        #: event that was counted is also there.
        self.add: Final[Callable[[N], None]] = self._ready.append
        self._later: list[tuple[float, int, N]] = []  # a heap, by due time
        self._until: float | None = None  # when the next probe may be made; None: no hold
        self._open = True  # whether one may be taken: there is no hold, or a probe is due
        self._probe = 0.0

    def __len__(self) -> int:
        return len(self._ready) + len(self._later)

    def postpone(self, item: N, due: float) -> None:
        """Make *item* wait until *due*."""
        heapq.heappush(self._later, (due, item.number, item))

    def take(self, now: float) -> N | None:
        """The next event; None: none is due, or none may be tried yet."""
        if self._until is None and not self._later:  # nearly always, so it must be fast
            return self._pop_ready()
        self.advance(now)
        item = self._pop_ready() if self._open else None
        if item is not None and self._until is not None:
            # No other probe until this one has a result, or timed out because its thread died.
            self.hold(now + self._probe, self._probe)
        return item

    def pass_over(self) -> None:
        """The event taken last is not tried: if it was the probe, allow another one."""
        if self._until is not None:
            self._open = True

    def hold(self, until: float, probe: float) -> None:
        """Give nothing before *until*, then one event at a time, each for at most *probe* s."""
        self._until = until
        self._open = False
        self._probe = probe

    def resume(self) -> None:
        """The endpoint answers: end the hold."""
        self._until = None
        self._open = True

    def hasten(self) -> None:
        """Make everything due now; on hold, allow a probe now."""
        if self._until is not None:
            self._until = -math.inf
        self._promote(math.inf)

    def is_ready(self) -> bool:
        """Whether `take` would find something, as of the last `advance`."""
        return self._open and bool(self._ready)

    def is_open(self) -> bool:
        """Whether there is no hold, or a probe may be made, as of the last `advance`."""
        return self._open

    def next_change(self) -> float | None:
        """The next time at which `advance` makes something ready; None: time alone never does."""
        later, ready, until = self._later, self._ready, self._until
        if until is not None:
            if not self._open:
                return until if ready or later else None
            if ready:
                return None
        return later[0][0] if later else None

    def advance(self, now: float) -> None:
        """Make ready what is due at *now*."""
        until = self._until
        if until is not None:
            self._open = self._open or until <= now
            # Probe with a fresh event, not with a postponed one: else a single event would use up
            # its attempts and fail in an outage that many survive with one attempt each.
            if not self._open or self._ready:
                return
        self._promote(now)

    def pop_oldest(self) -> N | None:
        """The oldest event, due or not; only nearly so, as postponed ones are in due order."""
        later, ready = self._later, self._ready
        if later and not (ready and ready[0].number < later[0][1]):
            return self._pop_due(math.inf)
        return self._pop_ready()

    def pop_before(self, moment: float) -> N | None:
        """An event that was accepted before *moment*, due or not; None: there is none."""
        ready, later = self._ready, self._later
        if ready and ready[0].accepted_at < moment:
            return self._pop_ready()
        for entry in later.copy():
            if entry[2].accepted_at < moment:
                with contextlib.suppress(ValueError):  # a signal handler has taken it meanwhile
                    later.remove(entry)
                    heapq.heapify(later)
                    return entry[2]
        return None

    def _promote(self, now: float) -> None:
        """Put what is due before what is ready: it is older."""
        due = []
        while (item := self._pop_due(now)) is not None:
            due.append(item)
        self._ready.extendleft(reversed(due))

    def _pop_due(self, now: float) -> N | None:
        later = self._later
        return heapq.heappop(later)[2] if later and later[0][0] <= now else None

    def _pop_ready(self) -> N | None:
        try:
            return self._ready.popleft()
        except IndexError:
            return None

"""The order in which waiting events are taken: what is due, and what the service is ready for.

Events are taken first in, first out. A postponed one waits for its time, and then goes in front,
since it is older. While the endpoint as a whole is down, it is *held*: nothing is taken until a
moment, and then one event at a time, a probe, until somebody says that it answers again.

There is no lock in here: an outbox guards its schedule with its own. That one is re-entrant, and a
signal handler may come after a call, or where a loop turns. So what a loop's condition found is not
relied on in its body, and looking and taking are one expression.
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
    """What is scheduled: it tells its place among all that was accepted."""

    number: int
    accepted_at: float


N = TypeVar("N", bound=Numbered)


class Schedule(Generic[N]):
    """Events that nobody has taken. All times are `time.monotonic`, or whatever the owner's clock.

    For who holds its owner's lock. Nothing here waits or raises.
    """

    __slots__ = ("_later", "_open", "_probe", "_ready", "_until", "add")

    def __init__(self) -> None:
        self._ready: collections.deque[N] = collections.deque()
        #: *item* may be taken, after all that wait already. One step, which needs no lock, and
        #: nothing can come between: an event that was counted is there.
        self.add: Final[Callable[[N], None]] = self._ready.append
        self._later: list[tuple[float, int, N]] = []  # a heap, by due time
        self._until: float | None = None  # when the next probe may go; None: no hold
        self._open = True  # whether one may be taken: there is no hold, or its moment has come
        self._probe = 0.0

    def __len__(self) -> int:
        return len(self._ready) + len(self._later)

    def postpone(self, item: N, due: float) -> None:
        """*item* may be taken at *due*, or later."""
        heapq.heappush(self._later, (due, item.number, item))

    def take(self, now: float) -> N | None:
        """The next one; None: none is due, or none may be tried yet."""
        if self._until is None and not self._later:  # as good as always, and so without a call
            return self._pop_ready()
        self.advance(now)
        item = self._pop_ready() if self._open else None
        if item is not None and self._until is not None:
            # No other one until this one has told, or, where its thread died, its time is over.
            self.hold(now + self._probe, self._probe)
        return item

    def pass_over(self) -> None:
        """What was taken is not tried: where it would have been the probe, another one is."""
        if self._until is not None:
            self._open = True

    def hold(self, until: float, probe: float) -> None:
        """Give nothing before *until*, then one event at a time, for *probe* seconds at most."""
        self._until = until
        self._open = False
        self._probe = probe

    def resume(self) -> None:
        """The endpoint answers: no hold any more."""
        self._until = None
        self._open = True

    def hasten(self) -> None:
        """Make everything due now; where the endpoint is held, its probe."""
        if self._until is not None:
            self._until = -math.inf
        self._promote(math.inf)

    def is_ready(self) -> bool:
        """Whether `take` would find something, as of the last `advance`."""
        return self._open and bool(self._ready)

    def is_open(self) -> bool:
        """Whether there is no hold, or a probe may go, as of the last `advance`."""
        return self._open

    def next_change(self) -> float | None:
        """The next moment at which `advance` makes something ready; None: time alone does not."""
        later, ready, until = self._later, self._ready, self._until
        if until is not None:
            if not self._open:
                return until if ready or later else None
            if ready:
                return None
        return later[0][0] if later else None

    def advance(self, now: float) -> None:
        """It is *now*: make ready what is due."""
        until = self._until
        if until is not None:
            self._open = self._open or until <= now
            # A probe is the freshest: else one event would spend all of its attempts so, and be
            # given up, in an outage that many get through with an attempt each.
            if not self._open or self._ready:
                return
        self._promote(now)

    def pop_oldest(self) -> N | None:
        """The oldest one, due or not, or nearly so: postponed ones are in due order."""
        later, ready = self._later, self._ready
        if later and not (ready and ready[0].number < later[0][1]):
            return self._pop_due(math.inf)
        return self._pop_ready()

    def pop_before(self, moment: float) -> N | None:
        """One that was accepted before *moment*, due or not; None: there is none."""
        ready, later = self._ready, self._later
        if ready and ready[0].accepted_at < moment:
            return self._pop_ready()
        for entry in later.copy():
            if entry[2].accepted_at < moment:
                with contextlib.suppress(ValueError):  # taken by a signal handler meanwhile
                    later.remove(entry)
                    heapq.heapify(later)
                    return entry[2]
        return None

    def _promote(self, now: float) -> None:
        """Put what is due in front of what is ready: it is older."""
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

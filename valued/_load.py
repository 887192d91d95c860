"""How many workers help: more, where they wait for the service; fewer, where for a CPU.

Python runs one thread at a time. While the service answers at once, a second worker therefore
delivers nothing more and costs the switching; while it takes its time, ten deliver ten times as
much. What tells the two apart is the time that an attempt takes against the CPU time in it.

Where many processes share the cores, as forked workers do, an attempt takes its time because others
run. A worker more would then take from theirs, and theirs from this one's, and all that grew would
be the number of connections. So none is added while more threads want to run than there are cores.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

#: Weight of the latest attempt in the averages: the last dozen or so count.
WEIGHT: Final = 0.2

#: Share of an attempt's time that the workers may need of the CPU, all together, for one more of
#: them to help; and beyond which one is too many. Apart, so that one is not added and taken away.
ROOM: Final = 0.5
CROWDED: Final = 0.8

#: Share of a CPU that the process uses at which its threads wait for each other already. Then a
#: worker more would take its time from the application.
BUSY: Final = 0.8

#: Seconds that an event may wait before workers are added though the process is busy.
LAG: Final = 0.5

#: The same, though the machine is: from within a container all of it is seen, and not the share.
LONG_LAG: Final = 5.0

#: Threads that may want to run beside one for each core: the one that asks.
SPARE: Final = 1

#: Seconds between two looks at how many there are. A look takes some 10 us.
LOOK: Final = 0.02


def running() -> float:
    """Threads of the machine that run or want to, beyond its cores; 0 where nobody counts them."""
    try:
        with open("/proc/loadavg", "rb") as file:
            return int(file.read().split()[3].split(b"/")[0]) - (os.cpu_count() or 1)
    except (OSError, ValueError, IndexError):
        return 0


class Moment(NamedTuple):
    """A reading of three clocks, in seconds, and the thread that read them.

    It is a thread of the operating system: greenlets of gevent's share one, and its CPU time.
    """

    wall: float
    thread: float
    process: float
    of: int

    @classmethod
    def now(cls) -> Moment:
        """Read them."""
        here = threading.get_native_id()
        return cls(time.monotonic(), time.thread_time(), time.process_time(), here)


class Load:
    """Averages over the latest attempts of one process.

    Any thread may call. Threads that race here lose an observation, which is no harm.
    """

    __slots__ = (
        "_alone", "_busy", "_cpu", "_lag", "_latest", "_look", "_running", "_share", "_wall",
    )  # fmt: skip

    def __init__(self, running: Callable[[], float] = running) -> None:
        self._running = running
        self._share = 0.0  # what it told, on average
        self._look = 0.0  # when to ask it again
        self._latest = Moment(0.0, 0.0, 0.0, 0)  # when the latest attempt ended
        self._alone = True  # whether it was the only one that ended while it was under way
        self._wall = 0.0
        self._cpu = 0.0
        self._busy = 1.0  # so that a first impression does not count alone
        self._lag = 0.0

    def observe(self, began: Moment, ended: Moment, lag: float) -> None:
        """An attempt was made between these moments. *lag*: seconds that its event had waited."""
        latest, self._latest = self._latest, ended
        self._alone = latest.wall <= began.wall
        since = began.thread
        if latest.of == ended.of:
            # A greenlet's attempt has others in it, which count for themselves.
            since = max(since, latest.thread)
        wall = max(ended.wall - began.wall, 1e-6)
        weight = WEIGHT if self._wall else 1.0
        self._wall += weight * (wall - self._wall)
        self._cpu += weight * (ended.thread - since - self._cpu)
        self._busy += WEIGHT * ((ended.process - began.process) / wall - self._busy)
        self._lag = lag

    def wants_more(self, workers: int) -> bool:
        """Whether one more than *workers* would deliver more."""
        if not self._cpu * (workers + 1) < ROOM * self._wall:
            return False
        if self._is_crowded():
            return self._lag > LONG_LAG
        return self._busy < BUSY or self._lag > LAG

    def _is_crowded(self) -> bool:
        now = self._latest.wall
        if now >= self._look:
            weight = WEIGHT if self._look else 1.0
            self._look = now + LOOK
            self._share += weight * (self._running() - self._share)
        return self._share > SPARE

    def wants_fewer(self, workers: int) -> bool:
        """Whether one less than *workers* would deliver as much.

        Never the one that alone gets on, as the others may hang.
        """
        return not self._alone and workers > 1 and self._cpu * workers > CROWDED * self._wall

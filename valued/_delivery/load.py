"""How many workers are useful: more, if they wait for the service; fewer, if they wait for a CPU.

Python runs one thread at a time. While the service answers at once, a second worker therefore
delivers nothing more, and switching threads costs time. While the service is slow, ten workers
deliver ten times as much. To tell the two cases apart, compare the duration of an attempt with the
CPU time that it used.

If many processes share the cores, as forked workers do, an attempt takes long because others run.
One more worker would then take CPU time from them, and theirs from this process, and only the
number of connections would grow. So none is added while more threads want to run than there are
cores.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

#: Weight of the latest attempt in the averages: about the last dozen attempts count.
WEIGHT: Final = 0.2

#: The share of an attempt's duration that all workers together use of the CPU: below ROOM one more
#: helps, above CROWDED one is too many. Two values, so that a worker isn't added and removed again.
ROOM: Final = 0.5
CROWDED: Final = 0.8

#: The share of a CPU that the process uses at which its threads already wait for each other. Then
#: one more worker would slow down the application.
BUSY: Final = 0.8

#: Seconds that an event waits before workers are added although the process is busy.
LAG: Final = 0.5

#: The same, although the machine is busy: a container sees the load of the whole machine.
LONG_LAG: Final = 5.0

#: Threads that may want to run in addition to one per core: the one that asks.
SPARE: Final = 1

#: Seconds between two reads of their number. Each takes some 10 us.
LOOK: Final = 0.02


def running() -> float:
    """Threads of the machine that run or want to, minus its cores; 0 if that isn't known."""
    try:
        with open("/proc/loadavg", "rb") as file:
            return int(file.read().split()[3].split(b"/")[0]) - (os.cpu_count() or 1)
    except (OSError, ValueError, IndexError):
        return 0


class Moment(NamedTuple):
    """A reading of three clocks, in seconds, and the thread that read them.

    It is a thread of the operating system: gevent's greenlets share one, and its CPU time.
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

    Any thread may call. Threads that race here lose an observation, which is harmless.
    """

    __slots__ = (
        "_alone", "_busy", "_cpu", "_lag", "_latest", "_look", "_running", "_share", "_wall",
    )  # fmt: skip

    def __init__(self, running: Callable[[], float] = running) -> None:
        self._running = running
        self._share = 0.0  # what `running` returned, on average
        self._look = 0.0  # when to call it again
        self._latest = Moment(0.0, 0.0, 0.0, 0)  # when the latest attempt ended
        self._alone = True  # whether no other attempt ended during the latest one
        self._wall = 0.0
        self._cpu = 0.0
        self._busy = 1.0  # so that the first attempt alone doesn't decide
        self._lag = 0.0

    def observe(self, began: Moment, ended: Moment, lag: float) -> None:
        """An attempt was made between these moments. *lag*: seconds that its event had waited."""
        latest, self._latest = self._latest, ended
        self._alone = latest.wall <= began.wall
        since = began.thread
        if latest.of == ended.of:
            # During a greenlet's attempt others ran, whose CPU time was counted with theirs.
            since = max(since, latest.thread)
        wall = max(ended.wall - began.wall, 1e-6)
        weight = WEIGHT if self._wall else 1.0
        self._wall += weight * (wall - self._wall)
        self._cpu += weight * (ended.thread - since - self._cpu)
        self._busy += WEIGHT * ((ended.process - began.process) / wall - self._busy)
        self._lag = lag

    def wants_more(self, workers: int) -> bool:
        """Whether *workers* and one more would deliver more."""
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
        """Whether *workers* without one of them would deliver as much.

        Never removes a worker that alone makes progress: the others may hang.
        """
        return not self._alone and workers > 1 and self._cpu * workers > CROWDED * self._wall

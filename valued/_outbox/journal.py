"""The journal on the disk: accepted events outlive their process, and others take them over.

Each process appends to files of its own, in a directory that carries its name. What is settled is
noted beside each file. When a process ends, its directories are renamed: to another owner, or to
``unclaimed``. `owners` shows the directory, and whose it is; `records` shows the files.

It knows files and owners, and never queues; the pipeline counts in the files.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Final

from valued._errors import ValidationError
from valued._outbox.claims import Claims
from valued._outbox.disk import LeaseLostError
from valued._outbox.files import SEGMENT_SIZE, Notes, Reader, Writer
from valued._outbox.owners import HEARTBEAT_INTERVAL, OutboxPaths, SystemProcesses
from valued._outbox.rejected import Rejections
from valued._outbox.segments import Batch, Segment, Stored
from valued._outbox.store import Store
from valued._outbox.upkeep import Upkeep
from valued._process.clock import CLOCK
from valued._process.fork import PerProcess
from valued._process.reporting import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from valued._errors import DeliveryError
    from valued._options import Options
    from valued._outbox.disk import Disk
    from valued._outbox.owners import Processes

#: Seconds for which `Journal.release` waits for threads that are writing an event, which takes
#: microseconds; and how often it looks.
LAST_WRITES: Final = 1.0
_LOOKS: Final = 100


class Journal:
    """Stores events in the directory *path*. Does no I/O before the first event.

    *durability*: ``"process"``, or ``"power"`` to sync each event. *max_size*: bytes of the whole
    directory above which the oldest files of this process are dropped. *segment_size*: bytes of a
    file. *disk*: has the functions of `os`. *clock*: monotonic; *wall*: seconds since the epoch.

    It satisfies the protocol `Journal` of the pipeline. Any thread may call; no method raises an
    `Exception`. One process uses it: in a child, nothing is written.
    """

    stores: Final = True

    def __init__(
        self,
        path: str,
        reporter: Reporter,
        *,
        durability: str = "process",
        max_size: int = 1024**3,
        segment_size: int = SEGMENT_SIZE,
        disk: Disk = os,
        clock: Callable[[], float] = CLOCK.monotonic,
        wall: Callable[[], float] = CLOCK.wall,
        processes: Processes | None = None,
    ) -> None:
        self._store = store = Store(
            path, reporter, disk, clock, wall, processes or SystemProcesses(), durability
        )
        self._born = store.token
        self._reader = Reader(store)
        self._notes = Notes(store)
        self._upkeep = Upkeep(store, self._notes, self._reader, max_size)
        self._claims = Claims(store)
        self._maintaining = threading.Lock()  # never waited for
        self._append = Writer(store, segment_size).append
        self._rejections = Rejections(store)

    def __del__(self) -> None:
        # No I/O here: a finalizer may run at any moment, in any thread. The next `maintain` of
        # another journal in this process releases what this one owns.
        try:
            if self._store.owner is not None and self._born.is_current():
                _abandoned.get().append(self)
        except Exception:  # noqa: BLE001, S110  # pragma: no cover - the interpreter is finalizing
            pass

    # -- events ------------------------------------------------------------------------------------

    def append(self, body: bytes, *, spill: bool) -> Stored | None:
        """Store an event, with one write; None: the disk did not take it, and it is in memory only.

        *spill*: the event will not be in memory, so it goes to another file than those that are.
        """
        return self._append(body, spill=spill)

    def settled(self, file: object, number: int) -> None:
        """Write down, now, that this event is settled: no process will send it again."""
        if isinstance(file, Segment) and self._born.is_current():
            self._notes.settled(file, number)

    def reject(self, key: str, body: bytes, error: DeliveryError) -> None:
        """Store an event that failed permanently, with the answer, for people to look at."""
        self._rejections.reject(key, body, error)

    def load(self, events: int, size: int) -> Batch | None:
        """Read at most so many events that are on the disk only, and about so many bytes.

        None: there is nothing to read now. The next call reads the same, until `loaded`.
        """
        return self._reader.load(events, size)

    def loaded(self, batch: Batch) -> None:
        """All of *batch* is in memory: the next `load` reads on after it."""
        self._reader.loaded(batch)

    # -- other processes ---------------------------------------------------------------------------

    def claim(self, events: int) -> Sequence[Segment]:
        """Take over what dead processes left: files with some *events* in total.

        Works for a bounded time; `is_claim_due` is true at once if more is left.
        """
        return self._claims.claim(events) if self._born.is_current() else ()

    def claimed(self) -> int:
        """From how many directories the last `claim` took over."""
        return self._claims.taken

    def is_claim_due(self) -> bool:
        """Whether it is time to look for dead processes."""
        return self._claims.is_due()

    def stop(self) -> None:
        """Let a `claim` that runs on another thread end after its present step."""
        self._claims.stop()

    def watch(self) -> bool:
        """Begin to notice at once when another process dies; False: that is not possible here.

        `wait_for_deaths` has to be called then. Only on Linux; after the first event.
        """
        return self._born.is_current() and self._claims.watch()

    def wait_for_deaths(self, timeout: float) -> bool:
        """Wait, in a thread of its own, until a process may have died: `is_claim_due` tells.

        False, after *timeout* seconds or `unwatch`: the watch has ended. While other processes of
        this machine that share the directory are known to live, no time ends it.
        """
        return self._claims.deaths.wait(timeout)

    def unwatch(self) -> None:
        """Let `wait_for_deaths` return False."""
        self._claims.deaths.unwatch()

    # -- maintenance -------------------------------------------------------------------------------

    def maintain(self) -> Sequence[tuple[Segment, str]]:
        """Do what is due: remove finished files, heartbeat, keep within bounds, try again.

        Returns the files whose events must not be delivered any more, each once, and why.
        """
        if self._born.is_current() and self._maintaining.acquire(blocking=False):
            try:
                _release_abandoned()
                self._maintain()
            finally:
                self._maintaining.release()
        return self._report()

    def _maintain(self) -> None:
        store = self._store
        if store.trouble.is_resting():
            return
        owner = None
        try:
            store.resolve()
            owner = store.owner
            if owner is None:
                return
            if store.is_heartbeat_due(owner, store.wall()):
                store.heartbeat(owner)
            # First remove: on a disk that our own files fill, there is no room for a note.
            self._upkeep.remove(owner)
            self._notes.catch_up()
            if self._upkeep.is_size_due():
                self._upkeep.keep_size(owner)
        except LeaseLostError:
            store.lose(owner)
            self._maintain()
        except OSError as error:
            store.trouble.refuse(error)

    def _report(self) -> Sequence[tuple[Segment, str]]:
        lost = self._store.take_lost()
        for segment, _ in lost:
            self._notes.close(segment)
        return lost

    def is_untidy(self) -> bool:
        """Whether `maintain` has something to do right now. Looks at memory only."""
        store = self._store
        if store.lost or _abandoned.peek():
            return True
        if store.trouble.is_resting():
            return False
        owner = store.owner
        if store.detached or owner is None:
            return bool(store.detached)
        at = self._upkeep.next_due(owner)
        return (
            self._notes.is_behind()
            or self._upkeep.is_size_due()
            or store.is_heartbeat_due(owner, store.wall())
            or (at is not None and at <= store.clock())
        )

    def next_due(self) -> float | None:
        """The time, by the clock, of the next `maintain` or `claim`; None: none is needed."""
        store = self._store
        now = store.clock()
        if self.is_untidy() or self.is_claim_due():
            return now
        owner = store.owner
        if owner is None:
            return None
        due = [self._claims.next_due(), self._upkeep.next_due(owner)]
        if any(segment.unsettled or segment.unread for segment in owner.segments()):
            due.append(now + owner.heartbeat_at + HEARTBEAT_INTERVAL - store.wall())
            due.append(store.trouble.retry_at())
        first = min((moment for moment in due if moment is not None), default=None)
        # While the disk rests, nothing is due before it is tried again.
        return first if first is None else max(first, store.trouble.retry_at() or first)

    def release(self) -> Sequence[tuple[Segment, str]]:
        """Hand over what is left to other processes, and hold no file any more.

        Returns the same as `maintain`. The next `append` begins under another name. Waits a second
        at most for threads that are writing.
        """
        if not self._born.is_current():
            return ()
        store = self._store
        self._claims.stop()
        with store.lock:
            owner, store.owner = store.owner, None
            if owner is not None:
                owner.seal(*owner.current)
        self.unwatch()
        if owner is not None:
            for _ in range(_LOOKS):
                if not any(segment.writers for segment in owner.segments()):
                    break
                time.sleep(LAST_WRITES / _LOOKS)
            with contextlib.suppress(OSError):
                self._notes.catch_up()
            with contextlib.suppress(OSError):
                self._upkeep.remove(owner, final=True)
            for directory in list(owner.directories):
                store.hand_over(owner, directory)
            store.leave(owner)
        with contextlib.suppress(OSError):
            store.resolve()
        store.detached.clear()
        self._claims.restart()
        store.reporter.log_remaining()
        return self._report()


# Journals that were dropped without `release`, to be released by a thread that may do I/O.
_abandoned: Final[PerProcess[list[Journal]]] = PerProcess(list)


def _release_abandoned() -> None:
    found = _abandoned.peek()
    while found:
        found.pop().release()


def maker(options: Options) -> Callable[[], Journal]:
    """A function that makes the journal of each process; the *options* name a directory.

    Checks the directory, and creates nothing. Raises `ValidationError`, with the fix.
    """
    path = str(options.outbox)
    if problems := OutboxPaths(path).problems():
        raise ValidationError(*problems)

    def make() -> Journal:
        return Journal(
            path,
            Reporter(None),
            durability=options.durability,
            max_size=options.outbox_max_size,
        )

    return make

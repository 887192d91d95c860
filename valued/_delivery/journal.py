"""What the pipeline needs of a journal, and the journal that keeps nothing.

A journal stores accepted events in files, so that they outlive their process. It knows files and
owners, and never queues: which events wait in memory, which are being sent and how often they were
tried, only the pipeline knows. The one on the disk is in ``_outbox``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from valued._errors import DeliveryError

#: Why an event on the disk leaves this process: other processes deliver it.
HANDED_OVER: Final = "handed_over"


class File(Protocol):
    """A file of events. The pipeline counts in it, with its lock; the journal only reads these."""

    #: The process that accepted its events; the first part of their idempotency keys.
    origin: str
    #: Events of it that are in memory, and not settled.
    unsettled: int
    #: Events of it that are on the disk only, so that `Journal.load` has to read them.
    unread: int
    #: Bytes of the events in it that the pipeline knows of, read or not, as they are stored.
    known: int
    #: Whether this process adopted it: another one accepted its events.
    adopted: bool
    #: Whether a flush waits for its events. Set by the pipeline: True, but for files that a worker
    #: adopted, and not a call of `Client.adopt`.
    awaited: bool
    #: Why its events must not be delivered any more: a reason for dropping them, or `HANDED_OVER`.
    #: Empty: they are to be delivered.
    lost: str


class Stored(NamedTuple):
    """Where an event was stored."""

    file: File
    number: int
    #: Bytes that it takes there.
    size: int


class Loaded(NamedTuple):
    """An event that was read from a file."""

    number: int
    #: `time.time` when it was accepted.
    accepted: float
    body: bytes


class Batch(NamedTuple):
    """Events that were read from one file, in their order. `Journal.loaded` confirms them."""

    file: File
    events: Sequence[Loaded]
    #: Where reading goes on.
    position: int
    #: Events that should be there and are not: the file is damaged. They count as dropped.
    missing: int


class Journal(Protocol):
    """Files of accepted events. Any thread may call; no method raises an `Exception`.

    Trouble with the disk is logged, and tried again later; meanwhile events are in memory only.
    Each method works for a bounded time, unless the disk itself hangs, and no lock is held while
    it reads or writes. What the methods return here is for a journal that stores nothing.
    """

    @property
    def stores(self) -> bool:
        """Whether events outlive their process."""

    def append(self, body: bytes, *, spill: bool) -> Stored | None:
        """Store an event, with one write; None: the disk did not take it.

        *spill*: the event will not be in memory, so it goes to another file than those that are.
        Nothing here scans a directory.
        """
        return None

    def settled(self, file: File, number: int) -> None:
        """Write down, now, that this event is settled: no process will send it again."""

    def reject(self, key: str, body: bytes, error: DeliveryError) -> None:
        """Store an event that failed permanently, with the answer, for people to look at."""

    def load(self, events: int, size: int) -> Batch | None:
        """Read at most so many events that are on the disk only, and about so many bytes.

        None: there is nothing to read now. The next call reads the same, until `loaded`.
        """
        return None

    def loaded(self, batch: Batch) -> None:
        """All of *batch* is in memory: read on behind it."""

    def claim(self, events: int) -> Sequence[File]:
        """Take over what dead processes left: files with some *events* in total at most.

        Their `File.unread` is set. Returns an empty sequence if there is nothing, or if it was
        not possible to look.
        """
        return ()

    def claimed(self) -> int:
        """From how many directories the last `claim` took over."""
        return 0

    def maintain(self) -> Sequence[tuple[File, str]]:
        """Do what is due: remove finished files, heartbeat, keep within bounds, try again.

        Returns the files whose events must not be delivered any more, each once, and why.
        """
        return ()

    def is_untidy(self) -> bool:
        """Whether `maintain` has something to do right now. Looks at memory only."""
        return False

    def next_due(self) -> float | None:
        """The time, by the clock, of the next `maintain` or `claim`; None: none is needed."""
        return None

    def is_claim_due(self) -> bool:
        """Whether it is time to look for dead processes."""
        return False

    def watch(self) -> bool:
        """Begin to notice at once when another process dies; False: that is not possible here.

        `wait_for_deaths` has to be called then, by one thread at a time.
        """
        return False

    def wait_for_deaths(self, timeout: float) -> bool:
        """Wait until a process may have died: `is_claim_due` tells. The only method that waits.

        False, after *timeout* seconds or `unwatch`: the watch has ended. While other processes of
        this machine that share the directory are known to live, no time ends it.
        """
        return False

    def unwatch(self) -> None:
        """Let `wait_for_deaths` return False."""

    def release(self) -> Sequence[tuple[File, str]]:
        """Hand over what is left to other processes, and hold no file any more.

        Returns the same as `maintain`. The next `append` begins under another name.
        """
        return ()


class NoFile:
    """The file of events that are in memory only."""

    __slots__ = ("adopted", "awaited", "known", "lost", "origin", "unread", "unsettled")

    def __init__(self) -> None:
        self.origin = os.urandom(16).hex()  # unique in the world, and so are idempotency keys
        self.unsettled = 0
        self.unread = 0
        self.known = 0
        self.adopted = False
        self.awaited = True
        self.lost = ""


class NullJournal(Journal):
    """A journal that stores nothing: events die with their process."""

    stores = False

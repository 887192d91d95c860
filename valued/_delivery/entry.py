"""Accepted events, their states, and the runs that send them.

A *run* is what a thread is doing, noted in such a way that the note can't be left behind. An
exception may come between any two steps: a signal handler raises, Ctrl-C, a full stack. A
``finally`` alone can't promise that a note is removed. So a note is a weak reference to an object
that lives in the frame of the call, and is gone with the frame. Where the application keeps the
exception, and with it the frame, the ``finally`` has marked the run as ended.
"""

from __future__ import annotations

import functools
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from valued._delivery.journal import File

# The states of an event: it is in the inbox; it can be taken; it waits until it is due; a worker
# has it; it is settled.
NEW, READY, LATER, TAKEN, SETTLED = "new", "ready", "later", "taken", "settled"


class Entry:
    """An accepted event in memory."""

    __slots__ = (
        "accepted_at", "attempts", "awaited", "body", "due", "file", "number", "order", "run",
        "size", "state",
    )  # fmt: skip

    def __init__(
        self, body: bytes, accepted_at: float, file: File, number: int = 0, size: int = 0
    ) -> None:
        self.body = body
        self.accepted_at = accepted_at
        self.file = file
        self.number = number  # in the file; 0: it is in memory only
        self.size = size  # bytes that are new in the file
        self.state = NEW
        self.order = 0  # in which events were absorbed
        self.attempts = 0
        self.due = 0.0
        self.run: weakref.ref[Run] | None = None
        self.awaited = False  # whether a thread waits for its end

    @property
    def is_stored(self) -> bool:
        """Whether it is on the disk, too."""
        return self.number > 0

    @property
    def idempotency_key(self) -> str:
        """The same for each attempt; no other event of any process has it."""
        return f"{self.file.origin}-{self.number or self.order}"


class Spilled:
    """Says that an event was stored in *file*, and is not in memory."""

    __slots__ = ("file", "size", "state")

    def __init__(self, file: File, size: int) -> None:
        self.file = file
        self.size = size
        self.state = NEW


class Run:
    """One run of a worker: it lives as long as the call that takes and sends events."""

    __slots__ = ("__weakref__", "_begins", "has_ended", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.has_ended = False
        self._begins = [None]

    def begin(self) -> bool:
        """Whether this is the first call."""
        try:
            self._begins.pop()  # one step, so that of two threads one is the first
        except IndexError:
            return False
        return True


def is_under_way(reference: weakref.ref[Run] | None) -> bool:
    """Whether this run has not ended, in whatever way."""
    run = None if reference is None else reference()
    return run is not None and not run.has_ended


class Runs:
    """The runs under way. A run that ends in any way, even by an exception, is in here no more.

    Each operation is a single one of a dict, so no lock is needed.
    """

    __slots__ = ("_references",)

    def __init__(self) -> None:
        self._references: dict[int, weakref.ref[Run]] = {}

    def __len__(self) -> int:
        return len(self._references)

    def add(self, run: Run) -> None:
        """Count *run*, until it ends or is discarded."""
        key = id(run)
        self._references[key] = weakref.ref(run, functools.partial(self._references.pop, key))

    def discard(self, run: Run) -> bool:
        """Count *run* no more. Whether it was counted."""
        return self._references.pop(id(run), None) is not None

    def elsewhere(self) -> dict[int, weakref.ref[Run]]:
        """Those that other threads began, for `has_any`."""
        here = threading.get_ident()
        known = list(self._references.items())
        return {key: ref for key, ref in known if (run := ref()) and run.thread != here}

    def has_any(self, some: dict[int, weakref.ref[Run]]) -> bool:
        """Whether one of *some* is still under way."""
        return any(self._references.get(key) is ref for key, ref in some.items())


class Role:
    """What one run at a time does. It ends with its run, however that ended."""

    __slots__ = ("_run",)

    def __init__(self) -> None:
        self._run: weakref.ref[Run] | None = None

    def is_free(self) -> bool:
        """Whether no run has it."""
        return not is_under_way(self._run)

    def begin(self, run: Run) -> bool:
        """Take it for *run*; False: another one has it. Call with the queue's lock."""
        if not self.is_free():
            return False
        self._run = weakref.ref(run)
        return True

    def end(self) -> None:
        """Let another run have it."""
        self._run = None

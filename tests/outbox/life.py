"""A process that uses a journal as the pipeline does, on any disk; for the tests of this folder."""

from __future__ import annotations

import os
from typing import Any

from tests.support.clock import Clock
from valued._outbox.journal import Journal
from valued._outbox.owners import ProcessIdentity
from valued._outbox.segments import Batch, Segment, Stored
from valued._process.reporting import Reporter


class FakeProcesses:
    """The processes of a test: *alive* are the pids of those that live."""

    def __init__(self, pid: int, alive: set[int]) -> None:
        self._pid = pid
        self._alive = alive
        self._names: set[str] = set()
        alive.add(pid)

    def here(self) -> ProcessIdentity:
        return ProcessIdentity(self._pid, "1", "boot", "pids", "host")

    def is_alive(self, other: ProcessIdentity) -> bool | None:
        return other.pid in self._alive if other.host == "host" else None

    def names(self) -> set[str]:
        return self._names


class Life:
    """One process: its journal, and the counts that a pipeline keeps in the files."""

    def __init__(
        self,
        path: str,
        pid: int,
        alive: set[int],
        disk: Any = os,
        *,
        clock: Clock | None = None,
        wall: Clock | None = None,
        **options: Any,
    ) -> None:
        self.clock = clock or Clock()
        self.wall = wall or Clock(1_000_000.0)
        self.alive, self.pid = alive, pid
        self.journal = Journal(
            path,
            Reporter(None, self.clock),
            disk=disk,
            clock=self.clock,
            wall=self.wall,
            processes=FakeProcesses(pid, alive),
            **options,
        )
        self.stored: dict[int, Stored] = {}  # events in memory, by what is in them
        self.files: list[Segment] = []  # claimed
        self.lost: list[tuple[Segment, str]] = []
        self.missing = 0

    def die(self) -> None:
        """End without a word, as by SIGKILL."""
        self.alive.discard(self.pid)

    def append(self, event: int, *, spill: bool = False) -> Stored:
        stored = self.journal.append(body(event), spill=spill)
        assert stored is not None
        stored.file.known += stored.size
        if spill:
            stored.file.unread += 1
        else:
            stored.file.unsettled += 1
            self.stored[event] = stored
        return stored

    def record(self, *events: int, spill: bool = False) -> None:
        for event in events:
            self.append(event, spill=spill)

    def refuses(self, event: int, *, spill: bool = False) -> bool:
        """Whether the disk does not take this event."""
        return self.journal.append(body(event), spill=spill) is None

    def number(self, event: int) -> int:
        """The descriptor of the file that an event is in."""
        file = self.stored[event].file.file
        assert file is not None
        return file.number

    def settle(self, event: int) -> None:
        stored = self.stored.pop(event)
        self.journal.settled(stored.file, stored.number)
        stored.file.unsettled -= 1

    def claim(self, events: int = 1_000) -> int:
        """Returns how many events were claimed."""
        files = self.journal.claim(events)
        self.files += files
        return sum(file.unread for file in files)

    def claim_all(self) -> int:
        events = self.claim()
        while self.journal.is_claim_due():
            events += self.claim()
        return events

    def load(self, events: int = 1_000, size: int = 10**6) -> list[int]:
        """Read a batch; returns its events."""
        batch = self.journal.load(events, size)
        if batch is None:
            return []
        found = []
        for number, _accepted, content in batch.events:
            event = event_of(content)
            found.append(event)
            self.stored[event] = Stored(batch.file, number, 0)
            batch.file.unsettled += 1
            batch.file.unread -= 1
        batch.file.unread -= batch.missing
        self.missing += batch.missing
        self.journal.loaded(batch)
        return found

    def read(self, events: int) -> Batch:
        """The next events that are on the disk only; the counts stay as they are."""
        batch = self.journal.load(events, 10**6)
        assert batch is not None
        return batch

    def load_all(self) -> list[int]:
        found: list[int] = []
        while batch := self.load():
            found += batch
        return found

    def maintain(self) -> None:
        self.lost += self.journal.maintain()

    def tidy(self) -> None:
        """Maintain until there is nothing to do."""
        while self.journal.is_untidy():
            self.maintain()

    def release(self) -> None:
        self.lost += self.journal.release()


def body(event: int) -> bytes:
    return b'{"n":%d}' % event


def event_of(content: bytes) -> int:
    return int(content[5:-1])

"""What processes that ended left in an outbox, made quickly; and what was delivered of it.

The files are written in the format that `valued._outbox.records` and `valued._outbox.owners`
describe, by code of the tests' own: it needs no client, and a change of the format is noticed.
"""

from __future__ import annotations

import collections
import json
import os
import signal
import struct
import subprocess
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import valued
from tests.support.processes import run

ROOT = Path(__file__).parent.parent.parent

BEGINNING = b"valued1\n"
EVENT, SETTLED, REJECTED = 1, 2, 3
_REST = struct.Struct("<BIQd")


def record(kind: int, number: int, payload: bytes, at: float, length: int | None = None) -> bytes:
    """One record; *length*: what its head says, if that is wrong."""
    size = len(payload) if length is None else length
    rest = _REST.pack(kind, size, number, at) + payload
    return struct.pack("<4sI", b"\xabVR1", zlib.crc32(rest)) + rest


def body(number: int) -> bytes:
    """An event that has this number."""
    event = {
        "category": "action",
        "key": "left",
        "user": {"id": 1},
        "attributes": {"number": number},
        "occured_at": "2026-11-24T11:00:00+00:00",
    }
    return json.dumps(event).encode()


def segment(numbers: Iterable[int], at: float | None = None) -> bytes:
    """The content of a file with these events, accepted *at* that time (default now)."""
    at = time.time() if at is None else at
    written = (record(EVENT, place + 1, body(number), at) for place, number in enumerate(numbers))
    return BEGINNING + b"".join(written)


def make_outbox(outbox: Path) -> None:
    """The directories of an outbox, if they are missing."""
    for path in (outbox, outbox / "v1", *(outbox / "v1" / name for name in _PARTS)):
        path.mkdir(mode=0o700, exist_ok=True)


_PARTS = ("owners", "events", "rejected")


def leave(
    outbox: Path,
    directories: int,
    events: int = 1,
    *,
    first: int = 0,
    at: float | None = None,
    owner: str = "unclaimed",
) -> list[Path]:
    """Write so many left directories, with so many events each, numbered from *first* on.

    *owner*: unclaimed, or a name for which a mark is written elsewhere. Returns the directories.
    """
    make_outbox(outbox)
    made = []
    for place in range(directories):
        made.append(outbox / "v1" / "events" / f"{os.urandom(16).hex()}.{owner}")
        made[-1].mkdir(mode=0o700)
        begin = first + place * events
        write(made[-1] / "0000000001.events", segment(range(begin, begin + events), at))
    return made


def write(path: Path, content: bytes) -> None:
    """Write a file that belongs to this user only, as all files of an outbox do."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


class Never:
    """An executor that takes each job and runs none."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> None:
        pass


def die_with(outbox: Path, numbers: Iterable[int]) -> None:
    """Let a process record these events, deliver none of them, and be killed."""
    pid = os.fork()
    if pid == 0:
        try:
            client = valued.Client(lambda _event: None, outbox=outbox, executor=Never())
            record_all(client, numbers)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def record_all(client: valued.Client, numbers: Iterable[int]) -> None:
    for number in numbers:
        client.action("left", {"user.id": 1, "attributes.number": number})


class Sink:
    """A transport that works in each process: it appends the number of an event to one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._down = path.with_suffix(".down")
        path.touch()

    def __call__(self, event: dict[str, Any]) -> None:
        if self._down.exists():
            raise ConnectionError("the service is down")
        self.note(event)

    def note(self, event: dict[str, Any]) -> None:
        """The event has arrived; with one `write`, so that it outlives this process."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, b"%d\n" % event["attributes"]["number"])
        finally:
            os.close(descriptor)

    def go_down(self) -> None:
        """From now on, no event is delivered, by any process."""
        self._down.touch()

    def come_up(self) -> None:
        self._down.unlink()

    def arrived(self) -> collections.Counter[int]:
        """How often each event has arrived."""
        return collections.Counter(map(int, self.path.read_text().split()))

    def numbers(self) -> list[int]:
        return sorted(self.arrived())

    def all(self) -> list[int]:
        """The same, each as often as it has arrived."""
        return sorted(self.arrived().elements())

    def repeats(self) -> int:
        return sum(times - 1 for times in self.arrived().values())


def files_of(outbox: Path) -> list[Path]:
    """All files but the stats, which stay when all events have been delivered."""
    stats = outbox / "v1" / "stats"
    return [
        Path(folder, name)
        for folder, _, names in os.walk(outbox)
        if not Path(folder).is_relative_to(stats)
        for name in names
    ]


def segments(outbox: Path) -> list[Path]:
    """The files of events; unlike `glob`, `walk` lets directories vanish meanwhile."""
    return [
        Path(folder, name)
        for folder, _, names in os.walk(outbox)
        for name in names
        if name.endswith(".events")
    ]


def adopt_all(client: valued.Client, outbox: Path, timeout: float = 20.0) -> None:
    """Let *client* deliver what dead processes left, until no event is there.

    *timeout* bounds a failure.
    """
    deadline = time.monotonic() + timeout
    while True:
        client.adopt()
        client.flush(1)
        if next(valued.Outbox(outbox).events(), None) is None:
            return
        assert time.monotonic() < deadline, (client.stats(), segments(outbox)[:20])
        time.sleep(0.01)


def run_program(name: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program of `tests/programs` that imports these helpers, too."""
    return run("-m", f"tests.programs.{name}", *arguments, cwd=ROOT, **options)

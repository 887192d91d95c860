"""Fixtures of the tests of the outbox: journals and clients that use one directory."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.outbox.life import Life, body
from tests.support.clock import Clock
from tests.support.left import Sink
from tests.support.processes import Child


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not hasattr(os, "fork"):
        here = Path(__file__).parent
        for item in items:
            if item.path.is_relative_to(here):
                item.add_marker(pytest.mark.skip(reason="no outbox on Windows"))


Make = Callable[..., Life]
New = Callable[..., valued.Client]
Fork = Callable[..., Child]
InThread = Callable[..., "Future[Any]"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The directory of an outbox, which does not exist yet."""
    return tmp_path / "outbox"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def wall() -> Clock:
    return Clock(1_000_000.0)


@pytest.fixture
def make(place: Path, clock: Clock) -> Iterator[Make]:
    """Make a process that uses `place`. Each has the pid that comes next."""
    lives: list[Life] = []
    alive: set[int] = set()

    def make(disk: Any = os, **options: Any) -> Life:
        options = {"clock": clock, **options}
        lives.append(Life(str(place), len(lives) + 1, alive, disk, **options))
        return lives[-1]

    yield make
    for life in lives:
        life.journal.release()


@pytest.fixture
def life(make: Make, disk: FaultyDisk) -> Life:
    """A process that has begun, on `disk`."""
    life = make(disk)
    life.append(0)
    return life


@pytest.fixture
def sink(tmp_path: Path) -> Sink:
    return Sink(tmp_path / "arrived")


@pytest.fixture
def new(place: Path, sink: Sink) -> Iterator[New]:
    """Make a client of the outbox that delivers into `sink`. It is closed after the test."""
    made: list[valued.Client] = []

    def new(transport: Any = sink, **options: Any) -> valued.Client:
        made.append(valued.Client(transport, outbox=place, **options))
        return made[-1]

    yield new
    for client in made:
        client.close(0)


class FaultyDisk:
    """The real disk, of which a test lets some functions fail. It notes what was called."""

    def __init__(self) -> None:
        self.errors: dict[str, OSError | None] = {}
        self.paths = ""  # an error only for paths with this in them
        self.cut: int | None = None  # a write of so many bytes, once
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)

        def call(*arguments: Any) -> Any:
            self.calls.append((name, arguments[0]))
            error = self.errors.get(name)
            if error is not None and (not self.paths or self.paths in str(arguments[0])):
                raise error
            if name == "write" and self.cut is not None:
                arguments, self.cut = (arguments[0], arguments[1][: self.cut]), None
            return function(*arguments)

        return call

    def count(self, name: str) -> int:
        return sum(called == name for called, _ in self.calls)


@pytest.fixture
def disk() -> FaultyDisk:
    return FaultyDisk()


class Hooked:
    """The real disk; *handler* is called within the first calls of the function *name*.

    It is what a signal handler, another thread, or another process does at that moment. *part*: of
    the path, or the number, that the function is called with. *skip*: so many calls are left alone.
    """

    def __init__(
        self,
        name: str,
        handler: Callable[[], object] | None = None,
        *,
        after: bool = False,
        times: int = 1,
        part: str = "",
        skip: int = 0,
    ) -> None:
        self.name, self.after, self.times, self.part = name, after, times, part
        self._skip = skip
        self.handler = handler

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if name != self.name:
            return function

        def call(*arguments: Any) -> Any:
            handler = self.handler
            if handler is None or self.times <= 0 or self.part not in str(arguments[0]):
                return function(*arguments)
            if self._skip:
                self._skip -= 1
                return function(*arguments)
            self.times -= 1
            if not self.after:
                handler()
                return function(*arguments)
            result = function(*arguments)
            handler()
            return result

        return call


class Interrupted(BaseException):
    pass


def interrupt() -> None:
    """A handler that raises."""
    raise Interrupted


class Held(FaultyDisk):
    """The real disk; the write of one event waits, until `go_on` is set."""

    def __init__(self, event: int) -> None:
        super().__init__()
        self._event = event
        self.inside, self.go_on, self.moved = (threading.Event() for _ in range(3))

    def write(self, descriptor: int, data: bytes) -> int:
        if data.endswith(body(self._event)):
            self.inside.set()
            assert self.go_on.wait(30)
        return os.write(descriptor, data)

    def rename(self, source: str, target: str) -> None:
        self.moved.set()
        os.rename(source, target)


class Lines(logging.Handler):
    """Collects what is logged, as text."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def about(self, word: str) -> list[str]:
        return [line for line in self.lines if word in line]

    def count(self, word: str) -> int:
        """The sum of the numbers at the beginning of the lines about *word*."""
        return sum(int(line.split()[0]) for line in self.about(word))


@pytest.fixture
def log() -> Iterator[Lines]:
    """What is said on the logger ``valued``; in forked children, too, each for itself."""
    lines = Lines()
    logger = logging.getLogger("valued")
    logger.addHandler(lines)
    yield lines
    logger.removeHandler(lines)


def files(place: Path, pattern: str = "*.events") -> list[Path]:
    return sorted(place.glob(f"v1/events/*/{pattern}"))


def inside(place: Path, *folders: str) -> list[str]:
    """The names in these folders of the outbox."""
    return sorted(name for folder in folders for name in os.listdir(place / "v1" / folder))


def found(make: Make, *lives: Life) -> list[int]:
    """What a new process finds after the death of these."""
    for life in lives:
        life.die()
    two = make()
    claimed = two.claim_all()
    events = two.load_all()
    assert (len(events), two.missing) == (claimed, 0)
    return sorted(events)


def together(*functions: Callable[[], object]) -> None:
    """Call each on a thread of its own, and wait for all."""
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

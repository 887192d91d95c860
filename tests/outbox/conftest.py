"""Fixtures of the tests of the journal: processes that use one directory of the real disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.outbox.life import Life
from tests.support.clock import Clock


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not hasattr(os, "fork"):
        here = Path(__file__).parent
        for item in items:
            if item.path.is_relative_to(here):
                item.add_marker(pytest.mark.skip(reason="no outbox on Windows"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "outbox"


@pytest.fixture
def clock() -> Clock:
    return Clock()


Make = Callable[..., Life]


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


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def about(self, word: str) -> list[str]:
        return [line for line in self.lines if word in line]


@pytest.fixture
def log() -> Iterator[Lines]:
    """What is said on the logger ``valued``."""
    lines = Lines()
    logger = logging.getLogger("valued")
    logger.addHandler(lines)
    yield lines
    logger.removeHandler(lines)


def files(place: Path, pattern: str = "*.events") -> list[Path]:
    return sorted(place.glob(f"v1/events/*/{pattern}"))


def descriptors() -> set[str]:
    return {os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{number}")}  # fmt: skip

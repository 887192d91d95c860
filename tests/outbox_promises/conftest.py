"""Fixtures of the promises of the outbox."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.support.left import Sink


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not hasattr(os, "fork"):
        here = Path(__file__).parent
        for item in items:
            if item.path.is_relative_to(here):
                item.add_marker(pytest.mark.skip(reason="no outbox on Windows"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The directory of an outbox, which does not exist yet."""
    return tmp_path / "outbox"


@pytest.fixture
def sink(tmp_path: Path) -> Sink:
    return Sink(tmp_path / "arrived")


Make = Callable[..., valued.Client]


@pytest.fixture
def make(place: Path, sink: Sink) -> Iterator[Make]:
    """Make a client of the outbox that delivers into `sink`. It is closed after the test."""
    made: list[valued.Client] = []

    def make(transport: Any = sink, **options: Any) -> valued.Client:
        made.append(valued.Client(transport, outbox=place, **options))
        return made[-1]

    yield make
    for client in made:
        client.close(0)


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

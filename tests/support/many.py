"""A process whose outbox has many left directories, and what must be true of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import valued
from tests.support.left import Sink, adopt_all, leave, run_program

#: Events that the process records.
CALLS = 200


class Run(NamedTuple):
    """What the program said, and how long its end took, in seconds."""

    first: float
    slowest: float
    listed: list[str]
    end: float


def run_among(
    place: Path, sink: Sink, directories: int, shutdown_timeout: float, pause: float = 0.0
) -> Run:
    """Leave so many directories, and run `outbox_among_many` among them."""
    leave(place, directories)
    arguments = str(place), str(sink.path), str(CALLS), str(shutdown_timeout), str(pause)
    done = run_program("outbox_among_many", *arguments, timeout=120)
    ended = time.monotonic()
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return Run(said["first"], said["slowest"], said["listed"], ended - said["ends"])


def deliver_rest(place: Path, sink: Sink, timeout: float) -> None:
    """Let this process deliver all that is left."""
    with valued.Client(sink, outbox=place, max_queue=100_000) as client:
        adopt_all(client, place, timeout)


def all_numbers(directories: int) -> list[int]:
    return [*range(directories), *range(1_000_000, 1_000_000 + CALLS)]

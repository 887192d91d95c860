"""Events that the service refused are kept with its answer, within bounds, and cost no other."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.outbox.conftest import FaultyDisk, Lines, Make
from tests.outbox.life import Life, body
from tests.support.clock import Clock
from valued._errors import DeliveryError
from valued._outbox.rejected import REJECTED_BYTES, REJECTED_FILE


def reject(life: Life, event: int, content: Any = "why", sent: bytes | None = None) -> None:
    error = DeliveryError("the service answered 422", 422, 1, 0.0, content)
    life.journal.reject(f"key-{event}", body(event) if sent is None else sent, error)


def kept(place: Path) -> list[Path]:
    return sorted((place / "v1" / "rejected").iterdir())


def test_rejected_events_of_a_process_share_a_private_file(make: Make, place: Path) -> None:
    life = make()
    reject(life, 1)
    reject(life, 2)
    [path] = kept(place)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first, second = valued.Outbox(place).rejected()
    assert first[1:] == (422, "the service answered 422", "why", "key-1", {"n": 1})
    assert second.idempotency_key == "key-2"


def test_full_file_is_followed_by_another_one_and_the_oldest_are_removed(
    make: Make, place: Path, log: Lines
) -> None:
    wall = Clock(1_000_000.0)
    life = make(wall=wall)
    reject(life, 1)
    [path] = kept(place)
    wall.now += 1
    for number in range(20):
        old = path.with_name(f"{number:020d}-x")
        old.touch()
        os.truncate(old, REJECTED_FILE)
    os.truncate(path, REJECTED_FILE)
    reject(life, 2)
    files = kept(place)
    assert sum(file.stat().st_size for file in files) <= REJECTED_BYTES
    assert files[-2] == path
    assert [one.event["n"] for one in valued.Outbox(place).rejected()] == [1, 2]
    life.release()  # says the rest
    removed = sum(int(line.split()[0]) for line in log.about("oldest file"))
    assert removed == 22 - len(files)


def test_file_that_can_not_be_removed_costs_nothing(
    make: Make, place: Path, disk: FaultyDisk
) -> None:
    life = make(disk)
    reject(life, 1)
    [path] = kept(place)
    old = path.with_name(f"{1:020d}-x")
    old.touch()
    os.truncate(old, REJECTED_BYTES)
    os.truncate(path, REJECTED_FILE)
    disk.errors["unlink"] = OSError(errno.EACCES, "denied")
    reject(life, 2)
    assert len([*valued.Outbox(place).rejected()]) == 2


def test_file_that_was_removed_by_hand_is_followed_by_another_one(make: Make, place: Path) -> None:
    life = make()
    reject(life, 1)
    valued.Outbox(place).forget_rejected()
    reject(life, 2)
    assert [one.event["n"] for one in valued.Outbox(place).rejected()] == [2]


def test_rejected_event_that_fits_in_part_is_logged_and_costs_no_other(
    make: Make, place: Path, disk: FaultyDisk, log: Lines
) -> None:
    life = make(disk)
    reject(life, 1)
    disk.cut = 20
    reject(life, 2)
    assert log.about("1 rejected event could not be stored: [Errno 28] No space")
    reject(life, 3)
    assert [one.event["n"] for one in valued.Outbox(place).rejected()] == [1, 3]


class Answer:
    """The answer of a user's transport, with a text that can't be had."""

    def __init__(self, trouble: BaseException) -> None:
        self._trouble = trouble

    def __str__(self) -> str:
        raise self._trouble


def test_answer_that_is_no_json_is_kept_as_text(make: Make, place: Path) -> None:
    reject(make(), 1, b"bytes")
    assert [one.body for one in valued.Outbox(place).rejected()] == ["b'bytes'"]


@pytest.mark.parametrize(
    ("answer", "sent"), [(Answer(RuntimeError("no text")), b"{}"), ("why", b"no json")]
)
def test_answer_or_event_that_can_not_be_kept_is_logged(
    answer: Any, sent: bytes, make: Make, place: Path, log: Lines
) -> None:
    life = make()
    reject(life, 1, answer, sent)
    assert log.about("1 rejected event could not be stored")
    reject(life, 2)
    assert [one.event["n"] for one in valued.Outbox(place).rejected()] == [2]


def test_damage_in_a_file_of_rejected_events_costs_what_it_hits(make: Make, place: Path) -> None:
    life = make()
    reject(life, 1)
    reject(life, 2)
    [path] = kept(place)
    path.write_bytes(b"damage" + path.read_bytes().replace(b'"n": 2', b'"n": 3'))
    assert [one.event["n"] for one in valued.Outbox(place).rejected()] == [1]

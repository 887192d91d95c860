"""A disk that fails costs no event and no exception: they wait in memory, and it is tried again."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from tests.outbox.conftest import FaultyDisk, Make, files, found, inside
from tests.support.clock import Clock

ERRORS = [errno.ENOSPC, errno.EIO, errno.EBADF, errno.EMFILE, errno.EROFS]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("function", ["mkdir", "open", "write"])
def test_first_event_is_in_memory_only_and_a_later_one_is_stored(
    function: str, error: int, make: Make, disk: FaultyDisk, clock: Clock, place: Path
) -> None:
    life = make(disk)
    disk.errors[function] = OSError(error, "no")
    assert life.refuses(1)
    disk.errors.clear()
    assert life.refuses(2)  # the disk has a second to recover
    clock.now += 1
    life.append(3)
    life.settle(3)
    life.release()
    assert inside(place, "events", "owners") == []
    assert disk.count("close") <= disk.count("open")


@pytest.mark.parametrize("error", ERRORS)
def test_later_event_is_in_memory_only(
    error: int, make: Make, disk: FaultyDisk, clock: Clock, log: Any
) -> None:
    life = make(disk)
    life.append(1)
    disk.errors["write"] = OSError(error, "no")
    assert life.refuses(2)
    assert life.refuses(3, spill=True)
    disk.errors.clear()
    clock.now += 1
    life.append(4)
    assert log.about("could not be used") == [
        f"1 time the outbox could not be used, events wait in memory: [Errno {error}] no"
    ]
    assert found(make, life) == [1, 4]


@pytest.mark.parametrize("cut", [0, 1, 20, 35])
def test_incomplete_write_is_a_failure_and_costs_no_other_event(
    cut: int, make: Make, disk: FaultyDisk, clock: Clock, place: Path
) -> None:
    life = make(disk)
    life.append(1)
    disk.cut = cut
    assert life.refuses(2)
    clock.now += 1
    life.append(3)
    life.settle(1)
    life.settle(3)
    life.maintain()
    assert len(files(place)) == 1  # the one that was cut is removed, with all of its bytes known
    life.append(4)
    life.die()
    two = make()
    assert two.claim_all() == 1


def test_sync_that_fails_is_logged_and_the_event_is_stored(
    make: Make, disk: FaultyDisk, log: Any
) -> None:
    life = make(disk, durability="power")
    life.append(1)
    disk.errors["fdatasync"] = OSError(errno.EIO, "no")
    life.append(2)
    assert log.about("could not be used")


@pytest.mark.parametrize("function", ["utime", "lstat", "unlink", "listdir"])
def test_maintenance_that_fails_is_tried_again(
    function: str, make: Make, disk: FaultyDisk, clock: Clock, wall: Clock, place: Path
) -> None:
    life = make(disk, segment_size=30, wall=wall)
    life.record(1, 2)
    life.settle(1)
    wall.now += 61
    disk.errors[function] = OSError(errno.EIO, "no")
    life.maintain()
    assert not life.journal.is_untidy()
    disk.errors.clear()
    clock.now += 1
    life.maintain()
    life.maintain()
    assert len(files(place)) == 1
    assert not life.journal.is_untidy()


def test_release_on_a_broken_disk_returns_and_the_next_event_begins_again(
    make: Make, disk: FaultyDisk, clock: Clock
) -> None:
    life = make(disk)
    life.append(1)
    for function in ("write", "open", "rename", "unlink", "listdir"):
        disk.errors[function] = OSError(errno.EIO, "no")
    life.release()
    disk.errors.clear()
    clock.now += 1
    life.append(2)


def test_mark_that_was_removed_is_made_again(make: Make, place: Path, wall: Clock) -> None:
    life = make(wall=wall)
    life.append(1)
    [name] = inside(place, "owners")
    (place / "v1" / "owners" / name).unlink()
    wall.now += 61
    life.maintain()
    assert inside(place, "owners") == [name]


@pytest.mark.parametrize("function", ["utime", "lstat", "listdir", "open"])
def test_nothing_is_due_while_the_disk_rests(
    function: str, make: Make, disk: FaultyDisk, clock: Clock, wall: Clock
) -> None:
    make().append(0)
    life = make(disk, wall=wall)
    life.append(1)
    life.claim_all()
    disk.errors[function] = OSError(errno.EIO, "no")
    wall.now += 100
    clock.now += 100
    life.claim()
    life.maintain()
    disk.errors.clear()
    due = life.journal.next_due()
    assert not life.journal.is_untidy()
    assert not life.journal.is_claim_due()
    assert due is not None
    assert due > clock.now
    clock.now = due
    assert life.journal.is_untidy() or life.journal.is_claim_due()

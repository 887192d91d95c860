"""Events that are on the disk only are read in their order, a window at a time, each once."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.outbox.conftest import FaultyDisk, Lines, Make, files, inside
from tests.outbox.life import event_of
from tests.support.clock import Clock


def test_spilled_events_are_read_in_order_and_in_windows(make: Make) -> None:
    life = make(segment_size=300)
    life.record(*range(50), spill=True)
    windows = []
    while window := life.load(7):
        windows.append(window)
    assert [event for window in windows for event in window] == [*range(50)]
    assert max(map(len, windows)) <= 7


def test_window_is_bounded_by_bytes(make: Make) -> None:
    life = make()
    life.record(*range(10, 20), spill=True)
    assert life.load(100, size=20) == [10, 11, 12]  # 8 bytes each


def test_load_returns_the_same_until_it_is_confirmed(make: Make) -> None:
    life = make()
    life.record(*range(3), spill=True)
    first = life.read(2)
    assert life.read(2) is first
    assert [event_of(one.body) for one in first.events] == [0, 1]
    first.file.unread -= 2
    life.journal.loaded(first)
    assert life.load() == [2]


def test_what_is_written_after_a_load_is_read_by_the_next(make: Make) -> None:
    life = make()
    life.append(1, spill=True)
    assert life.load() == [1]
    assert life.load() == []
    life.append(2, spill=True)
    assert life.load() == [2]


def test_no_more_events_are_returned_than_the_pipeline_knows_of(make: Make) -> None:
    life = make()
    life.append(1, spill=True)
    life.journal.append(b'{"n":2}', spill=True)  # its caller has not come back yet
    assert life.load() == [1]
    assert life.load() == []


def test_own_events_come_before_claimed_ones(make: Make) -> None:
    one, two = make(), make()
    one.append(1)
    one.die()
    two.append(2, spill=True)
    two.claim()
    assert two.load_all() == [2, 1]


def test_torn_record_at_the_end_of_a_file_is_no_loss(make: Make, place: Path) -> None:
    one = make()
    one.record(1, 2)
    one.die()
    [file] = files(place)
    os.truncate(file, file.stat().st_size - 3)
    two = make()
    assert two.claim() == 1
    assert (two.load_all(), two.missing) == ([1], 0)


def test_damaged_part_costs_what_it_hits_and_is_counted(make: Make, place: Path) -> None:
    one = make()
    one.record(*range(5))
    one.settle(0)
    one.die()
    [file] = files(place)
    content = file.read_bytes()
    file.write_bytes(content.replace(b'"n":2', b'"x":2'))
    two = make()
    assert two.claim() == 4  # the damaged one counts: it is dropped when it is missed
    assert (two.load_all(), two.missing) == ([1, 3, 4], 1)
    two.settle(1)
    two.settle(3)
    two.settle(4)
    two.maintain()
    assert files(place) == []


def test_damage_of_a_settled_event_is_no_loss_but_reported(
    make: Make, place: Path, log: Lines
) -> None:
    one = make()
    one.record(*range(3))
    one.settle(1)
    one.die()
    [file] = files(place)
    file.write_bytes(file.read_bytes().replace(b'"n":1', b'"x":1'))
    two = make()
    assert two.claim() == 2
    assert (two.load_all(), two.missing) == ([0, 2], 0)
    assert len(log.about("damaged")) == 1


@pytest.mark.parametrize("gone", ["removed", "truncated", "replaced"])
def test_spilled_events_whose_file_is_gone_are_missing(gone: str, make: Make, place: Path) -> None:
    life = make()
    life.record(*range(3), spill=True)
    [file] = files(place)
    if gone == "truncated":
        os.truncate(file, 8)
    else:
        file.unlink()
    if gone == "replaced":
        os.mkfifo(file)
    assert (life.load(), life.missing) == ([], 3)
    life.append(4, spill=True)
    assert life.load() == [4]


def test_spilled_events_of_a_removed_directory_are_missing_at_last(make: Make, place: Path) -> None:
    life = make()
    life.append(1, spill=True)
    for path in [*files(place), *(place / "v1" / "events").iterdir()]:
        path.rmdir() if path.is_dir() else path.unlink()
    assert life.load() == []
    assert life.load() == []  # what became of the directory was not looked up yet
    life.maintain()
    assert (life.load(), life.missing) == ([], 1)
    assert life.lost == []


def test_process_without_descriptors_reads_later(
    make: Make, disk: FaultyDisk, clock: Clock
) -> None:
    life = make(disk)
    life.append(1, spill=True)
    disk.errors["open"] = OSError(errno.EMFILE, "too many open files")
    assert life.load() == []
    disk.errors.clear()
    clock.now += 1
    assert (life.load(), life.missing) == ([1], 0)


def test_file_that_can_not_be_read_is_set_aside_and_its_events_are_missing(
    make: Make, disk: FaultyDisk, place: Path
) -> None:
    life = make(disk)
    life.append(1, spill=True)
    disk.errors["pread"] = OSError(errno.EIO, "broken")
    assert (life.load(), life.missing) == ([], 1)
    disk.errors.clear()
    life.append(2, spill=True)
    assert life.load() == [2]
    assert len(inside(place, "damaged")) == 1

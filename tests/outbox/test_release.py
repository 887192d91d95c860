"""What a process leaves to others when it ends, and what it writes and forgets after that."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from tests.outbox.conftest import FaultyDisk, Lines, Make, files, inside
from tests.outbox.life import Life
from tests.support.clock import Clock


def test_event_has_the_same_key_in_each_process(make: Make) -> None:
    one, two, three = make(), make(), make()
    first, second = one.append(1), one.append(2)
    one.die()
    two.claim_all()
    two.load_all()
    two.release()
    three.claim_all()
    three.load_all()
    for life in (two, three):
        keys = [(stored.file.origin, stored.number) for stored in life.stored.values()]
        assert keys == [(first.file.origin, first.number), (second.file.origin, second.number)]


def test_event_that_is_settled_after_a_release_is_noted_where_it_is(make: Make) -> None:
    life, two = make(), make()
    life.record(1, 2)
    life.release()
    life.append(3)
    life.settle(1)
    assert two.claim_all() == 1
    assert two.load_all() == [2]


def test_event_that_is_settled_after_another_process_claimed_it_changes_nothing(
    make: Make, place: Path, log: Lines
) -> None:
    life, two = make(), make()
    life.record(1, 2)
    life.release()
    two.claim_all()
    life.settle(1)
    assert two.load_all() == [1, 2]
    assert log.lines == []
    assert files(place, "*.settled") == []


def test_note_that_can_not_be_written_at_the_end_hands_over_all_the_same(
    make: Make, disk: FaultyDisk
) -> None:
    life = make(disk)
    life.record(1, 2)
    disk.paths, disk.errors["open"] = ".settled", OSError(errno.ENOSPC, "full")
    life.settle(1)
    life.release()
    assert make().claim_all() == 2


# -- a process that slept for longer than its lease ------------------------------------------------


def take_away(place: Path, life: Life) -> None:
    """Let another process own the directory of *life*."""
    name = life.stored[1].file.directory.path.rpartition("/")[2]
    path = place / "v1" / "events" / name
    path.rename(path.with_name(name.partition(".")[0] + "." + "f" * 32))


def test_heartbeat_is_once_a_minute(make: Make, disk: FaultyDisk, wall: Clock) -> None:
    life = make(disk, wall=wall)
    life.append(1)
    for _ in range(59):
        wall.now += 1
        life.append(2)
        life.maintain()
    assert disk.count("utime") == 0
    wall.now += 1
    life.record(3, 4)
    life.maintain()
    assert disk.count("utime") == 1
    wall.now -= 1000  # the clock was set
    life.append(5)
    assert disk.count("utime") == 2


def test_lost_files_without_events_are_not_mentioned(
    make: Make, place: Path, wall: Clock, log: Lines
) -> None:
    life = make(wall=wall)
    life.append(1)
    life.settle(1)
    shutil.rmtree(place / "v1" / "events")
    (place / "v1" / "events").mkdir(0o700)
    wall.now += 700
    life.maintain()
    life.append(2)
    life.maintain()
    assert life.lost == []
    assert log.lines == []


@pytest.mark.parametrize("how", ["maintain", "claim", "append"])
def test_process_that_lost_its_files_finds_out_with_its_next_call(
    how: str, make: Make, place: Path, wall: Clock
) -> None:
    life = make(wall=wall)
    life.append(1)
    take_away(place, life)
    wall.now += 700
    getattr(life, how)(*([2] if how == "append" else []))
    life.maintain()
    assert [why for _, why in life.lost] == ["handed_over"]
    assert life.append(3).file.origin != life.stored[1].file.origin


def test_process_that_can_not_look_what_became_of_its_files_looks_later(
    make: Make, place: Path, wall: Clock, clock: Clock, disk: FaultyDisk
) -> None:
    life = make(disk, wall=wall)
    life.append(1)
    take_away(place, life)
    wall.now += 700
    disk.errors["listdir"] = OSError(errno.EMFILE, "too many open files")
    life.maintain()
    assert life.lost == []
    disk.errors.clear()
    assert not life.journal.is_untidy()  # a second has not passed
    clock.now += 1
    assert life.journal.is_untidy()
    life.maintain()
    assert [why for _, why in life.lost] == ["handed_over"]


def test_process_that_ends_before_it_could_look_leaves_no_mark(
    make: Make, place: Path, wall: Clock
) -> None:
    life = make(wall=wall)
    life.append(1)
    take_away(place, life)
    wall.now += 700
    life.append(2)
    life.release()
    assert sorted(why for _, why in life.lost) == ["handed_over", "handed_over"]
    assert inside(place, "owners") == []
    owners = [name.partition(".")[2] for name in inside(place, "events")]
    assert sorted(owners) == ["f" * 32, "unclaimed"]


def test_what_it_had_taken_over_before_is_left_to_others_too(
    make: Make, place: Path, wall: Clock
) -> None:
    dead, life = make(), make(wall=wall)
    dead.append(5)
    dead.die()
    life.append(1)
    assert life.claim_all() == 1
    take_away(place, life)
    wall.now += 700
    life.maintain()
    assert [why for _, why in life.lost] == ["handed_over", "handed_over"]
    assert make().claim_all() == 1


@pytest.mark.parametrize("spill", [False, True])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES])
def test_where_the_lost_file_has_no_successor_the_event_is_in_memory_only(
    error: int, spill: bool, make: Make, place: Path, disk: FaultyDisk, clock: Clock
) -> None:
    life = make(disk)
    life.append(1)
    life.append(2, spill=True)
    for path in files(place):
        path.unlink()
    disk.errors["lstat" if error == errno.EACCES else "open"] = OSError(error, "no")
    assert life.refuses(3, spill=spill)
    disk.errors.clear()
    clock.now += 1
    life.append(4, spill=spill)


def test_power_is_asked_for_the_names_of_all_that_is_made(
    place: Path, make: Make, disk: FaultyDisk
) -> None:
    synced: list[str] = []
    opened: dict[int, str] = {}

    class Noting(FaultyDisk):
        def open(self, path: str, *more: int) -> int:
            number = super().__getattr__("open")(path, *more)
            opened[number] = path
            return int(number)

        def fsync(self, number: int) -> None:
            synced.append(opened[number])
            if opened[number] == str(place.parent):
                raise PermissionError(errno.EACCES, "not readable")

    make(Noting(), durability="power").append(1)
    inside = [str(place), *(str(place / part) for part in ("v1", "v1/owners", "v1/events"))]
    assert set(synced) >= {*inside, str(place.parent)}
    synced.clear()
    make(Noting()).append(2)
    assert synced == []


def test_file_whose_name_can_not_be_synced_is_not_left(
    make: Make, place: Path, disk: FaultyDisk
) -> None:
    life = make(disk, durability="power", segment_size=30)
    life.append(1)
    disk.errors["fsync"] = OSError(errno.EIO, "no")
    assert life.refuses(2)
    assert len(files(place)) == 1

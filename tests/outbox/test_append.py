"""An event is on the disk when `append` returns, with one write, and without scanning anything."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.outbox.conftest import FaultyDisk, Fork, Held, InThread, Make, files, together
from tests.outbox.life import body
from tests.support.clock import Clock
from valued._outbox import records


def test_nothing_is_made_before_the_first_event(make: Make, place: Path) -> None:
    life = make()
    life.maintain()
    assert life.load() == []
    assert life.journal.next_due() is None
    life.release()
    assert not place.exists()


def test_event_is_in_a_file_when_append_returns(make: Make, place: Path) -> None:
    stored = make().append(7)
    [file] = files(place)
    content = file.read_bytes()
    assert content == b"valued1\n" + content[8:]
    assert len(content) == 8 + stored.size
    assert content.endswith(body(7))
    assert file.parent.name == f"{stored.file.origin}.{stored.file.origin}"


def test_everything_is_private(make: Make, place: Path) -> None:
    life = make()
    life.record(1, 2)
    life.settle(1)
    for folder, _, names in os.walk(place):
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        for name in names:
            assert stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) == 0o600


def test_later_events_cost_one_write_each_and_no_look_at_a_path(
    make: Make, disk: FaultyDisk
) -> None:
    life = make(disk)
    life.append(1)
    del disk.calls[:]
    life.record(*range(2, 12))
    assert [name for name, _ in disk.calls] == ["fstat", "write"] * 10


def test_no_append_lists_a_directory(make: Make, disk: FaultyDisk, clock: Clock) -> None:
    life = make(disk, segment_size=300, wall=clock)
    for event in range(100):
        clock.now += 10  # heartbeats, too
        life.append(event, spill=event % 2 > 0)
    assert disk.count("listdir") == 0
    assert disk.count("utime") > 1


def test_full_file_is_followed_by_another_one(make: Make, place: Path) -> None:
    life = make(segment_size=300)
    life.record(*range(30))
    assert len(files(place)) > 3
    assert max(file.stat().st_size for file in files(place)) < 400


def test_numbers_are_unique_among_threads(make: Make) -> None:
    life = make(segment_size=2000)
    found: list[Any] = []

    def record() -> None:
        for event in range(200):
            found.append(life.journal.append(body(event), spill=event % 3 == 0))

    together(*(record for _ in range(4)))
    assert len({stored.number for stored in found}) == 800


def test_removed_file_is_followed_by_another_one_and_its_events_are_still_to_be_delivered(
    make: Make, place: Path
) -> None:
    life = make()
    first = life.append(1)
    files(place)[0].unlink()
    second = life.append(2)
    life.maintain()
    assert first.file is not second.file
    assert (first.file.lost, second.file.lost, life.lost) == ("", "", [])


def test_removed_directory_is_followed_by_another_one(make: Make, place: Path) -> None:
    life = make()
    first = life.append(1)
    for path in sorted(place.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    second = life.append(2)
    life.maintain()
    assert first.file.lost == ""
    assert first.file.origin != second.file.origin
    assert make().claim() == 0
    life.die()
    assert make().claim() == 1


@pytest.mark.parametrize("name", ["fdatasync", "fsync"])
def test_power_syncs_what_process_does_not(name: str, make: Make, disk: FaultyDisk) -> None:
    make(disk).append(1)
    assert disk.count(name) == 0
    make(disk, durability="power").append(1)
    assert disk.count(name) > 0


def test_child_writes_nothing_of_its_parents_and_closes_what_it_inherited(
    make: Make, place: Path, fork: Fork
) -> None:
    life = make()
    stored = life.append(1)
    before = files(place)[0].read_bytes()
    number = life.number(1)

    def child() -> None:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(number)
        assert life.journal.append(body(2), spill=False) is None
        life.journal.settled(stored.file, stored.number)
        assert life.journal.release() == ()
        assert life.journal.claim(10) == ()

    assert fork(child).wait() == 0
    assert files(place)[0].read_bytes() == before
    assert files(place, "*.settled") == []
    life.append(3)


def test_thread_between_choosing_a_file_and_writing_keeps_the_file(
    make: Make, place: Path, in_thread: InThread, clock: Clock
) -> None:
    disk = Held(2)
    life = make(disk, segment_size=50)
    life.append(1)
    written = in_thread(life.journal.append, body(2), spill=False)
    assert disk.inside.wait(10)
    life.append(3)
    life.append(4)  # in another file
    life.settle(1)
    life.maintain()
    clock.now += 1000
    life.maintain()
    disk.go_on.set()
    written.result(10)
    assert b'"n":2' in b"".join(file.read_bytes() for file in files(place))
    life.die()
    assert make().claim_all() == 3


def test_records_are_those_of_version_1(make: Make, place: Path) -> None:
    stored = make().append(5)
    content = files(place)[0].read_bytes()
    [found] = records.scan(content[8:], 8)
    assert found == records.Record(1, stored.number, 1_000_000.0, body(5), len(content))

"""The directory keeps its size: the oldest files of this process are dropped, never in a call."""

from __future__ import annotations

from pathlib import Path

from tests.outbox.conftest import FaultyDisk, Make, files
from tests.outbox.test_claim import leave


def total(place: Path) -> int:
    return sum(path.stat().st_size for path in place.glob("v1/events/*/*"))


def test_oldest_files_are_dropped_and_reported(make: Make, place: Path) -> None:
    life = make(segment_size=300, max_size=2000)
    for event in range(100):
        life.append(event)
        life.tidy()
    assert total(place) <= 2000 + 400
    assert {why for _, why in life.lost} == {"size"}
    assert {file.lost for file, _ in life.lost} == {"size"}
    assert len({file for file, _ in life.lost}) == len(life.lost)
    life.die()
    two = make()
    two.claim_all()
    found = two.load_all()
    assert found == [*range(found[0], 100)]


def test_nothing_is_dropped_for_the_space_of_finished_files(make: Make) -> None:
    one = len(b"valued1\n") + make().append(0).size
    life = make(segment_size=1, max_size=100 * one)
    life.record(*range(90))  # a file for each
    life.maintain()  # looks at them all, and not again within this second
    for event in range(1, 61):
        life.settle(event)
    life.record(*range(90, 110))
    life.maintain()
    assert life.lost == []


def test_events_on_the_disk_only_are_dropped_too(make: Make, place: Path) -> None:
    life = make(segment_size=300, max_size=1000)
    life.record(*range(100), spill=True)
    life.tidy()
    dropped = sum(file.unread for file, _ in life.lost)
    assert dropped > 0
    assert len(life.load_all()) == 100 - dropped


def test_what_was_taken_over_goes_first(make: Make, place: Path) -> None:
    life = make(segment_size=300, max_size=1000)
    life.append(0)
    leave(place, 1, events=30)
    life.claim_all()
    life.tidy()
    assert [(file.adopted, why) for file, why in life.lost] == [(True, "size")]
    assert files(place) != []


def test_file_that_is_being_read_is_kept(make: Make) -> None:
    life = make(segment_size=300, max_size=100)
    life.record(*range(20), spill=True)
    batch = life.read(2)
    life.tidy()
    assert batch.file not in [file for file, _ in life.lost]


def test_many_directories_are_measured_in_steps(make: Make, place: Path, disk: FaultyDisk) -> None:
    life = make(disk, segment_size=30)
    life.append(0)
    leave(place, 600, owner="unclaimed")
    life.record(1, 2)
    steps = 0
    while life.journal.is_untidy():
        del disk.calls[:]
        life.maintain()
        steps += 1
        assert disk.count("listdir") < 300
    assert steps >= 3


def test_size_of_others_counts_and_is_not_touched(make: Make, place: Path) -> None:
    other = make(segment_size=300)
    other.record(*range(100))
    before = total(place)
    life = make(segment_size=300, max_size=1000)
    life.record(*range(20))
    life.tidy()
    assert life.lost != []
    assert total(place) >= before

"""Files change, and disks fail, while a process works on them: it goes on with all the rest."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.outbox import bad
from tests.outbox.conftest import FaultyDisk, Held, Hooked, InThread, Lines, Make, files, inside
from tests.outbox.life import Life, body
from tests.outbox.test_claim import leave
from tests.support.clock import Clock
from valued._outbox import records

FULL = OSError(errno.EIO, "broken")


def test_event_whose_file_was_removed_by_hand_is_settled_without_a_note(
    make: Make, place: Path
) -> None:
    life = make()
    life.append(1)
    files(place)[0].unlink()
    life.append(2)
    life.settle(1)
    assert files(place, "*.settled") == []


def test_note_that_failed_is_forgotten_with_its_file(
    make: Make, place: Path, disk: FaultyDisk, clock: Clock
) -> None:
    life = make(disk)
    life.append(1)
    disk.errors["open"], disk.paths = FULL, ".settled"
    life.settle(1)
    disk.errors.clear()
    clock.now += 1
    files(place)[0].unlink()
    life.append(2)
    life.maintain()
    assert files(place, "*.settled") == []
    assert not life.journal.is_untidy()


def test_claimed_file_with_records_of_another_kind_has_its_events(life: Life, place: Path) -> None:
    leave(place, 1, events=2)
    path = place / "v1" / "events" / f"{0:032x}.unclaimed" / "0000000001.events"
    with path.open("ab") as file:
        file.write(records.encode(99, 1, 1.0, b"?"))
    assert life.claim_all() == 2
    assert (life.load_all(), life.missing) == ([1, 2], 0)


def test_claimed_file_that_vanishes_is_passed_over(make: Make, place: Path) -> None:
    def vanish() -> None:
        [path] = place.glob(f"v1/events/{1:032x}.*/*.events")
        path.unlink()

    life = make(Hooked("open", vanish, part=f"{1:032x}"))
    life.append(0)
    leave(place, 3)
    assert life.claim_all() == 2
    assert life.load_all() == [1, 1]


def test_claimed_file_of_settled_events_that_can_not_be_removed_is_removed_later(
    make: Make, place: Path, disk: FaultyDisk, clock: Clock
) -> None:
    one, life = make(), make(disk)
    one.append(1)
    one.settle(1)
    one.die()
    disk.errors["unlink"] = FULL
    assert life.claim() == 0
    disk.errors.clear()
    clock.now += 1
    assert life.claim_all() == 0
    assert files(place) == []


@pytest.mark.parametrize(
    ("function", "part"), [("listdir", f"{0:032x}."), ("open", ".events"), ("open", ".settled")]
)
def test_process_without_descriptors_claims_later_what_it_could_not_read(
    function: str, part: str, life: Life, place: Path, disk: FaultyDisk, clock: Clock
) -> None:
    leave(place, 2)
    disk.errors[function] = OSError(errno.EMFILE, "too many open files")
    disk.paths = part
    assert life.claim_all() == 0
    disk.errors.clear()
    assert inside(place, "damaged") == []
    clock.now += 1
    life.claim_all()
    assert sum(file.unread for file in life.files) == 2


def test_directory_that_can_not_be_listed_costs_itself(
    life: Life, place: Path, disk: FaultyDisk
) -> None:
    leave(place, 3)
    disk.errors["listdir"], disk.paths = OSError(errno.EACCES, "denied"), f"{1:032x}."
    assert life.claim_all() == 2
    assert len(inside(place, "damaged")) == 1


def test_unknown_file_that_can_not_be_set_aside_is_logged_once_a_minute(
    life: Life, place: Path, disk: FaultyDisk, log: Lines
) -> None:
    leave(place, 1)
    (place / "v1" / "events" / f"{0:032x}.unclaimed" / "other").touch()
    disk.errors["rename"], disk.paths = OSError(errno.EACCES, "denied"), "/other"
    assert life.claim_all() == 1
    assert life.load_all() == [1]
    life.settle(1)
    for _ in range(3):
        life.maintain()
        life.claim_all()
    assert len(log.about("were not set aside")) + len(log.about("was not set aside")) == 1
    assert len([*place.rglob("other")]) == 1


@pytest.mark.parametrize("name", ["1/0000000002.events", "1/0000000001.settled", "1/other", "7"])
def test_bad_file_costs_itself(name: str, life: Life, place: Path, log: Lines) -> None:
    leave(place, 3)
    directory, _, file = name.partition("/")
    bad.garbage(place / "v1" / "events" / f"{int(directory):032x}.unclaimed" / file)
    assert life.claim_all() == 3
    assert life.load_all() == [1, 1, 1]
    assert len(inside(place, "damaged")) == len(log.about("set aside")) == 1


@pytest.mark.parametrize("what", [bad.a_link_to_itself, bad.a_directory, bad.a_fifo, bad.garbage])
def test_bad_mark_costs_a_lease(what: Callable[[Path], None], life: Life, place: Path) -> None:
    leave(place, 3)
    leave(place, 1, owner="e" * 32, first=10)
    what(place / "v1" / "owners" / ("e" * 32))
    os.utime(place / "v1" / "owners" / ("e" * 32), (1, 1), follow_symlinks=False)
    assert life.claim_all() == 4
    assert not os.path.lexists(place / "v1" / "owners" / ("e" * 32))


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize("function", ["open", "pread"])
def test_file_that_can_not_be_read_costs_itself(
    function: str, error: int, life: Life, place: Path, disk: FaultyDisk
) -> None:
    leave(place, 3)
    disk.paths = f"{1:032x}" if function == "open" else ""
    disk.errors[function] = OSError(error, "broken")
    assert life.claim_all() == (2 if function == "open" else 0)
    assert len(inside(place, "damaged")) == (1 if function == "open" else 3)


def test_directory_that_can_not_be_measured_does_not_count(
    make: Make, place: Path, disk: FaultyDisk
) -> None:
    life = make(disk, segment_size=300, max_size=2_000)
    life.record(*range(20))
    leave(place, 1, events=500)
    disk.errors["listdir"], disk.paths = FULL, f"{0:032x}.unclaimed"
    life.tidy()
    assert life.lost == []


@pytest.mark.parametrize("what", [FULL, FileNotFoundError(errno.ENOENT, "gone")])
def test_error_that_a_release_by_another_thread_causes_is_no_trouble(
    what: OSError, make: Make, log: Lines
) -> None:
    def release() -> None:
        life.release()
        raise what

    disk = Hooked("open", release, times=0)
    life = make(disk, segment_size=1)
    life.append(1)
    disk.times = 1
    life.append(2)
    disk.name, disk.times = "listdir", 1
    assert life.claim() == 0
    life.append(3, spill=True)
    disk.name, disk.times = "open", 1
    assert life.load() == []
    life.append(4)
    assert log.lines == []
    life.release()
    assert make().claim_all() == 4


def test_event_is_in_memory_only_where_each_try_meets_a_release(make: Make) -> None:
    life = make(Hooked("open", lambda: life.release(), part=".events", times=99))
    assert life.refuses(1)


def test_batch_of_a_file_that_was_handed_over_is_followed_by_the_next_file(make: Make) -> None:
    life = make()
    life.append(1, spill=True)
    batch = life.read(10)
    life.release()
    life.append(2, spill=True)
    following = life.read(10)
    assert batch.file.lost == "handed_over"
    assert [one.body for one in following.events] == [body(2)]
    life.journal.loaded(batch)
    assert life.read(10) is following


def test_file_that_could_not_be_read_is_not_handed_over(
    make: Make, place: Path, disk: FaultyDisk
) -> None:
    life = make(disk)
    life.record(1, 2, spill=True)
    assert life.load(1) == [1]
    disk.errors["pread"] = FULL
    assert (life.load(), life.missing) == ([], 1)
    life.release()
    assert life.lost == []  # the only copy of the first event is in memory
    assert inside(place, "events") == []


def test_end_of_a_file_that_a_thread_writes_to_is_read_when_it_is_written(
    make: Make, place: Path, in_thread: InThread
) -> None:
    disk = Held(3)
    life = make(disk)
    life.record(1, 2, spill=True)
    writing = in_thread(life.append, 3, spill=True)
    assert disk.inside.wait(10)
    os.truncate(files(place)[0], files(place)[0].stat().st_size - 1)
    assert life.load() == [1]
    assert life.load() == []  # whether 2 is missing can't be told yet
    assert life.missing == 0
    disk.go_on.set()
    assert writing.result(10) is not None
    assert (life.load(), life.missing) == ([3], 1)


def test_size_that_is_exceeded_drops_no_file_that_a_thread_writes_to(
    make: Make, in_thread: InThread
) -> None:
    disk = Held(1)
    life = make(disk, segment_size=300, max_size=1_000)
    life.append(0)
    writing = in_thread(life.append, 1)
    assert disk.inside.wait(10)
    life.record(*range(2, 60))
    life.tidy()
    disk.go_on.set()
    stored = writing.result(10)
    assert {why for _, why in life.lost} == {"size"}
    assert stored.file not in [file for file, _ in life.lost]


def test_nothing_is_due_for_a_process_that_was_told_to_stop(make: Make) -> None:
    other, life = make(), make()
    other.append(0)
    life.append(1)
    life.settle(1)
    life.claim_all()
    assert life.journal.next_due() is not None
    life.journal.stop()
    assert life.journal.next_due() is None
    assert life.claim() == 0

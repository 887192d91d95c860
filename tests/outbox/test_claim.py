"""What dead processes left is taken over once, by one process, in portions; the living keep all."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.outbox.conftest import (
    FaultyDisk,
    Hooked,
    Interrupted,
    Lines,
    Make,
    files,
    inside,
    interrupt,
    together,
)
from tests.outbox.life import Life, body
from tests.support.clock import Clock
from valued._outbox import records
from valued._outbox.claims import MOST_DIRECTORIES, SCAN_INTERVAL
from valued._outbox.owners import HEARTBEAT_INTERVAL, LEASE


def leave(
    place: Path, directories: int, events: int = 1, owner: str = "unclaimed", first: int = 0
) -> None:
    content = b"valued1\n" + b"".join(
        records.encode(records.EVENT, number, 1.0, body(number)) for number in range(1, events + 1)
    )
    for number in range(first, first + directories):
        directory = place / "v1" / "events" / f"{number:032x}.{owner}"
        directory.mkdir(0o700)
        (directory / "0000000001.events").write_bytes(content)


def mark(place: Path, owner: str, age: float, **changes: Any) -> None:
    content = {
        "pid": 1, "start": "1", "boot": "b", "namespace": "n", "host": "far", "lease": 600,
        **changes,
    }  # fmt: skip
    path = place / "v1" / "owners" / owner
    path.write_text(json.dumps(content))
    os.utime(path, (time.time() - age,) * 2)


def test_events_of_a_dead_process_are_found_and_those_of_a_living_one_are_not(make: Make) -> None:
    dead, alive, one = make(), make(), make()
    dead.append(1)
    alive.append(2)
    dead.die()
    assert one.claim_all() == 1
    assert one.load_all() == [1]
    assert one.files[0].adopted
    assert one.files[0].origin != one.append(3).file.origin


def test_what_was_handed_over_is_found(make: Make) -> None:
    one, two = make(), make()
    one.append(1)
    one.release()
    assert [why for _, why in one.lost] == ["handed_over"]
    assert two.claim_all() == 1


def test_claim_says_how_many_events_it_found_before_they_are_read(make: Make, place: Path) -> None:
    one, two = make(), make()
    one.record(*range(20))
    for event in range(5):
        one.settle(event)
    one.die()
    two.claim()
    assert [(file.unread, file.unsettled) for file in two.files] == [(15, 0)]
    assert two.files[0].known == files(place)[0].stat().st_size - 8
    assert two.journal.claimed() == 1


def test_claim_is_due_with_the_first_event_and_then_twice_a_minute(
    make: Make, clock: Clock
) -> None:
    other, one = make(), make()
    other.append(1)
    assert not one.journal.is_claim_due()
    one.append(2)
    assert one.journal.is_claim_due()
    one.claim_all()
    assert not one.journal.is_claim_due()
    one.settle(2)
    one.maintain()
    assert one.journal.next_due() == clock.now + SCAN_INTERVAL
    clock.now += SCAN_INTERVAL
    assert one.journal.is_claim_due()


def test_process_that_is_alone_needs_no_further_look(make: Make) -> None:
    life = make()
    life.append(1)
    life.settle(1)
    life.claim_all()
    life.maintain()
    assert life.journal.next_due() is None


def test_claim_ends_after_so_many_events_and_goes_on_there(life: Life, place: Path) -> None:
    leave(place, 10, events=5)
    assert life.claim(12) == 15
    assert life.journal.claimed() == 3
    assert life.journal.is_claim_due()
    assert life.claim_all() == 35


def test_directory_with_many_files_is_claimed_in_portions(make: Make) -> None:
    one, two = make(), make()
    one.append(0)
    small = make(segment_size=30)
    small.record(*range(20))
    small.die()
    assert two.claim(5) == 5
    assert two.journal.is_claim_due()
    two.release()  # the files that were not looked at are handed over, too
    three = make()
    assert three.claim_all() == 20


def test_no_portion_takes_over_more_than_so_many_directories(life: Life, place: Path) -> None:
    leave(place, MOST_DIRECTORIES + 10)
    assert life.claim(10**6) == MOST_DIRECTORIES
    assert life.claim_all() == 10


def test_directories_are_listed_once_for_all_portions(
    life: Life, place: Path, disk: FaultyDisk
) -> None:
    leave(place, 60)
    del disk.calls[:]
    while life.claim(5):
        pass
    events = str(place / "v1" / "events")
    listed = [path for name, path in disk.calls if name == "listdir"]
    assert listed.count(events) <= 4  # and twice for the marks; then the next look


def test_owner_is_judged_once(life: Life, place: Path, disk: FaultyDisk) -> None:
    leave(place, 100, owner="e" * 32)
    mark(place, "e" * 32, age=0)
    del disk.calls[:]
    assert life.claim_all() == 0
    opened = [path for name, path in disk.calls if name == "open" and "owners" in str(path)]
    assert len(opened) == 1


@pytest.mark.parametrize(("age", "found"), [(0, 0), (500, 0), (700, 1)])
def test_owner_on_another_host_keeps_its_events_for_a_lease(
    age: float, found: int, life: Life, place: Path
) -> None:
    leave(place, 1, owner="e" * 32)
    mark(place, "e" * 32, age)
    assert life.claim_all() == found


def test_empty_directory_is_removed(life: Life, place: Path) -> None:
    leave(place, 2, events=0)
    (place / "v1" / "events" / f"{1:032x}.unclaimed" / "0000000001.events").unlink()
    (place / "v1" / "events" / f"{1:032x}.unclaimed" / "0000000001.settled").touch()
    assert life.claim_all() == 0
    assert len(inside(place, "events")) == 1


def test_one_of_many_processes_gets_a_directory(make: Make, place: Path) -> None:
    lives = [make() for _ in range(8)]
    for life in lives:
        life.append(0)
    leave(place, 40)
    together(*(life.claim_all for life in lives))
    assert sum(len(life.files) for life in lives) == 40
    assert len({file.path for life in lives for file in life.files}) == 40


def test_stop_ends_a_claim_after_its_step(make: Make, place: Path) -> None:
    life = make(Hooked("rename", lambda: life.journal.stop(), after=True))
    life.append(0)
    leave(place, 10)
    life.claim(1000)
    assert life.journal.claimed() == 1
    assert not life.journal.is_claim_due()
    life.release()
    assert make().claim_all() == 11


def test_release_during_a_claim_hands_over_all_of_it(make: Make, place: Path) -> None:
    life = make(Hooked("rename", lambda: life.journal.release(), after=True, part="unclaimed"))
    life.append(0)
    leave(place, 3)
    assert life.claim(1000) == 0
    life.release()
    assert make().claim_all() == 4


def test_directory_that_an_interrupted_call_took_over_is_found_by_the_next(
    make: Make, place: Path
) -> None:
    life = make(Hooked("rename", interrupt, after=True))
    life.append(0)
    leave(place, 1)
    with pytest.raises(Interrupted):
        life.claim()
    assert life.journal.is_claim_due()
    assert life.claim() == 1


def test_directory_that_can_not_be_taken_over_keeps_no_process_from_the_others(
    life: Life, place: Path, disk: FaultyDisk, log: Lines
) -> None:
    leave(place, 5)
    disk.errors["rename"] = OSError(errno.EACCES, "denied")
    disk.paths = f"{2:032x}"
    assert life.claim_all() == 4
    assert len(log.about("could not be taken over")) == 1


def test_process_that_can_not_look_claims_nothing_and_tries_again(
    life: Life, place: Path, disk: FaultyDisk, clock: Clock
) -> None:
    leave(place, 2, owner="e" * 32)
    mark(place, "e" * 32, age=700)
    disk.errors["open"] = OSError(errno.EMFILE, "too many open files")
    assert life.claim() == 0
    disk.errors.clear()
    assert not life.journal.is_claim_due()
    clock.now += 1
    assert life.journal.is_claim_due()
    assert life.claim_all() == 2


def test_journal_that_was_dropped_is_released_by_the_next_one(make: Make, place: Path) -> None:
    one = make()
    one.append(1)
    journal = one.journal
    journal.__del__()  # what the last reference does
    two = make()
    assert two.journal.is_untidy()
    two.maintain()
    two.append(2)
    assert two.claim_all() == 1


def test_finalizer_does_no_io(make: Make, disk: FaultyDisk) -> None:
    life = make(disk)
    life.append(1)
    del disk.calls[:]
    life.journal.__del__()
    assert disk.calls == []
    make().maintain()


# -- marks of dead owners --------------------------------------------------------------------------


def test_marks_of_dead_owners_that_own_nothing_are_removed_and_others_are_kept(
    life: Life, place: Path
) -> None:
    [own] = inside(place, "owners")
    for number in range(MOST_DIRECTORIES + 5):  # more than one step removes
        mark(place, f"{number:032x}", LEASE + 60)
    mark(place, "f2" * 16, 0)  # elsewhere
    leave(place, 1, owner="f5" * 16)  # no mark, young
    for name, age in (("f6", 0.0), ("f7", HEARTBEAT_INTERVAL + 60)):  # not completely written
        path = place / "v1" / "owners" / (name * 16)
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    life.claim_all()
    assert inside(place, "owners") == sorted([own, "f2" * 16, "f6" * 16])
    assert len(files(place)) == 2


def test_owner_that_begins_and_dies_while_others_sweep_keeps_its_mark(
    make: Make, place: Path, clock: Clock
) -> None:
    name = "e" * 32
    # The directories were listed before.
    late = Hooked("open", lambda: leave(place, 1, owner=name, first=7), part=name)
    life = make(late)
    life.append(0)
    mark(place, name, LEASE + 60)
    life.claim_all()
    assert name in inside(place, "owners")  # so others see that it is dead, before its lease ends
    clock.now += SCAN_INTERVAL
    assert life.claim_all() == 1


def test_mark_that_can_not_be_removed_keeps_nothing_from_its_end(
    life: Life, place: Path, disk: FaultyDisk
) -> None:
    mark(place, "e" * 32, LEASE + 60)
    leave(place, 1)
    disk.errors["unlink"] = OSError(errno.EACCES, "denied")
    assert life.claim_all() == 1


def test_mark_that_another_process_removed_first_is_no_trouble(
    make: Make, place: Path, log: Lines
) -> None:
    name = "e" * 32
    life = make(Hooked("unlink", lambda: os.unlink(place / "v1" / "owners" / name), part=name))
    life.append(0)
    mark(place, name, LEASE + 60)
    life.claim_all()
    assert log.lines == []
    assert name not in inside(place, "owners")


def test_names_that_are_none_of_the_outbox_are_left_alone(life: Life, place: Path) -> None:
    for name in ("x", ".x", "x."):
        (place / "v1" / "events" / name).mkdir()
    assert life.claim_all() == 0
    assert len(inside(place, "events")) == 4


def test_other_process_that_is_faster_gets_the_directory(make: Make, place: Path) -> None:
    fast = make()
    slow = make(Hooked("rename", fast.claim_all, part="unclaimed"))
    fast.append(0)
    slow.append(0)
    leave(place, 2)
    assert slow.claim_all() == 0
    assert sum(file.unread for file in fast.files) == 2

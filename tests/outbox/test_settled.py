"""What is settled is on the disk at once, and a file of settled events is removed."""

from __future__ import annotations

import errno
from pathlib import Path

from tests.outbox.conftest import FaultyDisk, Make, files, found, inside
from tests.support.clock import Clock
from valued._outbox.files import OPEN_FILES


def test_settled_event_is_not_found_by_another_process(make: Make) -> None:
    one = make()
    one.record(1, 2)
    one.settle(1)
    assert found(make, one) == [2]


def test_note_that_fails_is_written_later(make: Make, disk: FaultyDisk, clock: Clock) -> None:
    one = make(disk)
    one.record(1, 2)
    disk.errors["open"] = OSError(errno.ENOSPC, "full")
    one.settle(1)
    one.maintain()
    disk.errors.clear()
    assert not one.journal.is_untidy()  # a second has not passed
    clock.now += 1
    assert one.journal.is_untidy()
    one.maintain()
    assert found(make, one) == [2]


def test_note_that_was_cut_is_written_again_at_release(make: Make, disk: FaultyDisk) -> None:
    one = make(disk)
    one.record(1, 2)
    disk.cut = 20
    one.settle(1)
    one.release()
    assert found(make) == [2]


def test_file_whose_events_are_all_settled_is_removed(make: Make, place: Path) -> None:
    life = make(segment_size=100)
    life.record(*range(6))
    for event in range(6):
        life.settle(event)
    assert life.journal.is_untidy()
    life.maintain()
    assert len(files(place)) == len(files(place, "*.settled")) == 1  # the current one
    assert not life.journal.is_untidy()
    life.release()
    assert inside(place, "events", "owners") == []


def test_files_that_are_open_are_few(make: Make, disk: FaultyDisk) -> None:
    life = make(disk, segment_size=30)
    life.record(*range(60))
    life.maintain()
    for event in range(60):
        life.settle(event)
    opened = disk.count("open") - disk.count("close")
    assert opened <= OPEN_FILES + 2
    life.maintain()
    life.release()
    assert disk.count("open") == disk.count("close")


def test_event_whose_caller_was_interrupted_is_found_by_this_process(
    make: Make, clock: Clock
) -> None:
    life = make(segment_size=100)
    life.append(1)
    life.journal.append(b'{"n":2}', spill=False)  # its call ended before the pipeline knew of it
    life.record(3, 4)
    life.settle(1)
    life.settle(3)
    life.maintain()
    assert life.lost == []
    clock.now += 20
    assert life.journal.is_untidy()
    life.maintain()
    assert [why for _, why in life.lost] == ["handed_over"]
    assert life.journal.is_claim_due()
    assert life.claim() == 1
    assert life.load_all() == [2]
    assert life.files[0].adopted


def test_late_caller_keeps_its_event(make: Make, clock: Clock) -> None:
    life = make(segment_size=50)
    life.append(1)
    late = life.journal.append(b'{"n":2}', spill=False)
    life.append(3)
    life.claim_all()
    life.settle(1)
    life.maintain()  # the pipeline doesn't know of the event 2 yet
    assert late is not None
    late.file.known += late.size
    late.file.unsettled += 1
    clock.now += 20
    due = life.journal.next_due()
    assert due is not None
    assert due > clock.now
    life.maintain()
    assert (life.lost, late.file.lost) == ([], "")
    life.journal.settled(late.file, late.number)
    late.file.unsettled -= 1
    life.maintain()
    assert late.file.removed

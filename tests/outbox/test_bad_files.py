"""A bad file costs itself: it is set aside, counted and logged, and all else goes on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.outbox.conftest import FaultyDisk, Make
from tests.outbox.test_claim import leave, mark


def a_link(path: Path) -> None:
    path.symlink_to("/dev/null")


def a_directory(path: Path) -> None:
    path.mkdir()


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage" * 1000)


BAD = [a_link, a_directory, a_fifo, garbage]
Bad = Callable[[Path], None]


def set_aside(place: Path) -> int:
    return len([*(place / "v1" / "damaged").iterdir()])


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", ["0000000002.events", "0000000001.settled", "other"])
def test_bad_file_costs_itself(name: str, bad: Bad, make: Make, place: Path, log: Any) -> None:
    life = make()
    life.append(0)
    leave(place, 3)
    bad(place / "v1" / "events" / f"{1:032x}.unclaimed" / name)
    assert life.claim_all() == 3
    assert life.load_all() == [1, 1, 1]
    assert set_aside(place) == 1
    assert len(log.about("set aside")) == 1


@pytest.mark.parametrize("bad", [a_link, a_fifo, garbage])
def test_directory_that_is_none_costs_itself(bad: Bad, make: Make, place: Path) -> None:
    life = make()
    life.append(0)
    leave(place, 3)
    bad(place / "v1" / "events" / f"{7:032x}.unclaimed")
    assert life.claim_all() == 3
    assert set_aside(place) == 1


@pytest.mark.parametrize("bad", BAD)
def test_bad_mark_costs_a_lease(bad: Bad, make: Make, place: Path) -> None:
    life = make()
    life.append(0)
    leave(place, 3)
    leave(place, 1, owner="e" * 32, first=10)
    bad(place / "v1" / "owners" / ("e" * 32))
    os.utime(place / "v1" / "owners" / ("e" * 32), (1, 1), follow_symlinks=False)
    assert life.claim_all() == 4
    assert not os.path.lexists(place / "v1" / "owners" / ("e" * 32))


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize("function", ["open", "pread"])
def test_file_that_can_not_be_read_costs_itself(
    function: str, error: int, make: Make, place: Path, disk: FaultyDisk
) -> None:
    life = make(disk)
    life.append(0)
    leave(place, 3)
    disk.paths = f"{1:032x}" if function == "open" else ""
    disk.errors[function] = OSError(error, "broken")
    assert life.claim_all() == (2 if function == "open" else 0)
    assert set_aside(place) == (1 if function == "open" else 3)


def test_bad_file_that_can_not_be_set_aside_is_logged_once(
    make: Make, place: Path, disk: FaultyDisk, log: Any, clock: Any
) -> None:
    life = make(disk)
    life.append(0)
    leave(place, 1)
    garbage(place / "v1" / "events" / f"{7:032x}.unclaimed")
    disk.errors["rename"] = OSError(errno.EACCES, "denied")
    disk.paths = f"{7:032x}"
    for _ in range(3):
        life.claim_all()
        clock.now += 100
    disk.errors.clear()
    assert len(life.files) == 1
    assert len(log.about("set aside")) == 1


@pytest.mark.parametrize("bad", BAD)
def test_bad_files_are_skipped_where_they_are_shown(bad: Bad, make: Make, place: Path) -> None:
    life = make()
    life.append(5)
    leave(place, 2)
    mark(place, "d" * 32, age=0)
    v1 = place / "v1"
    bad(v1 / "events" / f"{1:032x}.unclaimed" / "0000000002.events")
    bad(v1 / "events" / f"{1:032x}.unclaimed" / "0000000001.settled")
    bad(v1 / "owners" / ("e" * 32))
    bad(v1 / "rejected" / "01795520815499295774-dd63fdaa")
    if bad is not a_directory:
        bad(v1 / "events" / f"{7:032x}.unclaimed")
    outbox = valued.Outbox(place)
    assert sorted(event["n"] for event in outbox.events()) == [1, 1, 5]
    assert sum(owned.events for owned in outbox.owners()) == 3
    assert list(outbox.rejected()) == []
    assert outbox.purge() == 2
    outbox.forget_rejected()

"""Marks of dead owners are removed, and no mark that may still be needed."""

from __future__ import annotations

import errno
import io
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.outbox.conftest import FaultyDisk, Make
from tests.outbox.test_claim import leave, mark
from tests.support.clock import Clock
from tests.support.processes import Child
from valued._outbox import identity
from valued._outbox.claims import SCAN_INTERVAL
from valued._outbox.identity import SystemProcesses
from valued._outbox.marks import ELSEWHERE, HEARTBEAT_INTERVAL, LEASE, state
from valued._outbox.paths import OutboxPaths


def left(place: Path) -> list[str]:
    return sorted(path.name[0] for path in (place / "v1" / "owners").iterdir())


def test_marks_of_dead_owners_that_own_nothing_are_removed_and_others_are_kept(
    make: Make, place: Path
) -> None:
    life = make()
    life.append(0)
    own = [*(place / "v1" / "owners").iterdir()]
    mark(place, "2" * 32, 0)  # elsewhere
    mark(place, "3" * 32, LEASE + 60)
    mark(place, "4" * 32, LEASE + 60)
    leave(place, 1, owner="5" * 32)  # no mark, young
    for name, age in (("6", 0.0), ("7", HEARTBEAT_INTERVAL + 60)):  # not completely written
        path = place / "v1" / "owners" / (name * 32)
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    life.claim_all()
    own[0].unlink()
    assert left(place) == ["2", "6"]
    assert len([*(place / "v1" / "events").glob("*." + "5" * 32)]) == 1


def test_owner_that_begins_and_dies_while_others_sweep_keeps_its_mark(
    make: Make, place: Path, clock: Clock
) -> None:
    name = "e" * 32

    class Late(FaultyDisk):
        def open(self, path: str, *more: int) -> int:
            if path.endswith(name) and not (place / "v1" / "events" / f"{7:032x}.{name}").exists():
                leave(place, 1, owner=name, first=7)  # the directories were listed before
            return os.open(path, *more)

    life = make(Late())
    life.append(0)
    mark(place, name, LEASE + 60)
    life.claim_all()
    assert "e" in left(place)  # so others see that it is dead, before its lease is over
    clock.now += SCAN_INTERVAL
    assert life.claim_all() == 1


def test_mark_that_can_not_be_removed_keeps_nothing_from_its_end(
    make: Make, place: Path, disk: FaultyDisk
) -> None:
    life = make(disk)
    life.append(0)
    mark(place, "e" * 32, LEASE + 60)
    leave(place, 1)
    disk.errors["unlink"] = OSError(errno.EACCES, "denied")
    assert life.claim_all() == 1


def test_mark_that_another_process_removed_first_is_no_trouble(
    make: Make, place: Path, log: Any
) -> None:
    class Slow(FaultyDisk):
        def unlink(self, path: str) -> None:
            os.unlink(path)
            os.unlink(path)

    life = make(Slow())
    life.append(0)
    mark(place, "e" * 32, LEASE + 60)
    life.claim_all()
    assert log.lines == []


def test_names_that_are_none_of_the_outbox_are_left_alone(make: Make, place: Path) -> None:
    life = make()
    life.append(0)
    for name in ("x", ".x", "x."):
        (place / "v1" / "events" / name).mkdir()
    assert life.claim_all() == 0
    assert len([*(place / "v1" / "events").iterdir()]) == 4


def test_other_process_that_is_faster_gets_the_directory(make: Make, place: Path) -> None:
    class Slow(FaultyDisk):
        def rename(self, source: str, target: str) -> None:
            if "unclaimed" in source and not fast.files:
                fast.claim_all()
            os.rename(source, target)

    fast, slow = make(), make(Slow())
    fast.append(0)
    slow.append(0)
    leave(place, 2)
    assert slow.claim_all() == 0
    assert sum(file.unread for file in fast.files) == 2


def test_zombie_is_dead_for_psutil_too(fork: Callable[..., Child]) -> None:
    child = fork(signal.pause)
    assert identity._start_by_psutil(child.pid) is not None
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert identity._start_by_psutil(child.pid) is None


def test_process_whose_start_may_not_be_read_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(process: psutil.Process) -> float:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "create_time", hidden)
    with pytest.raises(PermissionError, match="it is hidden"):
        identity._start_by_psutil(os.getpid())


def test_process_that_ends_while_it_is_looked_at_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(io.BytesIO):
        def read(self, _size: int | None = -1) -> bytes:
            raise ProcessLookupError

    monkeypatch.setattr(identity, "open", lambda *_args, **_more: Ended(), raising=False)
    assert identity._start(os.getppid()) is None


def test_owner_without_a_mark_and_a_directory_began_just_now(tmp_path: Path) -> None:
    paths = OutboxPaths(str(tmp_path / "outbox"))
    for now in (0.0, 1e9):
        assert state(os, paths, SystemProcesses(), "e" * 32, f"{tmp_path}/none", now) == ELSEWHERE

"""Who is alive: identities of processes, and the marks that tell them to others."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.outbox.conftest import FaultyDisk, Fork
from tests.support.processes import VANISHED, vanish
from valued._outbox import owners
from valued._outbox.owners import (
    ALIVE,
    DEAD,
    ELSEWHERE,
    EXPIRED,
    LEASE,
    OutboxPaths,
    SystemProcesses,
    identify,
)

NAME = "a" * 32
HERE = SystemProcesses()


@pytest.fixture
def paths(tmp_path: Path) -> OutboxPaths:
    paths = OutboxPaths(str(tmp_path / "outbox"))
    paths.make(os)
    return paths


def write_mark(paths: OutboxPaths, now: float = 0.0, **changes: Any) -> str:
    """The mark of a process that is alive, and another one: the parent of this one."""
    content = {**identify(os.getppid())._asdict(), "lease": LEASE, **changes}
    path = paths.mark(NAME)
    Path(path).write_text(json.dumps(content))
    os.utime(path, (now, now))
    return path


def state(paths: OutboxPaths, now: float = 0.0, owner: str = NAME, disk: Any = os) -> str:
    return owners.state(disk, paths, HERE, owner, paths.path + "/none", now)


@pytest.mark.parametrize(
    ("changed", "alive"),
    [
        ({}, True),
        ({"start": "1"}, False),  # the pid is used again
        ({"pid": 2**22 + 1}, False),  # no process has it
        ({"boot": "another"}, None),
        ({"namespace": "another"}, None),
        ({"host": "another"}, None),
        ({"start": ""}, None),  # it did not know its own start
    ],
    ids=str,
)
def test_who_is_alive(changed: dict[str, Any], alive: bool | None) -> None:
    assert HERE.is_alive(HERE.here()._replace(**changed)) is alive


def test_zombie_is_dead_and_a_stopped_process_is_alive(fork: Fork) -> None:
    child = fork(signal.pause)
    there = identify(child.pid)
    os.kill(child.pid, signal.SIGSTOP)
    assert HERE.is_alive(there) is True
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert HERE.is_alive(there) is False


def test_child_has_an_identity_and_names_of_its_own(fork: Fork) -> None:
    HERE.names().add("parent")
    parent = HERE.here()

    def child() -> None:
        assert HERE.here().pid == os.getpid() != parent.pid
        assert HERE.names() == set()
        assert HERE.is_alive(parent) is True
        vanish()

    assert fork(child).wait() == VANISHED
    HERE.names().discard("parent")


def test_where_there_is_no_proc_psutil_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Any, *_args: Any, **_options: Any) -> io.BytesIO:
        raise FileNotFoundError(errno.ENOENT, "not there", path)

    monkeypatch.setattr(owners, "open", fail, raising=False)
    monkeypatch.setattr(os.path, "exists", lambda _path: False)
    assert owners._start(os.getpid()) == repr(psutil.Process().create_time())
    assert owners._start(2**22 + 1) is None
    assert owners._pid_space() == ("", "")


def test_owner_whose_process_is_alive_keeps_all_however_old_its_heartbeat_is(
    paths: OutboxPaths,
) -> None:
    write_mark(paths)
    assert state(paths, now=1e9) == ALIVE


def test_owner_of_this_process_that_it_does_not_know_was_there_before_an_exec(
    paths: OutboxPaths,
) -> None:
    write_mark(paths, **HERE.here()._asdict())
    assert state(paths) == DEAD
    HERE.names().add(NAME)
    assert state(paths) == ALIVE
    HERE.names().discard(NAME)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"[" * 4000, b'{"pid": "x"}', b"\xff"])
def test_mark_that_can_not_be_read_counts_as_one_elsewhere(
    content: bytes, paths: OutboxPaths
) -> None:
    path = write_mark(paths)
    Path(path).write_bytes(content)
    os.utime(path, (0, 0))
    assert state(paths, now=LEASE - 1) == ELSEWHERE
    assert state(paths, now=LEASE + 1) == EXPIRED


def test_owner_elsewhere_has_its_own_lease(paths: OutboxPaths) -> None:
    write_mark(paths, host="far", lease=50)
    assert state(paths, now=49) == ELSEWHERE
    assert state(paths, now=51) == EXPIRED


def test_process_that_may_not_be_looked_at_is_alive(
    paths: OutboxPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mark(paths)
    HERE.here()

    def hidden(_pid: int) -> str:
        raise PermissionError(errno.EACCES, "hidden")

    monkeypatch.setattr(owners, "_start", hidden)
    assert state(paths) == ALIVE


def test_process_without_descriptors_takes_no_owner_for_dead(
    paths: OutboxPaths, disk: FaultyDisk
) -> None:
    write_mark(paths, start="1")
    disk.errors["open"] = OSError(errno.EMFILE, "too many open files")
    with pytest.raises(OSError, match="too many"):
        state(paths, disk=disk)


def test_mark_that_does_not_fit_on_the_disk_is_removed(
    paths: OutboxPaths, disk: FaultyDisk
) -> None:
    disk.cut = 10
    with pytest.raises(OSError, match="No space"):
        owners.write_mark(disk, paths.mark(NAME), HERE)
    assert os.listdir(paths.owners) == []


def test_owner_without_a_mark_and_a_directory_began_just_now(paths: OutboxPaths) -> None:
    assert [state(paths, now, "e" * 32) for now in (0.0, 1e9)] == [ELSEWHERE, ELSEWHERE]


def test_zombie_is_dead_for_psutil_too(fork: Fork) -> None:
    child = fork(signal.pause)
    assert owners._start_by_psutil(child.pid) is not None
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert owners._start_by_psutil(child.pid) is None


def test_process_whose_start_may_not_be_read_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(process: psutil.Process) -> float:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "create_time", hidden)
    with pytest.raises(PermissionError, match="it is hidden"):
        owners._start_by_psutil(os.getpid())


def test_process_that_ends_while_it_is_looked_at_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(io.BytesIO):
        def read(self, _size: int | None = -1) -> bytes:
            raise ProcessLookupError

    monkeypatch.setattr(owners, "open", lambda *_args, **_more: Ended(), raising=False)
    assert owners._start(os.getppid()) is None

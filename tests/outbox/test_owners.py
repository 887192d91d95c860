"""Who is alive: identities of processes, and the marks that tell them to others."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.outbox.conftest import FaultyDisk
from tests.support.processes import VANISHED, Child, vanish
from valued._outbox import identity, marks
from valued._outbox.identity import SystemProcesses, identify
from valued._outbox.marks import ALIVE, DEAD, ELSEWHERE, EXPIRED, LEASE
from valued._outbox.paths import OutboxPaths

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
    return marks.state(disk, paths, HERE, owner, paths.path + "/none", now)


def test_this_process_is_alive() -> None:
    assert HERE.is_alive(HERE.here()) is True


def test_pid_that_is_used_again_is_another_process() -> None:
    assert HERE.is_alive(HERE.here()._replace(start="1")) is False


def test_pid_that_no_process_has_is_dead() -> None:
    assert HERE.is_alive(HERE.here()._replace(pid=2**22 + 1)) is False


@pytest.mark.parametrize("part", ["boot", "namespace", "host"])
def test_process_elsewhere_can_not_be_seen(part: str) -> None:
    changed: Any = {part: "another"}
    assert HERE.is_alive(HERE.here()._replace(**changed)) is None


def test_process_that_does_not_know_its_own_start_can_not_be_seen() -> None:
    assert HERE.is_alive(HERE.here()._replace(start="")) is None


def test_zombie_is_dead_and_a_stopped_process_is_alive(fork: Callable[..., Child]) -> None:
    child = fork(signal.pause)
    there = identify(child.pid)
    os.kill(child.pid, signal.SIGSTOP)
    assert HERE.is_alive(there) is True
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert HERE.is_alive(there) is False


def test_child_has_an_identity_and_names_of_its_own(fork: Callable[..., Child]) -> None:
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

    monkeypatch.setattr(identity, "open", fail, raising=False)
    monkeypatch.setattr(os.path, "exists", lambda _path: False)
    assert identity._start(os.getpid()) == repr(psutil.Process().create_time())
    assert identity._start(2**22 + 1) is None
    assert identity._pid_space() == ("", "")


def test_owner_whose_process_is_alive_keeps_all_however_old_its_heartbeat_is(
    paths: OutboxPaths,
) -> None:
    write_mark(paths)
    assert state(paths, now=1e9) == ALIVE


def test_owner_whose_pid_is_used_again_is_dead(paths: OutboxPaths) -> None:
    write_mark(paths, start="1")
    assert state(paths) == DEAD


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

    monkeypatch.setattr(identity, "_start", hidden)
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
        marks.write_mark(disk, paths.mark(NAME), HERE)
    assert os.listdir(paths.owners) == []


# -- the directory ---------------------------------------------------------------------------------


def test_missing_place_is_fine_where_it_can_be_made(tmp_path: Path) -> None:
    paths = OutboxPaths(str(tmp_path / "a" / "b" / "outbox"))
    assert paths.problems() == []
    paths.make(os)
    assert sorted(os.listdir(paths.path + "/v1")) == ["damaged", "events", "owners", "rejected"]


@pytest.mark.parametrize("inside", ["", "v1", "v1/owners"])
def test_symbolic_link_is_not_followed(inside: str, tmp_path: Path) -> None:
    path = tmp_path / "outbox"
    (tmp_path / "elsewhere").mkdir(0o700)
    (path / inside).parent.mkdir(0o700, parents=True, exist_ok=True)
    (path / inside).symlink_to(tmp_path / "elsewhere")
    if not path.is_symlink():
        path.chmod(0o700)
    with pytest.raises(NotADirectoryError, match="symbolic link"):
        OutboxPaths(str(path)).make(os)


def test_directory_that_is_open_to_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "outbox"
    path.mkdir(0o755)
    assert "open to others (mode 0755)" in OutboxPaths(str(path)).problems()[0]


def test_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "outbox").touch()
    assert "not a directory" in OutboxPaths(str(tmp_path / "outbox")).problems()[0]

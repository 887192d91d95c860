"""Marks, claims and the directory: who lives, who may take over, and what is refused."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.processes import VANISHED, Child, vanish
from valued._outbox import owners as _owners
from valued._outbox.owners import (
    ALIVE,
    DEAD,
    ELSEWHERE,
    EXPIRED,
    LEASE,
    UNCLAIMED,
    Left,
    Owner,
    Place,
)
from valued._process import fork as _fork
from valued._process.fork import Mark

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no outbox on Windows")

NAME = "a" * 32


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(str(tmp_path / "outbox"))
    place.make()
    return place


def write_mark(place: Place, name: str = NAME, *, age: float = 0.0, **changes: Any) -> str:
    """That of a process that lives, and is another one: the parent of this one."""
    pid = os.getppid()
    parent = Mark.of_this_process()._replace(pid=pid, start=_fork._start(pid) or "")
    content = {**parent._asdict(), "lease": LEASE, **changes}
    path = os.path.join(place.owners, name)
    Path(path).write_text(json.dumps(content))
    os.utime(path, (time.time() - age,) * 2)
    return path


def left(place: Place, origin: str = "b" * 32, owner: str = NAME) -> Left:
    path = os.path.join(place.events, f"{origin}.{owner}")
    os.mkdir(path)
    return Left(origin, owner, path)


def state(place: Place, owner: str = NAME) -> str:
    return _owners.state(place, owner, os.path.join(place.events, "none"), time.time())


# -- marks of processes ----------------------------------------------------------------------------


def test_this_process_lives() -> None:
    assert _fork.lives(Mark.of_this_process()) is True


def test_a_pid_that_is_used_again_is_another_process() -> None:
    assert _fork.lives(Mark.of_this_process()._replace(start="1")) is False


def test_a_pid_that_nobody_has_is_dead() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert _fork.lives(Mark.of_this_process()._replace(pid=done.pid)) is False


@pytest.mark.parametrize("part", ["boot", "namespace", "host"])
def test_what_is_elsewhere_can_not_be_seen(part: str) -> None:
    assert _fork.lives(Mark.of_this_process()._replace(**{part: "another"})) is None


def test_a_process_that_does_not_know_its_own_start_can_not_be_seen() -> None:
    assert _fork.lives(Mark.of_this_process()._replace(start="")) is None


def test_a_zombie_is_dead_and_a_stopped_process_lives(fork: Callable[..., Child]) -> None:
    child = fork(signal.pause)
    mark = Mark.of_this_process()._replace(pid=child.pid, start=_fork._start(child.pid) or "")
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    assert _fork.lives(mark) is True
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # and leave it a zombie
    assert _fork.lives(mark) is False
    assert _fork._start_by_psutil(child.pid) is None


def test_where_there_is_no_proc_psutil_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(path: Any, *_args: Any, **_options: Any) -> Any:
        raise FileNotFoundError(path)

    monkeypatch.setattr("builtins.open", nothing)
    monkeypatch.setattr(os.path, "exists", lambda _path: False)
    monkeypatch.setattr(_fork, "_start_by_psutil", lambda pid: f"start of {pid}")
    assert Mark.of_this_process()[:4] == (os.getpid(), f"start of {os.getpid()}", "", "")


def test_psutil_tells_the_start_of_a_process() -> None:
    assert _fork._start_by_psutil(os.getpid()) == repr(psutil.Process().create_time())
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert _fork._start_by_psutil(done.pid) is None


def test_a_process_that_hides_itself_lives(
    place: Place, monkeypatch: pytest.MonkeyPatch, fork: Callable[..., Child]
) -> None:
    def hidden(process: psutil.Process) -> float:
        raise psutil.AccessDenied(process.pid)

    # As where there is no /proc.
    monkeypatch.setattr(_fork, "_start", _fork._start_by_psutil)
    write_mark(place)
    assert state(place) == ALIVE
    here = Mark.of_this_process()
    monkeypatch.setattr(psutil.Process, "create_time", hidden)
    monkeypatch.setattr(Mark, "of_this_process", lambda: here)
    with pytest.raises(PermissionError, match="it is hidden"):
        _fork._start_by_psutil(os.getpid())
    assert state(place) == ALIVE


def test_a_process_that_ends_while_it_is_looked_at_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(io.BytesIO):
        def read(self, _size: int | None = -1) -> bytes:
            raise ProcessLookupError

    monkeypatch.setattr("builtins.open", lambda *_args, **_options: Ended())
    assert _fork._start(os.getpid()) is None


# -- states of owners ------------------------------------------------------------------------------


def test_an_owner_whose_process_lives_is_alive_however_old_its_sign_of_life(place: Place) -> None:
    write_mark(place, age=1e6)
    assert state(place) == ALIVE


def test_an_owner_of_this_process_that_it_does_not_know_was_its_own_before_an_exec(
    place: Place,
) -> None:
    _owners.Owner(place, "1" * 32)
    assert state(place, "1" * 32) == ALIVE
    write_mark(place, "2" * 32, **Mark.of_this_process()._asdict())
    assert state(place, "2" * 32) == DEAD


def test_an_owner_whose_pid_is_used_again_is_dead(place: Place) -> None:
    write_mark(place, start="1")
    assert state(place) == DEAD


def test_an_owner_elsewhere_has_its_lease(place: Place) -> None:
    write_mark(place, host="another", age=LEASE - 60)
    assert state(place) == ELSEWHERE
    write_mark(place, host="another", age=LEASE + 60)
    assert state(place) == EXPIRED
    write_mark(place, host="another", age=60, lease=30)
    assert state(place) == EXPIRED


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b'{"lease": 600}', b'{"lease": "x"}'], ids=repr
)
def test_a_mark_that_can_not_be_read_counts_as_one_elsewhere(place: Place, content: bytes) -> None:
    path = write_mark(place)
    Path(path).write_bytes(content)
    assert state(place) == ELSEWHERE
    os.utime(path, (time.time() - LEASE - 60,) * 2)
    assert state(place) == EXPIRED


def test_a_mark_with_a_pid_that_is_none_counts_as_one_elsewhere(place: Place) -> None:
    write_mark(place, pid="1")
    assert state(place) == ELSEWHERE


def test_a_directory_without_a_mark_waits_for_a_lease(place: Place) -> None:
    orphan = left(place)
    assert _owners.state(place, NAME, orphan.path, time.time()) == ELSEWHERE
    os.utime(orphan.path, (time.time() - LEASE - 60,) * 2)
    assert _owners.state(place, NAME, orphan.path, time.time()) == EXPIRED


def test_what_is_not_there_at_all_is_as_young_as_can_be(place: Place) -> None:
    assert state(place) == ELSEWHERE


def test_nobody_is_dead(place: Place) -> None:
    assert state(place, UNCLAIMED) == DEAD


def test_a_mark_says_who_owns_and_is_private(place: Place) -> None:
    owner = Owner(place, NAME)
    path = os.path.join(place.owners, NAME)
    assert _owners.read_mark(path) == (Mark.of_this_process(), LEASE)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    os.utime(path, (1, 1))
    assert owner.beat() > time.time() - 60
    owner.leave()
    owner.leave()
    assert os.listdir(place.owners) == []
    owner.beat()  # somebody who cleans up removed it
    assert _owners.read_mark(path) == (Mark.of_this_process(), LEASE)
    owner.leave()


def test_a_mark_that_does_not_fit_on_the_disk_is_not_left(
    place: Place, fork: Callable[..., Child]
) -> None:
    import resource

    def child() -> None:
        for size in (0, 10):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            with pytest.raises(OSError, match=r"File too large|No space left"):
                Owner(place, NAME)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)

    assert fork(child).wait() == 0
    assert os.listdir(place.owners) == []


def test_who_can_not_look_for_want_of_descriptors_takes_nobody_for_dead(
    place: Place, fork: Callable[..., Child]
) -> None:
    import resource

    write_mark(place, age=LEASE + 60)
    mark = Mark.of_this_process()

    def child() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        for look in (lambda: state(place), lambda: _fork.lives(mark)):
            with pytest.raises(OSError, match="Too many open files"):
                look()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert state(place) == ALIVE  # the parent

    assert fork(child).wait() == 0


def test_who_can_not_look_sweeps_no_mark(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mark(place, start="1")
    left(place)

    real = os.listdir

    def too_many(path: str) -> list[str]:
        if path == place.events:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path)

    monkeypatch.setattr(os, "listdir", too_many)
    with pytest.raises(OSError, match="Too many open files"):
        _owners.sweep(place, time.time())
    assert os.listdir(place.owners) == [NAME]


# -- claims ----------------------------------------------------------------------------------------


def test_a_claim_is_for_one(place: Place) -> None:
    mine = left(place)
    assert _owners.claim(place, mine, "c" * 32)
    assert [one.owner for one in _owners.all_left(place)] == ["c" * 32]
    assert not _owners.claim(place, mine, "d" * 32)


def test_of_a_hundred_siblings_that_try_one_wins(place: Place, fork: Callable[..., Child]) -> None:
    begin, ready = os.pipe(), os.pipe()

    def sibling(number: int) -> None:
        os.close(begin[1])
        os.write(ready[1], b".")
        os.read(begin[0], 1)  # returns for all at once, when the other end is closed
        for target in list(_owners.all_left(place)):
            _owners.claim(place, target, f"{number:032d}")
        vanish()

    left(place)
    children = [fork(sibling, number) for number in range(100)]
    got = b""
    while len(got) < 100:
        got += os.read(ready[0], 100)
    before = os.listdir(place.events)
    os.close(begin[1])
    assert [child.wait() for child in children] == [VANISHED] * 100
    for end in (begin[0], *ready):
        os.close(end)
    assert before == [f"{'b' * 32}.{NAME}"]
    assert len(os.listdir(place.events)) == 1
    assert os.listdir(place.events) != before


def test_what_is_released_is_nobodys(place: Place) -> None:
    _owners.release(left(place))
    assert [one.owner for one in _owners.all_left(place)] == [UNCLAIMED]
    _owners.release(Left("gone", NAME, os.path.join(place.events, "gone")))


def test_strange_names_are_left_alone(place: Place) -> None:
    for name in ("x", ".x", "x."):
        os.mkdir(os.path.join(place.events, name))
    assert list(_owners.all_left(place)) == []
    assert list(_owners.all_left(Place(place.path + "-none"))) == []


def test_marks_of_the_dead_that_own_nothing_are_swept(place: Place) -> None:
    write_mark(place, "1" * 32, start="1")  # dead
    write_mark(place, "2" * 32, start="1")  # dead, and owns
    left(place, owner="2" * 32)
    write_mark(place, "3" * 32)  # alive
    write_mark(place, "4" * 32, host="another")  # elsewhere
    write_mark(place, "5" * 32, host="another", age=LEASE + 60)
    for name, age in (("6", 0.0), ("7", _owners.BEAT + 60)):  # cut as they were made
        path = write_mark(place, name * 32)
        Path(path).write_bytes(b"")
        os.utime(path, (time.time() - age,) * 2)
    _owners.Owner(place, "8" * 32)  # this process's own, which is no other
    assert _owners.sweep(place, time.time()) == 4
    assert sorted(name[0] for name in os.listdir(place.owners)) == ["2", "3", "4", "6", "8"]


def test_an_owner_that_begins_and_dies_while_others_sweep_keeps_its_mark(
    place: Place, fork: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, marked = os.pipe(), os.pipe()

    def owner() -> None:
        made = _owners.Owner(place, NAME)
        os.write(marked[1], b".")
        os.read(listed[0], 1)
        left(place, owner=made.name)
        os.kill(os.getpid(), signal.SIGKILL)

    child = fork(owner)
    os.read(marked[0], 1)
    real = _owners.state

    def state_of_the_dead(*arguments: Any) -> str:
        os.write(listed[1], b".")  # it owned nothing when the directories were listed
        assert child.wait() == -signal.SIGKILL
        return real(*arguments)

    monkeypatch.setattr(_owners, "state", state_of_the_dead)
    assert _owners.sweep(place, time.time()) == 1
    for end in (*listed, *marked):
        os.close(end)
    # So others see at once that it is dead, and not when its lease is over.
    assert os.listdir(place.owners) == [NAME]


def test_a_mark_that_can_not_be_removed_is_left(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mark(place, start="1")

    def refuse(_path: str) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "unlink", refuse)
    assert _owners.sweep(place, time.time()) == 0


# -- the directory ---------------------------------------------------------------------------------


def test_what_is_made_is_private(place: Place) -> None:
    for path in (place.path, place.owners, place.events, place.rejected):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    place.make()
    assert place.problems() == []


def test_a_place_that_is_missing_is_fine_where_it_can_be_made(tmp_path: Path) -> None:
    assert Place(str(tmp_path / "a" / "b")).problems() == []
    assert list(tmp_path.iterdir()) == []


def problem(path: Path) -> str:
    [text] = Place(str(path)).problems()
    assert text.startswith(f"outbox: {path}: ")
    return text.removeprefix(f"outbox: {path}: ")


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(0o700)
    (tmp_path / "link").symlink_to("real")
    assert problem(tmp_path / "link").startswith("a symbolic link, which is not followed; give")


def test_a_link_inside_is_not_followed_either(place: Place, tmp_path: Path) -> None:
    os.rmdir(place.events)
    (tmp_path / "elsewhere").mkdir(0o700)
    os.symlink(tmp_path / "elsewhere", place.events)
    with pytest.raises(NotADirectoryError, match="symbolic link"):
        place.make()


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert problem(tmp_path / "file").startswith("not a directory; move it away")
    assert problem(tmp_path / "file" / "x").startswith("Not a directory; choose another")


def test_a_place_under_what_is_no_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "isdir", lambda _path: False)
    assert "is not a directory; choose another place" in problem(tmp_path / "x")


def test_a_directory_that_is_open_to_others_is_refused(tmp_path: Path) -> None:
    for mode in (0o750, 0o701):
        (tmp_path / "open").mkdir(exist_ok=True)
        (tmp_path / "open").chmod(mode)
        assert problem(tmp_path / "open") == (
            f"it is open to others (mode {mode:04o}); events are private: chmod 0700"
        )


def test_a_directory_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = os.geteuid()
    (tmp_path / "theirs").mkdir(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert problem(tmp_path / "theirs").startswith(
        f"it belongs to the user {mine}, this process is {mine + 1}; "
    )


def test_a_directory_that_may_not_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir(0o700)
    # Root, as whom tests may run, may write anywhere.
    monkeypatch.setattr(os, "access", lambda *_args, **_options: False)
    assert "this process may not write in" in problem(tmp_path / "closed")


def test_a_file_system_that_is_read_only_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_args, **_options: False)
    status = list(os.statvfs(tmp_path))
    status[8] |= os.ST_RDONLY
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result(status))
    assert "mounted read-only; choose another place" in problem(tmp_path / "new")


def test_what_can_not_be_looked_at_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "lstat", refuse)
    assert problem(tmp_path / "x") == "Permission denied; choose another place"

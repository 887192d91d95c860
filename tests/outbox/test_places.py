"""Which directories are refused, and with which advice."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.outbox.conftest import FaultyDisk
from valued._outbox.owners import OutboxPaths


def problem(path: Path) -> str:
    [text] = OutboxPaths(str(path)).problems()
    assert text.startswith(f"outbox: {path}: ")
    return text.removeprefix(f"outbox: {path}: ")


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


def test_parent_directories_are_made_with_the_usual_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    OutboxPaths(str(path)).make(os)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("mode", [0o750, 0o701])
def test_directory_that_is_open_to_others_is_refused(mode: int, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    assert problem(tmp_path / "open") == (
        f"it is open to others (mode {mode:04o}); events are private: chmod 0700"
    )


def test_file_or_a_place_in_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert problem(tmp_path / "file").startswith("not a directory; move it away")
    assert problem(tmp_path / "file" / "x").startswith("Not a directory; choose another")


def test_place_in_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nothing")
    assert problem(tmp_path / "link" / "x").startswith(f"{tmp_path / 'link'} is not a directory")


def test_directory_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = os.geteuid()
    (tmp_path / "theirs").mkdir(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert problem(tmp_path / "theirs").startswith(
        f"it belongs to the user {mine}, this process is {mine + 1}; "
    )


@pytest.fixture
def no_access(monkeypatch: pytest.MonkeyPatch) -> None:
    """No directory may be written, which as root would not be so."""
    monkeypatch.setattr(os, "access", lambda *_args, **_options: False)


@pytest.mark.usefixtures("no_access")
@pytest.mark.parametrize("exists", [True, False])
def test_directory_that_may_not_be_written_is_refused(exists: bool, tmp_path: Path) -> None:
    if exists:
        (tmp_path / "closed").mkdir(0o700)
    assert "this process may not write in" in problem(tmp_path / "closed")


@pytest.mark.usefixtures("no_access")
def test_file_system_that_is_read_only_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = list(os.statvfs(tmp_path))
    status[8] |= os.ST_RDONLY
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result(status))
    assert "mounted read-only; choose another place" in problem(tmp_path / "new")


def test_directory_that_became_unusable_is_an_error_with_its_reason(
    tmp_path: Path, disk: FaultyDisk
) -> None:
    disk.errors["lstat"] = OSError(errno.EACCES, "Permission denied")
    with pytest.raises(NotADirectoryError, match="Permission denied; choose another place"):
        OutboxPaths(str(tmp_path / "outbox")).make(disk)

"""A disk in memory, with the functions of `os`: it records each change, and repeats some of them.

What `os` does with a directory that it renames, or with a file that is removed while it is open,
it does as well. `test_append.py` and the others run on the real disk.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple


class Change(NamedTuple):
    """A change of the disk; *target*: a path, or the number of a file for ``write``."""

    kind: str
    target: str | int
    more: str | bytes | int = ""

    def __str__(self) -> str:
        more = self.more[:60] if isinstance(self.more, bytes) else self.more
        return f"{self.kind} {self.target} {more!r}"


class File:
    def __init__(self, number: int) -> None:
        self.number = number
        self.content = b""
        self.links = 1
        self.changed = 0.0


class Folder:
    def __init__(self) -> None:
        self.entries: dict[str, File | Folder] = {}
        self.changed = 0.0


class MemoryDisk:
    """Starts with an empty root. *now*: its time, which a test may set."""

    def __init__(self) -> None:
        self.root = Folder()
        self.files: dict[int, File] = {}
        self.changes: list[Change] = []
        self.now = 1_000_000.0
        self._open: dict[int, File | str] = {}
        self._next = 100

    # -- repeating ---------------------------------------------------------------------------------

    def clone(self) -> MemoryDisk:
        """The same content, in a disk of its own; nothing is open."""
        other = MemoryDisk()
        other.now = self.now

        def copy(folder: Folder) -> Folder:
            made = Folder()
            made.changed = folder.changed
            for name, node in folder.entries.items():
                if isinstance(node, Folder):
                    made.entries[name] = copy(node)
                else:
                    file = other.files[node.number] = File(node.number)
                    file.content, file.changed = node.content, node.changed
                    made.entries[name] = file
            return made

        other.root = copy(self.root)
        return other

    def repeat(self, change: Change) -> None:
        """Make a change that another disk recorded. One that is impossible here is left out."""
        kind, target, more = change
        try:
            if kind == "write":
                if isinstance(target, int) and target in self.files:
                    assert isinstance(more, bytes)
                    self.files[target].content += more
            elif kind == "create":
                assert isinstance(target, str)
                assert isinstance(more, int)
                self._create(target, more)
            elif kind == "rename":
                assert isinstance(target, str)
                assert isinstance(more, str)
                self.rename(target, more)
            elif kind in ("mkdir", "rmdir", "unlink", "utime"):
                getattr(self, kind)(target)
        except OSError:
            pass
        self.changes.clear()

    # -- paths -------------------------------------------------------------------------------------

    def _find(self, path: str) -> File | Folder:
        node: File | Folder = self.root
        for part in path.strip("/").split("/"):
            if not part:
                continue
            if not isinstance(node, Folder):
                raise NotADirectoryError(errno.ENOTDIR, "not a directory", path)
            if part not in node.entries:
                raise FileNotFoundError(errno.ENOENT, "not there", path)
            node = node.entries[part]
        return node

    def _parent(self, path: str) -> tuple[Folder, str]:
        above, _, name = path.rstrip("/").rpartition("/")
        folder = self._find(above)
        if not isinstance(folder, Folder):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", path)
        return folder, name

    def _create(self, path: str, number: int) -> File:
        folder, name = self._parent(path)
        file = folder.entries[name] = self.files[number] = File(number)
        file.changed = self.now
        return file

    # -- the functions of `os` ---------------------------------------------------------------------

    def open(self, path: str, flags: int, mode: int = 0o777, /) -> int:
        try:
            node = self._find(path)
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
            number = len(self.files) + 1
            node = self._create(path, number)
            self.changes.append(Change("create", path, number))
        else:
            if flags & os.O_EXCL:
                raise FileExistsError(errno.EEXIST, "exists", path)
        self._next += 1
        self._open[self._next] = path if isinstance(node, Folder) else node
        return self._next

    def _file(self, descriptor: int) -> File:
        file = self._open.get(descriptor)
        if not isinstance(file, File):
            raise OSError(errno.EBADF, "no such file is open")
        return file

    def pread(self, descriptor: int, count: int, position: int, /) -> bytes:
        return self._file(descriptor).content[position : position + count]

    def write(self, descriptor: int, data: bytes, /) -> int:
        file = self._file(descriptor)
        file.content += data
        file.changed = self.now
        self.changes.append(Change("write", file.number, data))
        return len(data)

    def close(self, descriptor: int, /) -> None:
        if descriptor not in self._open:
            raise OSError(errno.EBADF, "not open")
        del self._open[descriptor]

    def fstat(self, descriptor: int, /) -> os.stat_result:
        return self._stat(self._file(descriptor))

    def lstat(self, path: str, /) -> os.stat_result:
        return self._stat(self._find(path))

    @staticmethod
    def _stat(node: File | Folder) -> os.stat_result:
        changed = int(node.changed)
        user = os.geteuid()
        if isinstance(node, Folder):
            return os.stat_result(
                (stat.S_IFDIR | 0o700, 0, 1, 2, user, 0, 0, changed, changed, changed)
            )
        size = len(node.content)
        mode = stat.S_IFREG | 0o600
        return os.stat_result(
            (mode, node.number, 1, node.links, user, 0, size, changed, changed, changed)
        )

    def fsync(self, descriptor: int, /) -> None:
        path = self._open[descriptor]
        assert isinstance(path, str)
        self.changes.append(Change("sync directory", path))

    def fdatasync(self, descriptor: int, /) -> None:
        self.changes.append(Change("sync", self._file(descriptor).number))

    def listdir(self, path: str, /) -> list[str]:
        folder = self._find(path)
        if not isinstance(folder, Folder):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", path)
        return list(folder.entries)

    def mkdir(self, path: str, mode: int = 0o777, /) -> None:
        folder, name = self._parent(path)
        if name in folder.entries:
            raise FileExistsError(errno.EEXIST, "exists", path)
        made = folder.entries[name] = Folder()
        made.changed = self.now
        self.changes.append(Change("mkdir", path))

    def rmdir(self, path: str, /) -> None:
        folder = self._find(path)
        if not isinstance(folder, Folder):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", path)
        if folder.entries:
            raise OSError(errno.ENOTEMPTY, "not empty", path)
        above, name = self._parent(path)
        del above.entries[name]
        self.changes.append(Change("rmdir", path))

    def rename(self, source: str, target: str, /) -> None:
        node = self._find(source)
        above, name = self._parent(source)
        new_above, new_name = self._parent(target)
        there = new_above.entries.get(new_name)
        if isinstance(node, Folder) and isinstance(there, Folder) and there.entries:
            raise OSError(errno.ENOTEMPTY, "not empty", target)
        del above.entries[name]
        new_above.entries[new_name] = node
        self.changes.append(Change("rename", source, target))

    def unlink(self, path: str, /) -> None:
        node = self._find(path)
        if isinstance(node, Folder):
            raise IsADirectoryError(errno.EISDIR, "a directory", path)
        above, name = self._parent(path)
        del above.entries[name]
        node.links -= 1
        self.changes.append(Change("unlink", path))

    def utime(self, path: str, /) -> None:
        self._find(path).changed = self.now
        self.changes.append(Change("utime", path))

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


class Node:
    """A file, with its *number*; or a directory, which has none."""

    def __init__(self, number: int, changed: float) -> None:
        self.number, self.changed = number, changed
        self.content, self.links = b"", 1


def above(path: str) -> str:
    return path.rpartition("/")[0]


class MemoryDisk:
    """Starts with an empty root. *now*: its time, which a test may set."""

    def __init__(self) -> None:
        self.nodes = {"": Node(0, 0.0)}  # by path, each before those in it
        self.files: dict[int, Node] = {}
        self.changes: list[Change] = []
        self.now = 1_000_000.0
        self._open: dict[int, Node | str] = {}
        self._next = 100

    # -- repeating ---------------------------------------------------------------------------------

    def clone(self) -> MemoryDisk:
        """The same content, in a disk of its own; nothing is open."""
        other = MemoryDisk()
        other.now = self.now
        for path, node in self.nodes.items():
            copy = other.nodes[path] = Node(node.number, node.changed)
            copy.content = node.content
            if node.number:
                other.files[node.number] = copy
        return other

    def repeat(self, change: Change) -> None:
        """Make a change that another disk recorded. One that is impossible here is left out."""
        kind, target, more = change
        try:
            if kind == "write" and target in self.files:
                self.files[target].content += more  # type: ignore[operator]
            elif kind == "create":
                self._add(str(target), int(more))
            elif kind == "rename":
                self.rename(str(target), str(more))
            elif kind in ("mkdir", "rmdir", "unlink", "utime"):
                getattr(self, kind)(target)
        except OSError:
            pass
        self.changes.clear()

    # -- paths -------------------------------------------------------------------------------------

    def _find(self, path: str, *, folder: bool = False) -> Node:
        node = self.nodes.get(path.rstrip("/"))
        if node is None:
            if path and self._find(above(path.rstrip("/"))).number:
                raise NotADirectoryError(errno.ENOTDIR, "not a directory", path)
            raise FileNotFoundError(errno.ENOENT, "not there", path)
        if folder and node.number:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", path)
        return node

    def _inside(self, path: str) -> list[str]:
        return [one for one in self.nodes if one and above(one) == path.rstrip("/")]

    def _add(self, path: str, number: int) -> Node:
        self._find(above(path), folder=True)
        node = self.nodes[path] = Node(number, self.now)
        if number:
            self.files[number] = node
        return node

    # -- the functions of `os` ---------------------------------------------------------------------

    def open(self, path: str, flags: int, mode: int = 0o777, /) -> int:
        try:
            node = self._find(path)
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
            node = self._add(path, len(self.files) + 1)
            self.changes.append(Change("create", path, node.number))
        else:
            if flags & os.O_EXCL:
                raise FileExistsError(errno.EEXIST, "exists", path)
        self._next += 1
        self._open[self._next] = node if node.number else path
        return self._next

    def _file(self, descriptor: int) -> Node:
        file = self._open.get(descriptor)
        if not isinstance(file, Node):
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
        if self._open.pop(descriptor, None) is None:
            raise OSError(errno.EBADF, "not open")

    def fstat(self, descriptor: int, /) -> os.stat_result:
        file = self._open.get(descriptor)
        return self._stat(self._find(file) if isinstance(file, str) else self._file(descriptor))

    def lstat(self, path: str, /) -> os.stat_result:
        return self._stat(self._find(path))

    @staticmethod
    def _stat(node: Node) -> os.stat_result:
        mode = stat.S_IFREG | 0o600 if node.number else stat.S_IFDIR | 0o700
        times = (int(node.changed),) * 3
        size = len(node.content)
        return os.stat_result((mode, node.number, 1, node.links, os.geteuid(), 0, size, *times))

    def fsync(self, descriptor: int, /) -> None:
        self.changes.append(Change("sync directory", str(self._open[descriptor])))

    def fdatasync(self, descriptor: int, /) -> None:
        self.changes.append(Change("sync", self._file(descriptor).number))

    def listdir(self, path: str, /) -> list[str]:
        self._find(path, folder=True)
        return [one.rpartition("/")[2] for one in self._inside(path)]

    def mkdir(self, path: str, mode: int = 0o777, /) -> None:
        if path in self.nodes:
            raise FileExistsError(errno.EEXIST, "exists", path)
        self._add(path, 0)
        self.changes.append(Change("mkdir", path))

    def rmdir(self, path: str, /) -> None:
        self._find(path, folder=True)
        if self._inside(path):
            raise OSError(errno.ENOTEMPTY, "not empty", path)
        del self.nodes[path]
        self.changes.append(Change("rmdir", path))

    def rename(self, source: str, target: str, /) -> None:
        self._find(source)
        self._find(above(target), folder=True)
        if self._inside(target):
            raise OSError(errno.ENOTEMPTY, "not empty", target)
        for path in [one for one in self.nodes if f"{one}/".startswith(f"{source}/")]:
            self.nodes[target + path.removeprefix(source)] = self.nodes.pop(path)
        self.changes.append(Change("rename", source, target))

    def unlink(self, path: str, /) -> None:
        node = self._find(path)
        if not node.number:
            raise IsADirectoryError(errno.EISDIR, "a directory", path)
        del self.nodes[path]
        node.links -= 1
        self.changes.append(Change("unlink", path))

    def utime(self, path: str, /) -> None:
        self._find(path).changed = self.now
        self.changes.append(Change("utime", path))

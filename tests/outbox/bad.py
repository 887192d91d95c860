"""Bad things in the directory of an outbox, one of each kind."""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.left import (
    BEGINNING,
    EVENT,
    REJECTED,
    SETTLED,
    body,
    leave,
    make_outbox,
    record,
    segment,
    write,
)

#: A number that no process may deliver: it is in a file outside of the outbox.
SECRET = 999_999

Make = Callable[[Path], object]


def nothing(path: Path) -> None:
    """No bad thing: what is tested works without one."""


def a_link_to_a_file(path: Path) -> None:
    outside = path.parents[4] / "outside"
    write(outside, segment([SECRET]))
    path.symlink_to(outside)


def a_dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "missing")


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def a_directory(path: Path) -> None:
    path.mkdir(mode=0o700)
    write(path / "in-it", b"something")


def a_fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def a_socket(path: Path) -> None:
    # Bound by a short name: an address may have about a hundred bytes.
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.getcwd()
        os.chdir(path.parent)
        try:
            bound.bind(path.name)
        finally:
            os.chdir(here)


def unreadable(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read each file")
    write(path, segment([SECRET]))
    path.chmod(0)


def zero_bytes(path: Path) -> None:
    write(path, b"")


def garbage(path: Path) -> None:
    write(path, random.Random(1).randbytes(1024 * 1024))


def a_huge_file(path: Path) -> None:
    write(path, segment([SECRET]))
    os.truncate(path, 2**40)


def only_the_beginning(path: Path) -> None:
    write(path, BEGINNING)


def half_of_the_beginning(path: Path) -> None:
    write(path, BEGINNING[:4])


def half_of_a_head(path: Path) -> None:
    write(path, BEGINNING + record(EVENT, 1, body(SECRET), time.time())[:17])


def a_huge_length(path: Path) -> None:
    write(path, BEGINNING + record(EVENT, 1, b"{}", time.time(), length=0xFFFFFFFF))


#: No files, or none with content.
_ANYWHERE = [a_dangling_link, a_link_to_itself, a_directory, a_fifo, a_socket, zero_bytes, garbage]

#: In place of a segment. None of them has an event that is to be delivered.
SEGMENTS = [
    *_ANYWHERE, nothing, a_link_to_a_file, unreadable, a_huge_file, only_the_beginning,
    half_of_the_beginning, half_of_a_head, a_huge_length,
]  # fmt: skip


def half_a_list_of_numbers(path: Path) -> None:
    write(path, record(SETTLED, 5, b"\1\2\3", time.time()))


#: In place of the file that says which events of a segment are settled.
NOTES = [*_ANYWHERE, half_a_list_of_numbers]


def a_list(path: Path) -> None:
    write(path, b"[1, 2]")


def wrong_types(path: Path) -> None:
    mark = {"pid": "x", "start": 1, "boot": None, "namespace": [], "host": {}, "lease": "never"}
    write(path, json.dumps(mark).encode())


def huge_numbers(path: Path) -> None:
    mark = {
        "pid": 10**30, "start": "1", "boot": "b", "namespace": "n", "host": "h", "lease": 1e300,
    }  # fmt: skip
    write(path, json.dumps(mark).encode())


def deep(path: Path) -> None:
    write(path, b"[" * 4000)


#: In place of the mark of an owner.
MARKS = [*_ANYWHERE, a_list, wrong_types, huge_numbers, deep]

#: In place of a left directory.
DIRECTORIES = [what for what in _ANYWHERE if what is not a_directory]


def truncated_json(path: Path) -> None:
    write(path, record(REJECTED, 1, b'{"status": 422, "reas', time.time()))


def json_of_another_kind(path: Path) -> None:
    contents = b"[]", b"{}", b"7", b'{"status": []}'
    write(path, b"".join(record(REJECTED, 1, content, time.time()) for content in contents))


#: In place of a file of rejected events.
REFUSED = [*_ANYWHERE, truncated_json, json_of_another_kind]


def bad_segment(outbox: Path, make: Make) -> None:
    make(_directory(outbox) / "0000000001.events")


def bad_segment_beside_a_good_one(outbox: Path, make: Make) -> None:
    [path] = leave(outbox, 1, events=3, first=30)
    (path / "0000000001.events").rename(path / "0000000002.events")
    make(path / "0000000001.events")


def bad_note(outbox: Path, make: Make) -> None:
    [path] = leave(outbox, 1, events=3, first=30)
    make(path / "0000000001.settled")


def bad_mark(outbox: Path, make: Make) -> None:
    owner = os.urandom(16).hex()
    leave(outbox, 1, events=3, first=30, owner=owner)
    make(outbox / "v1" / "owners" / owner)


def bad_directory(outbox: Path, make: Make) -> None:
    make(outbox / "v1" / "events" / f"{os.urandom(16).hex()}.unclaimed")


def bad_refusal(outbox: Path, make: Make) -> None:
    make(outbox / "v1" / "rejected" / f"{time.time_ns():020d}-00000000")


def _directory(outbox: Path) -> Path:
    make_outbox(outbox)
    path = outbox / "v1" / "events" / f"{os.urandom(16).hex()}.unclaimed"
    path.mkdir(mode=0o700)
    return path


class Kind:
    """A bad thing: where it is, and what."""

    def __init__(self, where: Callable[[Path, Make], None], what: Make) -> None:
        self.where = where
        self.what = what

    def __str__(self) -> str:
        where = self.where.__name__.removeprefix("bad_")
        return f"{where}: {getattr(self.what, '__name__', '')}"

    def put(self, outbox: Path) -> None:
        """Put it into *outbox*."""
        self.where(outbox, self.what)


KINDS = [
    *(Kind(bad_segment, what) for what in SEGMENTS),
    *(Kind(bad_segment_beside_a_good_one, what) for what in SEGMENTS),
    *(Kind(bad_note, what) for what in NOTES),
    *(Kind(bad_mark, what) for what in MARKS),
    *(Kind(bad_directory, what) for what in DIRECTORIES),
    *(Kind(bad_refusal, what) for what in REFUSED),
]

#: Those that have a good segment in the same directory, which any process may take over.
BESIDE = [kind for kind in KINDS if kind.where in (bad_segment_beside_a_good_one, bad_note)]

#: One of each that differs for a command line, which is slower to try.
FEW = [
    kind for kind in KINDS if kind.what in (nothing, a_directory, a_fifo, a_link_to_itself, garbage)
]

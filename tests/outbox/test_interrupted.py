"""Calls that a signal handler interrupts: it records, raises, releases or forks, at any place.

The handler is a hook of the disk: it runs within a call of `os`, on the thread of the caller.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.outbox.conftest import (
    Held,
    Hooked,
    Interrupted,
    InThread,
    Lines,
    Make,
    files,
    found,
    inside,
    interrupt,
)
from tests.outbox.life import body
from tests.support.clock import Clock


def descriptors(place: Path) -> list[str]:
    """The files below *place* that are open here."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return sorted(path for path in found if str(place) in path)


# -- events ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["fstat", "write"])
def test_events_that_a_handler_records_within_a_call_are_stored(
    name: str, after: bool, make: Make, log: Lines
) -> None:
    disk = Hooked(name, after=after)
    life = make(disk, segment_size=100)
    life.append(0)
    disk.handler = lambda: [life.append(event) for event in range(1, 20)]
    life.append(20)
    assert sorted(life.stored) == [*range(21)]
    assert log.lines == []
    assert found(make, life) == [*range(21)]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["mkdir", "open", "write", "fstat", "lstat"])
def test_events_that_a_handler_records_within_the_first_call_are_in_one_directory(
    name: str, after: bool, make: Make, place: Path, log: Lines
) -> None:
    disk = Hooked(name, after=after)
    life = make(disk)
    disk.handler = lambda: life.append(1)
    life.append(0)
    assert sorted(life.stored) == [0, 1]
    assert log.lines == []
    assert len(inside(place, "owners")) == len(inside(place, "events")) == 1
    assert found(make, life) == [0, 1]


@pytest.mark.parametrize("spill", [False, True])
def test_handler_that_begins_a_file_within_the_beginning_of_one_leaves_no_other(
    spill: bool, make: Make, place: Path
) -> None:
    disk = Hooked("open", part=".events", after=True)
    life = make(disk, segment_size=30)
    life.append(0)
    disk.handler = lambda: life.append(1, spill=spill)
    life.append(2, spill=spill)
    assert len(files(place)) == 3
    assert found(make, life) == [0, 1, 2]


@pytest.mark.parametrize("spill", [False, True])
def test_event_of_a_call_that_was_interrupted_after_its_write_is_found_by_others(
    spill: bool, make: Make
) -> None:
    disk = Hooked("write", after=True)
    life = make(disk)
    life.append(1)
    life.append(2, spill=True)
    disk.handler = interrupt
    with pytest.raises(Interrupted):
        life.append(3, spill=spill)
    life.append(4)
    assert life.load() == [2]
    assert found(make, life) == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["fstat", "write"])
def test_call_that_was_interrupted_before_its_write_leaves_nothing(name: str, make: Make) -> None:
    disk = Hooked(name)
    life = make(disk)
    life.append(1)
    disk.handler = interrupt
    with pytest.raises(Interrupted):
        life.append(2)
    life.settle(1)
    life.release()
    assert found(make) == []


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("name", "skip"),
    [
        ("mkdir", 0), ("open", 0), ("fstat", 0), ("write", 0), ("lstat", 0), ("close", 0),
        ("fstat", 1), ("open", 1), ("fstat", 2), ("write", 1),  # the mark, then the file of events
    ],
)  # fmt: skip
def test_interrupted_beginning_leaves_no_directory_mark_or_descriptor_for_long(
    name: str, skip: int, after: bool, make: Make, place: Path
) -> None:
    life = make(Hooked(name, interrupt, after=after, skip=skip))
    with contextlib.suppress(Interrupted):
        life.append(1)
    life.append(2)
    life.settle(2)
    life.claim_all()
    life.release()
    two = make()
    two.append(3)
    two.settle(3)
    two.claim_all()
    two.release()
    assert inside(place, "events", "owners") == []
    if (name, after) not in (("open", True), ("close", False)):  # these lose the number itself
        assert descriptors(place) == []


@pytest.mark.parametrize("name", ["write", "open"])
def test_interrupted_beginning_of_a_file_leaves_neither_file_nor_descriptor(
    name: str, make: Make, place: Path
) -> None:
    disk = Hooked(name, part=".events" if name == "open" else "")
    life = make(disk, segment_size=1)
    life.append(1)
    before = descriptors(place)
    disk.handler = interrupt
    with pytest.raises(Interrupted):
        life.append(2)
    assert len(files(place)) == 1
    assert descriptors(place) == before


def test_interrupted_look_at_a_new_file_leaves_no_descriptor(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = make(segment_size=1)
    life.append(1)
    before = descriptors(place)
    monkeypatch.setattr(os, "lstat", lambda _path: interrupt())
    with pytest.raises(Interrupted):
        life.append(2)
    monkeypatch.undo()
    assert descriptors(place) == before


@pytest.mark.parametrize("after", [False, True])
def test_note_that_was_interrupted_is_written_with_the_next_try(after: bool, make: Make) -> None:
    disk = Hooked("write", after=after)
    life = make(disk)
    life.record(1, 2)
    disk.handler = interrupt
    with pytest.raises(Interrupted):
        life.journal.settled(*life.stored[1][:2])
    life.settle(1)
    assert found(make, life) == [2]


@pytest.mark.parametrize("name", ["open", "pread", "close"])
def test_load_that_was_interrupted_reads_the_same_again(name: str, make: Make) -> None:
    disk = Hooked(name)
    life = make(disk)
    life.record(*range(5), spill=True)
    disk.handler = interrupt
    with pytest.raises(Interrupted):
        life.load(3)
    assert life.load(3) == [0, 1, 2]
    assert life.load(3) == [3, 4]


def test_load_within_a_load_finds_nothing_to_read_now(make: Make) -> None:
    disk = Hooked("pread")
    life = make(disk)
    life.append(1, spill=True)
    inside: list[object] = []
    disk.handler = lambda: inside.append(life.journal.load(10, 1000))
    assert life.load() == [1]
    assert inside == [None]


def test_claim_within_a_claim_takes_over_nothing(make: Make) -> None:
    disk = Hooked("rename")
    one, life = make(), make(disk)
    one.append(1)
    one.die()
    inside: list[object] = []
    disk.handler = lambda: inside.append(life.journal.claim(10))
    assert life.claim() == 1
    assert inside == [()]


def test_maintenance_within_maintenance_is_the_outer_one_s(make: Make, place: Path) -> None:
    disk = Hooked("unlink")
    life = make(disk, segment_size=30)
    life.record(*range(4))
    for event in range(4):
        life.settle(event)
    disk.handler = life.maintain
    life.maintain()
    assert len(files(place)) == 1
    assert life.lost == []


# -- ends of other threads -------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("name", ["open", "fstat", "write"])
def test_event_that_is_recorded_while_another_thread_releases_is_on_the_disk(
    name: str, times: int, make: Make, log: Lines
) -> None:
    # Releasing waits for threads that write, so within a write it must not happen on this thread.
    disk = Hooked(name, times=times, part="" if name == "open" else "nowhere")
    life = make(disk, segment_size=1)
    life.append(1)
    life.settle(1)
    disk.handler = life.release
    life.append(2)
    assert log.lines == []
    assert found(make, life) == [2]


@pytest.mark.parametrize("name", ["utime", "lstat", "listdir"])
def test_claim_that_another_thread_s_release_comes_into_refuses_no_disk(
    name: str, make: Make, log: Lines
) -> None:
    disk = Hooked(name)
    life = make(disk)
    life.append(1)
    life.settle(1)
    disk.handler = life.release
    assert life.claim() == 0
    assert log.lines == []
    life.append(2)
    assert found(make, life) == [2]


def test_release_waits_for_a_thread_that_is_writing_and_hands_over_its_event(
    make: Make, in_thread: InThread
) -> None:
    disk = Held(2)
    life = make(disk)
    life.append(1)
    writing = in_thread(life.append, 2)
    assert disk.inside.wait(10)
    releasing = in_thread(life.release)
    assert not disk.moved.wait(0.2)  # without the wait it takes a millisecond
    later = life.append(3)
    disk.go_on.set()
    releasing.result(10)
    assert writing.result(10).file is life.stored[1].file
    assert later.file.origin != life.stored[1].file.origin
    assert found(make) == [1, 2]


def test_release_does_not_wait_for_ever_and_a_late_event_is_found_by_others(
    make: Make, in_thread: InThread, clock: Clock, place: Path
) -> None:
    disk = Held(2)
    life = make(disk)
    life.append(1)
    writing = in_thread(life.append, 2)
    assert disk.inside.wait(10)
    life.release()
    two = make()
    assert two.claim_all() == 1
    disk.go_on.set()
    assert writing.result(10).file.lost == "handed_over"
    assert two.load_all() == [1]
    two.settle(1)
    two.maintain()
    clock.now += 20
    two.maintain()
    assert two.claim_all() == 1
    assert two.load_all() == [2]
    two.settle(2)
    two.maintain()
    two.release()
    assert descriptors(place) == []


# -- forks -----------------------------------------------------------------------------------------


class Forking:
    """A handler that forks once; both processes return from it. *first*: who does so first."""

    def __init__(self, first: str) -> None:
        self._first = first
        self._parents = os.getpid()
        self._read, self._write = os.pipe()
        self._child = self._status = 0

    def __call__(self) -> None:
        self._child = os.fork()
        if self._child == 0 and self._first == "parent":
            os.read(self._read, 1)
        elif self._child and self._first == "child":
            self._status = os.waitpid(self._child, 0)[1]

    def end(self, *, well: bool) -> None:
        """End the child, with this status; in the parent, wait for that."""
        if os.getpid() != self._parents:
            os._exit(0 if well else 1)
        os.write(self._write, b".")
        if self._child and self._first == "parent":
            self._status = os.waitpid(self._child, 0)[1]
        os.close(self._read)
        os.close(self._write)
        assert self._status == 0


@pytest.mark.parametrize("who", ["child", "parent"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("first", "name", "skip"),
    [
        *itertools.product(
            [True, False], ["open", "fstat", "write", "lstat", "mkdir", "close"], [0]
        ),
        (True, "fstat", 2),  # of the file of events, after two of the mark
    ],
)
def test_child_that_returns_from_a_handler_stores_nothing_and_leaves_its_parents_files(
    first: bool, name: str, skip: int, after: bool, who: str, make: Make, log: Lines, place: Path
) -> None:
    disk = Hooked(name, after=after, skip=skip)
    life = make(disk, segment_size=1)  # a new file for each event
    if not first:
        life.append(0)
    disk.handler = forking = Forking(who)
    stored = None
    try:
        stored = life.journal.append(body(1), spill=False)
    finally:
        forking.end(well=sys.exc_info()[0] is None and stored is None)
    assert stored is not None
    disk.handler = None
    life.append(2)
    assert log.lines == []
    accepted = [1, 2] if first else [0, 1, 2]
    assert sum(file.read_bytes().count(b'"n"') for file in files(place)) == len(accepted)
    if not (first and not skip and name in ("open", "fstat", "write")):  # else both wrote a mark
        assert found(make, life) == accepted


# -- descriptors -----------------------------------------------------------------------------------


def test_threads_that_open_a_closed_file_again_together_leave_no_descriptor(
    make: Make, place: Path, in_thread: InThread
) -> None:
    both = threading.Barrier(2, timeout=10)
    disk = Hooked("open", times=2)
    life = make(disk)
    life.append(1)
    os.close(life.number(1))
    disk.handler = both.wait
    events = [in_thread(life.journal.append, body(event), spill=False) for event in (2, 3)]
    assert None not in [event.result(10) for event in events]
    life.release()
    assert descriptors(place) == []
    assert found(make) == [1, 2, 3]


@pytest.mark.parametrize("other", ["none", "another file", "a new directory"])
def test_file_that_is_gone_when_its_descriptor_is_too_is_followed_by_another_one(
    other: str, make: Make, place: Path
) -> None:
    life = make()
    first = life.append(1)
    os.close(life.number(1))
    [path] = files(place)
    path.rename(place / "aside")
    if other == "another file":
        path.touch()
    elif other == "a new directory":
        path.parent.rmdir()
    second = life.append(2)
    assert first.file is not second.file
    assert not path.exists() or path.read_bytes() == b""
    assert first.file.lost == ""


def under(number: int, descriptor: int) -> int:
    """What other code has open, under this number."""
    os.dup2(descriptor, number)
    os.close(descriptor)
    return number


def test_number_by_which_other_code_reads_the_same_file_is_neither_written_nor_closed(
    make: Make, place: Path
) -> None:
    life = make()
    life.append(1)
    number = life.number(1)
    os.close(number)
    reader = under(number, os.open(files(place)[0], os.O_RDONLY))
    life.append(2)
    life.release()
    assert os.read(reader, 8) == b"valued1\n"
    os.close(reader)
    assert found(make) == [1, 2]


@pytest.mark.parametrize("goes_on", [True, False])
@pytest.mark.parametrize("kind", ["nothing", "file", "pipe", "socket"])
def test_number_that_other_code_uses_by_now_is_neither_written_nor_closed(
    kind: str, goes_on: bool, make: Make, tmp_path: Path, place: Path
) -> None:
    life = make()
    life.append(1)
    number = life.number(1)
    os.close(number)
    openings: dict[str, Callable[[], list[int]]] = {
        "nothing": list,
        "file": lambda: [os.open(tmp_path / "other", os.O_RDWR | os.O_APPEND | os.O_CREAT)],
        "pipe": lambda: [*os.pipe()],
        "socket": lambda: [one.detach() for one in socket.socketpair()],
    }
    ends = openings[kind]()
    if ends:
        ends[0] = under(number, ends[0])
    if goes_on:
        life.append(2)
    assert len(files(place)) == 1
    life.release()
    assert kind != "file" or os.fstat(number).st_size == 0
    for end in ends:
        os.close(end)  # it is open
    assert found(make) == ([1, 2] if goes_on else [1])

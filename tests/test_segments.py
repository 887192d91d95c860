"""Segments: appended to by one process whatever became of its descriptors, and read in pieces."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Child
from valued._outbox import descriptors as _descriptors
from valued._outbox import records as _records
from valued._outbox import segment as _segments
from valued._outbox.descriptors import Descriptor
from valued._outbox.records import EVENT
from valued._outbox.segment import Backlog, Holding, RobbedError, Segment

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no outbox on Windows")


@pytest.fixture(params=["by place", "held", "by inode"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Linux, where others want to run and where they don't, and as elsewhere."""
    if request.param == "by inode":
        monkeypatch.setattr(_descriptors, "APPENDS_ANYWHERE", False)
    elif not _descriptors.APPENDS_ANYWHERE:
        pytest.skip("only Linux appends anywhere")
    # How fast the machine is decides nothing: any two writes are long, or none is.
    monkeypatch.setattr(_descriptors, "LONG", -1 if request.param == "held" else 10)
    monkeypatch.setattr(_descriptors, "TWICE", 10)
    monkeypatch.setattr(_descriptors, "SLOW", 10)


@pytest.fixture
def holding(tmp_path: Path) -> Holding:
    return Holding(str(tmp_path), "origin", None)


@pytest.fixture
def segment(holding: Holding, how: None) -> Iterator[Segment]:
    segment = Segment(holding, "0000000001")
    segment.create(_descriptors.holding_calls())
    yield segment
    segment.close()


def event(number: int, body: bytes = b"{}") -> bytes:
    return _records.encode(EVENT, number, 1e9, body)


def file(holding: Holding, ending: str = ".events") -> Path:
    return Path(holding.path, "0000000001" + ending)


def again(holding: Holding) -> Segment:
    [found] = _segments.segments_in(holding, Backlog())
    return found


def loaded(segment: Segment) -> list[int]:
    return loaded_with_damage(segment)[0]


def loaded_with_damage(segment: Segment) -> tuple[list[int], int]:
    numbers: list[int] = []
    damaged = 0
    at_end = False
    while not at_end:
        records, at_end, _, skipped = segment.next(2, 1000)
        numbers += [record.number for record in records]
        damaged += skipped
    return numbers, damaged


def descriptor(segment: Segment) -> int:
    assert segment._descriptor is not None
    return segment._descriptor.number


def test_what_is_appended_is_read(segment: Segment, holding: Holding) -> None:
    for number in range(1, 6):
        segment.append(event(number))
    assert loaded(again(holding)) == [1, 2, 3, 4, 5]
    assert segment.length() == segment.size + len(_segments.BEGINNING)


def test_files_are_private_and_begin_as_the_documents_say(
    segment: Segment, holding: Holding
) -> None:
    segment.append(event(1))
    segment.record_settled([1])
    assert file(holding).read_bytes()[:12] == b"valued1\n\xabVR1"
    assert file(holding, ".settled").read_bytes()[:4] == b"\xabVR1"
    assert {path.stat().st_mode & 0o777 for path in Path(holding.path).iterdir()} == {0o600}


def test_settled_events_are_not_read_again(segment: Segment, holding: Holding) -> None:
    for number in range(1, 6):
        segment.append(event(number))
    segment.record_settled([1, 3])
    segment.record_settled([5])
    assert loaded(again(holding)) == [2, 4]


def test_what_is_damaged_among_the_notes_costs_that_note_alone(
    segment: Segment, holding: Holding
) -> None:
    for number in range(1, 4):
        segment.append(event(number))
    for number in range(1, 4):
        segment.record_settled([number])
    notes = bytearray(file(holding, ".settled").read_bytes())
    notes[len(notes) // 2] ^= 1
    file(holding, ".settled").write_bytes(notes)
    assert loaded(again(holding)) == [2]


def test_a_portion_is_bounded_by_events_and_by_bytes(segment: Segment, holding: Holding) -> None:
    for number in range(1, 6):
        segment.append(event(number, b"x" * 100))
    reader = again(holding)
    assert [len(reader.next(2, 10**6)[0]), len(reader.next(10, 150)[0])] == [2, 2]
    assert reader.load(10, 10**6).at_end is True


def test_reading_goes_on_behind_what_was_written_meanwhile(
    segment: Segment, holding: Holding
) -> None:
    segment.append(event(1))
    reader = again(holding)
    assert loaded(reader) == [1]
    whole = event(2)
    with file(holding).open("ab") as other:
        other.write(whole[:10])
        other.flush()
        assert loaded(reader) == []
        other.write(whole[10:])
    assert loaded_with_damage(reader) == ([2], 0)


def test_damage_is_counted_and_costs_what_it_hits(segment: Segment, holding: Holding) -> None:
    for number in (1, 2, 3):
        segment.append(event(number))
    content = bytearray(file(holding).read_bytes())
    content[8 + len(event(1)) + 20] ^= 1
    file(holding).write_bytes(content)
    reader = again(holding)
    assert loaded_with_damage(reader) == ([1, 3], 1)


def test_records_of_another_kind_are_passed_over(segment: Segment, holding: Holding) -> None:
    segment.append(_records.encode(99, 1, 0.0, b"?"))
    segment.append(event(2))
    assert loaded(again(holding)) == [2]


def test_a_file_that_is_gone_holds_nothing(holding: Holding) -> None:
    segment = Segment(holding, "gone")
    assert (loaded(segment), segment.length(), segment.count_unread()) == ([], 0, 0)
    segment.remove()


def test_what_was_not_read_is_counted(segment: Segment, holding: Holding) -> None:
    for number in range(1, 6):
        segment.append(event(number))
    reader = again(holding)
    reader.next(2, 1000)
    assert reader.count_unread() == 3


def test_removed_is_removed(segment: Segment, holding: Holding) -> None:
    segment.append(event(1))
    segment.record_settled([1])
    segment.remove()
    assert os.listdir(holding.path) == []


def test_a_descriptor_that_somebody_closed_is_opened_anew(
    segment: Segment, holding: Holding
) -> None:
    segment.append(event(1))
    os.close(descriptor(segment))
    segment.append(event(2))
    assert loaded(again(holding)) == [1, 2]


@pytest.mark.parametrize("kind", ["file", "log", "pipe", "socket"])
def test_a_number_that_is_a_strangers_now_is_neither_written_nor_closed(
    segment: Segment, holding: Holding, tmp_path: Path, kind: str
) -> None:
    segment.append(event(1))
    number = descriptor(segment)
    ends: tuple[Any, ...] = ()
    if kind == "pipe":
        ends = os.pipe()
        other = ends[1]
    elif kind == "socket":
        ends = socket.socketpair()
        other = ends[0].detach()
    else:
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if kind == "log" else 0)
        other = os.open(tmp_path / "stranger", flags)
    os.dup2(other, number)  # which closes what was there
    os.close(other)
    segment.append(event(2))
    assert descriptor(segment) != number
    assert loaded(again(holding)) == [1, 2]
    segment.close()
    os.fstat(number)  # is open
    if kind in ("file", "log"):
        assert (tmp_path / "stranger").read_bytes() == b""
    elif kind == "pipe":
        os.set_blocking(ends[0], False)
        with pytest.raises(BlockingIOError):
            os.read(ends[0], 1)
    else:
        ends[1].setblocking(False)
        with pytest.raises(BlockingIOError):
            ends[1].recv(1)
        ends[1].close()
    os.close(number)
    if kind == "pipe":
        os.close(ends[0])


def test_a_segment_that_was_closed_is_opened_anew(segment: Segment, holding: Holding) -> None:
    segment.close()
    segment.append(event(1))
    assert loaded(again(holding)) == [1]


def test_threads_that_open_it_anew_together_leave_no_descriptor(
    segment: Segment, holding: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=10)

    class Meeting(Descriptor):
        def __init__(self, *args: Any) -> None:
            both.wait()
            super().__init__(*args)

    before = len(os.listdir("/dev/fd"))
    os.close(descriptor(segment))
    monkeypatch.setattr(_segments, "Descriptor", Meeting)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(segment.append, [event(1), event(2)]))
    segment.append(event(3))
    assert len(os.listdir("/dev/fd")) == before + 1
    segment.close()
    assert len(os.listdir("/dev/fd")) == before - 1
    assert sorted(loaded(again(holding))) == [1, 2, 3]


def test_the_descriptor_of_a_thread_that_opened_it_anew_first_is_closed_as_well(
    segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(os.listdir("/dev/fd"))
    number = descriptor(segment)
    os.close(number)
    real = Descriptor.append
    first = [event(2)]

    def append(descriptor: Descriptor, record: bytes) -> int:
        if first:  # as another thread does, between the failure here and what follows from it
            segment.append(first.pop())
            raise OSError(errno.EBADF, "it is closed")
        return real(descriptor, record)

    monkeypatch.setattr(Descriptor, "append", append)
    segment.append(event(1))
    segment.close()
    assert len(os.listdir("/dev/fd")) == before - 1


def test_what_others_write_meanwhile_counts_for_the_size(
    segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Descriptor.append
    others = [event(2)]

    def append(descriptor: Descriptor, record: bytes) -> int:
        written = real(descriptor, record)
        while others:
            segment.append(others.pop())
        return written

    monkeypatch.setattr(Descriptor, "append", append)
    segment.append(event(1))
    assert segment.length() == segment.size + len(_segments.BEGINNING)


def test_a_number_that_somebody_reads_the_same_file_by_now_is_not_closed(
    segment: Segment, holding: Holding
) -> None:
    number = descriptor(segment)
    os.close(number)
    reader = os.open(file(holding), os.O_RDONLY)
    assert reader == number
    segment.append(event(1))
    segment.close()
    assert os.read(reader, 8) == _segments.BEGINNING
    os.close(reader)
    assert loaded(again(holding)) == [1]


def test_a_file_that_was_taken_is_not_made_again(segment: Segment, holding: Holding) -> None:
    os.close(descriptor(segment))
    file(holding).unlink()
    with pytest.raises(RobbedError):
        segment.append(event(1))
    assert os.listdir(holding.path) == []


def test_another_file_in_its_place_is_not_written(segment: Segment, holding: Holding) -> None:
    os.close(descriptor(segment))
    file(holding).rename(file(holding, ".old"))
    file(holding).write_bytes(b"")
    with pytest.raises(RobbedError):
        segment.append(event(1))
    assert file(holding).read_bytes() == b""


def test_a_record_that_fits_in_part_is_an_error_and_costs_no_other(
    segment: Segment, holding: Holding, fork: Callable[..., Child]
) -> None:
    import resource

    def child() -> None:
        mine = Segment(Holding(holding.path, "origin", None), "0000000002")  # of this process
        mine.create(_descriptors.holding_calls())
        mine.append(event(1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (mine.length() + 20, resource.RLIM_INFINITY))
        with pytest.raises(OSError, match="No space") as caught:
            mine.append(event(2))
        assert caught.value.errno == errno.ENOSPC
        with pytest.raises(OSError, match="File too large"):
            mine.append(event(3))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        mine.append(event(4))

    assert fork(child).wait() == 0
    [reader] = [one for one in _segments.segments_in(holding, Backlog()) if one.length() > 8]
    assert loaded_with_damage(reader) == ([1, 4], 1)


def test_a_segment_that_can_not_be_begun_leaves_neither_file_nor_descriptor(
    holding: Holding, fork: Callable[..., Child]
) -> None:
    import resource

    def child() -> None:
        for size in (0, 4, 6):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            before = os.listdir("/dev/fd")
            with pytest.raises(OSError, match=r"File too large|No space left"):
                Segment(Holding(holding.path, "origin", None), "0000000003").create()
            assert os.listdir("/dev/fd") == before
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)

    assert fork(child).wait() == 0
    assert os.listdir(holding.path) == []


def test_a_segment_whose_making_an_exception_breaks_off_leaves_neither_file_nor_descriptor(
    holding: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limit(_descriptor: Descriptor, _record: bytes) -> int:
        raise KeyboardInterrupt

    before = os.listdir("/dev/fd")
    monkeypatch.setattr(Descriptor, "append", limit)
    with pytest.raises(KeyboardInterrupt):
        Segment(holding, "0000000001").create()
    assert os.listdir("/dev/fd") == before
    assert os.listdir(holding.path) == []


def test_a_file_system_that_appends_otherwise_is_refused(
    holding: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not _descriptors.APPENDS_ANYWHERE:
        pytest.skip("only Linux appends anywhere")
    real = os.pwrite

    def at_its_place(number: int, content: bytes, place: int) -> int:
        os.truncate(number, place)
        return real(number, content, place)

    monkeypatch.setattr(_descriptors, "_pwrite", at_its_place)
    with pytest.raises(OSError, match="can't append as Linux does"):
        Segment(holding, "0000000001").create()
    assert os.listdir(holding.path) == []


def test_a_child_closes_what_it_inherited_and_the_parent_goes_on(
    segment: Segment, holding: Holding, fork: Callable[..., Child]
) -> None:
    number = descriptor(segment)

    def child() -> None:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)

    assert fork(child).wait() == 0
    segment.append(event(1))
    assert loaded(again(holding)) == [1]


def test_what_is_synced_is_there(segment: Segment, holding: Holding) -> None:
    segment.append(event(1))
    segment.sync()
    _segments.sync_directory(holding.path)
    segment.close()
    segment.sync()
    assert loaded(again(holding)) == [1]


def test_a_directory_goes_with_what_a_crash_left_of_its_segments(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "1.settled").touch()
    (folder / "1.events").touch()
    _segments.remove_directory(str(folder))
    assert sorted(os.listdir(folder)) == ["1.events", "1.settled"]
    (folder / "1.events").unlink()
    (folder / "other").touch()
    _segments.remove_directory(str(folder))
    assert os.listdir(folder) == ["other"]
    (folder / "other").unlink()
    _segments.remove_directory(str(folder))
    _segments.remove_directory(str(folder))
    assert not folder.exists()


def test_who_only_looks_owns_nothing(holding: Holding) -> None:
    with pytest.raises(AssertionError):
        _ = holding.owner

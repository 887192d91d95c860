"""Records: what was written is read, whatever became of the bytes around it."""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valued._outbox import records as _records
from valued._outbox.records import Damage, Record

Open = Callable[[bytes], BinaryIO]


@pytest.fixture
def file(tmp_path: Path) -> Open:
    """A file with these bytes, open for reading."""

    def write(content: bytes) -> BinaryIO:
        (tmp_path / "records").write_bytes(content)
        return (tmp_path / "records").open("rb")

    return write


def some(count: int) -> list[bytes]:
    return [
        _records.encode(_records.EVENT, n, 1e9 + n, b'{"n":%d}' % n) for n in range(1, count + 1)
    ]


def numbers(file: IO[bytes], start: int = 0) -> list[int]:
    with file:
        return [found.number for found in _records.read(file, start) if isinstance(found, Record)]


def damages(file: IO[bytes]) -> list[Damage]:
    with file:
        return [found for found in _records.read(file) if isinstance(found, Damage)]


def test_what_was_written_is_read(file: Open) -> None:
    written = _records.encode(_records.EVENT, 7, 1.5, b'{"a":1}')
    with file(written) as opened:
        [record] = _records.read(opened)
    assert record == Record(_records.EVENT, 7, 1.5, b'{"a":1}', len(written))


def test_bytes_are_as_the_documents_say() -> None:
    written = _records.encode(1, 7, 1.5, b"{}")
    assert written[:4] == b"\xabVR1"
    assert written[8:] == struct.pack("<BIQd", 1, 2, 7, 1.5) + b"{}"
    assert struct.unpack("<I", written[4:8]) == (zlib.crc32(written[8:]),)


def test_settled_numbers_are_read(file: Open) -> None:
    with file(_records.encode_numbers([3, 1, 2**63], 5.0)) as opened:
        [record] = _records.read(opened)
    assert isinstance(record, Record)
    assert (record.kind, record.number) == (_records.SETTLED, 3)
    assert _records.decode_numbers(record) == (3, 1, 2**63)


def test_reading_goes_on_from_a_place(file: Open) -> None:
    written = some(3)
    assert numbers(file(b"".join(written)), len(written[0])) == [2, 3]


def test_reading_from_behind_the_end_finds_nothing(file: Open) -> None:
    with file(b"") as opened:
        assert list(_records.read(opened, 100)) == []


def test_cut_at_every_byte_each_whole_record_is_read_and_the_rest_is_reported(file: Open) -> None:
    written = some(3)
    whole = b"".join(written)
    ends = [len(b"".join(written[:n])) for n in range(4)]
    for cut in range(len(whole) + 1):
        complete = sum(end <= cut for end in ends) - 1
        assert numbers(file(whole[:cut])) == [1, 2, 3][:complete], cut
        torn = [] if cut in ends else [Damage(ends[complete], cut, torn=True)]
        assert damages(file(whole[:cut])) == torn, cut


def test_a_flip_of_every_byte_costs_the_record_that_it_is_in_and_no_other(file: Open) -> None:
    written = some(3)
    whole = b"".join(written)
    for at in range(len(whole)):
        for bit in (1, 0x80):
            flipped = bytearray(whole)
            flipped[at] ^= bit
            hit = at // len(written[0])
            left = [n for n in (1, 2, 3) if n != hit + 1]
            assert numbers(file(bytes(flipped))) == left, at
            [damage] = damages(file(bytes(flipped)))
            assert damage[:2] == (hit * len(written[0]), (hit + 1) * len(written[0])), at
            assert damage.torn is (hit == 2)


def test_a_length_that_is_damaged_reads_nothing_into_memory(file: Open) -> None:
    first, second = some(2)
    broken = first[:9] + b"\xff\xff\xff\xff" + first[13:]
    assert numbers(file(broken + second)) == [2]


def test_a_file_that_is_cut_while_it_is_read_ends_there(file: Open, tmp_path: Path) -> None:
    big = _records.encode(_records.EVENT, 1, 0.0, b" " * _records.CHUNK)
    with file(big * 3) as opened:
        reader = _records.read(opened)
        assert isinstance(next(reader), Record)
        os.truncate(tmp_path / "records", 0)
        assert isinstance(list(reader)[-1], Damage)


def test_a_record_larger_than_what_is_read_at_once_is_whole(file: Open) -> None:
    body = b"x" * (_records.CHUNK * 3 + 1)
    with file(some(1)[0] + _records.encode(_records.EVENT, 2, 0.0, body) + some(3)[2]) as opened:
        found = list(_records.read(opened))
    assert [record.number for record in found if isinstance(record, Record)] == [1, 2, 3]
    assert isinstance(found[1], Record)
    assert found[1].payload == body


def test_garbage_of_any_size_between_records_is_skipped(file: Open) -> None:
    first, second = some(2)
    for size in (1, 3, 4, _records.HEAD - 1, _records.HEAD, _records.CHUNK - 2, _records.CHUNK * 2):
        assert numbers(file(first + b"\x00" * size + second)) == [1, 2]
        assert damages(file(first + b"\x00" * size + second)) == [
            Damage(len(first), len(first) + size, torn=False)
        ]


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.one_of(st.binary(max_size=60), st.integers(1, 9)), max_size=12),
)
def test_whatever_lies_between_them_all_records_are_found(parts: list[bytes | int]) -> None:
    # What lies between may be the beginning of a record, but none that promises more than it holds
    # can swallow what follows: its checksum fails, and the search goes on inside of it.
    content = b"".join(part if isinstance(part, bytes) else some(part)[-1] for part in parts)
    written = [part for part in parts if isinstance(part, int)]

    with tempfile.TemporaryFile() as opened:
        opened.write(content)
        opened.flush()
        assert numbers(opened) == written

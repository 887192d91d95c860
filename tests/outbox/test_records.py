"""Records: what was written is read, whatever became of the bytes around it."""

from __future__ import annotations

import struct
import zlib

from hypothesis import given, settings
from hypothesis import strategies as st

from valued._outbox import records
from valued._outbox.records import Damage, Record


def some(count: int) -> list[bytes]:
    return [records.encode(records.EVENT, n, 1e9 + n, b'{"n":%d}' % n) for n in range(1, count + 1)]


def numbers(content: bytes) -> list[int]:
    return [found.number for found in records.scan(content) if isinstance(found, Record)]


def damages(content: bytes) -> list[Damage]:
    return [found for found in records.scan(content) if isinstance(found, Damage)]


def test_what_was_written_is_read() -> None:
    written = records.encode(records.EVENT, 7, 1.5, b'{"a":1}')
    assert [*records.scan(written)] == [Record(records.EVENT, 7, 1.5, b'{"a":1}', len(written))]


def test_bytes_are_as_the_documents_say() -> None:
    written = records.encode(1, 7, 1.5, b"{}")
    assert written[:4] == b"\xabVR1"
    assert written[8:] == struct.pack("<BIQd", 1, 2, 7, 1.5) + b"{}"
    assert struct.unpack("<I", written[4:8]) == (zlib.crc32(written[8:]),)


def test_settled_numbers_are_read() -> None:
    [record] = records.scan(records.encode_numbers([3, 1, 2**63], 5.0))
    assert isinstance(record, Record)
    assert (record.kind, record.number) == (records.SETTLED, 3)
    assert records.decode_numbers(record) == (3, 1, 2**63)


def test_places_are_those_in_the_file() -> None:
    first, second = some(2)
    found = [*records.scan(b"?" + second + b"?", base=len(first))]
    begin, end = len(first) + 1, len(first) + 1 + len(second)
    assert [found[0], found[2]] == [
        Damage(begin - 1, begin, torn=False), Damage(end, end + 1, torn=True),
    ]  # fmt: skip
    assert isinstance(found[1], Record)
    assert found[1].end == end


def test_cut_at_every_byte_each_whole_record_is_read_and_the_rest_is_reported() -> None:
    written = some(3)
    whole = b"".join(written)
    ends = [len(b"".join(written[:n])) for n in range(4)]
    for cut in range(len(whole) + 1):
        complete = sum(end <= cut for end in ends) - 1
        assert numbers(whole[:cut]) == [1, 2, 3][:complete], cut
        torn = [] if cut in ends else [Damage(ends[complete], cut, torn=True)]
        assert damages(whole[:cut]) == torn, cut


def test_a_flip_of_every_byte_costs_the_record_that_it_is_in_and_no_other() -> None:
    written = some(3)
    whole = b"".join(written)
    for at in range(len(whole)):
        for bit in (1, 0x80):
            flipped = bytearray(whole)
            flipped[at] ^= bit
            hit = at // len(written[0])
            left = [n for n in (1, 2, 3) if n != hit + 1]
            assert numbers(bytes(flipped)) == left, at
            [damage] = damages(bytes(flipped))
            assert damage[:2] == (hit * len(written[0]), (hit + 1) * len(written[0])), at
            assert damage.torn is (hit == 2)


def test_a_length_that_is_damaged_costs_its_record_only() -> None:
    first, second = some(2)
    assert numbers(first[:9] + b"\xff\xff\xff\xff" + first[13:] + second) == [2]


def test_garbage_of_any_size_between_records_is_skipped() -> None:
    first, second = some(2)
    for size in (1, 3, 4, records.HEAD - 1, records.HEAD, 100_000):
        assert numbers(first + b"\x00" * size + second) == [1, 2]
        assert damages(first + b"\x00" * size + second) == [
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

    assert numbers(content) == written

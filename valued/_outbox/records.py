r"""Records of an append-only file, and how to read what a crash left of it.

A record is a head of 29 bytes and a payload, all numbers little-endian:

======  =====  =====================================================================================
offset  bytes  what
======  =====  =====================================================================================
0       4      the marker ``AB 56 52 31``; its first byte is in no JSON that is written as ASCII
4       4      CRC-32 (as of zlib) of all that follows: bytes 8 to the end of the payload
8       1      kind: 1 an event, 2 settled events, 3 a rejected event
9       4      length of the payload
13      8      number: an event's own; of kind 2 how many follow
21      8      seconds since the epoch, a double: when the event was accepted, or the record written
29      …      payload: the event as JSON; of kind 2 numbers of 8 bytes each; of kind 3 JSON, too
======  =====  =====================================================================================

A record that was truncated or changed fails its checksum. The reader then looks for the next
marker, so that damage costs the records that it touches and no later ones.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

EVENT: Final = 1
SETTLED: Final = 2
REJECTED: Final = 3

MARKER: Final = b"\xabVR1"
_START: Final = struct.Struct("<4sI")  # marker, checksum
_REST: Final = struct.Struct("<BIQd")  # the part of the head that the checksum covers
HEAD: Final = _START.size + _REST.size

# Looked up once, since each event call uses it.
_pack_start: Final = _START.pack
_pack_rest: Final = _REST.pack
_crc32: Final = zlib.crc32


class Record(NamedTuple):
    """A record, and where it ends in its file."""

    kind: int
    number: int
    time: float
    payload: bytes
    end: int


class Damage(NamedTuple):
    """Bytes that are not a record. *torn*: nothing follows, as after an incomplete write."""

    start: int
    end: int
    torn: bool


def encode(kind: int, number: int, time: float, payload: bytes) -> bytes:
    """The bytes of one record."""
    rest = _pack_rest(kind, len(payload), number, time) + payload
    return _pack_start(MARKER, _crc32(rest)) + rest


def encode_numbers(numbers: Iterable[int], time: float) -> bytes:
    """A record that marks these events as settled."""
    listed = list(numbers)
    payload = struct.pack(f"<{len(listed)}Q", *listed)
    return encode(SETTLED, len(listed), time, payload)


def decode_numbers(record: Record) -> tuple[int, ...]:
    """The numbers of the events that *record* marks as settled."""
    count = len(record.payload) // 8
    return struct.unpack(f"<{count}Q", record.payload[: count * 8])


def scan(content: bytes, base: int = 0) -> Iterator[Record | Damage]:
    """The records in a part of a file that begins at byte *base*, and the damaged parts."""
    at, end = 0, len(content)
    bad: int | None = None  # where the damage began
    while at + HEAD <= end:
        record = _parse(content, at, base)
        if record is None:
            bad = at if bad is None else bad
            at = content.find(MARKER, at + 1)
            at = end if at < 0 else at
            continue
        if bad is not None:
            yield Damage(base + bad, base + at, torn=False)
            bad = None
        at = record.end - base
        yield record
    if bad is None and at < end:
        bad = at
    if bad is not None:
        yield Damage(base + bad, base + end, torn=True)


def _parse(content: bytes, at: int, base: int) -> Record | None:
    if not content.startswith(MARKER, at):
        return None
    _, checksum = _START.unpack_from(content, at)
    kind, length, number, time = _REST.unpack_from(content, at + _START.size)
    end = at + HEAD + length  # a damaged length may be any number
    covered = memoryview(content)[at + _START.size : end]
    if end > len(content) or zlib.crc32(covered) != checksum:
        return None
    return Record(kind, number, time, content[at + HEAD : end], base + end)

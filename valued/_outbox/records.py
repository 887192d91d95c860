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

import os
import struct
import zlib
from typing import IO, TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

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

#: How many bytes are read at a time.
CHUNK: Final = 256 * 1024


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


def read(file: IO[bytes], start: int = 0) -> Iterator[Record | Damage]:
    """`scan` an open file up to its present end."""

    def read_at(count: int, position: int) -> bytes:
        file.seek(position)
        return file.read(count)

    return scan(read_at, start, os.fstat(file.fileno()).st_size)


def scan(read_at: Callable[[int, int], bytes], start: int, end: int) -> Iterator[Record | Damage]:
    """The records of a file from byte *start* to *end*, one at a time, and the damaged parts.

    *read_at*: returns at most so many bytes from a position. Needs memory for one record and a
    chunk of 256 KiB. Raises what *read_at* raises, and nothing because of the content.
    """
    window = _Window(read_at, start, end)
    bad: int | None = None  # where the damage began
    while window.has(HEAD):
        record = _parse(window)
        if record is None:
            if bad is None:
                bad = window.position
            window.skip_to_marker()
            continue
        if bad is not None:
            yield Damage(bad, window.position, torn=False)
            bad = None
        window.skip(record.end - window.position)
        yield record
    end = window.end()
    if bad is None and window.position < end:
        bad = window.position
    if bad is not None:
        yield Damage(bad, end, torn=True)


def _parse(window: _Window) -> Record | None:
    head = window.peek(HEAD)
    if not head.startswith(MARKER):
        return None
    kind, length, number, time = _REST.unpack_from(head, _START.size)
    if not window.has(HEAD + length):
        return None
    whole = window.peek(HEAD + length)
    _, checksum = _START.unpack_from(whole)
    if zlib.crc32(memoryview(whole)[_START.size :]) != checksum:
        return None
    return Record(kind, number, time, whole[HEAD:], window.position + HEAD + length)


class _Window:
    """The part of a file that is in memory."""

    def __init__(self, read_at: Callable[[int, int], bytes], start: int, end: int) -> None:
        self._read_at = read_at
        self._bytes = b""
        self._at = 0  # how much of what is in memory was processed
        self.position = start  # the same, in the file
        self._next = start  # where the file goes on behind what is in memory
        self._left = max(0, end - start)  # in the file, not in memory

    def has(self, count: int) -> bool:
        """Whether there are *count* more bytes; if so, they are in memory afterwards."""
        missing = count - (len(self._bytes) - self._at)
        if missing > self._left:
            return False  # without reading: a damaged length may be any number
        while len(self._bytes) - self._at < count and self._left:
            more = self._read_at(min(self._left, max(CHUNK, missing)), self._next)
            self._next += len(more)
            self._left = self._left - len(more) if more else 0  # else truncated meanwhile
            self._bytes = self._bytes[self._at :] + more
            self._at = 0
        return len(self._bytes) - self._at >= count

    def peek(self, count: int) -> bytes:
        return self._bytes[self._at : self._at + count]

    def skip(self, count: int) -> None:
        self._at += count
        self.position += count

    def skip_to_marker(self) -> None:
        """Go on to the next marker in memory, or else past where none can begin."""
        found = self._bytes.find(MARKER, self._at + 1)
        if found < 0:
            found = max(self._at + 1, len(self._bytes) - len(MARKER) + 1)
        self.skip(found - self._at)

    def end(self) -> int:
        """The end of the file, as it was when reading began."""
        return self.position + len(self._bytes) - self._at + self._left

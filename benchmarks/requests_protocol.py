"""The reading half of a small HTTP server: what every server of the benchmarks is built on."""

from __future__ import annotations

import asyncio
import re
from typing import Final

NO_CONTENT: Final = b"HTTP/1.1 204 No Content\r\n\r\n"
_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


class Requests(asyncio.Protocol):
    """A connection that hands each of its requests to `request`, one after the other.

    While it is `busy` with one, those that came already wait, until `go_on` is called.
    """

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.busy = False
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while not self.busy:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            length = _LENGTH.search(head)
            size = int(length[1]) if length else 0
            if len(rest) < size:
                return
            self._buffer = rest[size:]
            self.request(head, rest[:size])

    def request(self, head: bytes, body: bytes) -> None:
        """Answer it, or be `busy`."""
        raise NotImplementedError

    def go_on(self) -> None:
        """Be busy no more."""
        self.busy = False
        self.data_received(b"")

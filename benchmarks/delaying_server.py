"""A server that answers 204 after a delay, which can be changed while it runs; asyncio, no more.

It runs in a process of its own and is told what to do by lines on its standard input, one answer, a
line of JSON, for each:

* ``delay SECONDS``: answers to requests that come from now on wait so long; 0: none waits.
* ``figures``: requests and connections so far, requests under way now, and, since this was asked
  last, the most that were under way at one time, and on how many connections any came.

It ends when its standard input does, so it never outlives the process that started it.
"""

from __future__ import annotations

import asyncio
import json
import sys

ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"


class Figures:
    """What one server has counted, and its delay in seconds."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.requests = 0
        self.connections = 0
        self.under_way = 0
        self.most_under_way = 0
        # Without a delay, what is under way is answered in the same instant: it can't be seen by
        # that how many ask at the same time, but by the connections that they ask on.
        self.in_use: set[int] = set()

    def as_dict(self) -> dict[str, int]:
        """The figures; those that count from the last call on start at zero again."""
        most, self.most_under_way = self.most_under_way, self.under_way
        in_use, self.in_use = self.in_use, set()
        return {
            "requests": self.requests,
            "connections": self.connections,
            "under_way": self.under_way,
            "most_under_way": most,
            "in_use": len(in_use),
        }


class Connection(asyncio.Protocol):
    """One connection: requests with a ``Content-Length``, one after the other."""

    transport: asyncio.Transport

    def __init__(self, figures: Figures) -> None:
        self.figures = figures
        self.buffer = b""
        self.waiting = False  # whether an answer is due; it is gone when the client breaks off

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.figures.connections += 1
        self.number = self.figures.connections

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while not self.waiting:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            self.buffer = self.buffer[end + 4 + length :]
            self.figures.under_way += 1
            self.figures.in_use.add(self.number)
            self.figures.most_under_way = max(self.figures.most_under_way, self.figures.under_way)
            self.waiting = True
            if self.figures.delay:
                asyncio.get_running_loop().call_later(self.figures.delay, self.answer)
                return
            self.answer()

    def answer(self) -> None:
        """Answer the request that waits, and look at the next one, if it is here already."""
        if not self.waiting:
            return
        self.waiting = False
        self.figures.under_way -= 1
        self.figures.requests += 1
        self.transport.write(ANSWER)
        if self.buffer:
            self.data_received(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        if self.waiting:
            self.waiting = False
            self.figures.under_way -= 1


async def serve(delay: float) -> None:
    """Serve, print the port, and obey, until the standard input ends."""
    loop = asyncio.get_running_loop()
    figures = Figures(delay)
    server = await loop.create_server(lambda: Connection(figures), "127.0.0.1", 0, backlog=128)
    print(server.sockets[0].getsockname()[1], flush=True)
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := (await lines.readline()).decode().split():
        if line[0] == "delay":
            figures.delay = float(line[1])
        print(json.dumps(figures.as_dict()), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1])))

"""A server that answers 204 after a delay, which can be changed while it runs.

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

from benchmarks.requests_protocol import NO_CONTENT, Requests


class Figures:
    """What one server has counted, and its delay in seconds."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.requests = 0
        self.connections = 0
        self.under_way = 0
        self.most_under_way = 0
        # Without a delay, what is under way is answered in the same instant: it can't be seen by
        # how many ask at the same time, but by the connections that they ask on.
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


class Connection(Requests):
    """One connection. It is busy while an answer is due."""

    def __init__(self, figures: Figures) -> None:
        super().__init__()
        self._figures = figures
        figures.connections += 1
        self._number = figures.connections

    def request(self, head: bytes, body: bytes) -> None:
        figures = self._figures
        figures.under_way += 1
        figures.in_use.add(self._number)
        figures.most_under_way = max(figures.most_under_way, figures.under_way)
        self.busy = True
        if figures.delay:
            asyncio.get_running_loop().call_later(figures.delay, self._answer)
        else:
            self._answer()

    def _answer(self) -> None:
        if not self.busy:
            return  # the client broke off
        self._figures.under_way -= 1
        self._figures.requests += 1
        self.transport.write(NO_CONTENT)
        self.go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.busy:
            self.busy = False
            self._figures.under_way -= 1


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

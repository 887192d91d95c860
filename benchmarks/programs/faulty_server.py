"""A service that injects faults, in a process of its own, for ``soak`` and ``stopped``.

It prints one line of JSON with its ports, serves until its standard input ends, and prints another
one with what it committed: how often each event, and how often it broke the connection after that.

    python -m benchmarks.programs.faulty_server [CERTIFICATE WRONG_CERTIFICATE]

The environment says the rest: FAULTS=1 for faults, TURN for how many requests a fault lasts.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import datetime
import email.utils
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.requests_protocol import NO_CONTENT, Requests
from benchmarks.servers import ROOT

#: Requests that a fault lasts before the next one has its turn.
TURN = int(os.environ.get("TURN", "1000"))

#: One request of so many is hit, by how long its fault holds a worker of the client.
QUICK, SLOW = 10, 100

MEGABYTE = b"x" * 1024 * 1024


def answer(status: str, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "Content-Length: 0", "", ""]).encode()


def date() -> str:
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=1)
    return f"Retry-After: {email.utils.format_datetime(soon, usegmt=True)}"


class Books:
    """What was committed; one for the process, which has one thread that writes."""

    def __init__(self) -> None:
        self.committed: collections.Counter[str] = collections.Counter()
        self.broken: collections.Counter[str] = collections.Counter()
        self.refused: set[str] = set()
        self.faults: collections.Counter[str] = collections.Counter()
        self.requests = 0
        self.connections = 0


class Connection(Requests):
    """Commits the events of its requests, and answers as its fault says.

    A fault that has the connection leaves it `busy`: nothing more is read from it.
    """

    def __init__(self, books: Books, *, faulty: bool, lasts: int = sys.maxsize) -> None:
        super().__init__()
        self._books = books
        self._faulty = faulty
        self._lasts = lasts  # requests, then it ends with an answer that says so
        self._paused = False
        self._more = 0  # megabytes that are still to be sent
        books.connections += 1

    def request(self, head: bytes, body: bytes) -> None:
        event = json.loads(body)["attributes"]["id"]
        books = self._books
        number, books.requests = books.requests, books.requests + 1
        fault = NAMES[number // TURN % len(NAMES)]
        if self._faulty and number % (SLOW if fault in SLOW_FAULTS else QUICK) == 0:
            books.faults[fault] += 1
            FAULTS[fault](self, event)
        else:
            self.take(event)

    def take(self, event: str) -> None:
        """Commit it and say so."""
        self.commit(event)
        self._lasts -= 1
        if self._lasts:
            self.transport.write(NO_CONTENT)
        else:
            self.busy = True
            self.transport.write(answer("200 OK", "Connection: close"))
            self.transport.close()

    def commit(self, event: str, *, broken: bool = False) -> None:
        self._books.committed[event] += 1
        if broken:
            self._books.broken[event] += 1

    # -- faults ------------------------------------------------------------------------------------

    def refuse(self, event: str, status: str, *headers: str, final: bool = False) -> None:
        if final:
            self._books.refused.add(event)
        self.transport.write(answer(status, *headers))

    def close(self, event: str, beginning: bytes = b"", *, broken: bool, commits: bool) -> None:
        """Close after *beginning*; *commits*: whether the event is taken before."""
        if commits:
            self.commit(event, broken=broken)
        if beginning:
            self.transport.write(beginning)
        self.busy = True
        self.transport.close()

    def reset(self, event: str) -> None:
        self.commit(event, broken=True)
        self.busy = True
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.transport.abort()

    def hold(self, event: str, *, late: bool = False) -> None:
        """Take the event and don't answer, or only after the client has timed out."""
        self.commit(event, broken=True)
        self.busy = True
        if late:
            asyncio.get_running_loop().call_later(3.0, self.transport.write, NO_CONTENT)

    def drip(self, event: str) -> None:
        self.commit(event, broken=True)
        self.busy = True
        self._drip(list(NO_CONTENT))

    def _drip(self, left: list[int]) -> None:
        if left and not self.transport.is_closing():
            self.transport.write(bytes([left.pop(0)]))
            asyncio.get_running_loop().call_later(1.0, self._drip, left)

    def flood(self, event: str) -> None:
        self.commit(event)
        self.busy = True
        self._more = 100
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n")
        self.resume_writing()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._more and not self.transport.is_closing():
            self._more -= 1
            self.transport.write(MEGABYTE)
            if not self._paused:  # else the transport calls when there is space again
                asyncio.get_running_loop().call_soon(self.resume_writing)


HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"
ELSEWHERE = "Location: http://127.0.0.1:9/"

#: In turn. Those that come before the body is read are decided after it, which the client can't
#: tell: the event is not committed.
FAULTS: dict[str, Callable[[Connection, str], object]] = {
    "none": lambda c, e: c.take(e),
    "429": lambda c, e: c.refuse(e, "429 Too Many"),
    "429, seconds": lambda c, e: c.refuse(e, "429 Too Many", "Retry-After: 1"),
    "429, date": lambda c, e: c.refuse(e, "429 Too Many", date()),
    "429, no sense": lambda c, e: c.refuse(e, "429 Too Many", "Retry-After: soon"),
    "408": lambda c, e: c.refuse(e, "408 Timeout"),
    "425": lambda c, e: c.refuse(e, "425 Early"),
    "500": lambda c, e: c.refuse(e, "500 Oops"),
    "503": lambda c, e: c.refuse(e, "503 Busy"),
    "400": lambda c, e: c.refuse(e, "400 No", final=True),
    "redirect": lambda c, e: c.refuse(e, "307 Elsewhere", ELSEWHERE, final=True),
    "close, not taken": lambda c, e: c.close(e, broken=False, commits=False),
    "close, taken": lambda c, e: c.close(e, broken=True, commits=True),
    "close in status": lambda c, e: c.close(e, b"HTTP/1.1 20", broken=True, commits=True),
    "close in body": lambda c, e: c.close(e, HALF, broken=False, commits=True),
    "close idle": lambda c, e: c.close(e, NO_CONTENT, broken=False, commits=True),
    "reset, taken": lambda c, e: c.reset(e),
    "garbage": lambda c, e: c.close(e, b"SSH-2.0-OpenSSH\r\n", broken=False, commits=False),
    "never answers": lambda c, e: c.hold(e),
    "late": lambda c, e: c.hold(e, late=True),
    "drips": lambda c, e: c.drip(e),
    "100 MB": lambda c, e: c.flood(e),
}
NAMES = list(FAULTS)
SLOW_FAULTS = {"never answers", "late", "drips", "100 MB"}


def context(file: str) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(file)
    return made


async def serve(certificates: list[str]) -> None:
    books = Books()
    faulty = os.environ.get("FAULTS") == "1"
    loop = asyncio.get_running_loop()
    over = asyncio.Event()

    def connection() -> Connection:
        return Connection(books, faulty=faulty)

    plain = await loop.create_server(connection, "127.0.0.1", backlog=512)
    ports = {"port": plain.sockets[0].getsockname()[1]}
    if certificates:
        right, wrong = map(context, certificates)
        # One connection of two is shown the wrong certificate.
        shown = 0

        def choose(tls: ssl.SSLObject, _name: str, _context: ssl.SSLContext) -> None:
            nonlocal shown
            shown += 1
            if shown % 2:
                books.faults["wrong certificate"] += 1
                tls.context = wrong

        right.sni_callback = choose
        behind_tls = await loop.create_server(
            lambda: Connection(books, faulty=False, lasts=20), "127.0.0.1", ssl=right, backlog=512
        )
        ports["tls"] = behind_tls.sockets[0].getsockname()[1]
    print(json.dumps(ports), flush=True)

    def wait_for_the_end() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(over.set)

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    await over.wait()
    print(json.dumps({**vars(books), "refused": sorted(books.refused)}), flush=True)


class Running:
    """Such a server in a process of its own; its *ports* by name: ``port``, and ``tls``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        self.ports: dict[str, int] = json.loads(process.stdout.readline())

    def end(self) -> dict[str, Any]:
        """End it; what it committed."""
        books: dict[str, Any] = json.loads(self.process.communicate("", timeout=60)[0])
        return books


@contextlib.contextmanager
def running(*certificates: str, **environment: str) -> Iterator[Running]:
    """Start one, and kill it at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.programs.faulty_server", *certificates], cwd=ROOT,
        env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            yield Running(process)
        finally:
            process.kill()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(sys.argv[1:]))

"""Code that closes all descriptors while events are sent: URL OUTBOX WHEN SEED COUNT.

WHEN: "told" closes them once, when a line is read, between an event and the next one; "flushed"
first waits for that event; "random" closes them COUNT times while three threads record. OUTBOX: a
directory, or empty. After each time, sockets, pipes and files are opened that get the same numbers.
It says as JSON what happened to them: nothing may.
"""

from __future__ import annotations

import errno
import json
import os
import random
import select
import socket
import stat
import sys
import tempfile
import threading
import time
from typing import Any

import valued
from valued._delivery import retry as _retry

URL, OUTBOX, WHEN, SEED, COUNT = sys.argv[1:]
CHOICE = random.Random(int(SEED))
MARK = b"theirs"


class Theirs:
    """What other code opened. What it finds in it is what it put there."""

    def __init__(self) -> None:
        self._refused: list[str] = []
        self._pairs = [self._new_pair() for _ in range(12)]
        self._pipes = [os.pipe() for _ in range(4)]
        self._files = [_unnamed_file() for _ in range(12)]
        numbers = [one.fileno() for pair in self._pairs for one in pair]
        numbers += [end for pipe in self._pipes for end in pipe]
        numbers += self._files
        self._identity = {number: _identity(number) for number in numbers}
        ends = [one.fileno() for pair in self._pairs for one in pair]
        for number in (*ends, *(write for _, write in self._pipes)):
            try:
                os.write(number, MARK)
            except OSError as error:
                self._refused.append(f"refuses what is put into it: {error}")

    def _new_pair(self) -> tuple[socket.socket, socket.socket]:
        while True:
            try:
                return socket.socketpair()
            except OSError as error:
                if error.errno != errno.EBADF:
                    raise
                self._refused.append("closed: socket")  # between two steps of `socketpair`

    def damage(self) -> list[str]:
        """What was done to them. They are closed afterwards, those that are still there."""
        found = self._refused
        for number, identity in self._identity.items():
            if _identity(number) != identity:
                found.append(f"closed: {_kind(identity)}")
                continue
            try:
                if not os.get_blocking(number):
                    found.append(f"made non-blocking: {_kind(identity)}")
                found += self._content(number, identity)
            except OSError as error:
                found.append(f"can't be read: {_kind(identity)}: {error}")
        for one in (one for pair in self._pairs for one in pair):
            one.detach()  # by itself it would close what has its number by now
        for number, identity in self._identity.items():
            if _identity(number) == identity:
                os.close(number)
        return found

    def _content(self, number: int, identity: Any) -> list[str]:
        if number in (write for _, write in self._pipes):
            return []
        is_file = _kind(identity) == "file"
        if is_file:
            content = os.pread(number, 4096, 0)
        else:  # whatever was done to it, this must not wait
            has_some = select.select([number], [], [], 0)[0]
            content = os.read(number, 4096) if has_some else b""
        expected = b"" if is_file else MARK
        if content == expected:
            return []
        if len(content) < len(expected):
            return [f"read from: {_kind(identity)}"]
        return [f"written into: {_kind(identity)}: {content.removeprefix(expected)[:60]!r}"]


def _unnamed_file() -> int:
    number, path = tempfile.mkstemp()
    os.unlink(path)
    return number


def _identity(number: int) -> tuple[int, int, int] | None:
    try:
        status = os.fstat(number)
    except OSError:
        return None
    return status.st_dev, status.st_ino, stat.S_IFMT(status.st_mode)


def _kind(identity: Any) -> str:
    kinds = {stat.S_IFSOCK: "socket", stat.S_IFIFO: "pipe"}
    return "something" if identity is None else kinds.get(identity[2], "file")


_retry.FIRST_PAUSE = 0.01  # of the pauses another test tells
client = valued.Client("s3cret", URL, outbox=OUTBOX or None, timeout=2.0, max_workers=4)
recorded: list[str] = []


def record(key: str) -> None:
    client.action(key, {"user.id": 1})
    recorded.append(key)


def once() -> list[str]:
    record("before")
    if WHEN == "flushed":
        assert client.flush(10)
        print("flushed", flush=True)
    sys.stdin.readline()
    os.closerange(3, 256)
    theirs = Theirs()
    print("opened", flush=True)
    sys.stdin.readline()
    record("after")
    client.flush(20)
    return theirs.damage()


def randomly() -> list[str]:
    over = threading.Event()

    def work(thread: int) -> None:
        pauses = random.Random(thread)
        number = 0
        while not over.wait(pauses.uniform(0.0, 0.004)):
            number += 1
            record(f"{thread}.{number}")

    threads = [threading.Thread(target=work, args=(thread,), daemon=True) for thread in range(3)]
    for thread in threads:
        thread.start()
    found = []
    for instant in range(int(COUNT)):
        delivered, bound = client.stats()["delivered"], time.monotonic() + 3
        while client.stats()["delivered"] < delivered + 3 and time.monotonic() < bound:
            time.sleep(0.001)  # how often to look: each time something is under way
        time.sleep(CHOICE.uniform(0.0, 0.01))  # the instant is random
        os.closerange(3, 256)
        theirs = Theirs()
        time.sleep(CHOICE.uniform(0.0, 0.02))  # how long they live is random
        found += [f"{instant}: {one}" for one in theirs.damage()]
    over.set()
    for thread in threads:
        thread.join()
    return found


damage = randomly() if WHEN == "random" else once()
settled = client.flush(20)
said = {"damage": damage, "recorded": recorded, "settled": settled, "stats": client.stats()}
client.close(1)
print(json.dumps(said), flush=True)

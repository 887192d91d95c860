"""Workers that are killed at random instants: what they accepted is what arrives.

Four workers record events as fast as they can, each is killed within a tenth of a second, another
one takes its place, and takes over what it left. With --on-purpose each is killed just before, or
after, one of the things that it does: append, request, answer, record, claim, removal, and others.
In the end the parent delivers the rest. Prints what was accepted, what was lost, and what came more
than once. Exits with 1 if an event was lost, or came under two keys.

    python -m benchmarks.programs.kill [KILLS [EVENTS [SEED [SECONDS]]]] [--on-purpose]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from functools import partial
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

from benchmarks.requests_protocol import NO_CONTENT, Requests
from tests.support.kills import Arrived, Killing

WORKERS = 4
KEY = re.compile(rb"(?i)idempotency-key: (\S+)")


class Connection(Requests):
    """Answers each request after its number and key are in a file."""

    def __init__(self, file: int) -> None:
        super().__init__()
        self._file = file

    def request(self, head: bytes, body: bytes) -> None:
        key = KEY.search(head)
        assert key is not None
        os.write(self._file, b"%d %s\n" % (json.loads(body)["attributes"]["number"], key[1]))
        self.transport.write(NO_CONTENT)


def serve(log: str, ready: Pipe) -> None:
    """Be the server."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(partial(Connection, file), "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def pairs(log: Path) -> list[tuple[int, str]]:
    lines = (line.split() for line in log.read_text().splitlines())
    return [(int(number), key) for number, key in lines]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int, nargs="?", default=1000)
    parser.add_argument("events", type=int, nargs="?", default=1000, help="of a worker")
    parser.add_argument("seed", type=int, nargs="?", default=1)
    parser.add_argument("seconds", type=float, nargs="?", default=0.1, help="of a worker at most")
    parser.add_argument("--on-purpose", action="store_true")
    given = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        service = multiprocessing.Process(
            target=serve, args=(str(folder / "arrived"), theirs), daemon=True
        )
        service.start()
        os.environ["VALUED_ENV"] = "production"
        killing = Killing(folder, f"http://127.0.0.1:{ours.recv()}/events", given.seed)
        started = time.monotonic()
        run = killing.run_on_purpose if given.on_purpose else killing.run
        done = run(given.kills, WORKERS, given.events, given.seconds)
        killed = time.monotonic()
        killing.drain(3600)
        took = time.monotonic() - started
        accepted, arrived = killing.accepted(), Arrived(pairs(folder / "arrived"))
        service.terminate()
        service.join()
    lost = accepted - arrived.times.keys()
    print(
        f"Python {sys.version.split()[0]}, seed {given.seed}: {given.kills} kills in "
        f"{killed - started:.0f} s, {len(accepted)} events accepted, {len(lost)} lost, "
        f"{arrived.repeats()} came again, {len(arrived.with_several_keys())} under another key, "
        f"all delivered after {took:.0f} s"
    )
    if done:
        print(", ".join(f"{name} {count}" for name, count in done.items()))
    return 1 if lost or arrived.with_several_keys() else 0


if __name__ == "__main__":
    sys.exit(main())

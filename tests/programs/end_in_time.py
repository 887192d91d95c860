"""Calls and an end, each with a bound, while something below hangs: FAULT SHUTDOWN_TIMEOUT OUTBOX.

FAULT is one of `FAULTS`. With CALLS in the environment (seconds), it flushes, parks, closes and
flushes with that timeout before it ends. Prints a JSON object as it ends, after our part of that:
how long each call took, when the end began, and the longest times without a tick of another thread
and without a signal handled.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import valued

#: Longer than any bound here; whatever hangs is a daemon thread, or the test fails.
LONG = 60.0

said: dict[str, Any] = {"took": {}}
sockets: list[socket.socket] = []
hung = threading.Event()
shutdown_timeout, outbox = float(sys.argv[2]), sys.argv[3]


class Pulse:
    """The longest time between two beats."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.longest = 0.0

    def beat(self, *_: object) -> None:
        now = time.monotonic()
        self.longest, self.last = max(self.longest, now - self.last), now


ticks, signals = Pulse(), Pulse()


def tick() -> None:
    while True:
        time.sleep(0.01)
        ticks.beat()


def hang(*_: object, **__: object) -> Any:
    hung.set()
    time.sleep(LONG)


def silent() -> socket.socket:
    """One that accepts no connection; the system does so for it."""
    sockets.append(socket.create_server(("127.0.0.1", 0), backlog=128))
    return sockets[-1]


def dead() -> tuple[Any, ...]:
    """What `getaddrinfo` says of an address that neither takes nor refuses a connection."""
    sockets.append(socket.create_server(("127.0.0.1", 0), backlog=0))
    address = sockets[-1].getsockname()
    for _ in range(4):  # fill its backlog
        sockets.append(socket.socket())
        sockets[-1].setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sockets[-1].connect(address)
    return socket.AF_INET, socket.SOCK_STREAM, 0, "", address


def connected(port: int = 80, **options: Any) -> valued.Client:
    host = "127.0.0.1" if port != 80 else "service.test"
    url = f"http://{host}:{port}/events"
    return valued.Client("token", url, shutdown_timeout=shutdown_timeout, **options)


def record(client: valued.Client, count: int) -> None:
    for number in range(count):
        client.action("a", {"user.id": number})


def name_server() -> valued.Client:
    socket.getaddrinfo = hang
    client = connected()
    record(client, 20)
    return client


def addresses() -> valued.Client:
    six = [dead() for _ in range(6)]
    socket.getaddrinfo = lambda *_, **__: hung.set() or six  # type: ignore[func-returns-value]
    client = connected()
    record(client, 20)
    return client


def service() -> valued.Client:
    client = connected(silent().getsockname()[1])
    record(client, 10_000)
    hung.set()
    return client


def directories() -> valued.Client:
    client = connected(silent().getsockname()[1], outbox=outbox)
    record(client, 20)
    hung.set()
    return client


def disk() -> valued.Client:
    """Its writes hang: one of a thread that records, and those of the workers."""
    arrived = threading.Event()
    client = valued.Client(
        lambda _: arrived.wait(LONG), shutdown_timeout=shutdown_timeout, outbox=outbox
    )
    record(client, 20)
    write = os.write

    def writes(descriptor: int, data: Any) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(outbox):
            hang()
        return write(descriptor, data)

    os.write = writes
    threading.Thread(target=record, args=(client, 1), daemon=True).start()
    assert hung.wait(10)
    arrived.set()
    return client


def transport() -> valued.Client:
    client = valued.Client(hang, shutdown_timeout=shutdown_timeout)
    record(client, 20)
    return client


def outbox_transport() -> valued.Client:
    client = valued.Client(hang, shutdown_timeout=shutdown_timeout, outbox=outbox)
    record(client, 20)
    return client


FAULTS: dict[str, Callable[[], valued.Client]] = {
    "a silent name server": name_server,
    "six dead addresses": addresses,
    "a silent service and 10,000 events": service,
    "an outbox with many directories": directories,
    "a disk whose writes hang": disk,
    "a transport that hangs": transport,
    "a transport that hangs, and an outbox": outbox_transport,
}


def timed(name: str, call: Callable[[float], object], timeout: float) -> None:
    began = time.monotonic()
    call(timeout)
    said["took"][name] = time.monotonic() - began


def report() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)  # Python takes its handlers back after this
    signals.beat()
    said.update(ticks=ticks.longest, signals=signals.longest)
    print(json.dumps(said), flush=True)


def main() -> None:
    logging.disable()
    atexit.register(report)  # before our own, so called after it
    client = FAULTS[sys.argv[1]]()
    assert hung.wait(10)
    threading.Thread(target=tick, daemon=True).start()
    signal.signal(signal.SIGALRM, signals.beat)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    ticks.last = signals.last = time.monotonic()
    if "CALLS" in os.environ:
        timeout = float(os.environ["CALLS"])
        timed("flush", client.flush, timeout)
        timed("park", client.park, timeout)
        timed("close", client.close, timeout)
        timed("flush after close", client.flush, timeout)
        timed("park after close", client.park, timeout)
    globals()["kept"] = client
    said["ends"] = time.time()


if __name__ == "__main__":
    main()

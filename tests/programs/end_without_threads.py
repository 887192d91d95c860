"""Records while no thread can be started: WHAT follows, and the port of a silent service.

``again``: threads can be started once more. ``silent``: never, and the service stays silent.
``answers``: never, and the service answers by the time the process ends. Prints a JSON object.
"""

from __future__ import annotations

import atexit
import json
import logging
import socket
import sys
import threading
import time

import valued

WHAT = sys.argv[1]
delivered: list[str] = []
answers = threading.Event()
lines: list[str] = []


class Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        lines.append(record.getMessage())


def deliver(event: dict[str, object]) -> None:
    assert answers.is_set()
    delivered.append(str(event["key"]))


def no_start(_thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def report() -> None:
    said.update(delivered=delivered, stats=client.stats())
    print(json.dumps(said), flush=True)


logging.getLogger("valued").addHandler(Lines())
atexit.register(report)
options = {"timeout": 3.0, "max_queue": 20, "shutdown_timeout": 1.0}
if WHAT == "silent":
    silent = socket.create_server(("127.0.0.1", 0), backlog=128)
    url = f"http://127.0.0.1:{silent.getsockname()[1]}/events"
    client = valued.Client("token", url, **options)  # type: ignore[arg-type]
else:
    client = valued.Client(deliver, **options)  # type: ignore[arg-type]
start = threading.Thread.start
threading.Thread.start = no_start  # type: ignore[method-assign]
slowest = 0.0
for number in range(30):
    began = time.monotonic()
    client.action(f"{number:02}", {"user.id": 1})
    slowest = max(slowest, time.monotonic() - began)
said = {"slowest": slowest, "before": client.stats(), "lines before": list(lines)}
answers.set()
if WHAT == "again":
    threading.Thread.start = start  # type: ignore[method-assign]
    client.action("dropped", {"user.id": 1})  # there is no room for it, but a thread is started
    deadline = time.monotonic() + 10
    while client.stats()["pending"] and time.monotonic() < deadline:
        time.sleep(0.002)
    client.action("again", {"user.id": 1})
    said["flushed"] = client.flush(10)
said["ends"] = time.time()

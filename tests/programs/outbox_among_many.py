"""A process whose outbox has many left directories: OUTBOX FILE CALLS SHUTDOWN_TIMEOUT PAUSE.

It records so many events, says as JSON how long the slowest call took, which directories the main
thread listed meanwhile, and when it began to end; and ends. FILE: see `Sink`. PAUSE: seconds that
each delivery takes.
"""

import json
import pathlib
import sys
import threading
import time
from typing import Any

import valued
from tests.support.left import Sink, record_all

outbox, path, calls, shutdown_timeout, pause = sys.argv[1:]
sink = Sink(pathlib.Path(path))
listed: list[str] = []
inside = False


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    here = inside and threading.current_thread() is threading.main_thread()
    if here and event in ("os.listdir", "os.scandir"):
        listed.append(f"{event} {arguments[0]}")


def deliver(event: dict[str, Any]) -> None:
    time.sleep(float(pause))
    sink(event)


client = valued.Client(deliver, outbox=outbox, shutdown_timeout=float(shutdown_timeout))
sys.addaudithook(hook)
took = []
for number in range(int(calls)):
    began = time.perf_counter()
    inside = True
    record_all(client, [1_000_000 + number])
    inside = False
    took.append(time.perf_counter() - began)
    time.sleep(0.001)  # so that other threads get to look at the directory between the calls
said = {"first": took[0], "slowest": max(took), "listed": listed, "ends": time.monotonic()}
print(json.dumps(said), flush=True)

"""Delivery through a broker that hangs and dies, by workers that are killed: what is lost.

``EVENTS=2000`` in the environment makes it shorter.
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import rabbitmq, redis
from tests.support.celery import Worker
from tests.support.gunicorn import Gunicorn
from tests.support.processes import PROGRAMS
from tests.support.server import Server

pytest.importorskip("celery")

EVENTS = int(os.environ.get("EVENTS", "20000"))

#: Visitors at the same time, and seconds between two requests of one of them.
VISITORS, PAUSE = 2, 0.01

#: Of delivery workers.
KILLS = 10

#: Seconds without an arrival, after which what has not come is lost.
STILL = 90.0

#: Of Redis, per death of a delivery worker: kombu pops a message and notes it in two steps.
LOST_PER_KILL = 1

APP = """
import os
import time

import celery
import valued
from valued.integrations.celery import Relay, delivery_task

task = delivery_task(celery.Celery(broker=os.environ["BROKER"]))
client = valued.Client(Relay(task), outbox=os.environ["OUTBOX"], timeout=2.0)

def app(environ, start_response):
    began = time.perf_counter()
    client.action("report.generated", {"user.id": int(environ["PATH_INFO"][1:])})
    took = time.perf_counter() - began
    start_response("200 OK", [("Content-Length", "12")])
    return [b"%012.9f" % took]
"""


class Load:
    """Visitors, each request with a number of its own: one event of the user with that id."""

    def __init__(self, port: int) -> None:
        self.took: dict[int, float] = {}  # seconds of the event's call, by number
        self._port = port
        self._next = iter(range(EVENTS))
        self._lock = threading.Lock()
        self.threads = [threading.Thread(target=self._visit) for _ in range(VISITORS)]
        for thread in self.threads:
            thread.start()

    def _visit(self) -> None:
        while True:
            with self._lock:
                number = next(self._next, None)
            if number is None:
                return
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
            # The visitor of a publisher that is killed: whether it was recorded is not known.
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", f"/{number}")
                self.took[number] = float(connection.getresponse().read())
            connection.close()
            time.sleep(PAUSE)

    def wait_for(self, share: float) -> None:
        """Until that share of the events was recorded."""
        while len(self.took) < share * EVENTS and any(each.is_alive() for each in self.threads):
            time.sleep(0.02)  # how often to look


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
def test_a_broker_that_hangs_and_dies_and_workers_that_are_killed(
    kind: str, tmp_path: Path, server: Server
) -> None:
    if (redis if kind == "redis" else rabbitmq).PROGRAM is None:
        pytest.skip(f"there is no {kind}-server")
    broker: Any = redis.Redis(durable=True) if kind == "redis" else rabbitmq.RabbitMQ()
    environment = {
        "BROKER": broker.url, "OUTBOX": str(tmp_path / "outbox"), "VALUED_TOKEN": "any",
        "VALUED_ENDPOINT": server.url, "PYTHONPATH": str(tmp_path),
        **({"VISIBLE": "15"} if kind == "redis" else {}),
    }  # fmt: skip
    (tmp_path / "shop.py").write_text(APP)
    with contextlib.ExitStack() as stack:
        stack.callback(broker.close)
        workers = [_worker(tmp_path, number, environment, stack) for number in range(2)]
        publishers = stack.enter_context(Gunicorn(tmp_path, "shop:app", **environment))
        publishers.workers()
        load = Load(publishers.port)
        for number in range(KILLS):
            load.wait_for((number + 1) / (KILLS + 2))
            _disturb(number, broker, publishers)
            workers.pop(0).kill()
            workers.append(_worker(tmp_path, 2 + number, environment, stack))
        for thread in load.threads:
            thread.join()
        # With the publishers, which take over what the one that was killed left in the outbox.
        seconds = _wait(set(load.took), lambda: set(_keys(server)))
        keys, waits = _keys(server), broker.waiting()
    repeats = len(server.requests) - len(keys)
    lost = sorted(load.took.keys() - keys.keys())
    others = [number for number, found in keys.items() if len(found) > 1]
    calls = sorted(load.took.values())
    slow = calls[int(len(calls) * 0.999)]
    print(
        f"{kind}: {len(calls)} answered, {len(keys)} arrived, {len(lost)} lost, {repeats} repeats, "
        f"{len(others)} under another key; calls: 99.9 % within {slow * 1e3:.2f} ms, slowest "
        f"{calls[-1] * 1e3:.2f} ms; the last one arrived {seconds:.0f} s after the end; "
        f"{waits} wait in the broker; lost: {lost}"
    )
    # All but what the publisher that was killed was asked at that moment.
    assert len(calls) >= EVENTS - VISITORS
    assert waits == 0
    assert others == []
    assert slow < 0.02
    assert len(lost) <= (KILLS * LOST_PER_KILL if kind == "redis" else 0)


def _worker(
    folder: Path, number: int, environment: dict[str, str], stack: contextlib.ExitStack
) -> Worker:
    own = folder / f"worker-{number}"
    own.mkdir()
    options = ("--queues", "valued", "--concurrency", "1", "--pool", "prefork")
    worker = Worker(PROGRAMS / "celery_delivery.py", own, *options, environment=environment)
    # Elsewhere they have machines of their own. Here, one that starts would take a publisher's CPU.
    psutil.Process(worker.pid).nice(10)
    return stack.enter_context(worker)


def _disturb(number: int, broker: Any, publishers: Gunicorn) -> None:
    """What happens besides, in the middle of it."""
    if number == 3:
        broker.pause()
        time.sleep(5.0)  # so long it hangs
        broker.resume()
    if number == 5:
        psutil.Process(min(publishers.workers())).kill()
    if number == 7:
        broker.kill()
        broker.start_again()


def _keys(server: Server) -> dict[int, set[str]]:
    """The keys of each event that arrived."""
    keys = collections.defaultdict(set)
    for request in list(server.requests):
        keys[request.event["user"]["id"]].add(request.headers["Idempotency-Key"])
    return keys


def _wait(recorded: set[int], arrived: Callable[[], set[int]]) -> float:
    """Until all has arrived, or nothing does any more; seconds until the last arrival."""
    began = latest = time.monotonic()
    found = arrived()
    while not recorded <= found and time.monotonic() - latest < STILL:
        time.sleep(1.0)  # how often to look
        before, found = found, arrived()
        if found != before:
            latest = time.monotonic()
    return latest - began

"""`valued.flush_all`: every client of this process, for glue that doesn't know which there are."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import valued
from tests.support.processes import Child, run, until
from tests.support.server import Reply, Request, Server
from valued._process.shutdown import SAME_END


class Gate:
    """A transport that delivers when it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.delivered: list[dict[str, Any]] = []

    def __call__(self, event: dict[str, Any]) -> None:
        assert self.opened.wait(30)
        self.delivered.append(event)


def test_it_flushes_each_client_of_this_process(server: Server) -> None:
    clients = [valued.Client("test-token", server.url) for _ in range(3)]
    assert valued.flush_all() is True  # there is nothing yet
    for number, client in enumerate(clients):
        client.action(str(number), {"user.id": 1})
    assert valued.flush_all(10) is True
    assert server.keys() == ["0", "1", "2"]
    for client in clients:
        client.close()


def test_a_timeout_counts_for_all_clients_together() -> None:
    gates = [Gate(), Gate()]
    clients = [valued.Client(gate) for gate in gates]
    for client in clients:
        client.action("k", {"user.id": 1})
    started = time.monotonic()
    assert valued.flush_all(1.0) is False
    assert time.monotonic() - started < 1.9
    for gate in gates:
        gate.opened.set()
    assert valued.flush_all(None) is True
    assert [len(gate.delivered) for gate in gates] == [1, 1]
    with pytest.raises(valued.ValidationError, match=r"^timeout: expected seconds"):
        valued.flush_all(-1)


def test_without_a_timeout_each_client_has_its_own_and_what_is_left_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow, fast = Gate(), Gate()
    fast.opened.set()
    patient, hasty = (
        valued.Client(fast, shutdown_timeout=30),
        valued.Client(slow, shutdown_timeout=0.1),
    )
    for client in (patient, hasty, hasty):
        client.action("k", {"user.id": 1})
    with caplog.at_level(logging.WARNING, "valued"):
        assert valued.flush_all() is False
    assert [record.getMessage() for record in caplog.records] == [
        (
            "2 events are not delivered after 0.1 s: if the process ends now, they are lost, "
            "unless they are in an outbox"
        )
    ]
    assert len(fast.delivered) == 1
    slow.opened.set()
    assert valued.flush_all() is True
    assert hasty.stats()["delivered"] == 2
    assert patient.stats()["pending"] == 0


def test_without_a_timeout_what_waits_for_another_attempt_is_tried_at_once(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    replies = [Reply(503, {"Retry-After": "100"})]
    server.script = lambda _request: replies.pop() if replies else Reply()
    client = valued.Client("test-token", server.url)
    client.action("k", {"user.id": 1})
    until(lambda: "will be retried" in caplog.text)
    assert valued.flush_all() is True
    assert client.stats()["retried"] == 1
    client.close()


def test_a_forked_child_flushes_its_own(fork: Callable[..., Child], server: Server) -> None:
    asked = threading.Event()

    def script(request: Request) -> Reply:
        if request.event["key"] == "parent":
            assert asked.wait(30)
        return Reply()

    server.script = script
    client = valued.Client("test-token", server.url)
    client.action("parent", {"user.id": 1})

    def child() -> None:
        assert valued.flush_all() is True
        client.action("child", {"user.id": 1})
        assert valued.flush_all() is True

    assert fork(child).wait() == 0
    asked.set()
    assert client.close(10)
    assert server.keys() == ["child", "parent"]


def test_clients_that_were_forgotten_are_flushed_while_they_have_events() -> None:
    gate = Gate()
    valued.Client(gate).action("k", {"user.id": 1})
    assert valued.flush_all(0) is False
    gate.opened.set()
    assert valued.flush_all(10) is True


ENDS = """
import sys, time, valued

url, pause = sys.argv[1:]
slow = valued.Client("token", url, shutdown_timeout=3)
fast = valued.Client("token", url, shutdown_timeout=30)
for _ in range(3):
    slow.action("slow", {"user.id": 1})
assert not valued.flush_all()
time.sleep(float(pause))
fast.action("fast", {"user.id": 1})
"""


def test_an_exit_right_after_it_is_the_same_end_with_one_bound_and_one_line(
    server: Server,
) -> None:
    """uvicorn ends a lifespan, and then the process: supervisors wait for both together."""
    over = threading.Event()

    def script(request: Request) -> Reply:
        if request.event["key"] == "slow":
            over.wait(60)
        return Reply()

    server.script = script
    took, said = [], []
    for pause in (0, 2 * SAME_END):
        started = time.monotonic()
        done = run("-c", ENDS, server.url, str(pause))
        took.append(time.monotonic() - started - pause)
        assert done.returncode == 0
        said.append([re.match(r"valued: ([^,:]+)", line)[1] for line in done.stderr.splitlines()])  # type: ignore[index]
    over.set()
    first = "3 events are not delivered after 3 s"
    assert said == [[first], [first, "the process ends with 3 events not delivered"]]
    assert server.keys().count("fast") == 2  # its client has a bound of its own
    # One bound of 3 s, or two of them.
    assert took[0] >= 3
    assert took[1] - took[0] > 1.5

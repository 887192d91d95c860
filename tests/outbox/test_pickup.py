"""What a process leaves when it dies is delivered by those that go on, and once."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import valued
from tests.outbox.conftest import Fork, New
from tests.support.left import Sink, adopt_all, die_with, leave, record_all, segments
from tests.support.processes import VANISHED, until, vanish


class DiesAt:
    """A transport that kills the process that called `record`, with the event of this number.

    It does so only after that process has recorded all of its events.
    """

    def __init__(self, sink: Sink, number: int) -> None:
        self._sink = sink
        self._number = number
        self._dies = 0
        self._recorded = threading.Event()

    def __call__(self, event: dict[str, Any]) -> None:
        if os.getpid() == self._dies and event["attributes"]["number"] == self._number:
            assert self._recorded.wait(20)
            vanish()
        self._sink(event)

    def record(self, client: valued.Client) -> None:
        """Record ten events in a child, and wait for the end."""
        self._dies = os.getpid()
        record_all(client, range(10))
        self._recorded.set()
        client.flush(20)


def test_a_parent_delivers_with_its_first_event_what_a_killed_child_left(
    new: New, sink: Sink, fork: Fork
) -> None:
    deadly = DiesAt(sink, 3)
    client = new(deadly, max_workers=1)

    assert fork(deadly.record, client).wait(20) == VANISHED
    record_all(client, [100])
    until(lambda: len(sink.numbers()) == 11)
    assert client.close(10)
    assert sink.numbers() == [*range(10), 100]
    assert sink.repeats() == 0  # the one that was under way had not arrived


def test_a_parent_that_recorded_before_delivers_it_when_it_is_told_to_look(
    new: New, sink: Sink, fork: Fork
) -> None:
    deadly = DiesAt(sink, 0)
    client = new(deadly, max_workers=1)
    record_all(client, [100])
    assert client.flush(10)

    assert fork(deadly.record, client).wait(20) == VANISHED
    client.adopt()  # of 1 directory, unless a thread was faster
    record_all(client, [101])
    until(lambda: len(sink.numbers()) == 12)
    assert client.close(10)
    assert sink.repeats() == 0


def test_a_sibling_delivers_what_a_killed_child_left(new: New, sink: Sink, fork: Fork) -> None:
    deadly = DiesAt(sink, 0)
    client = new(deadly, max_workers=1)

    def goes_on() -> None:
        record_all(client, [100])
        until(lambda: client.stats()["delivered"] == 11)
        assert client.close(10)

    assert fork(deadly.record, client).wait(20) == VANISHED
    assert fork(goes_on).wait(30) == 0
    assert sink.all() == [*range(10), 100]
    assert client.stats()["accepted"] == 0


def test_what_is_left_by_many_deaths_in_a_row_is_delivered_once(
    place: Path, new: New, sink: Sink, fork: Fork
) -> None:
    sink.go_down()
    client = new()

    def child(number: int) -> None:
        # Each one may take over what those before it left, and dies with it.
        client.adopt()
        record_all(client, [number])
        vanish()

    for number in range(20):
        assert fork(child, number).wait(20) == VANISHED
    sink.come_up()
    adopt_all(client, place)
    assert client.close(10)
    assert sink.all() == [*range(20)]


def test_a_process_that_is_killed_amid_an_adoption_leaves_it_to_the_next(
    place: Path, sink: Sink, fork: Fork
) -> None:
    leave(place, 30, events=3)

    def deliver(event: dict[str, Any]) -> None:
        sink(event)
        if sum(sink.arrived().values()) in (5, 20, 40):
            vanish()

    def child() -> None:
        client = valued.Client(deliver, outbox=place, max_workers=1)
        client.adopt()
        until(lambda: len(sink.numbers()) == 90, 20)

    for _ in range(3):
        assert fork(child).wait(30) == VANISHED
    with valued.Client(sink, outbox=place) as client:
        adopt_all(client, place)
    assert sink.numbers() == [*range(90)]
    assert sink.repeats() <= 3  # one worker, three deaths


def test_adopt_takes_nothing_of_a_process_that_is_stopped(
    place: Path, new: New, sink: Sink, fork: Fork
) -> None:
    ready, go_on = os.pipe(), os.pipe()
    sink.go_down()
    client = new()

    def child() -> None:
        record_all(client, range(5))
        os.write(ready[1], b".")
        os.read(go_on[0], 1)
        assert client.flush(20)

    stopped = fork(child)
    os.read(ready[0], 1)
    os.kill(stopped.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, stopped.pid, os.WSTOPPED | os.WNOWAIT)
    sink.come_up()
    other = new()
    assert client.adopt() == other.adopt() == 0
    record_all(client, [100])
    assert client.flush(10)
    assert sink.numbers() == [100]
    os.kill(stopped.pid, signal.SIGCONT)
    os.write(go_on[1], b".")
    assert stopped.wait(30) == 0
    for end in (*ready, *go_on):
        os.close(end)
    assert sink.all() == [*range(5), 100]


def elsewhere(place: Path, age: float) -> None:
    """Let the owners seem to be on another host, with a last heartbeat that is so old."""
    for mark in (place / "v1" / "owners").iterdir():
        mark.write_text(json.dumps({**json.loads(mark.read_text()), "host": "another"}))
        os.utime(mark, (time.time() - age,) * 2)


@pytest.mark.parametrize(
    ("age", "expired"), [(300.0, False), (700.0, True)], ids=["within its lease", "after its lease"]
)
def test_a_process_that_can_not_be_seen_keeps_its_events_as_long_as_its_lease(
    age: float, expired: bool, place: Path, new: New, sink: Sink
) -> None:
    die_with(place, range(5))
    elsewhere(place, age)
    client = new()
    assert client.adopt() == expired
    owners = valued.Outbox(place).owners()
    seen = next((owner for owner in owners if owner.host == "another"), None)
    assert (seen is None) == expired
    if seen is not None:
        assert (seen.state, seen.events) == ("elsewhere", 5)
    record_all(client, [100])
    until(lambda: len(sink.numbers()) == (6 if expired else 1))
    assert client.close(10)
    assert sink.numbers() == ([*range(5), 100] if expired else [100])


def test_a_process_that_slept_longer_than_its_lease_loses_nothing(
    place: Path, new: New, sink: Sink, fork: Fork
) -> None:
    ready, go_on = os.pipe(), os.pipe()

    def child() -> None:
        begun, awake = threading.Event(), threading.Event()

        def deliver(event: dict[str, Any]) -> None:
            begun.set()
            assert awake.wait(30)
            sink(event)

        client = valued.Client(deliver, outbox=place)
        record_all(client, range(5))
        assert begun.wait(10)
        os.write(ready[1], b".")
        os.read(go_on[0], 1)
        record_all(client, range(5, 10))
        awake.set()
        assert client.flush(20)
        record_all(client, range(10, 15))
        assert client.close(20)

    slept = fork(child)
    os.read(ready[0], 1)
    os.kill(slept.pid, signal.SIGSTOP)  # else its first scan might write the mark again
    until(lambda: psutil.Process(slept.pid).status() == psutil.STATUS_STOPPED)
    elsewhere(place, 700.0)
    client = new()
    assert client.adopt() == 1
    until(lambda: len(sink.numbers()) == 5)
    # Its clock has not moved on, so no heartbeat is due that would tell: its next write does, once
    # its file is gone.
    until(lambda: segments(place) == [])
    os.kill(slept.pid, signal.SIGCONT)
    os.write(go_on[1], b".")
    assert slept.wait(30) == 0
    for end in (*ready, *go_on):
        os.close(end)
    adopt_all(client, place)
    assert client.close(10)
    assert sink.numbers() == [*range(15)]
    assert sink.repeats() <= 5  # those that were under way while it slept


def test_what_a_client_that_was_closed_could_not_deliver_is_left_to_any_process(
    place: Path, new: New, sink: Sink
) -> None:
    sink.go_down()
    one, other = new(), new()
    record_all(one, range(5))
    assert not one.close(0.1)
    assert one.stats()["handed_over"] == 5
    sink.come_up()
    assert other.adopt() == 1
    until(lambda: len(sink.numbers()) == 5)
    assert other.close(10)
    assert sink.repeats() == 0
    assert segments(place) == []

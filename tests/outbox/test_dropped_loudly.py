"""Each event that is dropped is counted by its reason, and said in the log: once a minute."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.outbox.conftest import Lines, New
from tests.support.left import Sink, leave, record_all, run_program
from tests.support.processes import until
from valued._delivery.retry import DOWN_AFTER

DAY = 86_400.0
WEEK = 7 * DAY

#: What the line about a reason has in it: the option, or the word.
SAID = {"age": "outbox_max_age", "size": "outbox_max_size", "damaged": "damaged"}


def test_events_that_are_too_old_when_they_are_adopted_are_counted_and_said(
    place: Path, new: New, sink: Sink, log: Lines
) -> None:
    leave(place, 4, events=5, at=time.time() - WEEK - DAY)
    leave(place, 1, first=100)
    client = new()
    client.adopt()
    until(lambda: client.stats()["delivered"] == 1)
    until(lambda: client.stats()["dropped"] == 20)
    assert client.close(10)
    assert sink.numbers() == [100]
    assert client.stats()["dropped_by_reason"]["age"] == 20
    assert log.count(SAID["age"]) == 20
    assert len(log.about(SAID["age"])) <= 2  # at once, and what remained to be said at the end


def test_own_events_that_become_too_old_are_counted_and_said(
    new: New, sink: Sink, log: Lines
) -> None:
    sink.go_down()
    client = new(outbox_max_age=0.2)
    record_all(client, range(10))
    until(lambda: client.stats()["dropped_by_reason"]["age"] == 10, 20)
    assert client.stats()["pending"] == 0
    assert client.close(10)
    assert log.count(SAID["age"]) == 10
    assert len(log.about(SAID["age"])) <= 2


def test_events_that_become_too_old_while_the_service_is_probed_are_dropped_with_it(
    place: Path, log: Lines
) -> None:
    max_age, tries = 1.0, []

    def transport(_event: object) -> None:
        tries.append(time.monotonic())
        if len(tries) > DOWN_AFTER:  # a probe: it takes so long that all others become too old
            time.sleep(1.1 * max_age)
        raise ConnectionError("down")

    client = valued.Client(
        transport, outbox=place, outbox_max_age=max_age, executor=valued.ImmediateExecutor()
    )
    record_all(client, range(DOWN_AFTER + 5))
    assert client.flush(30)
    assert client.stats()["dropped_by_reason"]["age"] == DOWN_AFTER + 5
    assert len(tries) == DOWN_AFTER + 1
    assert client.close(10)
    assert log.count(SAID["age"]) == DOWN_AFTER + 5


def test_drops_are_said_once_a_minute(place: Path, new: New, sink: Sink, log: Lines) -> None:
    client = new()
    for _ in range(5):
        before = client.stats()["dropped"]
        leave(place, 1, events=4, at=time.time() - WEEK - DAY)
        client.adopt()
        until(partial(has_dropped, client, before + 4))
    until(lambda: log.about(SAID["age"]))  # it is said outside of the lock, a moment later
    assert len(log.about(SAID["age"])) == 1
    assert client.close(10)
    assert len(log.about(SAID["age"])) == 2
    assert log.count(SAID["age"]) == 20
    assert sink.numbers() == []


def test_each_reason_has_a_line_of_its_own(place: Path, new: New, sink: Sink, log: Lines) -> None:
    leave(place, 1, events=3, at=time.time() - WEEK - DAY)
    damage(leave(place, 1, events=3, first=100)[0], 101)
    client = new()
    client.adopt()
    until(lambda: client.stats()["dropped"] == 4)
    assert client.close(10)
    assert sink.numbers() == [100, 102]
    reasons = client.stats()["dropped_by_reason"]
    assert (reasons["age"], reasons["damaged"]) == (3, 1)
    assert (log.count(SAID["age"]), log.count(SAID["damaged"])) == (3, 1)


def has_dropped(client: valued.Client, events: int) -> bool:
    return client.stats()["dropped"] == events


def damage(directory: Path, number: int) -> None:
    """Change one byte of the event with this number."""
    file = directory / "0000000001.events"
    content = bytearray(file.read_bytes())
    content[content.index(b'"number": %d' % number) + 11] ^= 1
    file.write_bytes(content)


def test_what_is_more_than_the_outbox_keeps_is_counted_and_said(
    new: New, sink: Sink, log: Lines
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def deliver(event: dict[str, Any]) -> None:
        begun.set()
        assert go_on.wait(60)
        sink(event)

    least = 8 * 1024 * 1024
    client = new(deliver, outbox_max_size=least, max_workers=1)
    try:
        for number in range(300):  # 18 MB
            attributes = {"number": number, "x": "x" * 60_000}
            client.action("big", {"user.id": 1, "attributes": attributes})
        assert begun.wait(10)
    finally:
        go_on.set()
    assert client.flush(60)
    assert client.close(10)
    stats = client.stats()
    dropped = stats["dropped_by_reason"]["size"]
    assert dropped == stats["dropped"] > 0
    assert stats["delivered"] + dropped == 300
    assert len(sink.numbers()) == stats["delivered"]
    assert sink.repeats() == 0
    assert 299 in sink.numbers()  # the oldest ones were dropped
    assert log.count(SAID["size"]) == dropped
    assert len(log.about(SAID["size"])) <= 2


@pytest.mark.parametrize("at", ["0", "-1", "1", "604801", "nan", "inf", "-inf"])
def test_events_of_a_clock_that_was_behind_or_broken_are_dropped_loudly_or_delivered(
    at: str, place: Path, new: New, sink: Sink, log: Lines
) -> None:
    leave(place, 1, events=5, at=float(at))
    leave(place, 1, events=5, first=100)
    client = new()
    client.adopt()
    until(lambda: client.stats()["delivered"] + client.stats()["dropped"] == 10)
    assert client.close(10)
    assert {100, 101, 102, 103, 104} <= set(sink.numbers())
    stats = client.stats()
    assert stats["dropped"] == 10 - len(sink.numbers())
    assert stats["dropped"] == log.count(SAID["age"]) + log.count(SAID["damaged"])


@pytest.mark.parametrize("ahead", [DAY, 20 * 365 * DAY, 1e12, 1e300], ids=str)
def test_events_of_a_clock_that_was_ahead_are_delivered(
    ahead: float, place: Path, new: New, sink: Sink, log: Lines
) -> None:
    leave(place, 1, events=5, at=time.time() + ahead)
    client = new()
    client.adopt()
    until(lambda: client.stats()["delivered"] == 5)
    assert client.close(10)
    assert sink.numbers() == [*range(5)]
    assert log.lines == []


def test_the_end_of_a_short_process_says_all_that_was_dropped(
    place: Path, sink: Sink, tmp_path: Path
) -> None:
    leave(place, 20, events=2, at=time.time() - DAY)
    damage(leave(place, 1, events=3, first=100)[0], 101)
    done = run_program("outbox_ends_soon", str(place), str(sink.path), str(DAY / 2))
    assert done.returncode == 0
    assert sink.numbers() == [100, 102, 1_000_000]
    lines = done.stderr.splitlines()
    for reason, count in (("age", 40), ("damaged", 1)):
        about = [line.removeprefix("valued: ") for line in lines if SAID[reason] in line]
        assert len(about) <= 2
        assert sum(int(line.split()[0]) for line in about) == count, lines
    assert len(lines) <= 4


def test_nothing_is_said_where_nothing_is_dropped(
    place: Path, new: New, sink: Sink, log: Lines
) -> None:
    leave(place, 3, events=5, at=time.time() - WEEK + DAY)
    client = new()
    client.adopt()
    until(lambda: client.stats()["delivered"] == 15)
    assert client.close(10)
    assert sink.numbers() == [*range(15)]
    assert log.lines == []

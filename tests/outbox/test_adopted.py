"""What was adopted is on the books: stats, flush, close and the end of the process know of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.outbox.conftest import Fork, New
from tests.support.left import Never, Sink, die_with, leave, record_all, run_program
from tests.support.processes import until

Leave = Callable[[Path], int]


def killed(place: Path) -> int:
    die_with(place, range(50))
    return 50


def three_hundred(place: Path) -> int:
    leave(place, 300)
    return 300


@pytest.fixture(params=[killed, three_hundred], ids=["a killed process", "300 directories"])
def left(request: pytest.FixtureRequest, place: Path) -> int:
    """How many events were left."""
    count: int = request.param(place)
    return count


def test_stats_count_what_was_claimed_when_adopt_returns(left: int, new: New) -> None:
    client = new(executor=Never())
    assert client.adopt() > 0
    stats = client.stats()
    assert 0 < stats["adopted"] == stats["pending"] <= left
    assert stats["accepted"] == 0


def test_stats_balance_at_every_moment_of_an_adoption(place: Path, new: New) -> None:
    leave(place, 100, events=5)
    client = new()
    seen: list[Any] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(client.stats())

    watching = threading.Thread(target=watch)
    watching.start()
    client.adopt()
    client.flush(10)
    done.set()
    watching.join()
    for stats in seen:
        settled = stats["delivered"] + stats["failed"] + stats["dropped"] + stats["handed_over"]
        assert stats["accepted"] + stats["adopted"] == settled + stats["pending"]
        assert min(stats["pending"], stats["delivered"], stats["adopted"]) >= 0


@pytest.mark.parametrize(
    "settle",
    [
        lambda client: client.flush(10),
        lambda _client: valued.flush_all(10),
        lambda client: client.close(10),
        lambda client: client.park(10),
    ],
    ids=["flush", "flush_all", "close", "park"],
)
def test_true_after_adopt_means_that_all_of_it_was_delivered(
    left: int, settle: Callable[[valued.Client], bool], new: New, sink: Sink
) -> None:
    client = new()
    client.adopt()
    assert settle(client)
    assert sink.all() == [*range(left)]
    stats = client.stats()
    assert (stats["adopted"], stats["delivered"], stats["pending"]) == (left, left, 0)


def test_a_flush_after_adopt_waits_for_the_event_that_is_under_way(place: Path, sink: Sink) -> None:
    die_with(place, range(5))
    begun, go_on = threading.Event(), threading.Event()

    def deliver(event: dict[str, Any]) -> None:
        begun.set()
        assert go_on.wait(30)
        sink(event)

    with valued.Client(deliver, outbox=place) as client:
        try:
            client.adopt()
            assert begun.wait(10)
            assert not client.flush(0.05)
            assert sink.numbers() == []
        finally:
            go_on.set()
        assert client.flush(10)
        assert sink.numbers() == [*range(5)]


def test_the_end_of_the_process_delivers_what_it_adopted(
    left: int, place: Path, sink: Sink, tmp_path: Path
) -> None:
    done = run_program("outbox_adopts_and_ends", str(place), str(tmp_path / "arrived"), "20")
    assert (done.returncode, done.stderr) == (0, "")
    assert sink.all() == [*range(left)]


def test_park_hands_back_what_a_worker_took_over_by_itself(
    place: Path, new: New, sink: Sink
) -> None:
    leave(place, 1, events=20)
    begun, go_on = threading.Event(), threading.Event()

    def deliver(event: dict[str, Any]) -> None:
        if event["attributes"]["number"] != 100:
            begun.set()
            assert go_on.wait(10)
        sink(event)

    client = new(deliver, max_workers=1)
    record_all(client, [100])
    try:
        assert begun.wait(10)
        assert client.flush(10)  # no flush waits for what a worker took over by itself
        assert client.park(0.1) is False  # as one of them is being sent
        assert client.stats()["handed_over"] == 19
    finally:
        go_on.set()
    other = new()

    def has_come() -> bool:
        other.adopt()
        return len(sink.numbers()) == 21

    until(has_come, 20)
    assert sink.repeats() == 0


def test_a_forked_child_never_adopts_events_of_its_living_parent(
    place: Path, new: New, sink: Sink, fork: Fork
) -> None:
    sink.go_down()
    client = new()
    record_all(client, range(5))

    def child() -> None:
        other = valued.Client(sink, outbox=place)
        for one in (client, other):
            assert one.adopt() == 0
            record_all(one, [100])
            one.flush(0.1)
            assert one.adopt() == 0
            assert one.stats()["adopted"] == 0
        os.kill(os.getpid(), 9)

    assert fork(child).wait(20) == -9
    assert client.stats()["pending"] in range(5, 8)  # those of the dead child, taken over at once
    assert client.stats()["handed_over"] == 0
    sink.come_up()
    assert client.close(20)
    assert [sink.arrived()[number] for number in range(5)] == [1] * 5

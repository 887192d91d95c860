"""An event that is settled is on the disk as settled: no later process sends it again."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.outbox.conftest import Fork, New
from tests.support.left import Sink, adopt_all, record_all, run_program, segments
from tests.support.processes import VANISHED, vanish


def abort() -> None:
    faulthandler.disable()  # what it says is no failure of the test
    os.kill(os.getpid(), signal.SIGABRT)


def terminate() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def leave_quietly() -> None:
    os._exit(0)


def replace() -> None:
    os.execv("/bin/sh", ["sh", "-c", "exit 0"])


WAYS = {
    "SIGKILL": (vanish, VANISHED),
    "os._exit": (leave_quietly, 0),
    "SIGABRT": (abort, -signal.SIGABRT),
    "SIGTERM": (terminate, -signal.SIGTERM),
    "exec": (replace, 0),
}


@pytest.mark.parametrize(
    ("way", "children"),
    [("SIGKILL", 60), ("os._exit", 60), ("SIGABRT", 5), ("SIGTERM", 5), ("exec", 5)],
    ids=str,
)
def test_what_a_flush_said_is_settled_is_never_sent_again(
    way: str, children: int, place: Path, new: New, sink: Sink, fork: Fork
) -> None:
    client = new()
    end, status = WAYS[way]

    def child(number: int) -> None:
        record_all(client, [number])
        assert client.flush(20)
        end()

    for number in range(children):
        assert fork(child, number).wait(30) == status
    adopt_all(client, place)
    assert sink.all() == [*range(children)]


def test_what_a_thread_flushed_is_never_sent_again_while_another_one_goes_on(
    place: Path, new: New, sink: Sink, fork: Fork
) -> None:
    client = new()

    def child(first: int) -> None:
        stop = threading.Event()

        def work() -> None:
            number = 100_000 + first
            while not stop.wait(0.001):  # seconds; without a pause the backlog takes long
                record_all(client, [number])
                number += 1

        threading.Thread(target=work, daemon=True).start()
        record_all(client, range(first, first + 10))
        assert client.flush(20)
        vanish()

    for number in range(10):
        assert fork(child, number * 1000).wait(30) == VANISHED
    adopt_all(client, place)
    flushed = [number * 1000 + place for number in range(10) for place in range(10)]
    assert [sink.arrived()[number] for number in flushed] == [1] * 100


def test_with_an_immediate_executor_an_event_is_never_sent_again_after_its_call(
    place: Path, new: New, sink: Sink, fork: Fork
) -> None:
    client = new(executor=valued.ImmediateExecutor())

    def child(number: int) -> None:
        record_all(client, [number])
        assert client.stats()["delivered"] == 1
        vanish()

    for number in range(60):
        assert fork(child, number).wait(30) == VANISHED
    adopt_all(client, place)
    assert sink.all() == [*range(60)]


def test_what_the_work_horses_of_a_job_queue_flushed_is_never_sent_again(
    place: Path, sink: Sink, tmp_path: Path
) -> None:
    # As RQ works: a worker that lives long forks a process for each job, which ends by `os._exit`.
    done = run_program("outbox_work_horses", str(place), str(tmp_path / "arrived"), "60")
    assert (done.returncode, done.stderr) == (0, "")
    assert sink.all() == [*range(60)]


def test_what_was_adopted_and_flushed_is_never_sent_again(
    place: Path, new: New, sink: Sink, fork: Fork
) -> None:
    client = new()
    sink.go_down()

    def dies() -> None:
        record_all(client, range(20))
        vanish()

    def adopts() -> None:
        assert client.adopt() == 1
        assert client.flush(20)
        vanish()

    assert fork(dies).wait(30) == VANISHED
    sink.come_up()
    assert fork(adopts).wait(30) == VANISHED
    adopt_all(client, place)
    assert sink.all() == [*range(20)]


@pytest.mark.parametrize("nth", [1, 17, 100])
@pytest.mark.parametrize("workers", [1, 4])
def test_a_death_repeats_at_most_what_was_under_way(
    workers: int,
    nth: int,
    place: Path,
    new: New,
    sink: Sink,
    fork: Fork,
    tmp_path: Path,
) -> None:
    died = tmp_path / "died"
    parent = os.getpid()

    def deliver(event: dict[str, Any]) -> None:
        sink.note(event)
        if os.getpid() != parent and sum(sink.arrived().values()) >= nth:
            died.touch()
            vanish()

    client = new(deliver, max_workers=workers)

    def child() -> None:
        record_all(client, range(200))
        client.flush(20)

    assert fork(child).wait(30) == VANISHED
    assert died.exists()
    recorded = sum(map(_events, place.rglob("*.events")))
    adopt_all(client, place)
    assert sink.repeats() <= workers
    # What was recorded when the process died has arrived; each call had written its event.
    assert len(sink.numbers()) >= min(recorded, nth)
    assert sink.numbers() == [*range(len(sink.numbers()))]


def _events(path: Path) -> int:
    return path.read_bytes().count(b"\xabVR1")


def test_a_permanently_failed_event_is_never_sent_again(
    place: Path, fork: Fork, tmp_path: Path
) -> None:
    refused = Sink(tmp_path / "refused")

    def refuse(event: dict[str, Any]) -> None:
        refused.note(event)
        raise valued.DeliveryError("no", 422)

    client = valued.Client(refuse, outbox=place)

    def child(number: int) -> None:
        record_all(client, [number])
        assert client.flush(20)
        assert client.stats()["failed"] == 1
        vanish()

    for number in range(20):
        assert fork(child, number).wait(30) == VANISHED
    adopt_all(client, place)
    assert client.close(10)
    assert refused.numbers() == [*range(20)]
    assert refused.repeats() == 0


def test_files_of_dead_processes_in_which_all_is_settled_are_removed(
    place: Path, new: New, sink: Sink, fork: Fork
) -> None:
    client = new()

    def child(number: int) -> None:
        record_all(client, [number])
        assert client.flush(20)
        vanish()

    for number in range(5):
        assert fork(child, number).wait(30) == VANISHED
    client.adopt()
    record_all(client, [100])
    assert client.close(10)
    assert sink.numbers() == [*range(5), 100]
    assert segments(place) == []

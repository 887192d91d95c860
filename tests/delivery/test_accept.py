"""Accepting: order, bounds, overflow, keys; and calls that come in the middle of another one."""

from __future__ import annotations

import contextlib
import gc
import itertools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import valued
from tests.delivery.conftest import Make
from tests.delivery.simulation import SimulatedQueue, Simulation, simulated
from tests.delivery.support import BOUND, InThread, Post, Service, figures, record, transient
from tests.support.processes import until
from valued._delivery.admission import LARGE, LONG_INBOX
from valued._delivery.queue import MAX_BYTES
from valued._delivery.retry import DOWN_AFTER

#: Two of them are all that memory has room for.
HALF = [bytes([number]) * (MAX_BYTES // 2) for number in range(3)]
BY_COUNT: dict[str, Any] = {"max_queue": 2}


def test_events_are_sent_in_the_order_in_which_they_were_accepted() -> None:
    post = Post(max_workers=1)
    bodies = [b"%d" % number for number in range(200)]
    post.accept(*bodies)
    post.jobs.run()
    assert post.sent == bodies


def test_a_postponed_event_goes_first_once_it_is_due_and_not_before() -> None:
    tries: list[bytes] = []

    def send(body: bytes, _key: str, _seconds: float) -> None:
        tries.append(body)
        if body == b"late" and len(tries) == 1:
            raise transient(20.0)

    post = Post(send, max_workers=1)
    post.accept(b"late")
    post.jobs.run()
    post.accept(b"1")
    post.go_on(19.9)
    post.accept(b"2")
    post.go_on(0.1)
    assert tries == [b"late", b"1", b"late", b"2"]


def test_an_idempotency_key_is_the_same_for_each_attempt_and_no_other_event_has_it() -> None:
    keys: list[str] = []

    def send(_body: bytes, key: str, _seconds: float) -> None:
        keys.append(key)
        if keys.count(key) < 3:
            raise transient()

    for post in (Post(send), Post(send)):
        for _ in range(20):
            post.accept(b"same")
            for _ in range(3):
                post.go_on(5.0)
        assert post.figures() == {"accepted": 20, "delivered": 20, "retried": 40}
    assert set(Counter(keys).values()) == {3}
    assert len(set(keys)) == 40


# -- overflow --------------------------------------------------------------------------------------


def full(overflow: str, by: str, **options: Any) -> tuple[Post, list[bytes]]:
    """A pipeline in which the first two of these events are all that goes in."""
    post = Post(overflow=overflow, **(BY_COUNT if by == "count" else {}), **options)
    bodies = [b"1", b"2", b"3"] if by == "count" else HALF
    post.accept(*bodies[:2])
    assert post.figures() == {"accepted": 2, "pending": 2}
    return post, bodies


by_count_or_bytes = pytest.mark.parametrize("by", ["count", "bytes"])


@by_count_or_bytes
def test_drop_newest_keeps_what_is_there(by: str) -> None:
    post, bodies = full("drop_newest", by)
    post.accept(bodies[2])
    assert post.figures() == {"accepted": 3, "pending": 2, "dropped": 1, "overflow": 1}
    post.jobs.run()
    assert post.sent == bodies[:2]


@by_count_or_bytes
def test_drop_oldest_makes_room_for_the_newest(by: str) -> None:
    post, bodies = full("drop_oldest", by)
    post.accept(bodies[2])
    assert post.figures() == {"accepted": 3, "pending": 2, "dropped": 1, "overflow": 1}
    post.jobs.run()
    assert post.sent == bodies[1:]


def test_drop_oldest_drops_as_many_as_a_long_event_needs() -> None:
    post, _bodies = full("drop_oldest", "bytes")
    post.accept(long := bytes(MAX_BYTES))
    assert post.figures() == {"accepted": 3, "pending": 1, "dropped": 2, "overflow": 2}
    post.jobs.run()
    assert post.sent == [long]


def failing_first(*failing: bytes) -> tuple[list[bytes], Callable[..., None]]:
    tries: list[bytes] = []

    def send(body: bytes, _key: str, _seconds: float) -> None:
        tries.append(body)
        if body in failing and tries.count(body) == 1:
            raise transient(10.0 * failing.index(body) + 10.0)

    return tries, send


def test_drop_oldest_reaches_events_that_wait_for_another_attempt() -> None:
    # In an outage, all that is old waits there.
    tries, send = failing_first(b"1")
    post = Post(send, overflow="drop_oldest", **BY_COUNT)
    post.accept(b"1")
    post.jobs.run()
    post.accept(b"2", b"3")
    assert post.figures() == {"accepted": 3, "pending": 2, "dropped": 1, "overflow": 1}
    post.go_on(100.0)
    assert tries == [b"1", b"2", b"3"]


def test_drop_oldest_goes_by_the_order_of_acceptance_due_or_not() -> None:
    tries, send = failing_first(b"1", b"2")
    post = Post(send, overflow="drop_oldest", **BY_COUNT)
    post.accept(b"1", b"2")
    post.jobs.run()
    post.pass_time(10.0)  # the first is due
    post.accept(b"3")
    post.go_on(100.0)
    assert sorted(tries) == [b"1", b"2", b"2", b"3"]


def test_drop_oldest_drops_the_newest_where_all_others_are_being_sent() -> None:
    sent: list[bytes] = []

    def send(body: bytes, _key: str, _seconds: float) -> None:
        sent.append(body)
        if body == b"1":
            post.jobs.run_one()
            post.accept(b"4")  # the other one is settled by now
        elif body == b"2":
            post.accept(b"3")

    post = Post(send, overflow="drop_oldest", **BY_COUNT)
    post.accept(b"1", b"2")
    post.jobs.run()
    assert sent == [b"1", b"2", b"4"]
    assert post.figures() == {"accepted": 4, "delivered": 3, "dropped": 1, "overflow": 1}


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest", "block"])
def test_an_event_larger_than_all_room_is_dropped_at_once_and_alone(overflow: str) -> None:
    post, bodies = full(overflow, "count", timeout=3600.0)  # block would wait for an hour
    post.accept(bytes(MAX_BYTES + 1))
    assert post.figures() == {"accepted": 3, "pending": 2, "dropped": 1, "overflow": 1}
    post.jobs.run()
    assert post.sent == bodies[:2]


@by_count_or_bytes
def test_caller_runs_sends_the_event_in_its_call(by: str) -> None:
    post, bodies = full("caller_runs", by)
    post.accept(bodies[2])
    assert post.sent == [bodies[2]]
    assert post.figures() == {"accepted": 3, "pending": 2, "delivered": 1}
    post.jobs.run()
    assert post.figures() == {"accepted": 3, "delivered": 3}


def test_caller_runs_makes_no_attempt_while_the_service_is_down_until_a_probe_is_due() -> None:
    def send(body: bytes, _key: str, _seconds: float) -> None:
        tries.append(body)
        if is_down:
            raise ConnectionError("down")

    tries: list[bytes] = []
    is_down = True
    post = Post(send, overflow="caller_runs", max_queue=DOWN_AFTER)
    post.accept(*[b"waits"] * DOWN_AFTER)
    post.jobs.run()
    assert len(tries) == DOWN_AFTER
    post.accept(*[b"no room"] * 20)
    assert len(tries) == DOWN_AFTER
    expected = {"accepted": DOWN_AFTER + 20, "pending": DOWN_AFTER, "dropped": 20, "overflow": 20}
    assert post.figures() == expected
    post.simulation.now += 120.0
    post.accept(b"probe", b"dropped")  # the second one comes while the pause after the first lasts
    assert tries[DOWN_AFTER:] == [b"probe"]
    is_down = False
    post.simulation.now += 120.0
    post.accept(b"probe", b"in its call")
    assert tries[DOWN_AFTER + 1 :] == [b"probe", b"in its call"]
    post.go_on(120.0)
    figures = post.figures()
    assert (figures["delivered"], figures["overflow"]) == (DOWN_AFTER + 3, 21)


@by_count_or_bytes
def test_block_waits_for_room_and_no_blocked_call_for_another_one(by: str) -> None:
    sizes = 1 if by == "count" else MAX_BYTES // 2
    sent: list[bytes] = []

    def send(body: bytes, _key: str, _seconds: float) -> None:
        simulation.sleep(1.0)
        sent.append(body[:1])

    with Simulation() as simulation:
        options: dict[str, Any] = BY_COUNT if by == "count" else {}
        pipeline, _ = simulated(
            simulation, send, overflow="block", timeout=100.0, max_workers=1, **options
        )
        for name in b"123456":
            simulation.start(pipeline.accept, bytes([name]) * sizes)
        simulation.run()
        assert sorted(sent) == [b"1", b"2", b"3", b"4", b"5", b"6"]
        assert figures(pipeline) == {"accepted": 6, "delivered": 6}


def test_block_drops_the_newest_when_its_time_is_over() -> None:
    def send(_body: bytes, _key: str, _seconds: float) -> None:
        simulation.sleep(60.0)

    with Simulation() as simulation:
        pipeline, _ = simulated(simulation, send, overflow="block", timeout=5.0, max_queue=2)
        callers = [simulation.start(pipeline.accept, b"x") for _ in range(3)]
        simulation.run(seconds=4.9)
        assert not callers[2].is_done
        simulation.run(seconds=0.2)
        assert callers[2].is_done
        assert figures(pipeline) == {"accepted": 3, "pending": 2, "dropped": 1, "overflow": 1}
        simulation.run()


@by_count_or_bytes
def test_there_is_room_again_after_an_event_is_settled(by: str) -> None:
    post, bodies = full("drop_newest", by)
    post.jobs.run()
    post.accept(bodies[2])
    post.jobs.run()
    assert post.sent == bodies
    assert post.figures() == {"accepted": 3, "delivered": 3}


def test_what_a_full_queue_dropped_is_logged_by_a_worker_and_not_in_the_call(
    make: Make, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    client = make(max_queue=2, max_workers=1)
    service.hold.clear()
    record(client, *"abcde")
    assert caplog.text == ""
    service.hold.set()
    assert client.flush(BOUND)
    until(lambda: caplog.text)
    line = "%d events were dropped: max_queue (2) or 64 MiB were waiting (overflow='drop_newest')"
    assert line % 3 in caplog.text
    service.hold.clear()
    record(client, *"abcdefg")
    service.hold.set()
    assert client.close(BOUND)  # logs the rest, though a minute has not gone by
    assert line % 5 in caplog.text


def test_the_bytes_of_a_long_inbox_are_counted_before_a_worker_comes() -> None:
    post = Post(max_workers=1)
    post.accept(*[bytes(MAX_BYTES // 10)] * 200)
    assert post.figures()["overflow"] == 200 - 10


def test_many_events_that_no_worker_has_brought_in_are_counted_before_memory_is_full() -> None:
    post = Post(max_workers=1, max_queue=100_000)
    size = MAX_BYTES // 2_000
    assert size < LARGE
    post.accept(*[bytes(size)] * 5_000)
    assert post.figures()["overflow"] >= 5_000 - 2_000 - LONG_INBOX - 2


# -- many threads, finalizers, signal handlers -----------------------------------------------------


def test_many_threads_each_event_is_sent_exactly_once(in_thread: InThread) -> None:
    got: list[str] = []
    failed: set[str] = set()

    def transport(event: dict[str, Any]) -> None:
        key = event["key"]
        if key.endswith("7") and key not in failed:
            failed.add(key)
            raise transient()
        got.append(key)

    client = valued.Client(transport, max_workers=4)
    start = threading.Barrier(4)

    def put(name: int) -> None:
        start.wait(BOUND)
        record(client, *(f"{name}-{number}" for number in range(300)))

    for putter in [in_thread(put, name) for name in range(4)]:
        putter.result(20)
    assert client.flush(20)
    assert Counter(got) == Counter(
        f"{name}-{number}" for name, number in itertools.product(range(4), range(300))
    )
    assert figures(client) == {"accepted": 1200, "delivered": 1200, "retried": len(failed)}
    assert len(failed) == 120
    assert client.close(BOUND)


class Interrupted(Post):
    """Calls *function* at each look at the clock: that is within the lock, mostly."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.inside = True
        self.calls = 0
        self.function = function
        super().__init__(queue=lambda simulation: SimulatedQueue(simulation, self._look))
        self.inside = False

    def _look(self) -> float:
        if not self.inside and self.calls < 20:
            self.inside = True
            self.calls += 1
            self.function()
            self.inside = False
        return self.simulation.now


def everything(post: Post) -> None:
    """One call of each kind, and all jobs."""
    post.accept(b"1", b"2")
    post.is_settled()
    post.figures()
    post.jobs.run()


def test_a_finalizer_records_an_event_during_a_collection_that_starts_inside() -> None:
    class Orphan:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            post.accept(b"finalizer")

    def collect() -> None:
        Orphan()
        gc.collect()

    post = Interrupted(collect)
    everything(post)
    assert post.calls > 5
    finished = dict(Counter(post.sent))
    assert finished == {b"1": 1, b"2": 1, b"finalizer": post.calls}


# -- too late --------------------------------------------------------------------------------------


@contextlib.contextmanager
def interpreter_is_over(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As the end of the interpreter looks to its last finalizers."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "meta_path", None)
        yield


@pytest.mark.parametrize("overflow", ["block", "caller_runs", "drop_newest"])
def test_an_event_that_comes_too_late_is_dropped_and_counted_and_waits_for_nothing(
    overflow: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    post, _bodies = full(overflow, "count", timeout=3600.0)
    with interpreter_is_over(monkeypatch):
        post.accept(b"late", b"later")
    # What waits has no thread any more that could send it.
    assert post.figures() == {"accepted": 4, "dropped": 4, "exit": 4}
    (line,) = caplog.messages
    assert line.startswith("events recorded while the Python interpreter shuts down")

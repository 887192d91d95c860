"""Ends of a client, and of its process: park, close, drain."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import valued
from tests.delivery.conftest import Make
from tests.delivery.simulation import Simulation, simulated
from tests.delivery.support import BOUND, Jobs, Post, Service, figures, record, transient
from tests.support.processes import until
from valued._delivery.journal import NullJournal
from valued._delivery.pipeline import Pipeline
from valued._options import Options


def test_close_ends_the_threads_and_the_next_event_starts_new_ones(
    make: Make, service: Service
) -> None:
    before = set(threading.enumerate())
    client = make()
    record(client, "a")
    assert client.close(BOUND)
    assert set(threading.enumerate()) <= before
    assert client.close(BOUND)
    record(client, "b")
    assert client.flush(BOUND)
    assert service.got == ["a", "b"]


def test_close_without_a_bound_waits_for_all(make: Make, service: Service) -> None:
    client = make()
    record(client, "a")
    assert client.close(None)
    assert service.got == ["a"]


def test_what_close_could_not_wait_for_is_dropped_counted_and_logged(
    make: Make, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    client = make(max_workers=1)
    service.hold.clear()
    record(client, "under way", "waits", "waits, too")
    service.wait_until_inside()
    assert not client.close(0)
    assert figures(client) == {"accepted": 3, "pending": 1, "dropped": 2, "closed": 2}
    assert "2 events were dropped" in caplog.text
    service.hold.set()  # what was under way may still be delivered
    assert client.flush(BOUND)
    assert service.got == ["under way"]
    assert figures(client)["delivered"] == 1


def test_close_drops_postponed_events_too_and_flushes_that_wait_for_them_return() -> None:
    def send(*_args: object) -> None:
        raise transient(100.0)

    with Simulation() as simulation:
        pipeline, _ = simulated(simulation, send)
        simulation.start(pipeline.accept, b"1")
        flush = simulation.start(pipeline.flush, None)
        simulation.run(seconds=1.0)
        assert not flush.is_done
        simulation.start(pipeline.close, simulation.now)
        simulation.run(seconds=1.0)
        assert flush.result()
        assert figures(pipeline) == {"accepted": 1, "dropped": 1, "closed": 1}


def test_park_ends_the_threads_and_leaves_a_client_that_is_not_done_as_it_was(
    make: Make, service: Service
) -> None:
    before = set(threading.enumerate())
    client = make(max_workers=1)
    service.hold.clear()
    record(client, "a", "b")
    service.wait_until_inside()
    assert not client.park(0)
    assert client.stats()["pending"] == 2
    service.hold.set()
    assert client.park(BOUND)
    assert service.got == ["a", "b"]
    assert set(threading.enumerate()) <= before
    record(client, "c")
    assert client.park(BOUND)
    assert service.got == ["a", "b", "c"]


class Watching(NullJournal):
    """Stores nothing, and waits for deaths."""

    stores = True

    def __init__(self) -> None:
        self.begun = 0
        self.meanwhile: Callable[[], object] = lambda: None
        self._end = threading.Event()

    def watch(self) -> bool:
        self._end.clear()
        self.begun += 1
        return True

    def wait_for_deaths(self, timeout: float) -> bool:
        self._end.wait(timeout)
        return False

    def unwatch(self) -> None:
        self._end.set()
        self.meanwhile()


def test_park_waits_for_no_watch_that_a_worker_begins_meanwhile() -> None:
    def record_late() -> None:
        """Another thread records, until a worker of its event has begun to watch again."""
        journal.meanwhile = lambda: None
        until(lambda: pipeline.accept(b"late") or journal.begun == 2)

    journal = Watching()
    pipeline = Pipeline(lambda *_: None, Options(idle_time=3600.0), None, journal)
    pipeline.accept(b"early")
    assert pipeline.flush(time.monotonic() + BOUND)
    journal.meanwhile = record_late
    began = time.monotonic()
    pipeline.park(began + BOUND)
    assert time.monotonic() - began < BOUND / 2
    assert pipeline.close(time.monotonic() + BOUND)


def test_park_from_a_thread_of_the_pool_says_that_it_is_not_done() -> None:
    answers: list[bool] = []

    def transport(_event: dict[str, Any]) -> None:
        raise valued.DeliveryError("no", 400)

    client = valued.Client(
        transport, on_error=lambda *_: answers.append(client.park(BOUND)), max_workers=1
    )
    record(client, "a")
    until(lambda: answers)
    assert answers == [False]
    assert client.close(BOUND)


@pytest.mark.parametrize("end", ["close", "park"])
def test_an_executor_that_a_factory_made_ends_with_the_client(
    make: Make, service: Service, end: str
) -> None:
    made: list[ThreadPoolExecutor] = []

    def factory() -> ThreadPoolExecutor:
        made.append(ThreadPoolExecutor(1))
        return made[-1]

    client = make(executor=factory)
    record(client, "a")
    assert getattr(client, end)(BOUND)
    with pytest.raises(RuntimeError):
        made[0].submit(int)
    record(client, "b")
    assert client.close(BOUND)
    assert len(made) == 2
    assert service.got == ["a", "b"]


def test_an_executor_that_was_given_is_left_to_its_owner(make: Make, service: Service) -> None:
    with ThreadPoolExecutor(1) as executor:
        client = make(executor=executor)
        record(client, "a")
        assert client.close(BOUND)
        assert executor.submit(int).result(BOUND) == 0


def test_an_executor_that_cannot_be_shut_down_is_logged(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    class Threads:
        def submit(self, fn: Any, /, *args: Any) -> None:
            threading.Thread(target=fn, args=args).start()

        def shutdown(self) -> None:  # takes no `wait`
            raise AssertionError("not called")

    client = make(executor=Threads)
    record(client, "a")
    assert client.close(BOUND)
    assert "could not be shut down" in caplog.text


def test_an_executor_of_a_factory_without_shutdown_is_left() -> None:
    made: list[Jobs] = []

    def factory() -> Jobs:
        made.append(Jobs())
        return made[-1]

    post = Post(executor=factory)
    post.accept(b"1")
    made[0].run()
    assert post.pipeline.close(post.simulation.now)


def test_a_closed_client_that_sends_in_the_call_may_be_closed_again() -> None:
    sent: list[Any] = []
    client = valued.Client(sent.append, executor=valued.ImmediateExecutor())
    record(client, "a")
    assert client.close(0)
    record(client, "b")
    assert client.close(0)
    assert len(sent) == 2


# -- the end of the process ------------------------------------------------------------------------


def test_the_end_drops_what_it_has_no_time_for_counts_it_and_logs_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def send(body: bytes, _key: str, _seconds: float) -> None:
        simulation.sleep(60.0)

    with Simulation() as simulation:
        pipeline, _ = simulated(simulation, send, max_workers=1, shutdown_timeout=2.0)
        for body in (b"under way", b"waits"):
            simulation.start(pipeline.accept, body)
        simulation.run(seconds=0.0)
        end = simulation.start(pipeline.on_exit, simulation.now)
        simulation.run(seconds=1.9)
        assert not end.is_done
        simulation.run(seconds=0.2)
        end.result()
        assert figures(pipeline) == {"accepted": 2, "pending": 1, "dropped": 1, "exit": 1}
        line = "the process ends with 2 events not delivered: shutdown_timeout (2 s) is over"
        assert caplog.messages == [line]
        late = simulation.start(pipeline.accept, b"too late")
        simulation.run(seconds=0.1)
        late.result()  # its call returned
        assert figures(pipeline)["exit"] == 2
        # What is still under way is counted once.
        assert caplog.messages[1:] == [line.replace("2 events", "1 event", 1)]


def test_the_end_makes_retries_at_once() -> None:
    tries: list[float] = []

    def send(_body: bytes, _key: str, _seconds: float) -> None:
        tries.append(simulation.now - 1000.0)
        if len(tries) <= 7:
            raise transient(100.0)

    with Simulation() as simulation:
        pipeline, _ = simulated(simulation, send)
        for number in range(7):
            simulation.start(pipeline.accept, b"%d" % number)
        simulation.run(seconds=10.0)
        assert len(tries) == 5  # the circuit breaker is open
        flush = simulation.start(pipeline.flush_now, simulation.now)
        simulation.run(seconds=1.0)
        assert len(tries) == 6  # a probe at once
        simulation.run(seconds=5.0)
        assert not flush.result()
        for _ in range(2):
            end = simulation.start(pipeline.flush_now, simulation.now)
            simulation.run(seconds=6.0)
        assert end.result()
        assert figures(pipeline)["delivered"] == 7


def test_a_process_that_is_notified_twice_of_its_end_has_the_time_of_the_first() -> None:
    def send(_body: bytes, _key: str, _seconds: float) -> None:
        simulation.sleep(60.0)

    with Simulation() as simulation:
        pipeline, _ = simulated(simulation, send, shutdown_timeout=5.0)
        simulation.start(pipeline.accept, b"1")
        simulation.run(seconds=0.0)
        pipeline.begin_to_drain(simulation.now)
        simulation.run(seconds=3.0)
        end = simulation.start(pipeline.on_exit, simulation.now)
        simulation.run(seconds=2.1)
        assert end.is_done


def test_an_event_that_is_recorded_at_the_end_is_sent_before_its_call_returns() -> None:
    sent: list[bytes] = []

    def send(body: bytes, _key: str, _seconds: float) -> None:
        simulation.sleep(1.0)
        sent.append(body)

    with Simulation() as simulation:
        pipeline, _ = simulated(simulation, send)
        simulation.start(pipeline.on_exit, simulation.now)
        simulation.run()
        call = simulation.start(pipeline.accept, b"1")
        simulation.run(seconds=0.9)
        assert not call.is_done
        simulation.run(seconds=0.2)
        assert call.is_done
        assert sent == [b"1"]


def test_where_no_thread_can_be_started_one_of_those_that_end_the_process_sends_for_all() -> None:
    now, most = 0, 0

    def send(_body: bytes, _key: str, _seconds: float) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        simulation.sleep(0.5)
        now -= 1

    with Simulation() as simulation:
        pipeline, threads = simulated(simulation, send)
        threads.refuses = True
        for number in range(4):
            simulation.start(pipeline.accept, b"%d" % number)
        simulation.run(seconds=0.0)
        ends = [simulation.start(pipeline.on_exit, simulation.now) for _ in range(3)]
        simulation.run()
        assert all(end.is_done for end in ends)
        assert figures(pipeline) == {"accepted": 4, "delivered": 4}
        assert most == 1


def test_what_is_left_is_logged_with_a_time_and_not_counted_twice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    post = Post(shutdown_timeout=2.0)
    with caplog.at_level(logging.WARNING, "valued"):
        post.pipeline.log_remaining(post.simulation.now)
        post.accept(b"1")
        post.pipeline.log_remaining(post.simulation.now)
        post.accept(b"2")
        post.pipeline.log_remaining(post.simulation.now)
    rest = "not delivered after 2 s: if the process ends now, %s lost, unless they are in an outbox"
    assert caplog.messages == [
        f"1 event is {rest % 'it is'}".replace("unless they are", "unless it is"),
        f"2 events are {rest % 'they are'}",
    ]
    caplog.clear()
    post.simulation.now += 3.0
    post.pipeline.on_exit(post.simulation.now - 3.0)  # the same end
    assert caplog.messages == []
    assert post.figures() == {"accepted": 2, "dropped": 2, "exit": 2}


def test_nothing_is_logged_of_a_process_that_loses_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    post = Post()
    post.accept(b"1")
    post.jobs.run()
    post.pipeline.on_exit(post.simulation.now)
    post.pipeline.end_threads()
    assert caplog.messages == []

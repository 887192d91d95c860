"""Flush: it waits for what was accepted before it, and for nothing else."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import pytest

import valued
from tests.delivery.conftest import Make
from tests.delivery.simulation import Simulation, simulated
from tests.delivery.support import (
    BOUND,
    InThread,
    Post,
    Service,
    figures,
    is_waiting,
    record,
    transient,
)
from tests.support.inside import is_postponed
from tests.support.processes import until


def test_a_flush_of_nothing_is_done_at_once_and_starts_nothing(make: Make) -> None:
    client = make()
    before = threading.active_count()
    assert client.flush(0)
    assert client.flush()
    assert client.flush(None)
    assert threading.active_count() == before
    assert Post().is_settled()


@pytest.mark.parametrize("call", ["flush", "close", "park"])
@pytest.mark.parametrize("timeout", [-1, "5", float("nan"), True])
def test_a_timeout_that_is_none_is_named(make: Make, call: str, timeout: Any) -> None:
    with pytest.raises(valued.ValidationError, match="timeout: expected seconds"):
        getattr(make(), call)(timeout)


def test_a_flush_is_true_if_and_only_if_all_is_settled(make: Make, service: Service) -> None:
    client = make(max_workers=1)
    service.hold.clear()
    record(client, "a")
    service.wait_until_inside()
    assert not client.flush(0)
    assert not client.flush(0.01)
    service.hold.set()
    assert client.flush(None)
    assert client.flush(0)


class Scenario:
    """Events of a service that takes the seconds that an event's body says, one after the other."""

    def __init__(self, simulation: Simulation, **options: Any) -> None:
        self.simulation = simulation
        self.done: list[float] = []
        options.setdefault("max_workers", 1)
        self.pipeline, self.threads = simulated(simulation, self.send, **options)

    def send(self, body: bytes, _key: str, _seconds: float) -> None:
        self.simulation.sleep(float(body))

    def accept(self, *seconds: int) -> None:
        for each in seconds:
            self.pipeline.accept(b"%d" % each)

    def flush(self, timeout: float | None = None) -> Any:
        """Begin a flush; what it returned and how many seconds it took."""

        def flush() -> tuple[bool, float]:
            began = self.simulation.now
            settled = self.pipeline.flush(None if timeout is None else began + timeout)
            return settled, round(self.simulation.now - began, 3)

        return self.simulation.start(flush)


def test_a_flush_returns_with_the_last_event_before_it_though_new_ones_keep_coming() -> None:
    with Simulation() as simulation:
        scenario = Scenario(simulation)
        scenario.accept(1, 2)
        flush = scenario.flush()
        simulation.run(seconds=1.5)
        for _ in range(5):
            scenario.accept(4)
        simulation.run()
        assert flush.result() == (True, 3.0)


def test_a_flush_covers_events_that_earlier_flushes_wait_for_or_gave_up_on() -> None:
    with Simulation() as simulation:
        scenario = Scenario(simulation, max_workers=2)
        scenario.accept(10)
        early, late_but_short = scenario.flush(), scenario.flush(2.0)
        simulation.run(seconds=1.0)
        scenario.accept(1)
        late = scenario.flush()
        simulation.run()
        assert early.result() == (True, 10.0)
        assert late_but_short.result() == (False, 2.0)
        assert late.result() == (True, 9.0)


def test_a_flush_returns_false_at_its_deadline() -> None:
    with Simulation() as simulation:
        scenario = Scenario(simulation)
        scenario.accept(100)
        flushes = [scenario.flush(timeout) for timeout in (0.0, 0.01, 5.0)]
        simulation.run()
        assert [each.result() for each in flushes] == [(False, 0.0), (False, 0.01), (False, 5.0)]


def test_a_deadline_that_no_clock_reaches_is_as_good_as_none(make: Make, service: Service) -> None:
    with Simulation() as simulation:
        scenario = Scenario(simulation)
        scenario.accept(50)
        flush = scenario.flush(1e300)
        simulation.run()
        assert flush.result() == (True, 50.0)
    client = make()
    record(client, "a")
    assert client.flush(1_000_000)
    assert service.got == ["a"]


@pytest.mark.parametrize("end", ["delivered", "failed", "dropped"])
def test_an_event_is_settled_when_it_was_delivered_or_failed_or_was_dropped(end: str) -> None:
    def send(_body: bytes, _key: str, _seconds: float) -> None:
        if end == "failed":
            raise valued.DeliveryError("no", 400)

    post = Post(send)
    post.accept(b"{}")
    assert not post.is_settled()
    if end == "dropped":
        assert not post.pipeline.close(post.simulation.now)
    post.jobs.run()
    assert post.is_settled()
    assert post.figures()[end] == 1


def test_a_flush_waits_for_a_retry_and_makes_it_when_it_is_due() -> None:
    tries: list[float] = []

    def send(_body: bytes, _key: str, _seconds: float) -> None:
        tries.append(simulation.now - 1000.0)
        if len(tries) == 1:
            raise transient(7.0)

    with Simulation() as simulation:
        pipeline, _ = simulated(simulation, send, executor=valued.ImmediateExecutor())
        simulation.start(pipeline.accept, b"1")
        simulation.run()
        flush = simulation.start(pipeline.flush, None)
        simulation.run()
        assert flush.result()
        assert tries == [0.0, 7.0]


def test_an_event_that_a_flush_sent_itself_in_vain_is_retried_without_another_call() -> None:
    """While the factory makes an executor, a flush sends; its deadline comes before the retry."""
    jobs: list[Any] = []

    class Threads:
        def submit(self, fn: Any, /, *args: Any) -> None:
            jobs.append(simulation.start(fn, *args))

    def factory() -> Threads:
        simulation.sleep(0.05)
        return Threads()

    def send(_body: bytes, _key: str, _seconds: float) -> None:
        tries.append(round(simulation.now - 1000.0, 3))
        simulation.sleep(0.3)
        if len(tries) == 1:
            raise transient(5.0)

    tries: list[float] = []
    with Simulation() as simulation:
        pipeline, _ = simulated(simulation, send, executor=factory)
        simulation.start(pipeline.accept, b"1")
        simulation.run(seconds=0.0)
        flush = simulation.start(pipeline.flush, simulation.now + 0.2)
        simulation.run()
        assert not flush.result()
        assert tries == [0.0, 5.3]


# -- who flushes -----------------------------------------------------------------------------------


def test_a_transport_may_flush_and_its_own_event_is_not_settled(make: Make) -> None:
    said: list[bool] = []
    client = valued.Client(lambda _event: said.append(client.flush(0.01)), max_workers=1)
    record(client, "a")
    assert client.flush(BOUND)
    assert said == [False]
    assert client.close(BOUND)


def test_on_error_may_flush_and_waits_for_no_call_of_its_own(in_thread: InThread) -> None:
    said: list[bool] = []

    def transport(_event: dict[str, Any]) -> None:
        raise valued.DeliveryError("no", 400)

    client = valued.Client(transport, on_error=lambda *_: said.append(client.flush(None)))
    record(client, "a")
    assert in_thread(client.flush, BOUND).result(BOUND)
    assert said == [True]
    assert client.close(BOUND)


# -- on_error --------------------------------------------------------------------------------------


class Calls:
    """An ``on_error`` that returns when it may."""

    def __init__(self, count: int) -> None:
        self.entered = threading.Semaphore(0)
        self.leave = [threading.Event() for _ in range(count)]
        self._order = iter(self.leave)

    def __call__(self, *_args: object) -> None:
        mine = next(self._order)
        self.entered.release()
        assert mine.wait(BOUND)


def refused(_event: dict[str, Any]) -> None:
    raise valued.DeliveryError("no", 400)


def test_a_flush_waits_until_on_error_returned(in_thread: InThread) -> None:
    calls = Calls(1)
    client = valued.Client(refused, on_error=calls)
    record(client, "a")
    assert calls.entered.acquire(timeout=BOUND)
    assert figures(client) == {"accepted": 1, "failed": 1}
    assert not client.flush(0)
    began = time.monotonic()
    assert not client.flush(0.05)
    assert 0.05 <= time.monotonic() - began < 5
    waiting = [in_thread(client.flush, timeout) for timeout in (None, BOUND)]
    calls.leave[0].set()
    assert [each.result(BOUND) for each in waiting] == [True, True]
    assert client.close(BOUND)


def test_a_flush_does_not_wait_for_the_on_error_of_what_fails_later(in_thread: InThread) -> None:
    calls = Calls(2)
    sent = threading.Event()

    def transport(event: dict[str, Any]) -> None:
        if event["key"] == "b":
            sent.set()
        refused(event)

    client = valued.Client(transport, on_error=calls, max_workers=2)
    record(client, "a")
    assert calls.entered.acquire(timeout=BOUND)
    waiting = in_thread(client.flush, BOUND)
    until(lambda: is_waiting(valued.Client.flush))
    record(client, "b")
    assert calls.entered.acquire(timeout=BOUND)
    calls.leave[0].set()
    assert waiting.result(BOUND)
    assert not client.flush(0)
    calls.leave[1].set()
    assert client.close(BOUND)


def test_an_on_error_that_an_exception_of_its_own_ends_is_waited_for_no_more() -> None:
    def on_error(*_args: object) -> None:
        raise KeyboardInterrupt

    client = valued.Client(refused, on_error=on_error, executor=valued.ImmediateExecutor())
    with pytest.raises(KeyboardInterrupt):
        record(client, "a")
    assert client.flush(0)
    assert figures(client) == {"accepted": 1, "failed": 1}


# -- what is left of a flush -----------------------------------------------------------------------


def test_a_flush_that_leaves_later_events_postponed_keeps_them() -> None:
    # The first event's retry is refused in the middle of a flush, whose `on_error` records another
    # one: that one is postponed when the flush is done, and its client is gone then.
    outcomes = iter([transient(0.2), valued.DeliveryError("no", 400), transient(60.0)])
    delivered: list[str] = []

    def transport(event: dict[str, Any]) -> None:
        if (outcome := next(outcomes, None)) is not None:
            raise outcome
        delivered.append(event["key"])

    def flush() -> None:
        recorded: list[str] = []

        def on_error(_error: valued.DeliveryError, event: dict[str, Any]) -> None:
            recorded.append(event["key"])
            record(client, "later")

        client = valued.Client(
            transport, executor=valued.ImmediateExecutor(), retries=1, on_error=on_error
        )
        record(client, "first")
        assert client.flush(BOUND)
        assert recorded == ["first"]
        assert is_postponed(client)

    flush()
    gc.collect()
    assert valued.flush_all()
    assert delivered == ["later"]

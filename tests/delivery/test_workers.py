"""Workers: how many, when one is added, when they end; executors and threads that fail."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.delivery.conftest import Make
from tests.delivery.simulation import Simulation, simulated
from tests.delivery.support import BOUND, Jobs, Post, Service, figures, record, transient
from tests.support.inside import make_due
from tests.support.processes import until
from valued._delivery import retry as _retry
from valued._delivery.executors import ExecutorSpec
from valued._delivery.journal import NullJournal
from valued._delivery.pipeline import Pipeline
from valued._delivery.threads import ThreadCache
from valued._delivery.workers import STALL_TIMEOUT
from valued._options import Options
from valued._process import shutdown


class Endpoint:
    """What takes *seconds* for each event, unless its body says otherwise, in simulated time."""

    def __init__(self, simulation: Simulation, seconds: float, **options: Any) -> None:
        self.simulation = simulation
        self.seconds = seconds
        self.began: list[tuple[bytes, float]] = []
        self.now = 0
        self.most = 0
        self.pipeline, self.threads = simulated(simulation, self.send, **options)

    def send(self, body: bytes, _key: str, _seconds: float) -> None:
        self.began.append((body, round(self.simulation.now - 1000.0, 6)))
        self.now += 1
        self.most = max(self.most, self.now)
        self.simulation.sleep(self.seconds if body != b"hangs" else 3600.0)
        self.now -= 1

    def accept(self, *bodies: bytes) -> None:
        for body in bodies:
            self.simulation.start(self.pipeline.accept, body)
            self.simulation.run(seconds=0.0)


class Late(ThreadCache):
    """Runs the first job at once, and holds up the others until it may go on."""

    def __init__(self) -> None:
        super().__init__(idle_time=0.001)
        self.first: threading.Thread | None = None
        self.held = 0
        self.go_on = threading.Event()

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> None:
        super().submit(self._job, fn, args)

    def _job(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if self.first is None:
            self.first = threading.current_thread()
        else:
            self.held += 1
            assert self.go_on.wait(BOUND)
        fn(*args)


# -- how many --------------------------------------------------------------------------------------


def test_nothing_is_started_before_the_first_event(make: Make) -> None:
    before = threading.active_count()
    client = make()
    assert client.flush(0)
    assert client.park(0)
    assert client.close(0)
    assert client.stats()["accepted"] == 0
    assert threading.active_count() == before


def test_one_worker_is_enough_for_a_fast_service() -> None:
    with Simulation() as simulation:
        endpoint = Endpoint(simulation, 0.0002)
        endpoint.accept(*[b"%d" % number for number in range(500)])
        simulation.run()
        assert endpoint.most == 1
        assert figures(endpoint.pipeline) == {"accepted": 500, "delivered": 500}


def test_one_is_added_when_an_event_waited_50_ms_and_all_are_busy() -> None:
    with Simulation() as simulation:
        endpoint = Endpoint(simulation, 3600.0, max_workers=10)
        endpoint.accept(*b"abcd".replace(b"", b" ").split())
        simulation.run(seconds=STALL_TIMEOUT - 0.001)
        assert len(endpoint.began) == 1
        simulation.run(seconds=0.002)
        assert endpoint.began[1] == (b"b", STALL_TIMEOUT)
        simulation.run(seconds=1.0)
        assert [body for body, _ in endpoint.began] == [b"a", b"b", b"c", b"d"]
        assert STALL_TIMEOUT == 0.05
        simulation.run()


def test_none_is_added_while_one_is_free() -> None:
    with Simulation() as simulation:
        endpoint = Endpoint(simulation, 0.04)
        for number in range(20):
            endpoint.accept(b"%d" % number)
            simulation.run(seconds=0.045)
        simulation.run()
        assert endpoint.most == 1


def test_workers_are_added_up_to_the_limit_and_end_without_work() -> None:
    with Simulation() as simulation:
        endpoint = Endpoint(simulation, 0.2, max_workers=3)
        endpoint.accept(*[b"%d" % number for number in range(30)])
        simulation.run()
        assert endpoint.most == 3
        assert not endpoint.threads.alive()
        # It begins with one again.
        endpoint.most = 0
        endpoint.accept(b"later")
        simulation.run()
        assert endpoint.most == 1


def test_a_slow_service_gets_as_many_as_the_limit_allows_for_a_burst_of_events() -> None:
    with Simulation() as simulation:
        endpoint = Endpoint(simulation, 0.02)
        endpoint.accept(*[b"%d" % number for number in range(1000)])
        began = simulation.now
        simulation.run()
        assert endpoint.most == 10
        assert simulation.now - began < 1000 * 0.02 / 10 + 1.0


def test_a_delivery_that_hangs_holds_up_no_other_event() -> None:
    with Simulation() as simulation:
        endpoint = Endpoint(simulation, 0.0001, max_workers=2)
        endpoint.accept(b"hangs", *[b"%d" % number for number in range(50)])
        simulation.run(seconds=1.0)
        assert figures(endpoint.pipeline)["delivered"] == 50
        simulation.run()


def test_an_event_that_becomes_due_while_the_only_worker_hangs_gets_another_one() -> None:
    def send(body: bytes, _key: str, _seconds: float) -> None:
        tries.append(body)
        if tries == [b"a"]:
            raise transient(5.0)
        if body == b"hangs":
            simulation.sleep(3600.0)

    tries: list[bytes] = []
    with Simulation() as simulation:
        pipeline, _ = simulated(simulation, send)
        for body in (b"a", b"hangs"):
            simulation.start(pipeline.accept, body)
        simulation.run(seconds=5.0 + STALL_TIMEOUT)
        assert tries == [b"a", b"hangs", b"a"]
        simulation.run()


def test_a_retry_needs_neither_a_later_event_nor_a_flush() -> None:
    tries: list[float] = []

    def send(_body: bytes, _key: str, _seconds: float) -> None:
        tries.append(simulation.now - 1000.0)
        if len(tries) < 4:
            raise transient(60.0)

    with Simulation() as simulation:
        pipeline, threads = simulated(simulation, send)
        simulation.start(pipeline.accept, b"a")
        simulation.run()
        assert tries == [0.0, 60.0, 120.0, 180.0]
        assert not threads.alive()


def test_threads_of_the_pool_end_after_their_idle_time(make: Make, service: Service) -> None:
    before = set(threading.enumerate())
    client = make(idle_time=0.01)
    service.failure = transient()
    record(client, *"abc")
    until(lambda: client.stats()["retried"] >= 3)
    service.failure = None
    assert client.flush(BOUND)
    assert sorted(service.got) == ["a", "b", "c"]
    until(lambda: set(threading.enumerate()) <= before)


# -- the user's executors --------------------------------------------------------------------------


def test_an_executor_gets_one_job_for_each_event_up_to_max_workers() -> None:
    post = Post(max_workers=3)
    post.accept(*[b"%d" % number for number in range(10)])
    assert len(post.jobs.waiting) == 3
    post.jobs.run_one()
    assert post.sent == [b"0"]  # then it makes room for the jobs of others
    assert len(post.jobs.waiting) == 3
    post.jobs.run()
    assert len(post.sent) == 10


def test_an_executor_sends_on_all_its_threads_after_an_outage() -> None:
    down = [True]

    def send(_body: bytes, _key: str, _seconds: float) -> None:
        if down[0]:
            raise ConnectionError("down")

    post = Post(send, max_workers=8)
    post.accept(*[b"%d" % number for number in range(_retry.DOWN_AFTER)])
    post.jobs.run()
    post.accept(*[b"%d" % number for number in range(40)])
    down[0] = False
    post.pass_time(120.0)
    post.jobs.run_one()
    assert post.figures()["delivered"] == 1  # the probe goes alone
    post.pass_time()
    assert len(post.jobs.waiting) == 8
    post.go_on()
    assert post.figures()["delivered"] == 40 + _retry.DOWN_AFTER


def test_jobs_that_an_executor_cancels_cost_no_event_and_one_warning(
    make: Make, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    executor = ThreadPoolExecutor(1)
    client = make(executor=executor)
    service.hold.clear()
    record(client, *"abcdefghijklmnopqrst")
    service.wait_until_inside()  # one is being sent, nine jobs wait, ten events have none yet
    executor.shutdown(wait=False, cancel_futures=True)
    service.hold.set()
    assert client.flush(BOUND)
    assert sorted(service.got) == [*"abcdefghijklmnopqrst"]
    (warning,) = caplog.messages
    assert "it was cancelled" in warning


def test_a_job_that_is_cancelled_after_its_worker_was_forgotten_costs_nothing() -> None:
    futures: list[Future[None]] = []

    class Futures(Jobs):
        def submit(self, fn: Callable[..., object], /, *args: Any) -> Any:
            futures.append(Future())
            if len(futures) > 1:
                super().submit(fn, *args)
            return futures[-1]

    jobs = Futures()
    post = Post(executor=jobs, max_workers=1)
    post.accept(b"a")  # nobody keeps this job: its worker ends unseen
    post.accept(b"b")
    jobs.run()
    assert post.sent == [b"a", b"b"]
    futures[0].cancel()
    futures[0].set_running_or_notify_cancel()
    assert post.is_settled()


def refusing(error: BaseException) -> Callable[[], Jobs]:
    jobs = Jobs()
    jobs.refusal = error
    return lambda: jobs


def failing_factory() -> Jobs:
    raise ZeroDivisionError("odd")


class Broken:
    def submit(self, _fn: Callable[..., Any], /, *_args: Any) -> Future[None]:
        future: Future[None] = Future()
        future.set_exception(ZeroDivisionError("odd"))  # as a process pool that can't pickle it
        return future


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (
            refusing(ZeroDivisionError("odd")),
            "accepts no more work (ZeroDivisionError: odd)",
        ),
        (Broken, "(Broken) accepts no more work (a job did not run: odd)"),
        (failing_factory, "no executor could be made: a default pool sends the events"),
    ],
)
def test_an_executor_that_runs_no_job_costs_no_event_and_one_line(
    factory: Callable[[], Any],
    said: str,
    make: Make,
    service: Service,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = make(executor=factory)
    record(client, *"abc")
    assert client.flush(BOUND)
    assert sorted(service.got) == [*"abc"]
    (line,) = caplog.messages
    assert said in line


def test_a_factory_is_called_once_though_an_event_and_the_journal_need_an_executor_meanwhile() -> (
    None
):
    class Journal(NullJournal):
        stores = True

        def next_due(self) -> float | None:
            return 0.0

    def factory() -> Jobs:
        made.append(Jobs())
        pipeline.accept(b"meanwhile")
        return made[-1]

    made: list[Jobs] = []
    sent: list[bytes] = []
    pipeline = Pipeline(
        lambda body, *_: sent.append(body), Options(), ExecutorSpec(factory), Journal()
    )
    pipeline.accept(b"first")
    made[0].run()
    assert pipeline.close(None)
    assert len(made) == 1
    assert sent == [b"first", b"meanwhile"]


@pytest.mark.parametrize("of", ["submit", "factory"])
def test_an_interrupt_is_the_callers_and_costs_no_event(of: str) -> None:
    made: list[Jobs] = []

    def factory() -> Jobs:
        made.append(Jobs())
        if len(made) == 1:
            made[0].refusal = KeyboardInterrupt()
            if of == "factory":
                raise KeyboardInterrupt
        return made[-1]

    post = Post(executor=factory)
    with pytest.raises(KeyboardInterrupt):
        post.accept(b"a")
    made[0].refusal = None
    post.accept(b"b")
    made[-1].run()
    assert post.sent == [b"a", b"b"]


def test_what_was_warned_of_an_executor_is_logged_once_for_each_client(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import sys
    import types

    uwsgi: Any = types.SimpleNamespace(has_threads=0, masterpid=lambda: 0)
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)
    client = make()
    record(client, "a")
    assert client.close(BOUND)
    record(client, "b")  # it chooses its executor once more
    assert len([line for line in caplog.messages if "enable-threads" in line]) == 1


# -- no thread can be started ----------------------------------------------------------------------


@pytest.fixture
def no_room() -> Iterator[Callable[[], None]]:
    """No memory for the stack of a new thread: the real thing. Call it to end that."""
    before = threading.stack_size(1 << 46)

    def end() -> None:
        if threading.stack_size() != before:
            threading.stack_size(before)

    yield end
    end()


def test_where_no_thread_can_be_started_events_wait_and_a_flush_sends_them(
    make: Make, service: Service, no_room: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    client = make()
    record(client, "a", "b")
    assert service.got == []  # the caller makes no attempt
    assert "1 time no thread could be started" in caplog.text
    assert client.flush(BOUND)
    assert service.got == ["a", "b"]
    assert service.threads == {threading.get_ident()}
    record(client, "c")
    no_room()
    record(client, "d")  # a thread takes up both
    until(lambda: len(service.got) == 4)
    assert len(service.threads) == 2


def test_a_retry_that_no_thread_can_wait_for_is_made_by_the_next_event_or_flush() -> None:
    tries: list[float] = []

    def send(body: bytes, _key: str, _seconds: float) -> None:
        tries.append(simulation.now - 1000.0)
        threads.refuses = True
        if len(tries) in (1, 3):
            raise transient(5.0)

    with Simulation() as simulation:
        pipeline, threads = simulated(simulation, send)
        simulation.start(pipeline.accept, b"a")
        simulation.run()
        assert tries == [0.0]
        simulation.now += 100.0
        flush = simulation.start(pipeline.flush, None)
        simulation.run()
        assert flush.result()
        assert tries == [0.0, 100.0]
        threads.refuses = False
        simulation.start(pipeline.accept, b"b")
        simulation.run()
        assert len(tries) == 3
        threads.refuses = False
        simulation.now += 100.0
        simulation.start(pipeline.accept, b"c")
        simulation.run()
        assert len(tries) == 5
        assert figures(pipeline) == {"accepted": 3, "delivered": 3, "retried": 2}


def test_where_one_more_thread_cannot_be_started_the_living_ones_deliver() -> None:
    with Simulation() as simulation:
        endpoint = Endpoint(simulation, 1.0, max_workers=2)
        endpoint.accept(b"a")
        endpoint.threads.refuses = True
        endpoint.accept(b"b")
        simulation.run(seconds=1.5)
        flush = simulation.start(endpoint.pipeline.flush, None)
        simulation.run()
        assert flush.result()
        assert endpoint.most == 1
        assert figures(endpoint.pipeline) == {"accepted": 2, "delivered": 2}


def test_at_the_end_of_the_interpreter_a_thread_that_cannot_be_started_is_no_news(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = Jobs()
    jobs.refusal = RuntimeError("can't create new thread at interpreter shutdown")
    client = make(executor=jobs)
    record(client, "a")
    assert client.flush(BOUND)
    assert caplog.text == ""


@pytest.mark.parametrize("began", [False, True], ids=["before it runs", "when it runs"])
def test_an_interrupt_while_a_thread_is_started_costs_no_event(
    make: Make, service: Service, monkeypatch: pytest.MonkeyPatch, began: bool
) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if began:
            start(thread)
        raise KeyboardInterrupt

    client = make()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            record(client, "a")
    record(client, "b")
    assert client.flush(BOUND)
    assert sorted(service.got) == ["a", "b"]
    assert figures(client)["delivered"] == 2


# -- an endpoint that is down ----------------------------------------------------------------------


def test_a_probe_that_hangs_is_followed_by_another_one() -> None:
    tries = itertools.count(1)

    def send(_body: bytes, _key: str, _seconds: float) -> None:
        attempt = next(tries)
        if attempt <= _retry.DOWN_AFTER:
            raise ConnectionError("down")
        if attempt == _retry.DOWN_AFTER + 1:
            simulation.sleep(3600.0)

    with Simulation() as simulation:
        pipeline, _ = simulated(simulation, send, timeout=2.0)
        for number in range(20):
            simulation.start(pipeline.accept, b"%d" % number)
        simulation.run(seconds=60.0)
        assert figures(pipeline)["delivered"] == 19
        simulation.run()
        assert figures(pipeline)["delivered"] == 20


def test_an_exit_out_of_a_transport_costs_no_event_and_no_worker(
    make: Make, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    client = make(max_workers=1)
    service.hold.clear()
    service.failure = SystemExit(3)
    record(client, "a", "b")
    service.wait_until_inside()
    service.hold.set()
    until(lambda: "exception ended a worker; another one replaces it" in caplog.text)
    service.failure = None
    make_due(client)
    assert client.flush(BOUND)
    assert sorted(service.got) == ["a", "b"]


def test_the_end_sends_what_a_dropped_client_retries_however_late_the_thread_for_it_begins() -> (
    None
):
    sent: list[bytes] = []

    def send(body: bytes, _key: str, _timeout: float) -> None:
        sent.append(body)
        if len(sent) < 4:
            raise transient(retry_after=0.05 if len(sent) < 3 else 600.0)

    threads = Late()
    pipeline = Pipeline(send, Options(), None, NullJournal(), threads=threads)
    pipeline.accept(b"a")
    del pipeline  # what waits for the retry keeps it
    until(lambda: threads.held and threads.first and not threads.first.is_alive())
    threads.go_on.set()
    until(lambda: len(sent) == 3)
    shutdown.flush_now()
    assert len(sent) == 4

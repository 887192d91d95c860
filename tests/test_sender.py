"""Outbox → executor → transport, by a client: who delivers when, and what ends it."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

import valued
from tests.support.processes import until
from valued._delivery import load as _load
from valued._delivery import process_sender as _process_sender
from valued._delivery import retry as _retry
from valued._process import shutdown as _leaving

BOUND = 10.0  # seconds that bound a failure, no pause


class Service:
    """A transport that can be told to hold what comes, or to raise."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.threads: set[int] = set()
        self.failure: BaseException | None = None
        self.hold = threading.Event()
        self.hold.set()
        self._inside = threading.Semaphore(0)
        self._now: set[int] = set()
        self.most = 0  # threads that were inside at the same time

    def __call__(self, event: dict[str, Any]) -> None:
        self._inside.release()
        self.threads.add(threading.get_ident())
        self._now.add(threading.get_ident())
        self.most = max(self.most, len(self._now))
        try:
            assert self.hold.wait(BOUND)
            if self.failure is not None:
                failure = self.failure
                raise failure
            self.got.append(event["key"])
        finally:
            self._now.discard(threading.get_ident())

    def wait_until_inside(self, count: int = 1) -> None:
        for _ in range(count):
            assert self._inside.acquire(timeout=BOUND)


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.hold.set()


Make = Callable[..., valued.Client]


@pytest.fixture
def make(service: Service) -> Iterator[Make]:
    """Make a client of that service."""
    clients: list[valued.Client] = []

    def make(**options: Any) -> valued.Client:
        clients.append(valued.Client(service, **options))
        return clients[-1]

    yield make
    service.hold.set()
    service.failure = None
    for client in clients:
        client.close(1)  # what a test has taken, and not settled, is waited for in vain


def record(client: valued.Client, *keys: str) -> None:
    for key in keys:
        client.action(key, {"user.id": 1})


def inner(client: valued.Client) -> Any:
    return client._sender._here.peek()


def transient(retry_after: float) -> valued.DeliveryError:
    return valued.DeliveryError("not now", 503, retry_after=retry_after)


def test_nothing_is_started_before_the_first_event(make: Make) -> None:
    before = threading.active_count()
    client = make()
    assert client.flush(0)
    assert client.park(0)
    assert client.close(0)
    assert client.stats()["accepted"] == 0
    assert threading.active_count() == before
    assert inner(client) is None


def test_workers_are_added_while_events_wait_up_to_the_limit(
    make: Make, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_process_sender, "PATIENCE", 0.0)
    client = make(max_workers=3)
    service.hold.clear()
    record(client, *"abcdefgh")
    service.wait_until_inside(3)
    assert len(inner(client)._jobs) == 3
    service.hold.set()
    assert client.flush(BOUND)
    assert sorted(service.got) == list("abcdefgh")
    assert len(service.threads) <= 3


def test_a_worker_whose_delivery_took_long_adds_one(
    make: Make, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So patient that only a slow delivery's own end adds a worker, not the next event.
    client = make(max_workers=2)
    service.hold.clear()
    monkeypatch.setattr(_process_sender, "PATIENCE", 3600.0)
    record(client, "a", "b", "c")
    service.wait_until_inside()
    assert len(inner(client)._jobs) == 1
    monkeypatch.setattr(_process_sender, "PATIENCE", 0.0)
    service.hold.set()
    assert client.flush(BOUND)
    assert sorted(service.got) == ["a", "b", "c"]


def test_one_worker_is_enough_for_a_fast_service(
    make: Make, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_process_sender, "PATIENCE", 3600.0)
    # What is fast is for `Load` to say; on a busy machine it may find that this one isn't.
    monkeypatch.setattr(_load, "ROOM", 0.0)
    client = make()
    for number in range(200):
        record(client, str(number))
    assert client.flush(BOUND)
    assert service.got == [str(number) for number in range(200)]
    assert service.most == 1


def test_a_worker_is_added_where_the_load_wants_one_and_events_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_process_sender, "PATIENCE", 3600.0)
    monkeypatch.setattr(_load.Load, "wants_more", lambda *_: True)
    recorded, together = threading.Event(), threading.Barrier(2)

    def transport(event: dict[str, Any]) -> None:
        if event["key"] == "a":
            assert recorded.wait(BOUND)
        else:
            together.wait(BOUND)  # which two workers pass, and no single one

    client = valued.Client(transport, max_workers=2)
    record(client, "a", "b", "c")
    recorded.set()
    assert client.flush(BOUND)
    assert client.close(BOUND)
    assert (client.stats()["delivered"], client.stats()["retried"]) == (3, 0)


def test_a_worker_that_the_load_finds_one_too_many_leaves_its_events_to_the_others(
    make: Make, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_load.Load, "wants_fewer", lambda *_: True)
    client = make(max_workers=1)
    service.hold.clear()
    record(client, "a", "b", "c")
    mine = inner(client)
    jobs: list[object] = []
    work = mine._work

    def counted(staffing: Any, job: object) -> None:
        jobs.append(job)
        work(staffing, job)

    mine._work = counted
    service.hold.set()
    assert client.flush(BOUND)
    assert service.got == ["a", "b", "c"]
    assert len(set(jobs)) >= 2


def test_a_limit_falls_back_when_the_load_is_gone(
    make: Make, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_process_sender, "PATIENCE", 0.0)
    client = make(max_workers=4)
    service.hold.clear()
    record(client, *"abcdefgh")
    service.wait_until_inside(4)
    service.hold.set()
    assert client.flush(BOUND)
    until(lambda: not inner(client)._jobs)
    assert inner(client)._limit == 1


class Bell:
    """In place of the lock that ends the wait of who minds: what each wait says, in turn."""

    def __init__(self, *rings: Any) -> None:
        self._rings = iter(rings)

    def acquire(self, timeout: float) -> bool:
        said = next(self._rings)
        return said() if callable(said) else said

    def release(self) -> None:
        pass


def test_who_minds_adds_nobody_while_events_are_delivered_and_ends_when_told(
    make: Make, service: Service
) -> None:
    client = make(max_workers=2)
    service.hold.clear()
    record(client, "a")
    service.wait_until_inside()
    mine = inner(client)

    def delivered() -> bool:
        mine._progress += 1.0
        return False

    enough, mine._enough = mine._enough, Bell(delivered, True)
    mine._minding = True  # this thread does
    record(client, "b")
    jobs = set(mine._jobs)
    mine._mind = lambda: None  # no other one after it
    mine._grow_while_stuck()
    assert mine._jobs == jobs
    assert not mine._minding
    mine._enough = enough
    del mine._mind
    service.hold.set()
    assert client.flush(BOUND)
    assert service.got == ["a", "b"]


def test_flush_waits_for_what_was_accepted_before_it_only(make: Make, service: Service) -> None:
    client = make(max_workers=1)
    assert client.flush(0)
    service.hold.clear()
    record(client, "a")
    service.wait_until_inside()
    assert not client.flush(0)
    assert not client.flush(0.01)
    service.hold.set()
    assert client.flush(None)
    assert client.flush()


def test_a_flush_does_not_let_events_wait_for_a_delivery_that_hangs(make: Make) -> None:
    others = threading.Semaphore(0)

    def transport(event: dict[str, Any]) -> None:
        if event["key"] == "hangs":
            for _ in range(5):
                assert others.acquire(timeout=BOUND)
        others.release()

    client = valued.Client(transport, max_workers=2)
    record(client, "hangs", *"abcde")
    assert client.flush(BOUND)
    assert client.close(BOUND)


def test_a_flush_with_one_worker_waits_for_it(make: Make, service: Service) -> None:
    client = make(max_workers=1)
    record(client, "a")
    assert client.flush(None)


@pytest.mark.parametrize("call", ["flush", "close", "park"])
@pytest.mark.parametrize("timeout", [-1, "5", float("nan"), True])
def test_a_timeout_that_is_none_is_named(make: Make, call: str, timeout: Any) -> None:
    with pytest.raises(valued.ValidationError, match="timeout: expected seconds"):
        getattr(make(), call)(timeout)


# -- ends of a client --------------------------------------------------------------------------


def test_close_ends_the_threads_and_the_next_event_starts_anew(
    make: Make, service: Service
) -> None:
    client = make()
    record(client, "a")
    assert client.close(BOUND)
    assert not inner(client)._threads._workers
    assert client.close(BOUND)
    record(client, "b")
    assert client.flush(BOUND)
    assert service.got == ["a", "b"]


def test_what_close_could_not_wait_for_is_dropped_counted_and_said(
    make: Make, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    client = make(max_workers=1)
    service.hold.clear()
    record(client, "under way", "waits", "waits, too")
    service.wait_until_inside()
    assert not client.close(0)
    stats = client.stats()
    assert (stats["dropped"], stats["dropped_by_reason"]["closed"], stats["pending"]) == (2, 2, 1)
    assert "2 events were dropped" in caplog.text
    service.failure = transient(60)  # what was being tried fails: it isn't tried again
    service.hold.set()
    assert client.flush(BOUND)
    assert client.stats()["dropped_by_reason"]["closed"] == 3
    assert "1 event was dropped as the last try failed: not now" in caplog.text
    assert not inner(client).outbox.postponed()
    assert service.got == []


def test_a_flush_waits_until_what_was_dropped_late_is_said(
    make: Make, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make(max_workers=1)
    service.hold.clear()
    record(client, "under way")
    service.wait_until_inside()
    assert not client.close(0)
    saying, go_on = threading.Event(), threading.Event()

    def warn(*_args: Any, **_kwargs: Any) -> None:
        saying.set()
        assert go_on.wait(BOUND)

    monkeypatch.setattr(inner(client)._delivery._reporter, "warn", warn)
    service.failure = transient(60)
    service.hold.set()
    assert saying.wait(BOUND)
    assert client.stats()["dropped"] == 1
    assert not client.flush(0)
    go_on.set()
    assert client.flush(BOUND)


def test_what_was_under_way_when_the_client_was_closed_may_still_be_delivered(
    make: Make, service: Service
) -> None:
    client = make(max_workers=1)
    service.hold.clear()
    record(client, "under way")
    service.wait_until_inside()
    assert not client.close(0)
    service.hold.set()
    assert client.flush(BOUND)
    assert client.stats()["delivered"] == 1


def test_close_without_a_bound_waits_for_all(make: Make, service: Service) -> None:
    client = make()
    record(client, "a")
    assert client.close(None)
    assert service.got == ["a"]


def test_park_leaves_a_client_that_is_not_done_as_it_was(make: Make, service: Service) -> None:
    client = make(max_workers=1)
    service.hold.clear()
    record(client, "a", "b")
    service.wait_until_inside()
    assert not client.park(0)
    assert client.stats()["pending"] == 2
    service.hold.set()
    assert client.park(BOUND)
    assert service.got == ["a", "b"]


def test_park_from_a_thread_of_the_pool_says_that_it_is_not_done(service: Service) -> None:
    answers: list[bool] = []
    client = valued.Client(lambda _event: None, on_error=None, idle_time=0.01)

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


def test_an_executor_that_can_not_be_shut_down_is_said(
    make: Make, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    class Stubborn(valued.ImmediateExecutor):
        def shutdown(self) -> None:  # takes no `wait`
            raise AssertionError("not called")

    class Pool(Stubborn):
        pass

    class Threads:
        def submit(self, fn: Callable[..., Any], /, *args: Any) -> None:
            threading.Thread(target=fn, args=args).start()

        def shutdown(self) -> None:
            raise AssertionError("not called")

    client = make(executor=Threads)
    record(client, "a")
    assert client.close(BOUND)
    assert "could not be shut down" in caplog.text


# -- threads and executors that fail -----------------------------------------------------------


def test_where_no_thread_can_be_started_the_caller_delivers(
    make: Make, service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")  # as at the limit of the system

    client = make()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        record(client, "a", "b")
    assert service.got == ["a", "b"]
    assert service.threads == {threading.get_ident()}
    assert "1 time no thread could be started" in caplog.text
    record(client, "c")
    assert client.flush(BOUND)
    assert len(service.threads) == 2


def test_at_the_end_of_the_interpreter_that_no_thread_can_be_started_is_no_news(
    make: Make, service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    client = make()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        record(client, "a")
    assert service.got == ["a"]
    assert caplog.text == ""


def test_where_one_more_thread_can_not_be_started_the_living_ones_deliver(
    make: Make, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make(max_workers=2)
    service.hold.clear()
    record(client, "a")
    service.wait_until_inside()

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        patch.setattr(_process_sender, "PATIENCE", 0.0)
        record(client, "b")  # returns, though all is held
    service.hold.set()
    assert client.flush(BOUND)
    assert service.got == ["a", "b"]
    assert len(service.threads) == 1


def test_a_retry_that_no_thread_can_wait_for_is_made_by_the_next_flush(
    make: Make, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make()
    service.hold.clear()
    service.failure = transient(0)
    record(client, "a")
    service.wait_until_inside()

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        service.hold.set()
        until(lambda: inner(client) in _leaving._here.get().unfinished)
        service.failure = None
    record(client, "b")  # a thread takes up both
    assert client.flush(BOUND)
    assert sorted(service.got) == ["a", "b"]


def test_an_interrupt_while_a_worker_is_hired_costs_no_event(
    make: Make, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make()

    def interrupted(_thread: threading.Thread) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            record(client, "a")
    assert client.stats()["accepted"] == 1
    record(client, "b")
    assert client.flush(BOUND)
    assert sorted(service.got) == ["a", "b"]


def test_a_factory_that_raises_is_said_and_a_default_pool_delivers(
    make: Make, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    def factory() -> ThreadPoolExecutor:
        raise ZeroDivisionError

    client = make(executor=factory)
    record(client, "a")
    assert client.flush(BOUND)
    assert service.got == ["a"]
    assert "no executor could be made" in caplog.text


def test_an_executor_that_was_shut_down_is_said_once_and_a_default_pool_delivers(
    make: Make, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    executor = ThreadPoolExecutor(1)
    client = make(executor=executor)
    record(client, "a")
    assert client.flush(BOUND)
    executor.shutdown()
    record(client, "b", "c")
    assert client.flush(BOUND)
    assert service.got == ["a", "b", "c"]
    warnings = [r for r in caplog.records if "accepts no more work" in r.getMessage()]
    assert len(warnings) == 1
    assert "ThreadPoolExecutor" in warnings[0].getMessage()


def test_what_an_executor_is_warned_of_is_said_once(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    client = make()
    record(client, "a")
    for _ in range(2):
        inner(client)._warn_once("%s is not used here", "this one")
    assert caplog.messages == ["this one is not used here"]


def test_jobs_that_an_executor_cancels_cost_no_event(
    make: Make, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    executor = ThreadPoolExecutor(1)
    client = make(executor=executor)
    service.hold.clear()
    record(client, "under way", "queued", "queued, too")
    service.wait_until_inside()
    executor.shutdown(wait=False, cancel_futures=True)
    service.hold.set()
    assert client.flush(BOUND)
    assert sorted(service.got) == ["queued", "queued, too", "under way"]
    assert "it was cancelled" in caplog.text


def test_a_job_that_an_executor_could_not_run_costs_no_event(make: Make, service: Service) -> None:
    class Broken:
        def submit(self, _fn: Callable[..., Any], /, *_args: Any) -> Future[None]:
            future: Future[None] = Future()
            future.set_exception(ZeroDivisionError())  # as a process pool that can't pickle it
            return future

    client = make(executor=Broken())
    record(client, "a")
    assert client.flush(BOUND)
    assert service.got == ["a"]


class Leaves(BaseException):
    """As `SystemExit`, and no error of pytest's own."""


def test_an_exit_out_of_a_transport_costs_no_event_and_no_worker(
    make: Make, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    client = make(max_workers=1)
    service.hold.clear()
    service.failure = Leaves()
    record(client, "a", "b")
    service.wait_until_inside()
    service.hold.set()
    until(lambda: "exception ended a worker" in caplog.text)
    service.failure = None
    inner(client).outbox.hasten()
    assert client.flush(BOUND)
    assert sorted(service.got) == ["a", "b"]


def test_an_interrupt_of_a_delivery_in_the_caller_is_the_callers(
    make: Make, service: Service
) -> None:
    client = make(executor=valued.ImmediateExecutor())
    service.failure = Leaves()
    with pytest.raises(Leaves):
        record(client, "a")
    assert client.stats()["pending"] == 1
    service.failure = None
    assert client.flush(BOUND)
    assert service.got == ["a"]


def test_an_executor_in_the_caller_retries_at_the_next_event_or_flush(
    make: Make, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_retry, "backoff", lambda *_: 0.1)  # so that nothing is due at once
    client = make(executor=valued.ImmediateExecutor())
    service.failure = transient(0)
    record(client, "a")
    assert client.stats()["pending"] == 1
    service.failure = None
    inner(client).outbox.hasten()  # as if its time had come
    record(client, "b")
    assert service.got == ["a", "b"]
    service.failure = transient(0)
    record(client, "c")
    service.failure = None
    assert client.flush(BOUND)
    assert service.got == ["a", "b", "c"]
    assert inner(client) not in _leaving._here.get().unfinished


def test_a_flush_that_leaves_later_events_postponed_keeps_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # So that nothing is due at once.
    monkeypatch.setattr(_retry, "backoff", lambda _times, asked, _random: max(0.1, asked))
    # The first event's retry is refused for good in the middle of a flush, whose `on_error`
    # records another one: that one is postponed when the flush is done.
    recorded: list[str] = []

    def on_error(_error: valued.DeliveryError, event: dict[str, Any]) -> None:
        if not recorded:
            recorded.append(event["key"])
            client.action("later", {"user.id": 1})

    outcomes = iter([transient(0), valued.DeliveryError("no", 400), transient(60)])

    def transport(_event: dict[str, Any]) -> None:
        raise next(outcomes)

    client = valued.Client(
        transport, executor=valued.ImmediateExecutor(), retries=1, on_error=on_error
    )
    record(client, "first")
    assert client.flush(BOUND)
    assert recorded == ["first"]
    assert client.stats()["pending"] == 1
    assert inner(client) in _leaving._here.get().unfinished
    assert not client.close(0)


def test_the_caller_delivers_what_an_outbox_that_is_full_hands_back(
    make: Make, service: Service
) -> None:
    client = make(max_queue=1, max_workers=1, overflow="caller_runs")
    service.hold.clear()
    record(client, "a")
    service.wait_until_inside()
    threading.Thread(target=record, args=(client, "b")).start()
    service.wait_until_inside()
    service.hold.set()
    assert client.flush(BOUND)
    assert threading.get_ident() not in service.threads
    assert sorted(service.got) == ["a", "b"]


def test_what_a_full_queue_dropped_is_said_by_who_delivers(
    make: Make, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    client = make(max_queue=2, max_workers=1)
    service.hold.clear()
    record(client, *"abcde")
    assert caplog.text == ""  # not in the caller
    service.hold.set()
    assert client.flush(BOUND)
    until(lambda: caplog.text)
    assert (
        "3 events were dropped: max_queue (2) or 64 MiB were waiting (overflow='drop_newest')"
        in (caplog.text)
    )
    service.hold.clear()
    record(client, *"abcdefg")
    service.hold.set()
    assert client.close(BOUND)  # says what is left to say, though a minute has not gone by
    assert "5 events were dropped: max_queue (2)" in caplog.text


def test_retries_wait_on_one_thread_and_end_with_it(make: Make, service: Service) -> None:
    client = make(idle_time=0.01)
    service.failure = transient(0)
    record(client, *"abc")
    until(lambda: client.stats()["retried"] >= 3)
    service.failure = None
    assert client.flush(BOUND)
    assert sorted(service.got) == ["a", "b", "c"]
    until(lambda: not inner(client)._threads._workers)


def test_an_event_that_is_postponed_while_the_watch_ends_is_not_forgotten(
    make: Make, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make()
    record(client, "a")
    assert client.flush(BOUND)
    mine = inner(client)
    outbox = mine.outbox
    wait = outbox.wait_until_due
    postponed = threading.Event()

    def wait_until_due(_outbox: object) -> bool:
        due: bool = wait()
        if not due and not postponed.is_set():
            # The watch found nothing, and has not said yet that it ends.
            postpone(b'{"key": "late"}')
            postponed.set()
        return due

    def postpone(body: bytes) -> None:
        outbox.put(body)
        # A moment from now, or whoever looks for work takes it before anybody watches.
        outbox.postpone(outbox.take(), time.monotonic() + 0.1)

    until(lambda: not mine._jobs)
    monkeypatch.setattr(type(outbox), "wait_until_due", wait_until_due)
    postpone(b'{"key": "b"}')
    mine._watch()
    assert postponed.wait(BOUND)
    assert outbox.wait(outbox.mark(), time.monotonic() + BOUND)  # no flush, which would watch, too
    assert sorted(service.got) == ["a", "b", "late"]


# -- an endpoint that is down ------------------------------------------------------------------


def test_what_callers_send_while_the_endpoint_is_held_is_no_probe(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_retry, "backoff", lambda *_: 60.0)  # longer than the test
    service.failure = ConnectionError("down")
    down = _retry.DOWN_AFTER
    client = valued.Client(
        service,
        executor=valued.ImmediateExecutor(),
        max_queue=down,
        overflow="caller_runs",
        retries=2,
    )
    record(client, *map(str, range(down)))
    outbox = inner(client).outbox
    held_until = outbox._waiting._until
    assert held_until is not None
    record(client, *map(str, range(20)))  # each fails in its caller: the queue is full
    service.wait_until_inside(down + 20)
    stats = client.stats()
    # Three failed probes would have used up the attempts of all that wait.
    assert (stats["pending"], stats["failed"], stats["retried"]) == (down + 20, 0, 0)
    assert outbox._waiting._until == held_until
    client.close(0)


def test_an_event_that_becomes_due_while_the_only_worker_hangs_gets_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_process_sender, "PATIENCE", 0.01)
    monkeypatch.setattr(_retry, "FIRST_PAUSE", 0.0)
    both, hangs, again, over = (threading.Event() for _ in range(4))
    tries: list[str] = []

    def transport(event: dict[str, Any]) -> None:
        tries.append(event["key"])
        if event["key"] == "b":
            hangs.set()
            assert over.wait(BOUND)
        elif tries.count("a") == 1:
            assert both.wait(BOUND)
            raise transient(0.15)  # the other one hangs by then
        else:
            again.set()

    client = valued.Client(transport, max_workers=10)
    record(client, "a", "b")
    both.set()
    assert hangs.wait(BOUND)
    assert again.wait(BOUND / 2)
    over.set()
    assert client.close(BOUND)
    assert tries == ["a", "b", "a"]


def test_a_probe_that_hangs_is_followed_by_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_process_sender, "PATIENCE", 0.01)
    monkeypatch.setattr(_retry, "FIRST_PAUSE", 0.01)
    tries = itertools.count(1)
    again, over = threading.Event(), threading.Event()

    def transport(_event: dict[str, Any]) -> None:
        attempt = next(tries)
        if attempt <= _retry.DOWN_AFTER:
            raise ConnectionError("down")
        if attempt == _retry.DOWN_AFTER + 1:
            assert over.wait(BOUND)
        else:
            again.set()

    client = valued.Client(transport, max_workers=10, timeout=0.05)  # a probe has three of those
    record(client, *map(str, range(20)))
    assert again.wait(BOUND / 2)
    over.set()
    assert client.close(BOUND)
    assert client.stats()["delivered"] == 20


def test_an_executor_of_the_users_delivers_after_an_outage_on_all_its_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_retry, "FIRST_PAUSE", 0.01)
    threads = 8  # more than events that become due one by one could start
    at_once = threading.Barrier(threads)  # passed when so many are inside
    down, answered, passed = threading.Event(), threading.Event(), threading.Event()
    down.set()

    def transport(_event: dict[str, Any]) -> None:
        if down.is_set():
            raise ConnectionError("down")
        if not answered.is_set():
            answered.set()  # the probe goes alone
        elif not passed.is_set():
            at_once.wait(BOUND / 2)
            passed.set()

    with ThreadPoolExecutor(threads) as executor:
        client = valued.Client(transport, executor=executor, max_workers=threads, retries=1000)
        record(client, *map(str, range(_retry.DOWN_AFTER)))
        until(lambda: inner(client).outbox._waiting._until is not None)
        record(client, *map(str, range(4 * threads)))
        down.clear()
        assert client.close(BOUND)
    assert passed.is_set()
    assert client.stats()["delivered"] == _retry.DOWN_AFTER + 4 * threads


# -- the end of the process --------------------------------------------------------------------


def test_the_end_drops_what_it_has_no_time_for_counts_it_and_says_so(
    make: Make, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    client = make(max_workers=1, shutdown_timeout=0.05)
    service.hold.clear()
    record(client, "under way", "waits")
    service.wait_until_inside()
    inner(client).leave(time.monotonic() - 1.0)
    stats = client.stats()
    assert stats["dropped_by_reason"]["exit"] == 1
    assert "the process ends with 2 events not delivered: shutdown_timeout (0.05 s)" in caplog.text
    record(client, "too late")
    assert client.stats()["dropped_by_reason"]["exit"] == 2
    service.hold.set()


def test_a_process_that_hears_twice_of_its_end_has_the_time_of_the_first(
    make: Make, service: Service
) -> None:
    client = make(shutdown_timeout=BOUND)
    record(client, "a")
    inner(client).leave(time.monotonic())
    end = inner(client)._end
    inner(client).leave(time.monotonic() + 5.0)
    assert inner(client)._end == end
    record(client, "b")  # in the caller by now
    assert service.got == ["a", "b"]
    assert client.stats()["pending"] == 0


def test_of_two_threads_that_end_the_process_one_delivers_and_the_other_waits(
    make: Make, service: Service
) -> None:
    client = make(max_workers=1)
    service.hold.clear()
    record(client, "a", "b")  # the second one is ready, for whoever takes it
    service.wait_until_inside()
    mine = inner(client)
    mark = mine.outbox.mark()
    with mine._driver:  # the other one
        assert not mine._drive_alone(mark, time.monotonic() + 0.01)
        service.hold.set()
        assert mine._drive_alone(mark, time.monotonic() + BOUND)
    assert threading.get_ident() not in service.threads


# -- in a child that a transport, a factory or `on_error` forked --------------------------------
#
# Real forks of that kind are in tests/prefork/test_fork.py. No tracer sees the lines of a child
# whose functions were called in its parent, so these go through them with a stand-in for the one
# question that tells the two apart.


class Elsewhere:
    """What `Birthplace` is in a child; after a number of questions that the parent asked."""

    def __init__(self, questions: int = 0) -> None:
        self._questions = questions

    def is_here(self) -> bool:
        self._questions -= 1
        return self._questions >= 0


def test_a_child_that_its_factory_forked_hires_nobody(make: Make, service: Service) -> None:
    client = make()
    mine = client._sender._here.get()
    born, mine._born = mine._born, Elsewhere(1)
    record(client, "the parent's")
    assert service.got == []
    assert mine._staffing is None
    mine._born = born
    mine._jobs.clear()


def test_a_child_looks_at_no_job_of_its_parent(make: Make, service: Service) -> None:
    client = make(max_workers=1)
    record(client, "a")
    assert client.flush(BOUND)
    mine = inner(client)
    future: Future[None] = Future()
    future.cancel()
    born, mine._born = mine._born, Elsewhere()
    mine._check(mine._staffing, object(), future)
    mine._born = born
    assert len(mine._jobs) <= 1  # as it was: 1 while the worker takes leave of its job


@pytest.mark.parametrize("road", ["_work", "_refused", "_drive", "leave"])
def test_a_child_that_its_transport_forked_takes_one_event_no_further(
    make: Make, service: Service, road: str
) -> None:
    client = make()
    mine = client._sender._here.get()
    record(client, "a")
    assert client.flush(BOUND)
    until(lambda: len(mine._threads._idle) == len(mine._threads._workers))
    for body in (b'{"key": "forks"}', b'{"key": "waits"}'):
        mine.outbox.put(body)
    births = mine._born, mine._delivery._born
    mine._born, mine._delivery._born = Elsewhere(), Elsewhere(1)
    calls: dict[str, Callable[[], object]] = {
        "_work": lambda: mine._work(mine._staffing, object()),
        "_refused": lambda: mine._refused(mine._staffing, "no thread"),
        "_drive": lambda: mine._drive(mine.outbox.mark(), time.monotonic() + BOUND),
        "leave": lambda: mine.leave(time.monotonic()),
    }
    calls[road]()
    assert service.got == ["a", "forks"]
    assert mine.outbox.pending() == 2  # the parent settles both
    mine._born, mine._delivery._born = births
    mine._end = None
    mine.outbox.abandon("closed")


def test_a_child_that_its_transport_forked_leaves_a_failure_to_the_parent(
    make: Make, service: Service
) -> None:
    client = make()
    mine = client._sender._here.get()
    mine.outbox.put(b'{"key": "forks"}')
    service.failure = transient(0)
    born, mine._delivery._born = mine._delivery._born, Elsewhere(1)
    assert not mine._delivery.attempt(mine.outbox.take())
    mine._delivery._born = born
    assert mine.outbox.pending() == 1
    assert not mine.outbox.postponed()
    mine.outbox.hasten()


def test_a_greenlet_that_watches_ends_in_a_child(make: Make) -> None:
    mine = make()._sender._here.get()
    born, mine._born, mine._watching = mine._born, Elsewhere(), True
    mine._hire_when_due()
    assert mine._watching  # nothing was touched
    mine._born, mine._watching = born, False


class Lies:
    """A lock in whose place something happens before it is had."""

    def __init__(self, happens: Callable[[], object]) -> None:
        self._happens = happens

    def __enter__(self) -> None:
        self._happens()

    def __exit__(self, *_: object) -> None:
        pass


def test_of_two_threads_that_would_add_the_last_worker_one_does(
    make: Make, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_process_sender, "PATIENCE", 3600.0)
    client = make(max_workers=2)
    service.hold.clear()
    record(client, "a", "b")
    service.wait_until_inside()
    mine = inner(client)
    lock, mine._lock = mine._lock, Lies(lambda: setattr(mine, "_limit", 2))
    mine._grow()  # finds, once it has the lock, that another one has just done it
    mine._lock = lock
    assert len(mine._jobs) == 1


def test_of_two_threads_that_would_watch_one_does(make: Make, service: Service) -> None:
    client = make()
    record(client, "a")
    assert client.flush(BOUND)
    mine = inner(client)
    until(lambda: not mine._jobs)
    mine.outbox.put(b'{"key": "later"}')
    mine.outbox.postpone(mine.outbox.take(), time.monotonic() + 3600.0)
    workers = len(mine._threads._workers)
    lock, mine._lock = mine._lock, Lies(lambda: setattr(mine, "_watching", True))
    mine._watch()
    mine._lock, mine._watching = lock, False
    assert len(mine._threads._workers) == workers
    mine.outbox.abandon("closed")


def test_an_event_that_comes_too_late_is_dropped_even_where_its_caller_was_to_send_it(
    make: Make, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make(max_queue=1, overflow="caller_runs")
    service.hold.clear()
    record(client, "a")
    service.wait_until_inside()
    monkeypatch.setattr(_leaving, "is_over", lambda: True)
    record(client, "b")
    assert client.stats()["dropped_by_reason"]["exit"] == 1
    service.hold.set()
    assert client.flush(BOUND)
    assert service.got == ["a"]


@pytest.mark.parametrize(("waiting", "dropped"), [(2, 3), (0, 1)], ids=["waiting", "under way"])
def test_an_event_that_comes_too_late_waits_for_no_space(
    make: Make, service: Service, monkeypatch: pytest.MonkeyPatch, waiting: int, dropped: int
) -> None:
    client = make(max_queue=1 + waiting, max_workers=1, overflow="block", timeout=5)
    service.hold.clear()
    record(client, "a")
    service.wait_until_inside()
    record(client, *map(str, range(waiting)))
    monkeypatch.setattr(_leaving, "is_over", lambda: True)
    began = time.monotonic()
    record(client, "late")
    assert time.monotonic() - began < 2.5  # it would wait for five seconds
    stats = client.stats()
    assert stats["dropped_by_reason"] == {**stats["dropped_by_reason"], "exit": dropped}
    assert stats["dropped"] == dropped
    service.hold.set()
    assert client.flush(BOUND)
    assert service.got == ["a"]

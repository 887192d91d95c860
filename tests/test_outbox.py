"""The outbox: order, bounds, figures, marks, and whoever comes in the middle of it."""

from __future__ import annotations

import gc
import itertools
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.support.clock import Clock
from valued._delivery import memory as _outbox
from valued._delivery.memory import MemoryOutbox

if TYPE_CHECKING:
    from typing_extensions import Self

PAST = 0.0  # a deadline that has passed, for those who only look
POLICIES = ["drop_newest", "drop_oldest", "block", "caller_runs"]
InThread = Callable[..., "Future[Any]"]


@pytest.fixture
def in_thread() -> InThread:
    """Call a function on a thread of its own, which holds up nothing if it never returns."""

    def start(function: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(function(*args))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future

    return start


class Watched(threading.Condition):
    """Says that a thread waits. Who then gets the lock comes after it."""

    def __init__(self, lock: Any) -> None:
        super().__init__(lock)
        self.somebody_waits = threading.Semaphore(0)
        self.timeouts: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.timeouts.append(timeout)
        self.somebody_waits.release()
        return super().wait(timeout)


def watch(outbox: MemoryOutbox) -> Watched:
    outbox._settled = Watched(outbox._lock)
    return outbox._settled


def take(outbox: MemoryOutbox) -> Any:
    item = outbox.take()
    assert item is not None
    return item


def take_all(outbox: MemoryOutbox) -> list[bytes]:
    return [item.body for item in iter(outbox.take, None)]


def balance(outbox: MemoryOutbox) -> dict[str, Any]:
    figures = outbox.figures()
    settled = figures["delivered"] + figures["failed"] + figures["dropped"]
    assert figures["accepted"] == settled + figures["pending"]
    assert figures["dropped"] == sum(figures["dropped_by_reason"].values())
    assert figures["pending"] == outbox.pending() >= 0
    return figures


# -- order -----------------------------------------------------------------------------------------


def test_events_are_taken_in_the_order_in_which_they_were_put() -> None:
    outbox = MemoryOutbox()
    for body in (b"1", b"2", b"3"):
        assert outbox.put(body) is None
    assert take_all(outbox) == [b"1", b"2", b"3"]
    assert outbox.take() is None


def test_postponed_events_come_first_once_they_are_due_and_not_before() -> None:
    clock = Clock()
    outbox = MemoryOutbox(clock=clock)
    for body in (b"1", b"2", b"3", b"4"):
        outbox.put(body)
    first, second, third = take(outbox), take(outbox), take(outbox)
    outbox.postpone(third, 1030.0)
    outbox.postpone(second, 1020.0)
    outbox.postpone(first, 1010.0)
    clock.now = 1009.9
    assert take(outbox).body == b"4"
    assert outbox.take() is None
    assert not outbox.ready()
    outbox.put(b"5")
    clock.now = 1020.0
    assert outbox.ready()
    assert take_all(outbox) == [b"1", b"2", b"5"]
    assert outbox.postponed()
    clock.now = 1030.0
    assert take_all(outbox) == [b"3"]
    assert not outbox.postponed()


def test_an_attempt_counts_when_it_is_taken_and_a_retry_from_the_second_on() -> None:
    clock = Clock()
    outbox = MemoryOutbox(clock=clock)
    outbox.put(b"1")
    item = take(outbox)
    assert (item.attempts, outbox.figures()["retried"]) == (1, 0)
    outbox.postpone(item, clock.now)
    assert take(outbox) is item
    assert (item.attempts, outbox.figures()["retried"]) == (2, 1)


def test_hasten_makes_everything_due_oldest_due_first_and_wakes_who_waits(
    in_thread: InThread,
) -> None:
    clock = Clock()
    outbox = MemoryOutbox(clock=clock)
    changed = watch(outbox)
    outbox.put(b"1")
    outbox.put(b"2")
    outbox.postpone(take(outbox), 2000.0)
    outbox.postpone(take(outbox), 3000.0)
    waiter = in_thread(outbox.wait_for_work, outbox.mark(), None)
    assert changed.somebody_waits.acquire(timeout=10)
    outbox.hasten()
    assert waiter.result(10) is True
    assert take_all(outbox) == [b"1", b"2"]
    assert not outbox.postponed()


def test_accepted_at_is_the_time_of_the_put() -> None:
    clock = Clock(5.0)
    outbox = MemoryOutbox(clock=clock)
    outbox.put(b"1")
    clock.now = 9.0
    assert take(outbox).accepted_at == 5.0


# -- identity --------------------------------------------------------------------------------------


def test_an_idempotency_key_is_the_same_for_each_attempt_and_no_other_event_has_it() -> None:
    keys: list[str] = []
    for outbox in (MemoryOutbox(), MemoryOutbox()):
        for _ in range(100):
            outbox.put(b"same")
            item = take(outbox)
            first = item.idempotency_key
            outbox.postpone(item, PAST)
            assert take(outbox).idempotency_key == first
            keys.append(first)
    assert len(set(keys)) == 200


# -- overflow --------------------------------------------------------------------------------------


def full(overflow: Any, *, by: str, clock: Clock | None = None, block: float = 0.0) -> MemoryOutbox:
    """An outbox in which `1` and `2` are all that goes in, by count or by bytes."""
    bounds = {"max_events": 2} if by == "count" else {"max_bytes": 2}
    outbox = MemoryOutbox(**bounds, overflow=overflow, block=block, clock=clock or Clock())
    outbox.put(b"1")
    outbox.put(b"2")
    assert balance(outbox)["dropped"] == 0
    return outbox


by_count_or_bytes = pytest.mark.parametrize("by", ["count", "bytes"])


@by_count_or_bytes
def test_drop_newest_keeps_what_is_there(by: str) -> None:
    outbox = full("drop_newest", by=by)
    assert outbox.put(b"3") is None
    assert balance(outbox)["dropped_by_reason"] == {"overflow": 1, "exit": 0, "closed": 0}
    assert take_all(outbox) == [b"1", b"2"]


@by_count_or_bytes
def test_drop_oldest_makes_room_for_what_comes(by: str) -> None:
    outbox = full("drop_oldest", by=by)
    assert outbox.put(b"3") is None
    assert balance(outbox)["dropped_by_reason"]["overflow"] == 1
    assert take_all(outbox) == [b"2", b"3"]


def test_drop_oldest_drops_as_many_as_a_long_event_needs() -> None:
    outbox = full("drop_oldest", by="bytes")
    outbox.put(b"34")
    assert balance(outbox)["dropped"] == 2
    assert take_all(outbox) == [b"34"]


def test_drop_oldest_reaches_those_that_were_tried_and_wait_for_another_attempt() -> None:
    # In an outage, all that is old waits there.
    outbox = full("drop_oldest", by="count")
    outbox.postpone(take(outbox), 2000.0)
    outbox.put(b"3")
    assert balance(outbox)["dropped"] == 1
    assert not outbox.postponed()
    assert take_all(outbox) == [b"2", b"3"]


def test_drop_oldest_takes_a_ready_event_before_a_postponed_one_that_is_younger() -> None:
    clock = Clock()
    outbox = full("drop_oldest", by="count", clock=clock)
    first, second = take(outbox), take(outbox)
    outbox.postpone(first, 1001.0)
    outbox.postpone(second, 1002.0)
    clock.now = 1001.0
    assert outbox.ready()  # the first is due
    outbox.put(b"3")
    clock.now = 1002.0
    assert take_all(outbox) == [b"2", b"3"]


def test_drop_oldest_drops_the_newest_where_all_others_are_being_delivered() -> None:
    outbox = full("drop_oldest", by="count")
    first, second = take(outbox), take(outbox)
    outbox.put(b"3")
    assert balance(outbox)["dropped"] == 1
    assert outbox.take() is None
    outbox.delivered(first)
    outbox.delivered(second)
    assert balance(outbox)["pending"] == 0


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest", "block"])
def test_an_event_larger_than_all_room_is_dropped_at_once_and_alone(
    overflow: Any, in_thread: InThread
) -> None:
    outbox = full(overflow, by="bytes", block=3600.0)
    changed = watch(outbox)
    assert in_thread(outbox.put, b"345").result(10) is None
    assert balance(outbox)["dropped_by_reason"]["overflow"] == 1
    assert changed.timeouts == []  # it would be an hour
    assert take_all(outbox) == [b"1", b"2"]


@by_count_or_bytes
def test_caller_runs_hands_the_event_back_to_the_caller(by: str) -> None:
    outbox = full("caller_runs", by=by)
    item = outbox.put(b"3")
    assert item is not None
    assert item.body == b"3"
    assert balance(outbox)["pending"] == 3
    assert take_all(outbox) == [b"1", b"2"]
    outbox.delivered(item)
    assert balance(outbox)["pending"] == 2


@by_count_or_bytes
def test_block_waits_for_space_and_then_takes_the_event(by: str, in_thread: InThread) -> None:
    outbox = full("block", by=by, block=3600.0)
    changed = watch(outbox)
    first = take(outbox)
    caller = in_thread(outbox.put, b"3")
    assert changed.somebody_waits.acquire(timeout=10)
    assert balance(outbox)["pending"] == 3
    outbox.delivered(first)
    assert caller.result(10) is None
    assert balance(outbox)["dropped"] == 0
    assert take_all(outbox) == [b"2", b"3"]


@by_count_or_bytes
def test_block_drops_the_newest_when_its_time_is_over(by: str) -> None:
    clock = Clock()
    outbox = full("block", by=by, clock=clock, block=5.0)
    changed = watch(outbox)

    def wait(timeout: float | None) -> bool:
        changed.timeouts.append(timeout)
        clock.now += 3.0
        return False

    changed.wait = wait  # type: ignore[method-assign, assignment]
    assert outbox.put(b"3") is None
    assert changed.timeouts == [5.0, 2.0]
    assert balance(outbox)["dropped_by_reason"]["overflow"] == 1
    assert take_all(outbox) == [b"1", b"2"]


@by_count_or_bytes
def test_what_an_exception_keeps_from_waiting_for_space_is_counted_as_dropped(by: str) -> None:
    outbox = full("block", by=by, block=3600.0)

    def wait(_timeout: float | None) -> bool:
        raise TimeoutError  # a soft time limit, out of a signal handler

    outbox._settled.wait = wait  # type: ignore[method-assign]
    with pytest.raises(TimeoutError):
        outbox.put(b"3")
    assert balance(outbox)["dropped_by_reason"]["overflow"] == 1
    for _ in range(2):
        outbox.delivered(take(outbox))
    assert balance(outbox)["pending"] == outbox._bytes == 0
    assert outbox.wait(outbox.mark(), PAST)


def test_what_is_refused_counts_and_neither_waits_nor_takes_space() -> None:
    outbox = full("block", by="count", block=3600.0)
    outbox.refuse("exit")
    figures = balance(outbox)
    assert (figures["accepted"], figures["pending"]) == (3, 2)
    assert figures["dropped_by_reason"]["exit"] == 1
    assert outbox.overflown() == 0
    assert take_all(outbox) == [b"1", b"2"]


@by_count_or_bytes
def test_blocked_callers_do_not_wait_for_each_other(by: str, in_thread: InThread) -> None:
    outbox = full("block", by=by, block=3600.0)
    changed = watch(outbox)
    items = [take(outbox), take(outbox)]
    callers = [in_thread(outbox.put, body) for body in (b"3", b"4", b"5", b"6")]
    for _ in callers:
        assert changed.somebody_waits.acquire(timeout=10)
    bodies = []
    for _ in range(6):  # as space comes one by one, they get in one by one
        outbox.delivered(items.pop(0))
        if len(bodies) < 4:
            _wait_until(lambda: outbox.ready())
            items.append(take(outbox))
            bodies.append(items[-1].body)
    assert [caller.result(10) for caller in callers] == [None] * 4
    assert sorted(bodies) == [b"3", b"4", b"5", b"6"]
    assert balance(outbox)["delivered"] == 6


def _wait_until(true: Callable[[], bool]) -> None:
    gave_up = threading.Event()
    for _ in range(10_000):  # 10 s bounds a failure
        if true():
            return
        gave_up.wait(0.001)  # how often to look; what is waited for is another thread
    raise AssertionError(true)


# -- settling --------------------------------------------------------------------------------------


def test_each_outcome_has_its_figure() -> None:
    outbox = MemoryOutbox()
    for outcome in (
        outbox.delivered,
        outbox.failed,
        lambda item: outbox.dropped(item, "exit"),
        lambda item: outbox.dropped(item, "closed"),
    ):
        outbox.put(b"1")
        outcome(take(outbox))
        balance(outbox)
    assert outbox.figures() == {
        "accepted": 4,
        "delivered": 1,
        "failed": 1,
        "dropped": 2,
        "pending": 0,
        "retried": 0,
        "dropped_by_reason": {"overflow": 0, "exit": 1, "closed": 1},
        "adopted": 0,
        "handed_over": 0,
        "unsaved": 0,
    }


def test_figures_are_a_copy() -> None:
    outbox = MemoryOutbox()
    outbox.figures()["dropped_by_reason"]["exit"] = 5
    assert outbox.figures()["dropped_by_reason"]["exit"] == 0


def test_abandon_drops_what_nobody_has_taken_the_postponed_included() -> None:
    outbox = MemoryOutbox(clock=Clock())
    for body in (b"1", b"2", b"3"):
        outbox.put(body)
    taken = take(outbox)
    outbox.postpone(take(outbox), 2000.0)
    assert outbox.abandon("closed") == 2
    assert balance(outbox)["dropped_by_reason"]["closed"] == 2
    assert outbox.pending() == 1
    assert not outbox.ready()
    assert not outbox.postponed()
    outbox.delivered(taken)
    assert balance(outbox)["pending"] == 0


def test_space_is_there_again_after_an_event_is_settled() -> None:
    outbox = full("drop_newest", by="bytes")
    outbox.delivered(take(outbox))
    outbox.put(b"3")
    assert balance(outbox)["dropped"] == 0


# -- waiting until due -----------------------------------------------------------------------------


def test_wait_until_due_returns_when_the_first_postponed_event_is_due() -> None:
    clock = Clock()
    outbox = MemoryOutbox(clock=clock)
    outbox.put(b"1")
    outbox.postpone(take(outbox), 1000.5)
    waits: list[float | None] = []

    def wait(timeout: float | None) -> bool:
        waits.append(timeout)
        clock.now = 1000.5
        return False

    outbox._earlier.wait = wait  # type: ignore[method-assign, assignment]
    assert outbox.wait_until_due() is True
    assert waits == [0.5]
    assert take(outbox).body == b"1"
    assert outbox.wait_until_due() is False


def test_who_waits_until_due_hears_of_an_event_that_is_due_earlier(in_thread: InThread) -> None:
    clock = Clock()
    outbox = MemoryOutbox(clock=clock)
    outbox._earlier = earlier = Watched(outbox._lock)
    outbox.put(b"1")
    outbox.put(b"2")
    outbox.postpone(take(outbox), 9000.0)
    waiter = in_thread(outbox.wait_until_due)
    assert earlier.somebody_waits.acquire(timeout=10)
    outbox.postpone(take(outbox), 1000.0)
    assert waiter.result(10) is True
    assert take_all(outbox) == [b"2"]


@pytest.mark.parametrize("end", ["abandon", "hasten"])
def test_who_waits_until_due_is_let_go_when_nothing_is_postponed_any_more(
    end: str, in_thread: InThread
) -> None:
    outbox = MemoryOutbox(clock=Clock())
    outbox._earlier = earlier = Watched(outbox._lock)
    outbox.put(b"1")
    outbox.postpone(take(outbox), 9000.0)
    waiter = in_thread(outbox.wait_until_due)
    assert earlier.somebody_waits.acquire(timeout=10)
    outbox.abandon("exit") if end == "abandon" else outbox.hasten()
    assert waiter.result(10) is False


def test_a_later_event_does_not_wake_who_waits_for_an_earlier_one(in_thread: InThread) -> None:
    outbox = MemoryOutbox(clock=Clock())
    outbox._earlier = earlier = Watched(outbox._lock)
    outbox.put(b"1")
    outbox.put(b"2")
    outbox.postpone(take(outbox), 5000.0)
    waiter = in_thread(outbox.wait_until_due)
    assert earlier.somebody_waits.acquire(timeout=10)
    outbox.postpone(take(outbox), 9000.0)
    outbox.abandon("exit")
    assert waiter.result(10) is False
    assert earlier.timeouts == [4000.0]  # it slept once


# -- marks -----------------------------------------------------------------------------------------


def test_a_mark_of_an_empty_outbox_is_settled() -> None:
    outbox = MemoryOutbox()
    assert outbox.wait(outbox.mark(), PAST) is True
    assert outbox.wait_for_work(outbox.mark(), PAST) is True


def test_a_mark_covers_what_came_before_it_and_not_what_comes_after() -> None:
    outbox = MemoryOutbox()
    outbox.put(b"1")
    mark = outbox.mark()
    outbox.put(b"2")
    first, second = take(outbox), take(outbox)
    assert outbox.wait(mark, PAST) is False
    outbox.delivered(second)
    assert outbox.wait(mark, PAST) is False
    outbox.put(b"3")
    outbox.delivered(first)
    assert outbox.wait(mark, PAST) is True
    assert outbox.wait(outbox.mark(), PAST) is False


def test_a_mark_covers_events_of_earlier_marks() -> None:
    outbox = MemoryOutbox()
    outbox.put(b"1")
    first = take(outbox)
    outbox.mark()
    outbox.put(b"2")
    mark = outbox.mark()
    outbox.delivered(take(outbox))
    assert outbox.wait(mark, PAST) is False
    assert outbox.wait(outbox.mark(), PAST) is False
    outbox.delivered(first)
    assert outbox.wait(mark, PAST) is True


@pytest.mark.parametrize("settle", ["delivered", "failed", "dropped", "abandon"])
def test_wait_returns_with_the_last_event_before_it_though_new_ones_keep_coming(
    settle: str, in_thread: InThread
) -> None:
    outbox = MemoryOutbox()
    changed = watch(outbox)
    outbox.put(b"1")
    waiter = in_thread(outbox.wait, outbox.mark(), None)
    assert changed.somebody_waits.acquire(timeout=10)
    outbox.put(b"2")
    if settle == "abandon":
        outbox.abandon("closed")
        outbox.put(b"3")
    else:
        arguments = ("exit",) if settle == "dropped" else ()
        getattr(outbox, settle)(take(outbox), *arguments)
    assert waiter.result(10) is True
    assert outbox.pending() == 1


def test_several_who_wait_are_let_go_each_at_its_mark(in_thread: InThread) -> None:
    outbox = MemoryOutbox()
    changed = watch(outbox)
    outbox.put(b"1")
    early = in_thread(outbox.wait, outbox.mark(), None)
    outbox.put(b"2")
    late = in_thread(outbox.wait, outbox.mark(), None)
    for _ in range(2):
        assert changed.somebody_waits.acquire(timeout=10)
    first, second = take(outbox), take(outbox)
    outbox.delivered(first)
    assert early.result(10) is True
    assert not late.done()
    outbox.delivered(second)
    assert late.result(10) is True


@pytest.mark.parametrize("method", ["wait", "wait_for_work"])
def test_wait_returns_false_at_its_deadline(method: str) -> None:
    clock = Clock()
    outbox = MemoryOutbox(clock=clock)
    outbox.put(b"1")
    take(outbox)
    changed = watch(outbox)

    def wait(timeout: float | None) -> bool:
        changed.timeouts.append(timeout)
        clock.now += 3.0
        return False

    changed.wait = wait  # type: ignore[method-assign, assignment]
    assert getattr(outbox, method)(outbox.mark(), 1005.0) is False
    assert changed.timeouts == [5.0, 2.0]


@pytest.mark.parametrize("method", ["wait", "wait_for_work"])
def test_a_deadline_beyond_what_the_system_can_wait_for_is_as_good_as_none(
    method: str, in_thread: InThread
) -> None:
    outbox = MemoryOutbox()
    outbox.put(b"1")
    item = take(outbox)
    changed = watch(outbox)
    waiter = in_thread(getattr(outbox, method), outbox.mark(), 1e300)
    assert changed.somebody_waits.acquire(timeout=10)
    outbox.delivered(item)
    assert waiter.result(10) is True
    assert changed.timeouts == [threading.TIMEOUT_MAX]


def test_wait_for_work_returns_when_there_is_something_to_take() -> None:
    outbox = MemoryOutbox()
    outbox.put(b"1")
    mark = outbox.mark()
    assert outbox.wait_for_work(mark, None) is True
    assert outbox.wait(mark, PAST) is False
    outbox.delivered(take(outbox))
    assert outbox.wait_for_work(mark, PAST) is True


def test_wait_for_work_wakes_for_what_is_postponed_meanwhile_and_when_that_is_due(
    in_thread: InThread,
) -> None:
    clock = Clock()
    outbox = MemoryOutbox(clock=clock)
    changed = watch(outbox)
    outbox.put(b"1")
    item = take(outbox)
    waiter = in_thread(outbox.wait_for_work, outbox.mark(), 9000.0)
    assert changed.somebody_waits.acquire(timeout=10)
    outbox.postpone(item, 1000.25)
    assert changed.somebody_waits.acquire(timeout=10)
    with outbox._lock:
        clock.now = 1000.25
        changed.notify_all()
    assert waiter.result(10) is True
    assert changed.timeouts == [8000.0, 0.25]
    assert take(outbox) is item


def epochs() -> int:
    gc.collect()
    return sum(type(thing) is _outbox.Epoch for thing in gc.get_objects())


def test_an_idle_process_that_flushes_10000_times_keeps_nothing() -> None:
    outbox = MemoryOutbox()
    before = epochs()
    for _ in range(10_000):
        assert outbox.wait(outbox.mark(), PAST)
    assert epochs() == before


def test_flushes_behind_an_event_that_is_stuck_keep_nothing() -> None:
    outbox = MemoryOutbox()
    outbox.put(b"stuck")
    stuck = take(outbox)
    outbox.mark()
    before = epochs()
    for _ in range(200):
        outbox.put(b"1")
        mark = outbox.mark()
        outbox.delivered(take(outbox))
        assert outbox.wait(mark, PAST) is False
    assert epochs() <= before + 1
    outbox.delivered(stuck)
    assert outbox.wait(mark, PAST) is True


# -- many threads ----------------------------------------------------------------------------------


def test_many_threads_each_event_is_taken_exactly_once(in_thread: InThread) -> None:
    outbox = MemoryOutbox()
    start = threading.Barrier(8)
    done = threading.Event()
    retried: set[bytes] = set()

    def put(name: int) -> None:
        start.wait(10)
        for number in range(300):
            outbox.put(b"%d-%d" % (name, number))

    def deliver() -> list[bytes]:
        taken = []
        start.wait(10)
        while True:
            finished = done.is_set()  # before looking: what came until then is found
            item = outbox.take()
            if item is None:
                if finished:
                    return taken
                continue
            if item.body.endswith(b"7") and item.attempts == 1:
                retried.add(item.body)
                outbox.postpone(item, PAST)
            else:
                taken.append(item.body)
                outbox.delivered(item)

    takers = [in_thread(deliver) for _ in range(4)]
    for putter in [in_thread(put, name) for name in range(4)]:
        putter.result(20)
    assert outbox.wait(outbox.mark(), outbox._clock() + 20)
    done.set()
    bodies = [body for taker in takers for body in taker.result(20)]
    assert Counter(bodies) == Counter(
        b"%d-%d" % pair for pair in itertools.product(range(4), range(300))
    )
    figures = balance(outbox)
    assert (figures["delivered"], figures["pending"]) == (1200, 0)
    assert figures["retried"] == len(retried) == 120


# -- whoever comes in the middle -------------------------------------------------------------------


def test_a_signal_handler_records_an_event_while_its_thread_is_inside(in_thread: InThread) -> None:
    outbox: MemoryOutbox
    inside = 0

    def clock() -> float:
        nonlocal inside
        if outbox._lock._is_owned() and not inside:  # type: ignore[attr-defined]
            inside += 1
            signal.raise_signal(signal.SIGUSR1)
        return 1000.0

    outbox = MemoryOutbox(clock=lambda: 1000.0)
    outbox.put(b"1")
    outbox.put(b"2")
    outbox.postpone(take(outbox), 1000.0)
    outbox._clock = clock
    before = signal.signal(signal.SIGUSR1, lambda *_: outbox.put(b"handler") and None)
    try:
        assert take_all(outbox) == [b"1", b"2", b"handler"]
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert inside == 1
    assert balance(outbox)["accepted"] == 3


def test_a_finalizer_records_an_event_during_a_collection_that_starts_inside() -> None:
    class Orphan:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            outbox.put(b"finalizer")

    def clock() -> float:
        if outbox._lock._is_owned():  # type: ignore[attr-defined]
            gc.collect()
        return 1000.0

    outbox = MemoryOutbox(clock=clock)
    outbox.put(b"1")
    outbox.postpone(take(outbox), 2000.0)
    Orphan()
    assert outbox.ready() is True  # it looked for what is due, and the collection came
    assert take_all(outbox) == [b"finalizer"]
    assert balance(outbox)["accepted"] == 2


def test_a_mark_that_a_signal_handler_sets_within_another_one_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    marks = []

    class Epoch(_outbox.Epoch):
        __slots__ = ()

        def __init__(self, number: int, first: int) -> None:
            super().__init__(number, first)
            if not marks:
                marks.append(0)
                marks.append(outbox.mark())
                outbox.put(b"handler")
                marks.append(outbox.mark())

    outbox = MemoryOutbox()
    outbox.put(b"1")
    monkeypatch.setattr(_outbox, "Epoch", Epoch)
    outer = outbox.mark()
    first, second = take(outbox), take(outbox)
    outbox.delivered(first)
    assert [outbox.wait(mark, PAST) for mark in (outer, *marks[1:])] == [True, True, False]
    assert outbox.wait(outbox.mark(), PAST) is False
    outbox.delivered(second)
    assert outbox.wait(marks[2], PAST) is True
    assert outbox.wait(outbox.mark(), PAST) is True


class Interruption:
    """Calls a function at the n-th place inside the outbox where Python runs signal handlers.

    Those are the entry of a function, the return of a built-in one, and each turn of a loop.
    """

    def __init__(self, place: int, function: Callable[[], object]) -> None:
        self._left = place
        self._function = function
        self._lines: dict[FrameType, int] = {}
        self.came = False

    def __enter__(self) -> Self:
        self._traced = sys.gettrace()
        sys.setprofile(self._profile)
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._traced)
        sys.setprofile(None)

    def _profile(self, frame: FrameType, event: str, _argument: object) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename == _outbox.__file__:
            self._place()

    def _trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        if frame.f_code.co_filename != _outbox.__file__:
            return None
        if event == "line":
            if frame.f_lineno <= self._lines.get(frame, 0):
                self._place()
            self._lines[frame] = frame.f_lineno
        return self._trace

    def _place(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.came = True
            self._function()


def _prepared(overflow: Any = "drop_newest") -> tuple[MemoryOutbox, list[Any]]:
    """Three that are due, two that are ready, two being delivered; the next one is too many."""
    clock = Clock()
    outbox = MemoryOutbox(7, overflow=overflow, block=0.0, clock=clock)
    for number in range(7):
        outbox.put(b"%d" % number)
    outbox.mark()
    items = [take(outbox) for _ in range(5)]
    for due, item in enumerate(items[:3]):
        outbox.postpone(item, 1000.0 + due)
    clock.now = 1005.0
    return outbox, items[3:]


OPERATIONS: dict[str, Callable[[MemoryOutbox, list[Any]], object]] = {
    "put": lambda outbox, _taken: outbox.put(b"new"),
    "take": lambda outbox, taken: taken.append(outbox.take()),
    "ready": lambda outbox, _taken: outbox.ready(),
    "postpone": lambda outbox, taken: outbox.postpone(taken.pop(), 1000.0),
    "delivered": lambda outbox, taken: outbox.delivered(taken.pop()),
    "abandon": lambda outbox, _taken: outbox.abandon("closed"),
    "hasten": lambda outbox, _taken: outbox.hasten(),
    "wait_until_due": lambda outbox, _taken: outbox.wait_until_due(),
    "flush": lambda outbox, _taken: outbox.wait(outbox.mark(), PAST),
    "wait_for_work": lambda outbox, _taken: outbox.wait_for_work(outbox.mark(), PAST),
    "figures": lambda outbox, _taken: outbox.figures(),
}


def _record(outbox: MemoryOutbox, bodies: list[bytes]) -> None:
    item = outbox.put(b"handler")
    if item is not None:
        bodies.append(item.body)
        outbox.delivered(item)


def _record_and_deliver(outbox: MemoryOutbox, bodies: list[bytes]) -> None:
    _record(outbox, bodies)
    outbox.ready()
    while (item := outbox.take()) is not None:
        bodies.append(item.body)
        outbox.delivered(item)


def _record_and_flush(outbox: MemoryOutbox, bodies: list[bytes]) -> None:
    _record_and_deliver(outbox, bodies)
    outbox.wait(outbox.mark(), PAST)
    _record(outbox, bodies)
    outbox.wait(outbox.mark(), PAST)


def _interrupted(operation: str, handler: Callable[..., None], overflow: str, place: int) -> bool:
    outbox, taken = _prepared(overflow)
    bodies: list[bytes] = []
    returned = None
    with Interruption(place, lambda: handler(outbox, bodies)) as interruption:
        returned = OPERATIONS[operation](outbox, taken)
    if operation == "put" and returned is not None:
        taken.append(returned)
    balance(outbox)
    mark = outbox.mark()
    taken = [item for item in taken if item is not None]
    if outbox.pending():
        assert not outbox.wait(mark, PAST)
    for item in [*taken, *iter(outbox.take, None)]:
        bodies.append(item.body)
        outbox.delivered(item)
    figures = balance(outbox)
    assert figures["pending"] == outbox._bytes == outbox._blocked == outbox._blocked_bytes == 0
    assert outbox.wait(mark, PAST)
    assert outbox.wait(outbox.mark(), PAST)
    delivered = Counter(bodies)
    assert sum(delivered.values()) + (operation == "delivered") == figures["delivered"]
    assert all(delivered[body] <= 1 for body in delivered if body != b"handler")
    return interruption.came


@pytest.mark.parametrize("handler", [_record, _record_and_deliver, _record_and_flush])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_events_recorded_at_any_place_of_an_operation_break_nothing(
    operation: str, handler: Callable[..., None]
) -> None:
    for overflow in POLICIES if operation == "put" else POLICIES[:1]:
        places = itertools.count(1)
        while _interrupted(operation, handler, overflow, next(places)):
            pass
        assert next(places) > 4  # it was interrupted, and at several places


@pytest.mark.parametrize("handler", [_record, _record_and_deliver])
def test_bytes_are_counted_right_when_a_handler_comes_between_measuring_and_counting(
    handler: Callable[..., None],
) -> None:
    class Interrupting(bytes):
        def __len__(self) -> int:
            handler(outbox, [])
            return super().__len__()

    outbox = MemoryOutbox()
    outbox.put(Interrupting(b"12345"))
    while (item := outbox.take()) is not None:
        outbox.delivered(item)
    assert outbox._bytes == sum(len(item.body) for item in outbox._waiting._ready)


# -- any sequence of calls -------------------------------------------------------------------------


class _Recording(MemoryOutbox):
    settled: set[int]

    def _settle(self, item: Any, outcome: str) -> None:
        assert item.number not in self.settled
        self.settled.add(item.number)
        super()._settle(item, outcome)


class Accounts(RuleBasedStateMachine):
    """Figures, bounds and marks hold whatever is called; a clock that stands still until moved."""

    @initialize(overflow=st.sampled_from(POLICIES), max_events=st.integers(1, 5))
    def make(self, overflow: Any, max_events: int) -> None:
        self.clock = Clock()
        self.outbox = _Recording(max_events, 20, overflow=overflow, block=0.0, clock=self.clock)
        self.outbox.settled = set()
        self.accepted = 0
        self.taken: list[Any] = []
        self.marks: list[tuple[int, set[int]]] = []
        self.dues: dict[int, float] = {}
        self.caller_runs = overflow == "caller_runs"

    def _pending(self) -> set[int]:
        return set(range(1, self.accepted + 1)) - self.outbox.settled

    @rule(size=st.integers(1, 25))
    def put(self, size: int) -> None:
        item = self.outbox.put(b"x" * size)
        self.accepted += 1
        if item is not None:
            assert self.caller_runs
            self.taken.append(item)

    @rule()
    def take(self) -> None:
        item: Any = self.outbox.take()
        if item is None:
            assert not self.outbox.ready()
            return
        assert item.number in self._pending()
        assert item not in self.taken
        assert self.dues.pop(item.number, 0.0) <= self.clock.now or self.hastened
        self.taken.append(item)

    hastened = False

    @rule(outcome=st.sampled_from(["delivered", "failed"]), position=st.integers(0, 9))
    def settle(self, outcome: str, position: int) -> None:
        if self.taken:
            getattr(self.outbox, outcome)(self.taken.pop(position % len(self.taken)))

    @rule(seconds=st.integers(0, 20), position=st.integers(0, 9))
    def postpone(self, seconds: int, position: int) -> None:
        if self.taken:
            item = self.taken.pop(position % len(self.taken))
            self.dues[item.number] = self.clock.now + seconds
            self.outbox.postpone(item, self.clock.now + seconds)

    @rule(seconds=st.integers(1, 15))
    def pass_time(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule()
    def hasten(self) -> None:
        self.outbox.hasten()
        self.dues.clear()

    @rule()
    def abandon(self) -> None:
        waiting = self._pending() - {item.number for item in self.taken}
        assert self.outbox.abandon("closed") == len(waiting)
        assert waiting <= self.outbox.settled

    @rule()
    def mark(self) -> None:
        self.marks.append((self.outbox.mark(), self._pending()))

    @invariant()
    def accounts_balance(self) -> None:
        if not hasattr(self, "outbox"):
            return
        figures = balance(self.outbox)
        assert figures["accepted"] == self.accepted
        assert figures["pending"] == len(self._pending())

    @invariant()
    def bounds_are_kept(self) -> None:
        if hasattr(self, "outbox") and not self.caller_runs:
            assert self.outbox.pending() <= self.outbox._max_events
            assert 0 <= self.outbox._bytes <= 20

    @invariant()
    def marks_know_what_came_before_them(self) -> None:
        for mark, before in getattr(self, "marks", ()):
            assert self.outbox.wait(mark, PAST) is not bool(before - self.outbox.settled)


TestAccounts = Accounts.TestCase
TestAccounts.settings = settings(
    derandomize=True,
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def _untraced() -> Iterator[None]:
    before = sys.gettrace()
    yield
    sys.setprofile(None)
    sys.settrace(before)

"""One attempt, and what follows: settled, or postponed; in a forked child, neither."""

from __future__ import annotations

import logging
import os
import random
import sys
import threading
import time
import types
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.support.processes import Child
from tests.support.server import Server
from valued import DeliveryError
from valued._delivery import retry as _retry
from valued._delivery.attempt import LAST_ATTEMPT, Delivery
from valued._delivery.memory import MemoryOutbox
from valued._options import Options
from valued._outbox.durable import DurableOutbox
from valued._outbox.store import Store
from valued._process.reporting import Reporter

BOUND = 10.0  # seconds; bounds a failure
BODY = b'{"category": "action"}'

# It is what is tested here: a fork while threads run.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

InThread = Callable[..., "Future[Any]"]
Fork = Callable[..., Child]


class Post:
    """A delivery by *wire* over an outbox of its own, with one event taken from it."""

    def __init__(self, wire: Callable[..., object], **options: Any) -> None:
        self.given_up: list[tuple[DeliveryError, dict[str, Any]]] = []
        self.postponed: list[float] = []
        on_error = options.pop("on_error", lambda *args: self.given_up.append(args))
        self.outbox: MemoryOutbox = options.pop("outbox", None) or MemoryOutbox()
        self.delivery = Delivery(
            wire,
            Options(on_error=on_error, **options),
            self.outbox,
            Reporter(on_error),
            lambda: self.postponed.append(time.monotonic()),
        )

    def take(self) -> Any:
        self.outbox.put(BODY)
        return self.outbox.take()

    def attempt(self, deadline: float | None = None) -> bool:
        return self.delivery.attempt(self.take(), deadline)

    def figures(self) -> dict[str, Any]:
        """The figures that are not 0; they must add up."""
        found = self.outbox.figures()
        assert found["accepted"] == sum(
            found[name] for name in ("delivered", "failed", "dropped", "pending")
        )
        reasons = found.pop("dropped_by_reason")
        assert sum(reasons.values()) == found["dropped"]
        found.update({name: count for name, count in reasons.items() if count})
        return {name: count for name, count in found.items() if count}


def raising(error: BaseException) -> Callable[..., object]:
    def wire(*_args: object) -> None:
        raise error

    return wire


# -- outcomes --------------------------------------------------------------------------------------


def test_what_the_wire_takes_is_delivered_and_it_is_told_body_key_and_time() -> None:
    calls: list[Any] = []
    post = Post(lambda *args: calls.append(args), timeout=7.0)
    item = post.take()
    assert post.delivery.attempt(item)
    assert calls == [(BODY, item.idempotency_key, 7.0)]
    assert post.figures() == {"accepted": 1, "delivered": 1}
    assert post.given_up == post.postponed == []


@pytest.mark.parametrize(
    ("left", "least", "most"),
    [(100.0, 7.0, 7.0), (3.0, 2.0, 3.0), (0.01, LAST_ATTEMPT, LAST_ATTEMPT), (-5.0, 0.1, 0.1)],
)
def test_an_attempt_has_until_the_deadline_but_enough_for_a_service_that_answers(
    left: float, least: float, most: float
) -> None:
    seconds: list[float] = []
    post = Post(lambda _body, _key, timeout: seconds.append(timeout), timeout=7.0)
    assert post.attempt(time.monotonic() + left)
    assert least <= seconds[0] <= most


@pytest.mark.parametrize("status", [None, 408, 429, 500, 503])
def test_what_may_pass_is_postponed(status: int | None) -> None:
    post = Post(raising(DeliveryError("not now", status)))
    assert post.attempt()
    assert post.figures() == {"accepted": 1, "pending": 1}
    assert post.outbox.postponed()
    assert len(post.postponed) == 1
    assert post.given_up == []


@pytest.mark.parametrize("status", [301, 400, 401, 413, 422])
def test_what_will_not_pass_is_given_up_with_all_that_is_known(status: int) -> None:
    cause = ValueError("below")
    answer = DeliveryError("no", status, body="user.id: missing", retry_after=3.0)
    answer.__cause__ = cause
    post = Post(raising(answer))
    assert post.attempt()
    assert post.figures() == {"accepted": 1, "failed": 1}
    ((error, event),) = post.given_up
    assert event == {"category": "action"}
    assert (error.reason, error.status, error.attempts) == ("no", status, 1)
    assert (error.body, error.retry_after) == ("user.id: missing", 3.0)
    assert 0 <= error.age < BOUND
    assert error.__cause__ is cause
    assert post.postponed == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no outbox on Windows")
@pytest.mark.parametrize("status", [401, 403])
def test_where_events_outlive_their_process_they_wait_for_the_right_token(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pauses as long as they may be, or what is postponed might be due at once.
    monkeypatch.setattr(random, "uniform", lambda _least, most: most)
    refused = [True]

    def wire(*_args: object) -> None:
        if refused[0]:
            raise DeliveryError("who are you?", status)

    outbox = DurableOutbox(Store(str(tmp_path / "outbox"), sync=False), 604_800.0, 2**30)
    post = Post(wire, outbox=outbox, retries=0)
    for _ in range(_retry.DOWN_AFTER):
        assert post.attempt()
    assert post.figures() == {"accepted": 5, "pending": 5}
    assert len(post.postponed) == 5
    assert outbox.take() is None  # the endpoint counts as down
    refused[0] = False
    post.delivery.hasten()
    while (item := outbox.take()) is not None:
        assert post.delivery.attempt(item)
    assert post.figures() == {"accepted": 5, "delivered": 5, "retried": 5}
    assert post.given_up == []
    outbox.rest()


def test_an_exception_of_a_strangers_is_postponed_and_is_the_cause_in_the_end() -> None:
    stranger = LookupError("no such host")
    post = Post(raising(stranger), retries=1)
    item = post.take()
    assert post.delivery.attempt(item)
    assert post.given_up == []
    post.outbox.hasten()
    assert post.outbox.take() is item
    assert post.delivery.attempt(item)
    assert post.figures() == {"accepted": 1, "failed": 1, "retried": 1}
    ((error, _event),) = post.given_up
    assert error.reason == "LookupError: no such host"
    assert (error.status, error.attempts, error.retry_after) == (None, 2, None)
    assert error.__cause__ is stranger


def test_what_the_service_asks_to_wait_is_waited() -> None:
    post = Post(raising(DeliveryError("busy", 503, retry_after=50.0)))
    before = time.monotonic()
    assert post.attempt()
    due = post.outbox._waiting.next_change()
    assert due is not None
    assert before + 50.0 <= due <= time.monotonic() + 50.0


@pytest.mark.parametrize(
    ("where", "when"),
    [
        ((_retry.Health, "failed"), "after"),
        ((_retry.Health, "held"), "before"),
        ((MemoryOutbox, "hold"), "before"),
        ((MemoryOutbox, "hold"), "after"),
    ],
    ids=["before it is decided", "while it is noted", "before it is told", "after it is told"],
)
def test_a_hold_that_another_threads_answer_crosses_ends_with_the_next_answer(
    where: tuple[Any, str], when: str, in_thread: InThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    down = [True]

    def wire(*_args: object) -> None:
        if down[0]:
            raise DeliveryError("down", 503, retry_after=60.0)

    post = Post(wire)
    *failing, crossing, answered, waiting = (post.take() for _ in range(_retry.DOWN_AFTER + 3))
    owner, name = where
    real = getattr(owner, name)

    def cross() -> None:
        down[0] = False
        assert in_thread(post.delivery.attempt, crossing).result(BOUND)
        down[0] = True

    def crossed(*args: Any) -> Any:
        if when == "before":
            cross()
        said = real(*args)
        if when == "after":
            cross()
        return said

    for item in failing[:-1]:
        assert post.delivery.attempt(item)
    monkeypatch.setattr(owner, name, crossed)
    assert post.delivery.attempt(failing[-1])
    assert post.figures()["delivered"] == 1
    down[0] = False
    assert post.delivery.attempt(answered)
    assert post.outbox._waiting._until is None  # there is no hold
    assert post.delivery.attempt(waiting)
    assert post.figures() == {"accepted": 8, "delivered": 3, "pending": 5}


def test_a_hold_that_comes_as_another_thread_ends_one_ends_with_the_next_answer(
    in_thread: InThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    down = [True]

    def wire(*_args: object) -> None:
        if down[0]:
            raise DeliveryError("down", 503, retry_after=60.0)

    post = Post(wire)
    count = _retry.DOWN_AFTER
    items = [post.take() for _ in range(2 * count + 2)]
    first, second, (probe, answered) = items[:count], items[count : 2 * count], items[2 * count :]
    for item in first:
        assert post.delivery.attempt(item)
    resume = MemoryOutbox.resume

    def crossed(outbox: MemoryOutbox) -> None:
        monkeypatch.setattr(MemoryOutbox, "resume", resume)
        resume(outbox)
        down[0] = True
        for item in second:
            assert in_thread(post.delivery.attempt, item).result(BOUND)
        assert post.outbox._waiting._until is not None  # there is a hold

    monkeypatch.setattr(MemoryOutbox, "resume", crossed)
    down[0] = False
    assert post.delivery.attempt(probe)
    down[0] = False
    assert post.delivery.attempt(answered)
    assert post.outbox._waiting._until is None


def test_an_exception_whose_text_cannot_be_had_loses_no_event() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

    post = Post(raising(Odd()), retries=0)
    assert post.attempt()
    assert post.figures() == {"accepted": 1, "failed": 1}
    assert post.given_up[0][0].reason == "Odd: (its message can't be read)"


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize(("retries", "outcome"), [(3, "pending"), (0, "failed")])
def test_what_is_no_failure_is_raised_once_the_event_is_seen_to(
    kind: type[BaseException], retries: int, outcome: str
) -> None:
    post = Post(raising(kind("enough")), retries=retries)
    with pytest.raises(kind, match="enough"):
        post.attempt()
    assert post.figures() == {"accepted": 1, outcome: 1}
    assert not post.delivery.is_under_way_here()
    if outcome == "failed":
        assert post.given_up[0][0].reason == f"{kind.__name__}: enough"


def test_a_ctrl_c_out_of_a_transport_reaches_the_caller_who_sends_and_loses_nothing() -> None:
    calls: list[int] = []

    def transport(_event: object) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt

    client = valued.Client(transport, executor=valued.ImmediateExecutor())
    with pytest.raises(KeyboardInterrupt):
        client.action("a", {"user.id": 1})
    assert client.stats()["pending"] == 1
    assert client.close(BOUND)
    assert client.stats()["delivered"] == 1


def test_a_transport_that_exits_ends_no_client(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "valued")
    calls: list[str] = []

    def transport(event: dict[str, Any]) -> None:
        calls.append(event["key"])
        if len(calls) == 1:
            raise SystemExit(3)

    with valued.Client(transport, max_workers=1) as client:
        for key in "abc":
            client.action(key, {"user.id": 1})
        assert client.flush(BOUND)
        assert client.stats()["delivered"] == 3
    assert sorted(calls) == ["a", "a", "b", "c"]
    (record,) = caplog.records
    assert "another one replaces it" in record.getMessage()


# -- abandoned meanwhile ---------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["closed", "exit"])
def test_what_fails_after_all_was_abandoned_is_dropped_for_that_reason(
    reason: str, in_thread: InThread
) -> None:
    inside, leave = threading.Event(), threading.Event()

    def wire(*_args: object) -> None:
        inside.set()
        assert leave.wait(BOUND)
        raise DeliveryError("not now")

    post = Post(wire)
    post.outbox.put(BODY)
    attempt = in_thread(post.delivery.attempt, post.outbox.take())
    assert inside.wait(BOUND)
    post.outbox.put(BODY)
    assert post.delivery.abandon(reason) == 1  # the one that nobody has taken
    leave.set()
    assert attempt.result(BOUND) is True
    assert post.figures() == {"accepted": 2, "dropped": 2, reason: 2}
    assert post.postponed == []


@pytest.mark.parametrize(("error", "outcome"), [(None, "delivered"), (400, "failed")])
def test_what_is_settled_after_all_was_abandoned_counts_as_what_it_is(
    error: int | None, outcome: str
) -> None:
    def wire(*_args: object) -> None:
        post.delivery.abandon("closed")
        if error is not None:
            raise DeliveryError("no", error)

    post = Post(wire)
    assert post.attempt()
    assert post.figures() == {"accepted": 1, outcome: 1}


def test_what_is_accepted_after_all_was_abandoned_is_tried_again_as_ever() -> None:
    post = Post(raising(DeliveryError("not now")))
    assert post.delivery.abandon("closed") == 0
    assert post.delivery.abandon("closed") == 0
    assert post.attempt()
    assert post.figures() == {"accepted": 1, "pending": 1}


# -- which thread ----------------------------------------------------------------------------------


def test_a_thread_is_in_an_attempt_while_transport_and_on_error_run_and_no_other_is(
    in_thread: InThread,
) -> None:
    seen: list[bool] = []

    def look(*_args: object) -> None:
        seen.append(post.delivery.is_under_way_here())
        seen.append(in_thread(post.delivery.is_under_way_here).result(BOUND))

    def wire(*args: object) -> None:
        look(*args)
        raise DeliveryError("no", 400)

    post = Post(wire, on_error=look)
    assert not post.delivery.is_under_way_here()
    assert post.attempt()
    assert seen == [True, False] * 2
    assert not post.delivery.is_under_way_here()


def test_a_thread_stays_in_its_attempt_when_one_inside_it_ends() -> None:
    seen: list[bool] = []
    calls: list[object] = []

    def on_error(*args: object) -> None:
        calls.append(args)
        if len(calls) == 1:
            seen.append(post.attempt())  # an event of on_error's, which the caller delivers
            seen.append(post.delivery.is_under_way_here())

    post = Post(raising(DeliveryError("no", 400)), on_error=on_error)
    assert post.attempt()
    assert seen == [True, True]
    assert not post.delivery.is_under_way_here()
    assert post.figures() == {"accepted": 2, "failed": 2}


# -- whoever waits for on_error --------------------------------------------------------------------


def test_who_waits_for_on_error_waits_for_the_calls_of_other_threads_until_the_deadline(
    in_thread: InThread,
) -> None:
    inside, leave = threading.Event(), threading.Event()
    own: list[bool] = []

    def on_error(*_args: object) -> None:
        # Its own thread would wait for ever.
        own.append(post.delivery.wait_until_told(None))
        inside.set()
        assert leave.wait(BOUND)

    post = Post(raising(DeliveryError("no", 400)), on_error=on_error)
    assert post.delivery.wait_until_told(None)
    assert post.delivery.wait_until_told(time.monotonic() - 1)
    attempt = in_thread(post.attempt)
    assert inside.wait(BOUND)
    assert own == [True]
    assert post.figures() == {"accepted": 1, "failed": 1}
    assert not post.delivery.wait_until_told(time.monotonic() - 1)
    started = time.monotonic()
    assert not post.delivery.wait_until_told(started + 0.05)
    assert 0.05 <= time.monotonic() - started < 2
    waiting = in_thread(post.delivery.wait_until_told, None)
    for_ages = in_thread(post.delivery.wait_until_told, time.monotonic() + sys.maxsize)
    assert not waiting.done()
    leave.set()
    assert attempt.result(BOUND) is True
    assert waiting.result(BOUND) is True
    assert for_ages.result(BOUND) is True
    assert post.delivery.wait_until_told(time.monotonic() - 1)


def test_who_waits_for_on_error_does_not_wait_for_what_fails_later(in_thread: InThread) -> None:
    entered = threading.Semaphore(0)
    leave = [threading.Event(), threading.Event()]
    order = iter(leave)

    def on_error(*_args: object) -> None:
        mine = next(order)
        entered.release()
        assert mine.wait(BOUND)

    post = Post(raising(DeliveryError("no", 400)), on_error=on_error)
    first = in_thread(post.attempt)
    assert entered.acquire(timeout=BOUND)
    begun = threading.Event()
    told = post.delivery._told

    class Watched(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            begun.set()
            return super().wait(timeout)

    post.delivery._told = Watched(told._lock)
    waiting = in_thread(post.delivery.wait_until_told, time.monotonic() + BOUND)
    assert begun.wait(BOUND)
    second = in_thread(post.attempt)
    assert entered.acquire(timeout=BOUND)
    leave[0].set()
    assert first.result(BOUND) is True
    assert waiting.result(BOUND) is True
    assert not second.done()
    leave[1].set()
    assert second.result(BOUND) is True


def test_an_on_error_that_ends_by_an_exception_of_its_own_is_not_waited_for() -> None:
    def on_error(*_args: object) -> None:
        raise KeyboardInterrupt

    post = Post(raising(DeliveryError("no", 400)), on_error=on_error)
    with pytest.raises(KeyboardInterrupt):
        post.attempt()
    assert post.delivery.wait_until_told(time.monotonic() - 1)
    assert post.figures() == {"accepted": 1, "failed": 1}


# -- forks -----------------------------------------------------------------------------------------


class Holder:
    """A thread that holds a lock."""

    def __init__(self, lock: Any) -> None:
        self._held, self._release = threading.Event(), threading.Event()
        self._lock = lock
        self._thread = threading.Thread(target=self._hold)
        self._thread.start()
        assert self._held.wait(BOUND)

    def _hold(self) -> None:
        with self._lock:
            self._held.set()
            assert self._release.wait(BOUND)

    def end(self) -> None:
        self._release.set()
        self._thread.join(BOUND)


class Forking:
    """A wire that forks; the child then goes on as the wire is to in the child."""

    def __init__(self, outbox: MemoryOutbox, child: Callable[[], None]) -> None:
        self.lock = outbox._lock
        self.child = child
        self.pid = -1
        self.parent = os.getpid()

    def __call__(self, *_args: object) -> None:
        holder = Holder(self.lock)
        self.pid = os.fork()
        if self.pid == 0:
            self.child()
        else:
            holder.end()


def out(error: BaseException | None) -> Callable[[], None]:
    def end() -> None:
        if error is not None:
            raise error

    return end


@pytest.mark.parametrize(
    "error", [None, DeliveryError("no", 400), OSError("not now"), SystemExit(0)], ids=repr
)
def test_a_child_that_comes_out_of_the_wire_touches_nothing_of_its_parents(
    error: BaseException | None, fork: Fork
) -> None:
    """The outer fork only keeps the inner one, and what it may do wrong, out of this process."""
    reading, writing = os.pipe()

    def parent() -> None:
        post = Post(lambda *args: wire(*args), retries=0)
        wire = Forking(post.outbox, out(error))
        try:
            result = post.attempt()
        except SystemExit:
            result = False
        if wire.pid == 0:
            # The lock is held by a thread that is not here: to be here is not to have taken it.
            ok = not result and not post.given_up and not post.postponed
            ok = ok and not post.delivery.is_under_way_here()
            os.write(writing, b"+" if ok else b"-")
            os._exit(0)
        assert result
        assert os.read(reading, 1) == b"+"
        assert os.waitstatus_to_exitcode(os.waitpid(wire.pid, 0)[1]) == 0
        assert post.figures() == {"accepted": 1, "delivered": 1}

    try:
        assert fork(parent).wait(BOUND) == 0
    finally:
        os.close(reading)
        os.close(writing)


def test_a_child_that_comes_out_of_on_error_touches_nothing_of_its_parents(fork: Fork) -> None:
    def parent() -> None:
        forked: list[int] = []

        def on_error(*_args: object) -> None:
            holder = Holder(post.outbox._lock)
            forked.append(os.fork())
            if forked[0]:
                holder.end()

        post = Post(raising(DeliveryError("no", 400)), on_error=on_error)
        result = post.attempt()
        if forked[0] == 0:
            os._exit(1 if result else 0)
        assert result
        assert os.waitstatus_to_exitcode(os.waitpid(forked[0], 0)[1]) == 0
        assert post.figures() == {"accepted": 1, "failed": 1}

    assert fork(parent).wait(BOUND) == 0


@pytest.mark.parametrize(
    "error", [None, DeliveryError("no", 400), OSError("not now"), SystemExit(0)], ids=repr
)
def test_an_attempt_in_a_child_leaves_the_parents_event_to_the_parent(
    error: BaseException | None, fork: Fork
) -> None:
    def wire(*_args: object) -> None:
        if error is not None:
            raise error

    post = Post(wire)
    item = post.take()
    holder = Holder(post.outbox._lock)

    def child() -> None:
        try:
            assert not post.delivery.attempt(item)
        except SystemExit:
            assert isinstance(error, SystemExit)
        assert post.given_up == post.postponed == []

    started = fork(child)
    assert started.wait() == 0
    holder.end()
    assert post.figures() == {"accepted": 1, "pending": 1}


def test_a_child_that_on_error_forked_leaves_it_to_the_parent_to_say_that_it_was_told(
    fork: Fork,
) -> None:
    post = Post(raising(DeliveryError("no", 400)))
    item = post.take()

    def child() -> None:
        told = post.delivery._told
        post.delivery._give_up(item, DeliveryError("no", 400))
        assert len(post.delivery._telling) == 1
        assert post.delivery._told is told

    assert fork(child).wait() == 0
    assert post.delivery.wait_until_told(None)


@pytest.mark.parametrize("odd", ["503", "soon", [], object()])
def test_an_error_of_a_transport_may_hold_anything(odd: Any) -> None:
    post = Post(raising(DeliveryError("odd", odd, retry_after=odd)), retries=0)
    assert post.attempt()
    ((error, _event),) = post.given_up
    assert (error.status, error.retry_after) == (None, None)
    assert post.figures() == {"accepted": 1, "failed": 1}


def test_an_error_of_a_class_that_forgot_its_base_loses_no_event() -> None:
    class Mine(DeliveryError):
        def __init__(self) -> None:
            pass

    post = Post(raising(Mine()), retries=0)
    assert post.attempt()
    assert post.given_up[0][0].reason == "Mine"
    assert post.figures() == {"accepted": 1, "failed": 1}


def test_a_transport_that_forks_delivers_its_event_once(server: Server) -> None:
    connection = valued.Connection("token", server.url)
    pids: list[int] = []

    def transport(event: dict[str, Any]) -> None:
        pid = os.fork()
        if pid:  # the child comes out of here, too, on what is its only thread, and ends
            pids.append(pid)
            connection({**event, "pid": os.getpid()})

    with valued.Client(transport, max_workers=1) as client:
        for key in "abc":
            client.action(key, {"user.id": 1})
        assert client.flush(BOUND)
        assert client.stats()["delivered"] == 3
        assert [wait(pid) for pid in pids] == [0, 0, 0]
    assert server.keys() == [*"abc"]
    assert {event["pid"] for event in server.events} == {os.getpid()}
    connection.close()


def wait(pid: int) -> int:
    """The exit status of a child, which is killed where it doesn't end."""
    deadline = time.monotonic() + BOUND
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, 9)
        time.sleep(0.002)  # how often to look


def test_an_outage_gives_up_what_waited_and_stops_where_on_error_forked() -> None:
    def on_error(_error: DeliveryError, event: dict[str, Any]) -> None:
        told.append(event["key"])
        post.delivery._born = Elsewhere()  # as in the child, where the rest is the parent's

    class Elsewhere:
        def is_here(self) -> bool:
            return False

    told: list[str] = []
    outbox = MemoryOutbox()
    post = types.SimpleNamespace()
    post.delivery = Delivery(
        raising(DeliveryError("down", 503)),
        Options(retries=0, on_error=on_error),
        outbox,
        Reporter(on_error),
        lambda: None,
    )
    error = DeliveryError("down", 503)
    for key in ("a", "b"):
        outbox.put(b'{"key": "%b"}' % key.encode())
    post.delivery._health._probes.append(time.monotonic() + 1.0)
    post.delivery._give_up_what_waited(error, time.monotonic())
    assert told == ["a"]
    assert outbox.pending() == 1


def test_nothing_is_said_of_a_process_that_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    delivery = Delivery(lambda *_: None, Options(), MemoryOutbox(), Reporter(None), lambda: None)
    delivery.lose_the_rest(0.0)
    delivery.say_what_is_left(0.0)
    assert caplog.records == []

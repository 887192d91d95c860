"""Figures add up at every moment, whatever is called and however deliveries end."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import valued
from tests.support.inside import make_due

FIGURES = ("accepted", "delivered", "failed", "dropped", "pending")
OVERFLOWS = ["drop_newest", "drop_oldest", "block", "caller_runs"]


class ByHand:
    """An executor whose jobs run when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], object]] = []

    def submit(self, fn: Callable[..., object], /, *args: Any) -> None:
        self.jobs.append(lambda: fn(*args))


class Accounts(RuleBasedStateMachine):
    """A client, against a count of what its transport and `on_error` saw."""

    @initialize(overflow=st.sampled_from(OVERFLOWS), max_queue=st.integers(1, 4))
    def make(self, overflow: Any, max_queue: int) -> None:
        self.executor = ByHand()
        self.recorded = self.delivered = self.told = 0
        self.answers: list[str] = []
        self.keys: set[str] = set()
        self.max_queue = max_queue
        self.caller_runs = overflow == "caller_runs"
        self.client = valued.Client(
            self.deliver,
            executor=self.executor,
            max_queue=max_queue,
            overflow=overflow,
            timeout=0.001,  # that `block` waits
            retries=1,
            on_error=self.hear,
        )

    def deliver(self, event: dict[str, Any]) -> None:
        # In the middle of a delivery its event is pending.
        self.adds_up()
        assert self.client.stats()["pending"] >= 1
        answer = self.answers.pop(0) if self.answers else "200"
        if answer == "200":
            assert event["key"] not in self.keys
            self.keys.add(event["key"])
            self.delivered += 1
            return
        if answer == "broken":
            raise MemoryError
        raise valued.DeliveryError("no", int(answer))

    def hear(self, _error: object, _event: object) -> None:
        self.told += 1
        self.adds_up()

    @rule(answers=st.lists(st.sampled_from(["200", "400", "503", "broken"]), max_size=3))
    def the_service_will_say(self, answers: list[str]) -> None:
        self.answers += answers

    @rule(times=st.integers(1, 3))
    def record(self, times: int) -> None:
        for _ in range(times):
            self.recorded += 1
            self.client.action(f"event {self.recorded}", {"user.id": 1})

    @rule()
    def run_a_job(self) -> None:
        if self.executor.jobs:
            self.executor.jobs.pop(0)()

    @rule()
    def run_all(self) -> None:
        while self.executor.jobs:
            self.executor.jobs.pop(0)()

    @rule()
    def the_time_of_a_retry_comes(self) -> None:
        make_due(self.client)

    @rule()
    def flush(self) -> None:
        settled = self.client.stats()["pending"] == 0
        assert self.client.flush(0) is settled

    @rule()
    def close(self) -> None:
        settled = self.client.stats()["pending"] == 0
        assert self.client.close(0) is settled
        assert self.client.stats()["pending"] == 0

    @invariant()
    def adds_up(self) -> None:
        if not hasattr(self, "client"):
            return
        stats = self.client.stats()
        assert stats["accepted"] == sum(stats[name] for name in FIGURES[1:])  # type: ignore[literal-required]
        assert min(stats[name] for name in FIGURES) >= 0  # type: ignore[literal-required]
        assert stats["dropped"] == sum(stats["dropped_by_reason"].values())

    @invariant()
    def is_what_happened(self) -> None:
        if not hasattr(self, "client"):
            return
        stats = self.client.stats()
        assert stats["accepted"] == self.recorded
        assert stats["delivered"] == self.delivered
        assert stats["failed"] == self.told
        if not self.caller_runs:
            assert stats["pending"] <= self.max_queue

    def teardown(self) -> None:
        if hasattr(self, "client"):
            self.client.close(0)


TestAccounts = Accounts.TestCase
TestAccounts.settings = settings(
    derandomize=True,
    max_examples=30,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_whoever_looks_from_another_thread_sees_figures_of_one_moment(in_thread: Any) -> None:
    calls = itertools.count()
    begun = [0, 0, 0]
    over = threading.Event()

    def transport(_event: object) -> None:
        outcome = next(calls) % 10
        if outcome == 0:
            raise valued.DeliveryError("no", 400)
        if outcome == 1:
            raise valued.DeliveryError("later", 503)

    client = valued.Client(transport, max_queue=50, overflow="drop_oldest", retries=1)

    def record(recorder: int) -> None:
        for number in range(500):
            begun[recorder] = number + 1
            client.action("a", {"user.id": number})

    def look() -> int:
        before = dict.fromkeys(FIGURES, 0)
        looks = 0
        while not over.is_set():
            stats: Any = client.stats()
            assert stats["accepted"] == sum(stats[name] for name in FIGURES[1:])
            assert 0 <= stats["pending"] <= 50
            assert stats["accepted"] <= sum(begun)
            # What is settled stays settled.
            for name in ("accepted", "delivered", "failed", "dropped"):
                assert stats[name] >= before[name]
            before = stats
            looks += 1
            time.sleep(0)
        return looks

    looking = [in_thread(look) for _ in range(2)]
    for recorder in [in_thread(record, number) for number in range(3)]:
        recorder.result(30)
    client.flush(0.05)
    client.close(0)
    over.set()
    assert all(one.result(30) for one in looking)
    stats = client.stats()
    assert (stats["accepted"], stats["pending"]) == (1500, 0)

"""Interleavings of accept, take, settle, postpone, flush, drain, close, chosen by a seed.

At each operation of the queue's lock, condition and inbox, and at each start of a thread, the seed
decides which thread goes on. A failing seed is printed; ``replay(seed)`` runs it once more.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import valued
from tests.delivery.simulation import SimulatedQueue, Simulation, Thread, by_seed, simulated
from tests.delivery.support import figures, transient
from valued._delivery.entry import READY, TAKEN, Entry
from valued._delivery.queue import Queue

#: Seeds of one run of the suite; the soak takes more.
SEEDS = 200


@dataclasses.dataclass
class Life:
    """What one process does with its events, drawn by a seed."""

    seed: int
    queue: Any = SimulatedQueue

    def __post_init__(self) -> None:
        random.seed(self.seed)  # the pauses of retries
        self.draw = draw = random.Random(self.seed)
        self.simulation = Simulation(by_seed(draw.randrange(1 << 30)))
        self.now: set[bytes] = set()  # in an attempt
        self.workers: set[str] = set()  # that are in an attempt
        self.max_workers = draw.choice((1, 2, 3))
        self.delivered: Counter[bytes] = Counter()
        self.failed: Counter[bytes] = Counter()
        self.accepted: list[bytes] = []  # whose calls have returned
        self.covers: list[tuple[Thread, list[bytes]]] = []
        self.faults: list[str] = []
        self.transients = draw.choice((0.0, 0.2, 0.5))
        self.overflow = draw.choice(("drop_newest", "drop_oldest", "block", "caller_runs"))
        self.immediate = draw.random() < 0.2
        self.pipeline, self.threads = simulated(
            self.simulation,
            self.send,
            queue=self.queue,
            overflow=self.overflow,
            max_queue=draw.choice((1, 3, 10_000)),
            max_workers=self.max_workers,
            retries=draw.choice((2, 1000)),
            timeout=1.0,
            on_error=self.on_error,
            executor=valued.ImmediateExecutor() if self.immediate else None,
        )
        self.threads.refuses = draw.random() < 0.1
        self.handlers = 0
        self.interrupts = draw.choice((0.0, 0.0, 0.02))
        self.simulation.interrupt = self.interrupt

    def send(self, body: bytes, _key: str, _seconds: float) -> None:
        here = self.simulation.current()
        if here and here.name.startswith("_work"):
            self.workers.add(here.name)
            if len(self.workers) > self.max_workers:
                self.faults.append(f"{len(self.workers)} workers send")
        if body in self.now:
            self.faults.append(f"{body!r} is sent by two at the same time")
        if self.delivered[body] or self.failed[body]:
            self.faults.append(f"{body!r} is sent again after it was settled")
        self.now.add(body)
        try:
            self.simulation.sleep(self.draw.choice((0.0, 0.01, 0.3)))
        finally:
            self.now.discard(body)
            self.workers -= {here.name if here else ""}
        chance = self.draw.random()
        if chance < self.transients:
            raise transient(self.draw.choice((0.0, 1.0)))
        if chance > 0.9:
            raise valued.DeliveryError("no", 400)
        self.delivered[body] += 1

    def on_error(self, _error: valued.DeliveryError, event: Any) -> None:
        self.failed[b'{"key": %d}' % event["key"]] += 1

    def interrupt(self) -> None:
        """What a signal handler does, in the middle of whatever the thread does."""
        if self.draw.random() >= self.interrupts or self.handlers >= 10:
            return
        if self.simulation.current() in self.threads.started:
            return  # Python runs handlers on the main thread only
        self.handlers += 1
        chance = self.draw.random()
        if chance < 0.5:
            self.record(1000 + self.handlers, 1)
        elif chance < 0.8:
            self.flush(0.0)
        else:
            figures(self.pipeline)

    # -- what threads do ---------------------------------------------------------------------------

    def record(self, first: int, count: int) -> None:
        for number in range(first, first + count):
            body = b'{"key": %d}' % number
            self.pipeline.accept(body)
            self.accepted.append(body)
            if self.draw.random() < 0.2:
                self.simulation.sleep(0.1)

    def flush(self, timeout: float | None) -> None:
        before = list(self.accepted)
        deadline = None if timeout is None else self.simulation.now + timeout
        settled = self.pipeline.flush(deadline)
        open_ = [one for one in before if not self.delivered[one] and not self.failed[one]]
        if settled and len(open_) > self.pipeline.stats()["dropped"]:
            self.faults.append(f"flush is True, and {open_} are not settled")
        if not settled and timeout is None:
            self.faults.append("a flush without a bound is False")

    def look(self) -> None:
        for _ in range(10):
            figures(self.pipeline)  # they add up
            self.simulation.sleep(0.05)

    def close(self) -> None:
        self.simulation.sleep(self.draw.choice((0.0, 0.1, 2.0)))
        self.pipeline.close(self.simulation.now + self.draw.choice((0.0, 0.5, 100.0)))

    def end(self) -> None:
        self.simulation.sleep(self.draw.choice((0.0, 0.1, 2.0)))
        self.pipeline.on_exit(self.simulation.now)

    def run(self) -> None:
        draw, simulation = self.draw, self.simulation
        callers = draw.choice((1, 2, 3))
        for number in range(callers):
            simulation.start(self.record, number * 100, draw.choice((1, 3, 5)), name="record")
        for timeout in draw.choice(((), (None,), (0.0, 0.3), (None, 50.0))):
            simulation.start(self.flush, timeout, name="flush")
        simulation.start(self.look, name="look")
        if draw.random() < 0.2:
            simulation.start(self.close, name="close")
        if draw.random() < 0.2:
            simulation.start(self.end, name="end")
        simulation.run()
        self.check()

    def check(self) -> None:
        """After all threads have ended, or wait for ever."""
        stuck = [each.name for each in self.simulation.threads if not each.is_done]
        assert not stuck, f"{stuck} wait for ever"
        for each in self.simulation.threads:
            each.result()
        assert self.faults == []
        found = figures(self.pipeline)
        assert found["accepted"] == len(self.accepted) == len(set(self.accepted))
        if self.immediate or self.threads.refuses:
            # Without threads, what waits for time or for a thread is sent by the next flush.
            self.threads.refuses = False
            self.interrupts = 0.0
            last = self.simulation.start(self.flush, None)
            self.simulation.run()
            last.result()
            assert self.faults == []
            found = figures(self.pipeline)
        assert "pending" not in found, "events are left without a worker"
        assert set(self.delivered.values()) <= {1}
        assert found.get("delivered", 0) == len(self.delivered)
        assert found.get("failed", 0) == len(self.failed)


def replay(seed: int, queue: Any = SimulatedQueue) -> None:
    life = Life(seed, queue)
    with life.simulation:
        life.run()


all_seeds = settings(
    derandomize=True,
    max_examples=SEEDS,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@all_seeds
@given(st.integers(0, 1 << 40))
def test_each_event_is_settled_once_and_flushes_are_right_whoever_goes_on(seed: int) -> None:
    replay(seed)


# -- it finds planted faults -----------------------------------------------------------------------


class LooksAndTakesInTwoSteps(SimulatedQueue):
    """Another worker may take the event between them."""

    def take(self, run: Any, *, fresh: bool = False) -> Entry | None:
        entry = self.oldest(fresh=fresh)
        self.lock.release()
        self.lock.acquire()
        if entry is not None:
            entry.state = READY
            self.take_this(entry, run)
        return entry


class LosesTheNotice(SimulatedQueue):
    """Settles an event, and doesn't remove it from those that a run has."""

    def settle(self, entry: Entry, outcome: str) -> None:
        super().settle(entry, outcome)
        entry.state, entry.run = TAKEN, None


class CountsTwice(SimulatedQueue):
    """Absorbs the same event again where two do it at the same time."""

    def absorb(self) -> None:
        for entry in list(self.inbox):
            if type(entry) is Entry and len(self.inbox) > 1:
                entry.state = "new"
        super().absorb()


class FlushesTooEarly(SimulatedQueue):
    """Forgets what is being sent."""

    def awaited(self) -> list[Entry]:
        return [entry for entry in super().awaited() if entry.state is not TAKEN]


@pytest.mark.parametrize(
    "fault", [LooksAndTakesInTwoSteps, LosesTheNotice, CountsTwice, FlushesTooEarly]
)
def test_a_planted_fault_is_found_within_a_few_seeds(fault: type[Queue]) -> None:
    for seed in range(60):
        try:
            replay(seed, fault)
        except Exception as error:
            print(seed, type(error).__name__, error)
            return
    pytest.fail("it was not found")

"""What the tests of delivery send with: transports, and an executor that runs jobs when told."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType
from typing import Any

import valued
from tests.delivery.simulation import Send, Simulation, simulated
from valued._delivery.pipeline import Pipeline

BOUND = 10.0  # seconds; bounds a failure, it is no pause

InThread = Callable[..., "Future[Any]"]


class Service:
    """A transport that can be told to hold what comes, or to raise."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.threads: set[int] = set()
        self.failure: BaseException | None = None
        self.hold = threading.Event()
        self.hold.set()
        self._inside = threading.Semaphore(0)

    def __call__(self, event: dict[str, Any]) -> None:
        self.threads.add(threading.get_ident())
        self._inside.release()
        assert self.hold.wait(BOUND)
        if (failure := self.failure) is not None:
            raise failure
        self.got.append(event["key"])

    def wait_until_inside(self, count: int = 1) -> None:
        for _ in range(count):
            assert self._inside.acquire(timeout=BOUND)


def record(client: valued.Client, *keys: str) -> None:
    for key in keys:
        client.action(key, {"user.id": 1})


def transient(retry_after: float = 0.0) -> valued.DeliveryError:
    return valued.DeliveryError("not now", 503, retry_after=retry_after)


class Jobs:
    """An executor whose jobs run when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self.refusal: BaseException | None = None

    def submit(self, fn: Callable[..., object], /, *args: Any) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.waiting.append((fn, args))

    def run_one(self) -> None:
        function, arguments = self.waiting.pop(0)
        function(*arguments)

    def run(self) -> None:
        """Run jobs, and those that they submit, until there are none."""
        while self.waiting:
            self.run_one()


class Post:
    """A pipeline whose workers run when told, and whose time passes when told."""

    def __init__(self, send: Send | None = None, **options: Any) -> None:
        self.simulation = Simulation()
        self.jobs = Jobs()
        self.sent: list[bytes] = []
        self.failed: list[tuple[valued.DeliveryError, dict[str, Any]]] = []
        options.setdefault("on_error", lambda *args: self.failed.append(args))
        options.setdefault("executor", self.jobs)
        self.pipeline, self.threads = simulated(self.simulation, send or self._take, **options)

    def _take(self, body: bytes, _key: str, _seconds: float) -> None:
        self.sent.append(body)

    def accept(self, *bodies: bytes) -> None:
        for body in bodies:
            self.pipeline.accept(body)

    def is_settled(self) -> bool:
        """What a flush says that has no time to wait."""
        return self.pipeline.flush(self.simulation.now)

    def pass_time(self, seconds: float = 0.0) -> None:
        """Let time pass for the monitor; jobs wait."""
        self.simulation.run(seconds=seconds)

    def go_on(self, seconds: float = 0.0) -> None:
        """Let so much time pass, and then run all jobs."""
        self.pass_time(seconds)
        while self.jobs.waiting:
            self.jobs.run()
            self.pass_time()

    def figures(self) -> dict[str, Any]:
        """The counts that are not 0, the reasons of drops among them."""
        return figures(self.pipeline)


def figures(source: valued.Client | Pipeline) -> dict[str, Any]:
    """The counts that are not 0, the reasons of drops among them. They must add up."""
    stats: dict[str, Any] = {**source.stats()}
    outcomes = ("delivered", "failed", "dropped", "pending", "handed_over")
    assert stats["accepted"] + stats["adopted"] == sum(stats[name] for name in outcomes)
    reasons = stats.pop("dropped_by_reason")
    assert stats["dropped"] == sum(reasons.values())
    assert stats["pending"] >= 0
    stats.update(reasons)
    counts = {name: count for name, count in stats.items() if name not in ("pid", "started")}
    return {name: count for name, count in counts.items() if count}


def is_waiting(function: Any) -> bool:
    """Whether a thread is in a call of *function*, and waits there for a condition."""
    for frame in sys._current_frames().values():
        inner: FrameType | None = frame
        callers = []
        while inner is not None:
            callers.append(inner.f_code)
            inner = inner.f_back
        if callers[0] is threading.Condition.wait.__code__ and function.__code__ in callers:
            return True
    return False

"""Threads that take turns, and time that passes only while all of them wait.

At each operation of the queue's lock, its condition and its inbox, a `Simulation` chooses which
thread goes on. The threads are real ones, but a single one runs at a time. So a schedule can be
repeated by its seed, and seconds of the pipeline cost nothing.
"""

from __future__ import annotations

import collections
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, cast

from typing_extensions import Self

from valued._delivery.executors import ExecutorSpec
from valued._delivery.journal import NullJournal
from valued._delivery.pipeline import Pipeline
from valued._delivery.queue import Queue
from valued._delivery.threads import ThreadCache
from valued._options import Options

T = TypeVar("T")
Send = Callable[[bytes, str, float], object]

#: Steps after which a simulation that doesn't end is a failure.
MOST_STEPS = 50_000

#: Seconds of the real clock; bound a failure of the simulation itself.
BOUND = 30.0


class EndOfSimulationError(BaseException):
    """Raised in the threads that a simulation leaves behind."""


class Thread:
    """A thread of a simulation."""

    def __init__(self, simulation: Simulation, name: str, function: Callable[[], object]) -> None:
        self.name = name
        self.is_done = False
        self.can_go: Callable[[], object] = bool(1).__bool__
        self.wakes_at: float | None = None
        self.baton = threading.Semaphore(0)
        self._simulation = simulation
        self._function = function
        self._result: Any = None
        self._error: BaseException | None = None
        self.real = threading.Thread(target=self._run, name=name, daemon=True)
        self.real.start()

    def _run(self) -> None:
        try:
            self._wait()
            self._result = self._function()
        except BaseException as error:
            self._error = error
        finally:
            del self._function
            self.is_done = True
            self._simulation.baton.release()

    def _wait(self) -> None:
        assert self.baton.acquire(timeout=BOUND)
        if self._simulation.is_over:
            raise EndOfSimulationError

    def pause(self, can_go: Callable[[], object], wakes_at: float | None) -> None:
        self.can_go, self.wakes_at = can_go, wakes_at
        self._simulation.baton.release()
        self._wait()

    def is_ready(self, now: float) -> bool:
        return bool(self.can_go()) or (self.wakes_at is not None and self.wakes_at <= now)

    def result(self) -> Any:
        """What its function returned, or raised."""
        assert self.is_done, f"{self.name} waits for ever"
        if self._error is not None:
            raise self._error
        return self._result


#: Those that still have threads; a fixture ends them after each test.
begun: list[Simulation] = []


class Simulation:
    """*choose* gets the threads that can go on, the one that ran last first, and picks one."""

    def __init__(self, choose: Callable[[Sequence[Thread]], Thread] = lambda ready: ready[0]):
        self.now = 1000.0
        self.threads: list[Thread] = []
        self.baton = threading.Semaphore(0)
        self.is_over = False
        self.pipelines: list[Pipeline] = []
        self._choose = choose
        self._current: Thread | None = None
        self._steps = 0
        #: Called in the thread that runs, at each operation of a lock: what a signal handler does.
        self.interrupt: Callable[[], object] = lambda: None
        begun.append(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End all threads, wherever they are."""
        begun.remove(self)
        self.is_over = True
        for thread in self.threads:
            thread.baton.release()
            thread.real.join(BOUND)
        for pipeline in self.pipelines:  # or the end of the tests would wait for its events
            pipeline.close(self.now)

    def clock(self) -> float:
        return self.now

    def start(self, function: Callable[..., object], *args: Any, name: str = "") -> Thread:
        name = name or f"thread {len(self.threads)}"
        self.threads.append(Thread(self, name, lambda: function(*args)))
        return self.threads[-1]

    def current(self) -> Thread | None:
        """The thread that runs; None: the test itself, which doesn't take turns."""
        here = threading.current_thread()
        return self._current if self._current and self._current.real is here else None

    def pause(
        self, can_go: Callable[[], object] = lambda: True, wakes_at: float | None = None
    ) -> None:
        """Let another thread go on, and this one again once it may."""
        if (current := self.current()) is not None:
            if self.is_over:
                raise EndOfSimulationError
            current.pause(can_go, wakes_at)
        else:
            assert can_go(), "the test itself must not wait"

    def sleep(self, seconds: float) -> None:
        self.pause(lambda: False, self.now + seconds)

    def run(self, until: Callable[[], object] = lambda: False, *, seconds: float = 1e9) -> None:
        """Let the threads take turns until none can go on, or *until* holds, or so long."""
        end = self.now + seconds
        while not until():
            waiting = [each for each in self.threads if not each.is_done]
            ready = [each for each in waiting if each.is_ready(self.now)]
            if ready:
                ready.sort(key=lambda each: each is not self._current)
                self._go_on(self._choose(ready))
                continue
            moments = [each.wakes_at for each in waiting if each.wakes_at is not None]
            if not moments or min(moments) > end:
                self.now = max(self.now, end) if seconds < 1e9 else self.now
                return
            self.now = min(moments)

    def _go_on(self, thread: Thread) -> None:
        self._steps += 1
        assert self._steps < MOST_STEPS, "the simulation doesn't end"
        self._current = thread
        thread.baton.release()
        assert self.baton.acquire(timeout=BOUND)


def by_seed(seed: int) -> Callable[[Sequence[Thread]], Thread]:
    """Choose at random: mostly the same thread again, or mostly another one."""
    numbers = random.Random(seed)
    stay = numbers.choice((0.0, 0.3, 0.7, 0.9))

    def choose(ready: Sequence[Thread]) -> Thread:
        return ready[0] if numbers.random() < stay else numbers.choice(ready)

    return choose


class Lock:
    """A re-entrant lock."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self.owner: object = None
        self.depth = 0

    def _me(self) -> object:
        return self._simulation.current() or self

    def acquire(self, blocking: bool = True) -> bool:
        if self._simulation.is_over and self._simulation.current() is None:
            self.owner, self.depth = self, self.depth if self.owner is self else 0
        if self.owner is not self._me():
            self._simulation.pause()
            if self.owner is not None:
                if not blocking:
                    return False
                self._simulation.pause(lambda: self.owner is None)
        self.owner = self._me()
        self.depth += 1
        if self._simulation.current() is not None:
            self._simulation.interrupt()
        return True

    def release(self) -> None:
        assert self.owner is self._me()
        self.depth -= 1
        if self.depth == 0:
            self.owner = None
            self._simulation.pause()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        if self.owner is self._me():
            self.release()


class Condition:
    """A condition of such a lock."""

    def __init__(self, simulation: Simulation, lock: Lock) -> None:
        self._simulation = simulation
        self._lock = lock
        self._waiting: list[list[bool]] = []

    def wait(self, timeout: float | None = None) -> None:
        if self._simulation.is_over and self._simulation.current() is None:
            self._simulation.now += timeout or 1.0
            return
        lock, notified = self._lock, [False]
        assert lock.owner is lock._me()
        self._waiting.append(notified)
        depth, lock.depth, lock.owner = lock.depth, 0, None
        until = None if timeout is None else self._simulation.now + timeout
        self._simulation.pause(lambda: notified[0], until)
        self._simulation.pause(lambda: lock.owner is None)
        lock.owner, lock.depth = lock._me(), depth

    def notify_all(self) -> None:
        assert self._lock.owner is self._lock._me()
        for notified in self._waiting:
            notified[0] = True
        self._waiting.clear()


class Inbox(collections.deque[T], Generic[T]):
    """A deque, at each operation of which another thread may go on."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__()
        self._simulation = simulation

    def __len__(self) -> int:
        self._simulation.pause()
        return super().__len__()

    def __getitem__(self, index: Any) -> Any:
        self._simulation.pause()
        return super().__getitem__(index)

    def append(self, value: T) -> None:
        self._simulation.pause()
        super().append(value)
        if self._simulation.current() is not None:
            self._simulation.interrupt()

    def popleft(self) -> T:
        self._simulation.pause()
        return super().popleft()


class SimulatedQueue(Queue):
    """The real queue, with lock, condition and inbox of a simulation."""

    def __init__(self, simulation: Simulation, clock: Callable[[], float] | None = None) -> None:
        super().__init__(clock or simulation.clock)
        self.lock: Any = Lock(simulation)  # type: ignore[misc]
        self.changed: Any = Condition(simulation, self.lock)  # type: ignore[misc]
        self.inbox: Any = Inbox(simulation)  # type: ignore[misc]


class SimulatedThreads:
    """In place of `ThreadCache`. *refuses*: whether no thread can be started."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self.refuses = False
        self.idle_time = 60.0
        self.started: list[Thread] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> None:
        self._simulation.pause()
        if self.refuses:
            raise RuntimeError("can't start new thread")
        name = f"{fn.__name__} {len(self.started)}"
        self.started.append(self._simulation.start(fn, *args, name=name))

    def alive(self) -> list[Thread]:
        return [each for each in self.started if not each.is_done]

    def dismiss(self) -> None:
        """No thread idles here."""

    def join(self, deadline: float) -> bool:
        here = self._simulation.current()
        others = [each for each in self.alive() if each is not here]
        if here is None:
            self._simulation.run(lambda: not self.alive(), seconds=deadline - self._simulation.now)
        else:
            self._simulation.pause(lambda: all(each.is_done for each in others), deadline)
        return not self.alive()


def simulated(
    simulation: Simulation,
    send: Send,
    queue: Callable[[Simulation], Queue] = SimulatedQueue,
    **options: Any,
) -> tuple[Pipeline, SimulatedThreads]:
    """A pipeline of that simulation, and its threads."""
    threads = SimulatedThreads(simulation)
    executor = options.get("executor")
    pipeline = Pipeline(
        cast("Any", send),
        Options(**options),
        None if executor is None else ExecutorSpec(executor),
        NullJournal(),
        queue=queue(simulation),
        threads=cast("ThreadCache", threads),
    )
    simulation.pipelines.append(pipeline)
    return pipeline, threads

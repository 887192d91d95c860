"""Calls that are interrupted at an instant, and what became of their events: KIND WAY SEED COUNT.

KIND is one of `KINDS`: how the client delivers. WAY is one of `WAYS`:

* ``line``: an exception is raised in the main thread at the n-th instant of a call at which the
  interpreter could run a signal handler, for every n;
* ``nested``: there, a signal handler's work is done: it records an event, flushes, or calls
  `stats`, and then raises or doesn't;
* ``signal``: a real signal handler raises, does that work, or both, after a random time.

Each of COUNT interrupts has a client of its own. Prints a JSON object: how many interrupts took
place, and what was wrong with which. A call that hangs ends the process, with all stacks in stderr.
"""

from __future__ import annotations

import collections
import faulthandler
import itertools
import json
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from interrupted_trace import ROOT, Trace

import valued

FULL = {f"full queue, {each}": each for each in ("drop_newest", "drop_oldest", "block")}
KINDS = (
    *("default pool", *FULL, "full queue, caller_runs"),
    *("immediate", "immediate, retried"),
    *("outbox", "outbox, immediate"),
)
WAYS = ("line", "nested", "signal")

#: Seconds that a flush may take when nothing hinders it. It needs milliseconds.
QUICKLY = 5.0
#: Seconds for a call that waits.
LONG = 10.0
#: Seconds after which a call, or what follows it, counts as hanging.
HANGS = 60.0
#: After so many faults the rest would only repeat them.
ENOUGH = 2


class Interrupted(Exception):
    """Raised into a call."""


class Ended(BaseException):
    """Likewise: as Ctrl-C and `sys.exit` are."""


class Life:
    """One client, what it was given, and what it delivered."""

    def __init__(self, kind: str, directory: str) -> None:
        self.kind = kind
        self.gate = threading.Event()
        self.gate.set()
        self.begun: list[str] = []
        self.returned: list[str] = []
        self.delivered: list[str] = []
        self.refused: set[str] = set()
        self.last_here: str | None = None  # what the main thread tried last, in the present call
        self.under_way: str | None = None  # that, as the call was interrupted
        self.directory = directory
        self.client = valued.Client(self.deliver, **self.options())

    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"shutdown_timeout": 0.0}
        if "queue" in self.kind:
            overflow = self.kind.rpartition(" ")[2]
            # An event waits for room as long as an attempt may take.
            options |= {"max_queue": 2, "max_workers": 1, "overflow": overflow, "timeout": 0.01}
        if "immediate" in self.kind:
            options["executor"] = valued.ImmediateExecutor()
        if "outbox" in self.kind:
            options["outbox"] = self.directory
        return options

    def deliver(self, event: dict[str, Any]) -> None:
        key = event["key"]
        if threading.current_thread() is threading.main_thread():
            self.last_here = key
        else:
            self.gate.wait(HANGS)
        # Only these, as each takes the pause of a retry.
        if "retried" in self.kind and key in {"waits 1", "interrupted"} - self.refused:
            self.refused.add(key)
            raise valued.DeliveryError("at first", 503, retry_after=0)
        self.delivered.append(key)

    def record(self, key: str) -> None:
        self.begun.append(key)
        self.client.action(key, {"user.id": 1})
        self.returned.append(key)

    def fill(self) -> None:
        """Make the queue full, with the worker busy, where that is what this is about."""
        self.record("warm")
        assert self.client.flush(HANGS)
        if "queue" in self.kind:
            self.gate.clear()
            self.record("waits 1")
            self.record("waits 2")

    def recorded(self) -> None:
        self.fill()
        if "queue" not in self.kind:
            self.record("waits 1")

    def first_action(self) -> Callable[[], object]:
        return lambda: self.record("interrupted")

    def action(self) -> Callable[[], object]:
        self.fill()
        return lambda: self.record("interrupted")

    def flush(self) -> Callable[[], object]:
        self.recorded()
        self.gate.set()
        return lambda: self.client.flush(LONG)

    def stats(self) -> Callable[[], object]:
        self.recorded()
        return self.client.stats

    def close(self) -> Callable[[], object]:
        self.recorded()
        self.gate.set()
        return lambda: self.client.close(LONG)

    def park(self) -> Callable[[], object]:
        self.recorded()
        self.gate.set()
        return lambda: self.client.park(LONG)

    def adopt(self) -> Callable[[], object]:
        self.recorded()
        return self.client.adopt

    def adds_up(self, moment: str) -> Iterator[str]:
        stats = self.client.stats()
        parts = ("delivered", "failed", "dropped", "handed_over", "pending")
        if stats["accepted"] + stats["adopted"] != sum(stats[part] for part in parts):  # type: ignore[literal-required]
            yield f"{moment}: stats don't add up: {stats}"
        if stats["pending"] < 0:
            yield f"{moment}: pending is negative: {stats}"

    def flushes(self, moment: str) -> Iterator[str]:
        began = time.monotonic()
        done = self.client.flush(QUICKLY)
        took = time.monotonic() - began
        stats = self.client.stats()
        # A worker may have taken over again what was handed over: no flush waits for that.
        while stats["pending"] and stats["adopted"] and time.monotonic() < began + QUICKLY:
            time.sleep(0.01)
            stats = self.client.stats()
        if not done or took >= QUICKLY or stats["pending"]:
            yield f"{moment}: flush was {done} after {took:.2f} s: {stats}"

    def faults(self) -> Iterator[str]:
        """What is wrong after the interrupt."""
        yield from self.adds_up("after the interrupt")
        self.gate.set()
        yield from self.flushes("after the interrupt")
        self.record("later")
        yield from self.flushes("after a later event")
        yield from self.adds_up("after a later event")
        stats = self.client.stats()
        began = time.monotonic()
        closed = self.client.close(LONG)
        if not closed or time.monotonic() - began >= QUICKLY:
            yield f"close was {closed} after {time.monotonic() - began:.2f} s"
        if "outbox" in self.kind:
            self._read_again()
        yield from self._wrong_counts(stats)

    def _read_again(self) -> None:
        """Deliver what is left in the directory: what is settled must not be among it."""
        with valued.Client(self.deliver, outbox=self.directory, shutdown_timeout=0.0) as client:
            client.adopt()
            client.flush(QUICKLY)

    def _wrong_counts(self, stats: valued.Stats) -> Iterator[str]:
        counts = collections.Counter(self.delivered)
        missing = [key for key in self.returned if not counts[key]]
        if len(missing) > stats["dropped"]:
            yield f"recorded, and not delivered: {missing}: {stats}"
        if (stats["dropped"] and self.kind not in FULL) or stats["failed"]:
            yield f"dropped or failed without a reason: {stats}"
        if not len(self.returned) <= stats["accepted"] <= len(self.begun):
            yield f"{self.returned} of {self.begun} are not what was accepted: {stats}"
        # Of an attempt that is interrupted, the caller can't know whether it was delivered.
        twice = {key for key, count in counts.items() if count > 1 + (key == self.under_way)}
        if twice:
            yield f"delivered twice: {twice}"


CALLS: dict[str, Callable[[Life], Callable[[], object]]] = {
    "first action": Life.first_action,
    "action": Life.action,
    "flush": Life.flush,
    "stats": Life.stats,
    "close": Life.close,
    "park": Life.park,
    "adopt": Life.adopt,
}


class Interrupt:
    """What happens once, at one instant of one call."""

    def __init__(self, life: Life, work: str, error: type[BaseException] | None) -> None:
        self.life = life
        self.work = work  # what a signal handler does first
        self.error = error  # what it raises then
        self.where = ""
        self.faults: list[str] = []

    def __call__(self, frame: FrameType | None) -> None:
        assert frame is not None
        path = frame.f_code.co_filename.removeprefix(f"{ROOT}/")
        self.where = f"{path}:{frame.f_lineno}, in {frame.f_code.co_name}"
        self.life.under_way = self.life.last_here
        began = time.monotonic()
        if self.work == "record":
            self.life.record("nested")
        elif self.work == "flush":
            self.life.client.flush(0.01)
        elif self.work == "stats":
            self.faults.extend(self.life.adds_up("within the call"))
        if time.monotonic() - began > 1.0:
            self.faults.append(f"the handler's {self.work} took more than a second")
        if self.error is not None:
            raise self.error

    def is_reason_of(self, error: BaseException | None) -> bool:
        while error is not None:
            if isinstance(error, (Interrupted, Ended)):
                return True
            error = error.__cause__ or error.__context__
        return False


def interrupted(
    interrupt: Interrupt, run: Callable[[Callable[[], object]], None], call: Any
) -> None:
    """Run one call; what it raises has to be what was raised into it."""
    interrupt.life.last_here = None
    began = time.monotonic()
    try:
        run(call)
    except BaseException as error:
        if not interrupt.is_reason_of(error):
            where = traceback.format_exc(limit=-3)
            interrupt.faults.append(f"the call raised {type(error).__name__}: {error}: {where}")
    if time.monotonic() - began >= QUICKLY:
        interrupt.faults.append(f"the call took {time.monotonic() - began:.2f} s")


def by_signal(seconds: float, interrupt: Interrupt) -> Callable[[Callable[[], object]], None]:
    """Run a call with a signal that comes after so many *seconds*, if it still runs then."""
    armed = False

    def on_signal(_number: int, frame: FrameType | None) -> None:
        nonlocal armed
        if armed:
            armed = False
            interrupt(frame)

    def run(call: Callable[[], object]) -> None:
        nonlocal armed
        signal.signal(signal.SIGALRM, on_signal)
        armed = True
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            call()
        finally:
            armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    return run


class Trial:
    """All interrupts of one KIND and WAY."""

    def __init__(self, kind: str, way: str, seed: str, directory: str) -> None:
        self.kind, self.way = kind, way
        self.random = random.Random(f"{kind} {way} {seed}")
        self.directories = (f"{directory}/{number}" for number in itertools.count())
        self.interrupts = 0
        self.faults: list[dict[str, object]] = []

    def life(self) -> Life:
        return Life(self.kind, next(self.directories))

    def measured(self, name: str) -> tuple[int, float]:
        """The instants of a call, or its seconds, at most."""
        lines, seconds = 0, 0.0
        traced = self.way != "signal"
        for _ in range(1 if "retried" in self.kind else 2):
            life = self.life()
            call = CALLS[name](life)
            began = time.monotonic()
            if traced:
                trace = Trace()
                trace.run(call)
                lines = max(lines, trace.seen)
            else:
                call()
                seconds = max(seconds, time.monotonic() - began)
            for fault in life.faults():
                raise AssertionError(f"without an interrupt, {name}: {fault}")
            shutil.rmtree(life.directory, ignore_errors=True)
        return lines, seconds

    def instants(self) -> Iterator[tuple[str, float]]:
        """Which call to interrupt, and when: all lines in random order, or random seconds."""
        names = [name for name in CALLS if name != "adopt" or "outbox" in self.kind]
        measured = {name: self.measured(name) for name in names}
        every = [(name, n + 1) for name in names for n in range(measured[name][0])]
        while True:
            if self.way == "signal":
                name = self.random.choice(names)
                yield name, self.random.uniform(1e-6, 1.2 * measured[name][1])
            else:
                yield from self.random.sample(every, len(every))

    def run(self, count: int) -> None:
        for name, instant in self.instants():
            faulthandler.dump_traceback_later(HANGS, exit=True)
            self._one(name, instant)
            if self.interrupts >= count or len(self.faults) >= ENOUGH:
                break
        faulthandler.dump_traceback_later(HANGS, exit=True)  # the end of the process may hang, too

    def _one(self, name: str, instant: float) -> None:
        life = self.life()
        call = CALLS[name](life)
        works = {"line": [""], "nested": ["record", "flush", "stats"]}
        work = self.random.choice(works.get(self.way, ["", "", "record", "flush", "stats"]))
        error = self.random.choice([Interrupted, Ended])
        keeps_quiet = work and self.random.random() < 0.5
        interrupt = Interrupt(life, work, None if keeps_quiet else error)
        if self.way == "signal":
            run = by_signal(instant, interrupt)
        else:
            run = Trace(int(instant), interrupt).run
        interrupted(interrupt, run, call)
        self.interrupts += bool(interrupt.where)
        faults = [*interrupt.faults, *life.faults()]
        if faults:
            raised = error.__name__ if interrupt.error else "nothing"
            found = {"call": name, "instant": instant, "where": interrupt.where}
            self.faults.append({**found, "work": work, "raised": raised, "faults": faults})
        shutil.rmtree(life.directory, ignore_errors=True)


def main(kind: str, way: str, seed: str, count: str) -> None:
    assert kind in KINDS, kind
    assert way in WAYS, way
    sys.setswitchinterval(0.0005)
    with tempfile.TemporaryDirectory() as directory:
        trial = Trial(kind, way, seed, directory)
        trial.run(int(count))
    print(
        json.dumps({"interrupts": trial.interrupts, "faults": trial.faults}, indent=1), flush=True
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

"""How the cost of a call grows with what is given to it, and with what waits already."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import valued
from benchmarks.events import DATA, EVENT, KEY
from benchmarks.senders import Never
from benchmarks.subprocesses import serve

BLOCK = 100  # calls that are timed together


def median_us(function: Callable[[], object], calls: int) -> float:
    """Microseconds of one call: the median of blocks of them.

    Of this thread's CPU time, since nothing here waits: another process can't disturb that much.
    """
    block = min(BLOCK, calls)
    taken = []
    for _ in range(max(1, calls // block)):
        started = time.thread_time()
        for _ in range(block):
            function()
        taken.append((time.thread_time() - started) / block * 1e6)
    return statistics.median(taken)


def _client(calls: int, **options: Any) -> valued.Client:
    options = {"executor": Never(), "max_queue": 2 * calls + 10, "shutdown_timeout": 0, **options}
    return valued.Client(lambda _event: None, **options)


def attributes(size: int, calls: int) -> dict[str, float]:
    """An event with *size* attributes."""
    many = {f"name{number}": number if number % 2 else f"text {number}" for number in range(size)}
    return _against_json(many, calls)


def nesting(size: int, calls: int) -> dict[str, float]:
    """An event with an attribute, *size* mappings deep."""
    deep: Any = {"value": 1}
    for _ in range(size - 1):
        deep = {"inner": deep}
    return _against_json(deep, calls)


def _against_json(given: dict[str, Any], calls: int) -> dict[str, float]:
    client = _client(calls)
    data, event = {**DATA, "attributes": given}, {**EVENT, "attributes": given}
    return {
        "action": median_us(lambda: client.action(KEY, data), calls),
        "json.dumps": median_us(lambda: json.dumps(event), calls),
    }


class _Stepwise:
    """An executor whose jobs run when they are told to."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> None:
        self.jobs.append((fn, args))

    def step(self) -> None:
        """Deliver an event."""
        fn, args = self.jobs.pop()
        fn(*args)


def queued(size: int, calls: int) -> dict[str, float]:
    """An event recorded, and one delivered to a function that does nothing, while *size* wait."""
    executor = _Stepwise()
    client = _client(calls, executor=executor, max_queue=size + 2 * calls + 10)
    for _ in range(size + calls):
        client.action(KEY, DATA)
    return {
        "action": median_us(lambda: client.action(KEY, DATA), calls),
        "delivery": median_us(executor.step, calls),
    }


def scopes(size: int, calls: int) -> dict[str, float]:
    """An event in *size* scopes nested, each with an attribute of its own; and a scope's block."""
    scope = valued.Scope(_client(calls), {"user.id": 123})

    def block() -> None:
        with scope.nested({"customer.id": 12}):
            pass

    with contextlib.ExitStack() as stack:
        for number in range(size):
            stack.enter_context(scope.nested({f"attributes.name{number}": number}))
        return {
            "action": median_us(lambda: scope.action(KEY), calls),
            "nested block": median_us(block, calls),
        }


def converters(size: int, calls: int) -> dict[str, float]:
    """An event with an object, where *size* classes are registered; and the one after another."""
    client = _client(calls + 10 * BLOCK)
    classes = [type(f"Class{number}", (), {}) for number in range(size)]
    for cls in classes:
        valued.register(cls, lambda _one: {"id": 123})
    user = classes[-1]()
    again = []
    for _ in range(min(calls, 10)):
        valued.register(classes[0], lambda _one: {"id": 123})
        started = time.thread_time()
        client.action(KEY, user=user)
        again.append((time.thread_time() - started) * 1e6)
    return {
        "action": median_us(lambda: client.action(KEY, user=user), calls),
        "first after register": statistics.median(again),
    }


PARTS: Final[dict[str, Callable[[int, int], dict[str, float]]]] = {
    "attributes": attributes,
    "nesting": nesting,
    "queue length": queued,
    "nested scopes": scopes,
    "converters": converters,
}


def main(part: str, size: int, calls: int) -> dict[str, float]:
    """Microseconds, by what was done."""
    return PARTS[part](size, calls)


if __name__ == "__main__":
    serve(main)

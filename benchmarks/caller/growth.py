"""How the cost of a call grows with what is given to it, and with what waits already."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import valued
from benchmarks.bench import Bench, serve
from benchmarks.caller.blocks import BLOCK, in_blocks
from benchmarks.plots import svg
from benchmarks.report import Table, number
from benchmarks.senders import DATA, EVENT, KEY, Never


def measured(bench: Bench) -> dict[str, Any]:
    """Microseconds by size, for each part."""
    calls = bench.scale.calls // 5
    found = {}
    for part, sizes in bench.scale.growth:
        run = partial(bench.measure, "caller.growth", part=part, calls=calls)
        by_size = bench.in_turns({str(size): partial(run, size=size) for size in sizes})
        found[part] = [{"size": size, **by_size[str(size)]} for size in sizes]
    return found


def tables(found: dict[str, Any]) -> Iterator[tuple[str, Table]]:
    for part, points in found.items():
        names = [name for name in points[0] if name != "size"]
        lines = [
            (f"{point['size']:,}", *(number(point[name], "us") for name in names))
            for point in points
        ]
        yield f"By {part}", ((part, *names), lines)


def charts(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for part, points in found.items():
        series = {
            name: [(point["size"], point[name]) for point in points]
            for name in points[0]
            if name != "size"
        }
        title = f"Microseconds by {part}"
        yield part, svg(title, part, "us", series, logarithmic=True)


def _medians(functions: dict[str, Callable[[], object]], calls: int) -> dict[str, float]:
    # This thread's CPU time, since nothing here waits: another process can't disturb that much.
    taken = in_blocks(functions, calls, time.thread_time)
    return {name: statistics.median(block[name] for block in taken) for name in functions}


def _client(calls: int, room: int = 0, **options: Any) -> valued.Client:
    options = {"executor": Never(), **options}
    return valued.Client(
        lambda _event: None, max_queue=room + 2 * (calls + BLOCK), shutdown_timeout=0, **options
    )


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
    return _medians(
        {"action": lambda: client.action(KEY, data), "json.dumps": lambda: json.dumps(event)}, calls
    )


class _Stepwise:
    """An executor whose jobs run when they are told to."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> None:
        self.jobs.append(partial(fn, *args))

    def step(self) -> None:
        """Run one, which delivers an event."""
        self.jobs.pop()()


def queued(size: int, calls: int) -> dict[str, float]:
    """An event recorded, and one delivered to a function that does nothing, while *size* wait."""
    executor = _Stepwise()
    client = _client(calls, size, executor=executor)
    for _ in range(size):
        client.action(KEY, DATA)
    return _medians({"action": lambda: client.action(KEY, DATA), "delivery": executor.step}, calls)


def scopes(size: int, calls: int) -> dict[str, float]:
    """An event in *size* scopes nested, each with an attribute of its own; and a scope's block."""
    scope = valued.Scope(_client(calls), {"user.id": 123})

    def block() -> None:
        with scope.nested({"customer.id": 12}):
            pass

    with contextlib.ExitStack() as stack:
        for number_of_scope in range(size):
            stack.enter_context(scope.nested({f"attributes.name{number_of_scope}": size}))
        return _medians({"action": lambda: scope.action(KEY), "nested block": block}, calls)


def converters(size: int, calls: int) -> dict[str, float]:
    """An event with an object, where *size* classes are registered; and the one after another."""
    client = _client(2 * calls)
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
        **_medians({"action": lambda: client.action(KEY, user=user)}, calls),
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

"""What a unit of work costs: `isolated` next to `nested`, in turns, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

from benchmarks.calling import WARM_UP
from benchmarks.senders import Never
from benchmarks.subprocesses import serve

BLOCK: Final = 50  # units that are timed together
NESTED: Final = "a nested block"
SUBJECTS: Final = (NESTED, "isolated", "isolated, lazy user", "isolated, entered once more")


def main(units: int) -> dict[str, Any]:
    """Microseconds of one block that does nothing, medians, by its kind."""
    import valued

    scope = valued.Scope(valued.Client(lambda _event: None, executor=Never()))
    user = {"id": 123}
    lazy = {"user": lambda: user}

    def entered() -> AbstractContextManager[object]:
        return scope.isolated(lazy=lazy).entered()

    makers: dict[str, Callable[[], AbstractContextManager[object]]] = dict(
        zip(
            SUBJECTS,
            (
                lambda: scope.nested(user=user),
                lambda: scope.isolated(user=user),
                lambda: scope.isolated(lazy=lazy),
                entered,
            ),
            strict=True,
        )
    )
    taken: dict[str, list[int]] = {name: [] for name in makers}
    for number in range(-(-units // BLOCK) + 1):
        for name, make in makers.items():
            found = _time(make, WARM_UP if number == 0 else BLOCK)
            if number:
                taken[name].append(found)
    return {name: {"us": statistics.median(times) / 1e3} for name, times in taken.items()}


def _time(make: Callable[[], AbstractContextManager[object]], count: int) -> int:
    """Nanoseconds of one, on average of *count*."""
    started = time.perf_counter_ns()
    for _ in range(count):
        with make():
            pass
    return (time.perf_counter_ns() - started) // count


if __name__ == "__main__":
    serve(main)

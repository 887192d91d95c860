"""How much is measured: in full, or only so much that it can be seen to run."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping
from typing import Any, Final


@dataclasses.dataclass(frozen=True)
class Scale:
    """Rounds of each measurement, and its size."""

    rounds: int = 5
    calls: int = 5_000
    events: int = 3_000
    slow_events: int = 1_500
    waiting: int = 5_000
    queued: int = 10_000
    in_flight: int = 10
    forks: int = 100
    children: int = 30
    imports: int = 20
    idle: float = 3.0
    left: int = 100_000
    workers: tuple[int, ...] = (1, 2, 4, 8)
    profiled: int = 100_000
    worker_profiled: int = 10_000
    phases: tuple[tuple[float, float], ...] = ((0.0, 4.0), (0.02, 5.0), (0.0, 5.0))
    growth: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("attributes", (4, 40, 400)),
        ("nesting", (1, 5, 10, 20, 50)),
        ("queue length", (10, 100, 1_000, 10_000, 100_000)),
        ("nested scopes", (1, 5, 10, 20)),
        ("converters", (1, 10, 100, 1_000)),
    )


FULL: Final = Scale()
QUICK: Final = Scale(
    rounds=1,
    calls=50,
    events=20,
    slow_events=10,
    waiting=50,
    queued=20,
    in_flight=1,
    forks=2,
    children=1,
    imports=1,
    idle=0.1,
    left=100,
    workers=(1, 2),
    profiled=5_000,
    worker_profiled=2_000,
    phases=((0.0, 0.3), (0.02, 0.3), (0.0, 0.3)),
    growth=(
        ("attributes", (4,)),
        ("nesting", (1,)),
        ("queue length", (10,)),
        ("nested scopes", (1,)),
        ("converters", (1,)),
    ),
)


def in_turns(
    rounds: int, subjects: Mapping[str, Callable[[], dict[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """The medians of *rounds* rounds, in each of which every subject has its turn."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, subject in subjects.items():
            found[name].append(subject())
    return {
        name: {key: statistics.median(one[key] for one in results) for key in results[0]}
        for name, results in found.items()
    }

"""Times of very short calls that are compared: a few of each in turns, in one process.

A machine that is shared changes its speed from second to second by more than what is looked for, so
a block of calls of each are timed next to each other, again and again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

BLOCK: Final = 50  # calls


def in_blocks(
    functions: Mapping[str, Callable[[], object]],
    calls: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict[str, float]]:
    """Microseconds of one call of each, for every block, *calls* of each in all.

    Each is called a block's length before that, to warm up.
    """
    block = min(BLOCK, calls)

    def mean(function: Callable[[], object]) -> float:
        started = clock()
        for _ in range(block):
            function()
        return (clock() - started) / block * 1e6

    taken = [
        {name: mean(function) for name, function in functions.items()}
        for _ in range(-(-calls // block) + 1)
    ]
    return taken[1:]

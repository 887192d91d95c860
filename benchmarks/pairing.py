"""What a call costs its caller in memory, and with an outbox: in turns, in one process.

A machine that is shared changes its speed from second to second by more than what is looked for, so
a few calls of each are timed, again and again, next to each other.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.calling import WARM_UP, alone, times
from benchmarks.subprocesses import serve

BLOCK: Final = 50  # calls
WRITE: Final = "in memory, then one bare write"


def main(calls: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Microseconds, medians: of a call in memory, of one with the outbox of *options*, of a third.

    That is a call in memory and one bare ``write`` to a file, of as many bytes as the outbox
    writes for an event. *beyond* is what goes beyond the call in memory next to it.
    """
    folder = Path(options["outbox"])
    in_memory, on_disk, before = (
        alone("valued", calls + BLOCK, more) for more in ({}, options, {})
    )
    for _ in range(WARM_UP):
        for record in (in_memory, on_disk, before):
            record()
    written = b"x" * (sum(path.stat().st_size for path in folder.rglob("*.events")) // WARM_UP)
    number = os.open(folder / "bare", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def and_write() -> None:
        before()
        os.write(number, written)

    found = [
        [statistics.median(times(record, BLOCK)) for record in (in_memory, on_disk, and_write)]
        for _ in range(-(-calls // BLOCK))
    ]
    os.close(number)
    memory, disk, write = (_median(one[place] for one in found) for place in range(3))
    beyond_disk, beyond_write = (_median(one[place] - one[0] for one in found) for place in (1, 2))
    return {
        "in memory": {"median": memory},
        "valued": {"median": disk, "beyond": beyond_disk},
        WRITE: {"median": write, "beyond": beyond_write},
    }


def _median(times: Iterable[float]) -> float:
    return statistics.median(times) / 1e3


if __name__ == "__main__":
    serve(main)

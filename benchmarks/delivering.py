"""What one delivered event costs the whole process in CPU time, and how many a second there are."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from benchmarks.senders import sender
from benchmarks.subprocesses import serve


def cpu_seconds() -> float:
    """CPU time of this process so far, all of its threads, kernel included."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(
    subject: str,
    events: int,
    url: str,
    threads: int = 1,
    warm_up: int = 200,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, float]:
    """Record *events* as fast as can be, and wait until all are delivered."""
    options = {**options} if threads == 1 else {"threads": threads}
    sending = sender(subject, url, **options)
    for _ in range(warm_up):
        sending.record()
    sending.finish()
    started, used = time.perf_counter(), cpu_seconds()
    for _ in range(events):
        sending.record()
    sending.finish()
    took, used = time.perf_counter() - started, cpu_seconds() - used
    return {"cpu_us": used / events * 1e6, "per_second": events / took}


if __name__ == "__main__":
    serve(main)

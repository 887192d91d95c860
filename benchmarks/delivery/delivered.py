"""What one delivered event costs the whole process in CPU time, and how many a second there are."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from typing import Final

from benchmarks.bench import Bench, serve
from benchmarks.rows import Row, at_least, at_most, row
from benchmarks.senders import sender
from benchmarks.servers import delaying

SLOW: Final = 0.02  # seconds after which the slow server answers
TEN: Final = 10  # threads of the yardstick there


def rows(bench: Bench) -> Iterator[Row]:
    """At a server that answers at once."""
    sizes = {"events": bench.scale.events, "url": bench.server.url}
    subjects = {"urllib3": {}, "valued": {}, **bench.peers}
    figures = bench.turns("delivery.delivered", subjects, **sizes)
    name = "a thread with a urllib3 pool's urlopen"
    note = "other libraries send many events in one request."
    yield row("CPU of the whole process for a delivered event", "us", figures, "cpu_us", "urllib3",
              at_most(1.25), name=name, note=note)  # fmt: skip
    yield row("events a second, server answers at once", "1/s", figures, "per_second", "urllib3",
              at_least(0.85), name=name)  # fmt: skip


def slow_rows(bench: Bench) -> Iterator[Row]:
    """At a server that answers after 20 ms."""
    with delaying(SLOW) as slow:
        figures = bench.turns(
            "delivery.delivered", {"urllib3": {"threads": TEN}, "valued": {}},
            events=bench.scale.slow_events, warm_up=bench.scale.warm_up, url=slow.url,
        )  # fmt: skip
        yield row("events a second, server answers after 20 ms", "1/s", figures, "per_second",
                  "urllib3", at_least(0.95), note=f"the server is {slow.name}.",
                  name=f"a urllib3 pool's urlopen, {TEN} threads")  # fmt: skip


def cpu_seconds() -> float:
    """CPU time of this process so far, all of its threads, kernel included."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(
    subject: str, events: int, url: str, threads: int = 1, warm_up: int = 200, durability: str = ""
) -> dict[str, float]:
    """Record *events* as fast as can be, and wait until all are delivered."""
    sending = sender(subject, url, threads=threads, durability=durability)
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

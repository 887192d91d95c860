"""What one call costs its caller, in microseconds: median, 99th percentile, slowest."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from benchmarks.bench import Bench, serve
from benchmarks.rows import Goal, Row, at_most, row
from benchmarks.senders import DATA, EVENT, KEY, never_sending, outbox_options, sender

WARM_UP: Final = 200
YARDSTICK: Final = "json.dumps + SimpleQueue.put"


def rows(bench: Bench) -> Iterator[Row]:
    calls, url = bench.scale.calls, bench.server.url
    figures = bench.turns(
        "caller.calls",
        {
            YARDSTICK: {},
            "valued": {},
            "valued at work": {"subject": "valued", "url": url},
            "a thread with urllib3": {"subject": "urllib3", "url": url},
            **{name: {**peer, "url": url} for name, peer in bench.peers.items()},
        },
        calls=calls,
    )
    at_work = {**figures, "valued": figures.pop("valued at work")}
    del at_work["valued at work"]
    yield row("caller's time, median", "us", figures, "median", YARDSTICK, at_most(3),
              note="our sender does nothing meanwhile; that of what follows, with a thread or "
              "another library, is at work.")  # fmt: skip
    note = f"{calls:,} calls, one after the other; what they record is delivered meanwhile."
    yield row("caller's time, 99th percentile, sender at work", "us", at_work, "p99", YARDSTICK,
              at_most(5), note=note)  # fmt: skip
    yield row("caller's time, slowest, sender at work", "us", at_work, "slowest", YARDSTICK,
              Goal("under 5 ms", lambda ours, _: ours < 5_000), note=note)  # fmt: skip
    paced = bench.turns(
        "caller.calls", {"a thread with urllib3": {"subject": "urllib3"}, "valued": {}},
        calls=calls // 5, url=url, pause=0.001,
    )  # fmt: skip
    yield row("caller's time, median, a call each millisecond", "us", paced, "median",
              "a thread with urllib3", note="the sender is at work in each pause.")  # fmt: skip


def _alone(subject: str, calls: int, durability: str) -> Callable[[], object]:
    """What records an event that is not sent."""
    if subject == YARDSTICK:
        waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        return lambda: waiting.put(json.dumps(EVENT))
    client = never_sending(calls + WARM_UP, **outbox_options(durability))
    return lambda: client.action(KEY, DATA)


def main(
    subject: str, calls: int, url: str = "", pause: float = 0, durability: str = ""
) -> dict[str, Any]:
    """Time *calls* calls. With *url*, events are sent meanwhile. *pause*: seconds between two.

    *durability* is that of our client's outbox, if it is to have one.
    """
    import pyperf  # type: ignore[import-untyped]

    clock = time.perf_counter
    sending = sender(subject, url, durability=durability) if url else None
    record = sending.record if sending is not None else _alone(subject, calls, durability)
    for _ in range(WARM_UP):
        record()
    if sending is not None:
        sending.finish()

    def once(_loops: int) -> float:
        started = clock()
        record()
        taken = clock() - started
        if pause:
            time.sleep(pause)
        return taken

    runner = pyperf.Runner()
    runner.parse_args(["--worker", "--loops=1", "--warmups=0", f"--values={calls}", "--quiet"])
    times = runner.bench_time_func(subject, once)
    if sending is not None:
        sending.finish()
    return {
        "median": times.median() * 1e6,
        "p99": times.percentile(99) * 1e6,
        "slowest": times.percentile(100) * 1e6,
    }


if __name__ == "__main__":
    serve(main)

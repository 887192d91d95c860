"""Exceptions at any instant of a call: every event is settled, every flush returns in time.

A `Ctrl-C`, a soft time limit or a handler of a signal may interrupt any call of ours, and may call
us itself. The soak does the same thousands of times. The seed is printed.
"""

from __future__ import annotations

import json
import os
import random

import pytest

from tests.support.processes import run_program

KINDS = (
    "default pool",
    "full queue, drop_newest",
    "full queue, drop_oldest",
    "full queue, block",
    "full queue, caller_runs",
    "immediate",
    "immediate, retried",
    "outbox",
    "outbox, immediate",
)

#: Interrupts of each kind. Each pause of a retry takes a quarter of a second.
COUNT = dict.fromkeys(KINDS, 50) | {"immediate, retried": 4, "outbox": 20, "outbox, immediate": 20}


def interrupts(kind: str, way: str, count: int, timeout: float = 60.0) -> None:
    """See ``interrupted_calls.py``."""
    seed = str(random.SystemRandom().randrange(1 << 32))
    print(f"interrupted_calls.py {kind!r} {way} {seed} {count}")
    # Without coverage: its trace function takes a lock, which a signal handler may need.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    arguments = kind, way, seed, str(count)
    done = run_program("interrupted_calls.py", *arguments, timeout=timeout, env=env)
    assert done.returncode == 0, done.stderr[-20_000:]
    report = json.loads(done.stdout)
    assert report["faults"] == [], done.stdout
    assert report["interrupts"] == count


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_at_any_instant_of_a_call_leaves_no_event_unsettled(kind: str) -> None:
    interrupts(kind, "line", COUNT[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_handler_may_record_flush_and_ask_for_stats_at_any_instant(kind: str) -> None:
    interrupts(kind, "nested", COUNT[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_at_a_random_time_leaves_no_event_unsettled(kind: str) -> None:
    interrupts(kind, "signal", COUNT[kind])

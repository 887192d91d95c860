from __future__ import annotations

import os
from pathlib import Path

import pytest

from valued._delivery import load as _load
from valued._delivery.load import LAG, LONG_LAG, LOOK, Load, Moment


def quiet() -> Load:
    """On a machine that has nothing else to do."""
    return Load(lambda: -1)


def observed(
    load: Load, *, wall: float, cpu: float, process: float, lag: float = 0.0, times: int = 30
) -> None:
    """So many attempts of one thread, one after the other."""
    for turn in range(times):
        clock, used = 100.0 + turn * wall, turn * cpu
        began = Moment(clock, used, 0.0, 1)
        load.observe(began, Moment(clock + wall, used + cpu, process, 1), lag)


def crowd(load: Load, workers: int, *, cpu: float, times: int = 30) -> None:
    """So many threads that wait for each other: one ends an attempt each *cpu* seconds."""
    for turn in range(times):
        clock, used, thread = 100.0 + turn * cpu, turn // workers * cpu, turn % workers
        began = Moment(clock - workers * cpu, used, 0.0, thread)
        load.observe(began, Moment(clock, used + cpu, workers * cpu, thread), 0.0)


def greenlets(load: Load, workers: int, *, wall: float, cpu: float, times: int = 30) -> None:
    """So many workers on one thread, whose attempts take *wall* seconds and end in turns."""
    for turn in range(times):
        clock, used = 100.0 + turn * wall / workers, turn * cpu
        began = Moment(clock, used, used, 1)
        ended = used + workers * cpu  # one attempt of each of them, this one's included
        load.observe(began, Moment(clock + wall, ended, ended, 1), 0.0)


def test_a_slow_service_wants_as_many_workers_as_wait_for_it() -> None:
    load = quiet()
    observed(load, wall=0.020, cpu=0.0001, process=0.0002)
    assert load.wants_more(1)
    assert load.wants_more(10)
    assert not load.wants_fewer(10)


def test_a_fast_service_wants_one() -> None:
    load = quiet()
    observed(load, wall=0.00015, cpu=0.0001, process=0.0001)
    assert not load.wants_more(1)
    for workers in range(10, 1, -1):
        crowd(load, workers, cpu=0.0001)
        assert load.wants_fewer(workers)
    crowd(load, 1, cpu=0.0001)
    assert not load.wants_fewer(1)


def test_what_is_wanted_one_more_is_not_wanted_one_less_of() -> None:
    load = quiet()
    observed(load, wall=0.001, cpu=0.0001, process=0.0001)
    wanted = next(workers for workers in range(1, 100) if not load.wants_more(workers))
    assert not load.wants_fewer(wanted)
    assert not load.wants_fewer(wanted + 1)


def test_the_one_that_alone_gets_on_stays_as_the_others_may_hang() -> None:
    load = quiet()
    observed(load, wall=0.00015, cpu=0.0001, process=0.0001)
    assert not load.wants_fewer(10)


def test_a_busy_application_keeps_its_time_unless_events_wait_for_long() -> None:
    load = quiet()
    observed(load, wall=0.010, cpu=0.0001, process=0.010)
    assert not load.wants_more(1)
    observed(load, wall=0.010, cpu=0.0001, process=0.010, lag=2 * LAG)
    assert load.wants_more(1)


def test_one_slow_attempt_adds_nobody() -> None:
    load = quiet()
    observed(load, wall=0.020, cpu=0.0001, process=0.0002, times=1)
    assert not load.wants_more(1)


def test_averages_follow_a_service_that_changes() -> None:
    load = quiet()
    observed(load, wall=0.020, cpu=0.0001, process=0.0002)
    crowd(load, 10, cpu=0.0001)
    assert load.wants_fewer(10)
    observed(load, wall=0.020, cpu=0.0001, process=0.0002, times=20)
    assert load.wants_more(1)


def test_greenlets_are_as_many_as_threads_would_be() -> None:
    load = quiet()
    greenlets(load, 9, wall=0.020, cpu=0.0003)
    assert load.wants_more(9)
    assert not load.wants_fewer(10)
    # The same as a thread of its own has it, whose clock counts nobody else's.
    load = quiet()
    greenlets(load, 9, wall=0.020, cpu=0.002)
    assert not load.wants_more(9)


def test_a_crowded_machine_gets_no_more_unless_events_wait_for_long() -> None:
    load = Load(lambda: 2)
    observed(load, wall=0.010, cpu=0.0001, process=0.0002, lag=2 * LAG)
    assert not load.wants_more(1)
    observed(load, wall=0.010, cpu=0.0001, process=0.0002, lag=2 * LONG_LAG)
    assert load.wants_more(1)


def test_who_wants_more_looks_now_and_then_and_what_it_saw_counts_on_average() -> None:
    seen = [0.0, 9.0]
    load = Load(lambda: seen.pop(0))
    observed(load, wall=0.020, cpu=0.0001, process=0.0002, times=20)
    assert load.wants_more(1)
    assert load.wants_more(1)
    assert len(seen) == 1
    observed(load, wall=0.020, cpu=0.0001, process=0.0002, times=21)
    assert load._latest.wall > LOOK
    assert not load.wants_more(1)
    assert seen == []


@pytest.mark.skipif(not Path("/proc/loadavg").exists(), reason="nobody counts them here")
def test_this_thread_is_among_those_that_run() -> None:
    assert _load.running() >= 1 - (os.cpu_count() or 1)


@pytest.mark.parametrize("content", [None, "", "0.5 0.5 0.5 x/9 1", "0.5 0.5"])
def test_where_nobody_counts_them_there_is_room(
    content: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "loadavg"
    if content is not None:
        path.write_text(content)
    real = open
    monkeypatch.setattr("builtins.open", lambda _path, mode: real(path, mode))
    assert _load.running() == 0

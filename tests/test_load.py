from __future__ import annotations

from valued._load import LAG, Load, Moment


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
    load = Load()
    observed(load, wall=0.020, cpu=0.0001, process=0.0002)
    assert load.wants_more(1)
    assert load.wants_more(10)
    assert not load.wants_fewer(10)


def test_a_fast_service_wants_one() -> None:
    load = Load()
    observed(load, wall=0.00015, cpu=0.0001, process=0.0001)
    assert not load.wants_more(1)
    for workers in range(10, 1, -1):
        crowd(load, workers, cpu=0.0001)
        assert load.wants_fewer(workers)
    crowd(load, 1, cpu=0.0001)
    assert not load.wants_fewer(1)


def test_what_is_wanted_one_more_is_not_wanted_one_less_of() -> None:
    load = Load()
    observed(load, wall=0.001, cpu=0.0001, process=0.0001)
    wanted = next(workers for workers in range(1, 100) if not load.wants_more(workers))
    assert not load.wants_fewer(wanted)
    assert not load.wants_fewer(wanted + 1)


def test_the_one_that_alone_gets_on_stays_as_the_others_may_hang() -> None:
    load = Load()
    observed(load, wall=0.00015, cpu=0.0001, process=0.0001)
    assert not load.wants_fewer(10)


def test_a_busy_application_keeps_its_time_unless_events_wait_for_long() -> None:
    load = Load()
    observed(load, wall=0.010, cpu=0.0001, process=0.010)
    assert not load.wants_more(1)
    observed(load, wall=0.010, cpu=0.0001, process=0.010, lag=2 * LAG)
    assert load.wants_more(1)


def test_one_slow_attempt_adds_nobody() -> None:
    load = Load()
    observed(load, wall=0.020, cpu=0.0001, process=0.0002, times=1)
    assert not load.wants_more(1)


def test_averages_follow_a_service_that_changes() -> None:
    load = Load()
    observed(load, wall=0.020, cpu=0.0001, process=0.0002)
    crowd(load, 10, cpu=0.0001)
    assert load.wants_fewer(10)
    observed(load, wall=0.020, cpu=0.0001, process=0.0002, times=20)
    assert load.wants_more(1)


def test_greenlets_are_as_many_as_threads_would_be() -> None:
    load = Load()
    greenlets(load, 9, wall=0.020, cpu=0.0003)
    assert load.wants_more(9)
    assert not load.wants_fewer(10)
    # The same as a thread of its own has it, whose clock counts nobody else's.
    load = Load()
    greenlets(load, 9, wall=0.020, cpu=0.002)
    assert not load.wants_more(9)

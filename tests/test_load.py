from __future__ import annotations

from valued._load import LAG, Load, Moment


def observed(
    load: Load, *, wall: float, cpu: float, process: float, lag: float = 0.0, times: int = 30
) -> None:
    """So many attempts, each of them alone."""
    clock = 100.0
    for _ in range(times):
        load.observe(Moment(clock, 0.0, 0.0), Moment(clock + wall, cpu, process), lag)
        clock += wall


def crowd(load: Load, workers: int, *, cpu: float, times: int = 30) -> None:
    """So many workers that wait for each other: one ends an attempt each *cpu* seconds."""
    clock = 100.0
    for _ in range(times):
        clock += cpu
        began = clock - workers * cpu
        load.observe(Moment(began, 0.0, 0.0), Moment(clock, cpu, workers * cpu), 0.0)


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

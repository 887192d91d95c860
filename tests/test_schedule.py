from __future__ import annotations

import dataclasses
import math

from valued._delivery.schedule import Schedule


@dataclasses.dataclass
class Event:
    number: int
    accepted_at: float = 0.0


def filled(*numbers: int) -> Schedule[Event]:
    schedule: Schedule[Event] = Schedule()
    for number in numbers:
        schedule.add(Event(number))
    return schedule


def taken(schedule: Schedule[Event], now: float = 0.0) -> list[int]:
    numbers = []
    while (event := schedule.take(now)) is not None:
        numbers.append(event.number)
    return numbers


def test_events_go_first_in_first_out_and_what_is_due_goes_in_front() -> None:
    schedule = filled(3, 4)
    schedule.postpone(Event(2), 5.0)
    schedule.postpone(Event(1), 5.0)
    schedule.postpone(Event(5), 9.0)
    assert len(schedule) == 5
    assert schedule.next_change() == 5.0
    assert taken(schedule, 5.0) == [1, 2, 3, 4]
    assert schedule.next_change() == 9.0


def test_a_held_endpoint_gets_nothing_and_then_one_probe_at_a_time() -> None:
    schedule = filled(1, 2, 3)
    schedule.hold(10.0, probe=4.0)
    assert schedule.next_change() == 10.0
    assert taken(schedule, 9.9) == []
    assert taken(schedule, 10.0) == [1]
    assert not schedule.is_ready()
    assert taken(schedule, 13.9) == []  # the probe is still under way
    assert taken(schedule, 14.0) == [2]  # it never told


def test_a_probe_is_the_freshest_event_and_one_that_is_due_where_there_is_no_other() -> None:
    schedule = filled(3)
    schedule.postpone(Event(1), 0.0)
    schedule.postpone(Event(2), 50.0)
    schedule.hold(10.0, probe=1.0)
    assert taken(schedule, 10.0) == [3]
    assert taken(schedule, 11.0) == [1]
    assert schedule.next_change() == 12.0  # then the endpoint may be tried, but there is nothing
    schedule.advance(12.0)
    assert schedule.next_change() == 50.0
    schedule.advance(50.0)
    assert schedule.is_ready()


def test_an_open_probe_waits_for_nobody() -> None:
    schedule = filled(2)
    schedule.postpone(Event(1), 5.0)
    schedule.hold(3.0, probe=1.0)
    schedule.advance(3.0)
    # Nothing changes by time alone: who waited for it would be woken for ever.
    assert schedule.is_ready()
    assert schedule.next_change() is None


def test_a_hold_without_events_waits_for_nothing() -> None:
    schedule = filled()
    schedule.hold(10.0, probe=1.0)
    assert schedule.next_change() is None
    assert taken(schedule, 10.0) == []
    schedule.advance(10.0)
    schedule.add(Event(1))
    assert schedule.is_ready()


def test_an_endpoint_that_answers_again_gets_all() -> None:
    schedule = filled(1, 2)
    schedule.hold(math.inf, probe=1.0)
    schedule.resume()
    assert schedule.is_ready()
    assert taken(schedule) == [1, 2]


def test_what_is_hastened_is_due_now_and_a_held_endpoint_is_probed_now() -> None:
    schedule = filled(2)
    schedule.postpone(Event(1), 50.0)
    schedule.hold(40.0, probe=5.0)
    schedule.hasten()
    assert taken(schedule, 0.0) == [1]
    assert taken(schedule, 5.0) == [2]


def test_the_oldest_is_found_among_what_is_ready_and_what_is_postponed() -> None:
    schedule = filled(2, 4)
    schedule.postpone(Event(1), 60.0)
    schedule.postpone(Event(3), 50.0)
    numbers = []
    while (event := schedule.pop_oldest()) is not None:
        numbers.append(event.number)
    assert numbers == [2, 3, 1, 4]


def test_what_waits_for_too_long_is_found_due_or_not() -> None:
    schedule: Schedule[Event] = Schedule()
    schedule.add(Event(3, accepted_at=3.0))
    schedule.add(Event(5, accepted_at=5.0))
    schedule.postpone(Event(4, accepted_at=4.0), 10.0)
    schedule.postpone(Event(2, accepted_at=2.0), 50.0)
    schedule.postpone(Event(1, accepted_at=1.0), 90.0)
    found = []
    while (event := schedule.pop_before(4.0)) is not None:
        found.append(event.number)
    assert sorted(found) == [1, 2, 3]
    assert len(schedule) == 2
    assert schedule.next_change() == 10.0

"""An outage of hours left 20,000 directories: events stay fast, the end keeps its bound."""

from __future__ import annotations

from pathlib import Path

from tests.support.left import Sink
from tests.support.many import all_numbers, deliver_rest, run_among

DIRECTORIES = 20_000


def test_a_service_that_is_down(tmp_path: Path) -> None:
    sink = Sink(tmp_path / "arrived")
    sink.go_down()
    ran = run_among(tmp_path / "outbox", sink, DIRECTORIES, shutdown_timeout=1.0)
    print(ran)
    assert ran.listed == []
    assert ran.slowest < 0.005
    assert ran.end < 1.5
    sink.come_up()
    deliver_rest(tmp_path / "outbox", sink, 250)
    assert sink.numbers() == all_numbers(DIRECTORIES)
    assert sink.repeats() == 0


def test_a_service_that_is_up(tmp_path: Path) -> None:
    sink = Sink(tmp_path / "arrived")
    ran = run_among(tmp_path / "outbox", sink, DIRECTORIES, shutdown_timeout=1.0, pause=0.01)
    print(ran)
    assert ran.listed == []
    assert ran.slowest < 0.005
    assert ran.end < 1.5
    deliver_rest(tmp_path / "outbox", sink, 250)
    assert sink.numbers() == all_numbers(DIRECTORIES)
    assert sink.repeats() == 0

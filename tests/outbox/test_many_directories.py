"""Work that grows with the directory is no caller's: neither an event's, nor the end's."""

from __future__ import annotations

import os
import sys
import threading
import types
from pathlib import Path
from typing import Any

from tests.outbox.conftest import New
from tests.support.left import Sink, leave
from tests.support.many import all_numbers, deliver_rest, run_among
from tests.support.processes import until

DIRECTORIES = 2_000

#: Seconds. A call takes a fraction of a millisecond: this tells a scan, and no speed.
SCAN = 0.05


def test_no_call_lists_a_directory_and_the_end_keeps_its_bound(place: Path, sink: Sink) -> None:
    sink.go_down()
    ran = run_among(place, sink, DIRECTORIES, shutdown_timeout=0.3)
    assert ran.listed == []
    assert ran.slowest < SCAN
    assert ran.end < 0.3 + 2  # two seconds for a busy machine, and the interpreter's own end
    sink.come_up()
    deliver_rest(place, sink, 60)
    assert sink.all() == all_numbers(DIRECTORIES)


def test_an_event_costs_no_more_where_many_files_wait(place: Path, new: New, sink: Sink) -> None:
    def work_for(directories: int) -> float:
        """How often each event lets our code call a function of its own."""
        count = 0

        def profile(frame: types.FrameType, event: str, _argument: object) -> None:
            nonlocal count
            count += event == "call" and "valued" in frame.f_globals["__name__"]

        leave(place, directories, first=len(sink.numbers()))
        expected = len(sink.numbers()) + directories
        threading.setprofile(profile)  # of threads that begin from now on
        try:
            with new() as client:
                client.adopt()
                until(lambda: len(sink.numbers()) == expected, 60)
        finally:
            threading.setprofile(None)
        return count / directories

    few, many = work_for(100), work_for(1_500)
    assert many < few * 3  # nothing is done for each file when an event was delivered


def test_an_end_amid_the_deliveries_loses_and_repeats_nothing(place: Path, sink: Sink) -> None:
    ran = run_among(place, sink, 500, shutdown_timeout=0.3, pause=0.01)
    assert ran.end < 0.3 + 2
    assert len(sink.numbers()) > 0
    deliver_rest(place, sink, 60)
    assert sink.all() == all_numbers(500)


def test_no_later_call_lists_a_directory_when_a_new_file_is_begun(
    place: Path, new: New, sink: Sink
) -> None:
    leave(place, 100)
    client = new()
    listed: list[str] = []
    active = threading.local()  # a hook can't be removed, so it looks at this

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.listdir", "os.scandir") and getattr(active, "recording", False):
            listed.append(f"{event} {arguments[0]}")

    sys.addaudithook(hook)
    for number in range(1000, 1200):  # 12 MB: several files
        active.recording = True
        client.action("big", {"user.id": 1, "attributes": {"number": number, "x": "x" * 60_000}})
        active.recording = False
    assert listed == []
    client.flush(20)
    until(lambda: len(sink.numbers()) == 300)


def test_adopt_takes_over_what_is_left_although_there_is_much_of_it(
    place: Path, new: New, sink: Sink
) -> None:
    leave(place, 500)
    client = new()
    assert client.adopt() > 0
    until(lambda: len(sink.numbers()) == 500, 30)
    assert client.close(10)
    assert sink.repeats() == 0
    assert [*os.scandir(place / "v1" / "events")] == []

"""Processes that end while the service does not play its part, or when there is little of them."""

from __future__ import annotations

import os
import re
import subprocess
import time
from typing import Any

import pytest

from tests.faults.test_silent import silent
from tests.support.processes import run_program
from tests.support.server import Server

#: Without what measures coverage, which writes its data as a process ends.
_BARE = "COV"


def _end(*arguments: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Seconds from the first `atexit` handler of ``ends_full.py`` to the end of its process."""
    environment = {name: os.environ[name] for name in os.environ if _BARE not in name}
    done = run_program("ends_full.py", *arguments, env=environment)
    ended = time.time()
    assert done.returncode == 0, done.stderr
    return ended - float(done.stdout.split()[0]), done


def test_ten_thousand_events_and_a_silent_service_hold_up_the_end_for_its_bound_only(
    serve: Any,
) -> None:
    server = serve(silent)
    took = []
    # The machine may be busy with something else: of three, one is what the library makes of it.
    while not took or (min(took) > 1.0 and len(took) < 3):
        seconds, done = _end(server.url, "10000", "0.5")
        line = "^valued: the process ends with 10000 events not delivered"
        assert re.search(line, done.stderr, re.M)
        took.append(seconds)
    assert 0.5 <= min(took) <= 0.5 + 0.5, took


@pytest.mark.parametrize("events", ["0", "1"])
def test_with_nothing_pending_our_part_of_the_end_of_a_process_is_less_than_50_ms(
    events: str, server: Server
) -> None:
    took = []
    while not took or (min(took) >= 0.05 and len(took) < 3):  # as above
        _, done = _end(server.url, events, "5")
        first, last = map(float, done.stdout.split())
        took.append(last - first)
    assert min(took) < 0.05, took


def test_an_event_of_a_finalizer_that_an_atexit_handler_calls_arrives_once(server: Server) -> None:
    done = run_program("finalizes.py", server.url, "del in an atexit handler")
    assert (done.returncode, done.stderr) == (0, "")
    assert server.keys() == ["one", "two"]


AFTER_ALL_HANDLERS = {
    "del of a global": 1,
    "first event in del of a global": 1,
    "del in a cycle": 1,
    "del after close in an atexit handler": 1,
    "many": 20,
}


@pytest.mark.parametrize("road", AFTER_ALL_HANDLERS)
def test_an_event_of_a_finalizer_after_all_handlers_is_counted_as_lost_and_said(
    road: str, server: Server
) -> None:
    done = run_program("finalizes.py", server.url, road)
    assert done.returncode == 0, done.stderr
    assert [event["key"] for event in server.events if event["key"] != "one"] == []
    assert f"dropped: {AFTER_ALL_HANDLERS[road]}\n" in done.stdout
    line = "valued: events recorded while the Python interpreter shuts down.*\n"
    assert re.fullmatch(line, done.stderr)

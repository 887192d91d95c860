"""How processes end, and that what they accepted is delivered, once, whichever way."""

from __future__ import annotations

import collections
import re
import signal
import sys
import time

import pytest

from tests.support.hold import Hold
from tests.support.processes import run, run_program
from tests.support.server import Reply, Request, Server

ONE_TWO = ["one", "two"]
PARENT_CHILD = ["child", "parent"]

#: The road, its exit status, the keys that arrive (each once), what stderr may say.
ROADS = [
    ("end_of_script", 0, ONE_TWO, ""),
    ("sys_exit", 3, ONE_TWO, ""),
    ("exception", 1, ONE_TWO, "ZeroDivisionError"),
    ("first_event_in_an_atexit_handler", 0, ONE_TWO, ""),
    ("first_event_of_a_thread_that_outlives_the_main_one_of_a_child", 0, ONE_TWO, ""),
    ("event_in_an_atexit_handler_that_runs_after_ours", 0, ONE_TWO, ""),
    ("executor_that_is_shut_before_atexit", 0, [f"event {number}" for number in range(20)], ""),
    ("executor_that_is_shut_and_an_event_after_it", 0, ONE_TWO, ""),
    ("no_thread_can_be_started_when_the_main_thread_is_over", 0, ONE_TWO, ""),
    ("client_that_is_gone", 0, ONE_TWO, ""),
    ("fork_and_sys_exit", 0, PARENT_CHILD, ""),
    ("fork_and_end_of_script", 0, PARENT_CHILD, ""),
    ("fork_without_an_event", 0, ["parent"], ""),
    ("fork_inside_an_atexit_handler", 0, PARENT_CHILD, ""),
    ("sigint", -signal.SIGINT, ["one"], "KeyboardInterrupt"),
    ("sigterm_with_a_handler_that_exits", 5, ["one"], ""),
    ("sigterm", -signal.SIGTERM, ["one"], ""),
    ("sigterm_inside_action", -signal.SIGTERM, ONE_TWO, ""),
    ("sigterm_inside_a_thread_start", -signal.SIGTERM, ["one"], ""),
    ("sigterm_in_a_forked_child", 0, PARENT_CHILD, ""),
    ("sigterm_while_the_process_ends", -signal.SIGTERM, ["one"], ""),
    ("sigterm_that_the_main_thread_does_not_notice", -signal.SIGTERM, ["one"], ""),
    ("sigterm_with_a_handler_that_was_there", 0, ["one"], ""),
    ("sigterm_with_a_handler_that_readies_itself_for_the_next_one", 0, ["one"], ""),
    ("sigterm_that_a_server_raises_again", -signal.SIGTERM, ONE_TWO, ""),
    ("sigterm_that_a_server_raises_again_before_any_event", -signal.SIGTERM, ["two"], ""),
    ("sigterm_where_a_server_put_the_default_back_after_the_fork", 0, ONE_TWO, ""),
    ("sigterm_where_uvicorn_put_its_handler_after_the_fork", 0, ONE_TWO, ""),
    (
        "sigterm_that_uvicorn_raises_again_to_the_handler_that_it_found",
        -signal.SIGTERM,
        ONE_TWO,
        "",
    ),
    (
        "sigterm_where_the_first_event_is_not_on_the_main_thread",
        0,
        ["one", "one"],
        "SIGTERM ends this process without delivering .*post_worker_init",
    ),
    ("sigterm_where_a_server_put_a_handler_that_exits_after_the_fork", 0, ["one"], ""),
    ("sigterm_that_a_program_started_by_a_living_process_gets", 0, ["one"], ""),
    ("sigterm_that_a_child_of_a_stopping_process_gets", 0, ["one"], ""),
    ("sigterm_with_a_handler_that_kills", 6, ["one"], ""),
    ("sigterm_that_is_ignored", 0, ["one"], ""),
    ("os_exit", 0, ["flushed"], ""),
    ("another_thread_records_while_the_process_ends", 0, ONE_TWO, ""),
]


@pytest.mark.parametrize(("road", "status", "keys", "said"), ROADS, ids=[r[0] for r in ROADS])
def test_events_arrive_once_at(
    road: str, status: int | None, keys: list[str], said: str, server: Server
) -> None:
    if road == "fork_inside_an_atexit_handler" and sys.version_info[:2] == (3, 12):
        pytest.skip("Python 3.12 refuses to fork at that moment")
    done = run_program("exits.py", server.url, road)
    assert server.keys() == sorted(keys)
    if status is None:  # by the signal, or at its end: which comes first, is open
        status = done.returncode if done.returncode in (0, -signal.SIGTERM) else 0
    assert done.returncode == status, done.stderr
    if said:
        assert len(re.findall(rf"^(?:valued: )?{said}", done.stderr, re.MULTILINE)) == 1
    else:
        assert done.stderr == ""


def test_the_end_keeps_its_bound_where_no_thread_can_be_started(server: Server) -> None:
    with Hold(server):
        began = time.monotonic()
        done = run_program("exits.py", server.url, "first_event_at_the_end_without_threads")
        took = time.monotonic() - began
    assert done.returncode == 0
    assert took < 6, took  # shutdown_timeout is 0.5 s, and one attempt may take 10


@pytest.mark.parametrize(
    ("road", "retry_after", "status"),
    [
        ("immediate_with_a_retry", "0", 0),
        ("retry_pause", "60", 0),
        ("sigterm_when_the_main_thread_is_over", "60", -signal.SIGTERM),
    ],
)
def test_the_end_does_not_wait_for_the_time_of_a_retry(
    road: str, retry_after: str, status: int, server: Server
) -> None:
    attempts: collections.Counter[str] = collections.Counter()

    def script(request: Request) -> Reply:
        attempts[request.event["key"]] += 1
        refused = attempts[request.event["key"]] == 1
        return Reply(503, {"Retry-After": retry_after}) if refused else Reply()

    server.script = script
    done = run_program("exits.py", server.url, road)
    assert done.returncode == status, done.stderr
    assert re.fullmatch(
        r"(valued: )?1 delivery failed and will be retried; .* 503 .*\n", done.stderr
    )
    assert server.keys() == ["refused once", "refused once"]


def test_what_on_error_records_at_the_end_is_delivered_too(server: Server) -> None:
    server.script = lambda request: Reply(
        503 if request.event["key"] == "refused twice" else 204, {"Retry-After": "0"}
    )
    done = run_program("exits.py", server.url, "on_error_records_while_the_process_ends")
    assert done.returncode == 0
    assert re.fullmatch(
        "valued: 1 delivery failed .*\nvalued: 1 event failed permanently.*\n", done.stderr
    )
    assert server.keys() == ["refused twice", "refused twice", "told"]


def test_many_events_of_a_slow_service_are_delivered_at_the_end_by_all_who_can(
    server: Server,
) -> None:
    # From Python 3.12 on no worker can be added at that time: those that are there, and the main
    # thread, must each go on, and none wait for itself.
    server.script = lambda _request: time.sleep(0.02) or Reply()
    done = run_program("exits.py", server.url, "many")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(server.keys()) == 60


def test_the_end_does_not_begin_while_a_thread_outlives_the_main_one(server: Server) -> None:
    # Longer than what is left to an attempt once the time of the end is over.
    server.script = lambda _request: time.sleep(0.5) or Reply()
    done = run_program("exits.py", server.url, "first_event_of_a_thread_that_outlives_the_main_one")
    assert (done.returncode, done.stderr) == (0, "")
    assert server.keys() == ONE_TWO


def test_flush_on_signals_is_for_the_main_thread() -> None:
    program = (
        "import threading, valued\n"
        "def call():\n"
        "    try: valued.flush_on_signals()\n"
        "    except ValueError as error: print(error)\n"
        "thread = threading.Thread(target=call); thread.start(); thread.join()\n"
    )
    done = run("-c", program)
    assert "main thread" in done.stdout, done.stderr

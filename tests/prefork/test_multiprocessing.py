"""multiprocessing and `concurrent.futures`, by each start method: what was recorded arrives, once.

No child flushes. What none of them can promise is ``with Pool() as pool`` without
`valued.flush_on_signals`: the end of the block terminates the workers. README.rst says so.
"""

from __future__ import annotations

import json
import multiprocessing
import time

import pytest

from tests.support.processes import run_program
from tests.support.server import Reply, Server

METHODS = multiprocessing.get_all_start_methods()
ROADS = [
    "process",
    "process_with_sys_exit",
    "process_with_an_exception",
    "process_of_a_process",
    "scope",
    "pool",
    "pool_with_maxtasksperchild",
    "pool_with_failing_tasks",
    "process_pool_executor",
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("road", ROADS)
def test_events_of_children_arrive_once(road: str, method: str, server: Server) -> None:
    done = run_program("multiprocess.py", server.url, method, road)
    assert (done.returncode, done.stderr) == (0, "")
    assert server.keys() == json.loads(done.stdout)
    pids = {event.get("attributes", {}).get("pid") for event in server.events}
    assert len(pids) >= 2  # the parent's and at least one child's


@pytest.mark.parametrize("method", METHODS)
def test_workers_that_are_terminated_while_they_send_lose_nothing_with_flush_on_signals(
    method: str, server: Server
) -> None:
    # The tasks are done long before their events are: the end of the block finds them under way.
    server.script = lambda _request: time.sleep(0.1) or Reply()
    done = run_program("multiprocess.py", server.url, method, "pool_as_a_block")
    assert (done.returncode, done.stderr) == (0, "")
    assert server.keys() == json.loads(done.stdout)


def test_events_of_a_pool_of_threads_arrive_once(server: Server) -> None:
    done = run_program("multiprocess.py", server.url, METHODS[0], "pool_of_threads")
    assert (done.returncode, done.stderr) == (0, "")
    assert server.keys() == json.loads(done.stdout)

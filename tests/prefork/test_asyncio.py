"""Programs with a loop of asyncio: an event never holds it up, and what is forked sends its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from tests.support.hold import Hold
from tests.support.processes import run_program
from tests.support.server import Reply, Request, Server

InThread = Callable[..., "Future[Any]"]


def run(server: Server, road: str, status: int = 0) -> str:
    """What it printed, once it has ended without a complaint."""
    done = run_program("asyncio_roads.py", server.url, road)
    assert (done.returncode, done.stderr) == (status, "")
    return done.stdout


def test_an_event_never_waits_for_the_service_and_other_tasks_have_their_turns(
    server: Server,
) -> None:
    with Hold(server):
        found = json.loads(run(server, "pauses"))
    assert found["pending"] == 1000
    assert found["ticks"] > 0
    # Some milliseconds; with a call that waited for the server it would be the time-out of 10 s.
    assert found["worst"] < 2, found


def test_a_flush_in_a_thread_leaves_the_loop_alone(server: Server, in_thread: InThread) -> None:
    with Hold(server, lambda event: event["key"] == "held") as hold:
        done = in_thread(run, server, "flush_in_a_thread")
        server.wait_for(2)
        hold.release()
        done.result(30)
    assert server.keys() == ["go on", "held"]


def test_scopes_of_tasks_are_their_own(server: Server) -> None:
    run(server, "scopes")
    expected = {f"user-{n}": (n, None) for n in range(1, 11)}
    expected |= {f"both-{n}": (n, -n) for n in range(1, 11)}
    assert len(server.events) == 20
    assert {
        event["key"]: (event["user"]["id"], event.get("customer", {}).get("id"))
        for event in server.events
    } == expected


@pytest.mark.parametrize(("road", "status"), [("end", 0), ("end_by_an_exception", 3)])
@pytest.mark.parametrize("seconds", [0.0, 0.03], ids=["at once", "slowly"])
def test_the_end_after_the_loop_delivers(
    seconds: float, road: str, status: int, server: Server
) -> None:
    def answer(_request: Request) -> Reply:
        time.sleep(seconds)  # what is waited for: it makes a client want more threads
        return Reply()

    server.script = answer
    run(server, road, status)
    assert server.keys() == sorted(f"event-{number}" for number in range(50))


@pytest.mark.parametrize(
    ("road", "children"),
    [
        ("fork_in_the_loop", ["child"]),
        ("fork_in_an_executor", ["child"]),
        ("fork_by_multiprocessing", ["child"]),
        ("fork_and_run_a_loop", ["child", "child-at-end"]),
    ],
)
def test_a_child_sends_its_own_events_only_while_the_parent_waits_for_the_server(
    road: str, children: list[str], server: Server, in_thread: InThread
) -> None:
    with Hold(server, lambda event: event["key"] == "held") as hold:
        done = in_thread(run, server, road)
        server.wait_for(2 + len(children))
        assert server.keys() == [*children, "held", "warm"]
        hold.release()
        done.result(30)
    assert server.keys() == [*children, "held", "queued", "warm"]
    sent_by = {event["key"]: event["attributes"]["pid"] for event in server.events}
    assert sent_by["warm"] == sent_by["held"] == sent_by["queued"]
    assert sent_by["warm"] not in {sent_by[key] for key in children}

"""FastAPI under real servers: whose event it is, and that none is lost when the server ends.

Each request has a user of its own, or none, and each of its events says which: these are compared.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.programs import BOUND
from tests.support.server import Reply, Server
from tests.support.uvicorn import KINDS, ASGIServer, Visitors, headers_of

pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

APP = "tests.programs.fastapi_app:app"
ORDERS = ("alone", "before", "behind", "twice")
ENDPOINTS = ("sync/sync", "sync/async", "async/sync", "async/async")
STREAMS = ("stream/sync", "stream/async")
PATHS = [f"/{order}/{what}" for order in ORDERS for what in (*ENDPOINTS, *STREAMS, "talk")]

Start = Callable[..., ASGIServer]


@pytest.fixture
def start(tmp_path: Path, server: Server) -> Iterator[Start]:
    """Start a kind of server; what it said is in the report of a failure."""
    with contextlib.ExitStack() as started:

        def start(kind: str, **options: Any) -> ASGIServer:
            if kind.startswith("gunicorn"):
                pytest.importorskip("gunicorn")
                pytest.importorskip("uvicorn_worker")
            return started.enter_context(
                ASGIServer(
                    *(tmp_path, kind, APP),
                    VALUED_TOKEN="test-token",
                    VALUED_ENDPOINT=server.url,
                    CLIENT_OPTIONS=json.dumps(options),
                )
            )

        yield start


def expected(requests: dict[str, str]) -> Counter[tuple[str, str]]:
    """The events that come of *requests*: the id of the request, and the key."""
    return Counter((name, key) for name, path in requests.items() for key in keys(path))


def keys(path: str) -> list[str]:
    """The keys of the events that a request for *path* records."""
    if path.endswith("talk"):
        return ["message 0", "message 1", "message 2"]
    inside = ["chunk 0", "chunk 1", "chunk 2"] if "stream" in path else ["endpoint", "background"]
    return inside if path.startswith("/alone") else [*inside, "outside"]


def assert_each_has_its_user(events: list[dict[str, Any]]) -> None:
    wrong = [
        event
        for event in events
        if event.get("user") != (None if (user := whose(event)) is None else {"id": user})
    ]
    assert not wrong, f"{len(wrong)} of {len(events)}, the first of them: {wrong[0]}"


def whose(event: dict[str, Any]) -> str | None:
    """The id of the user that the request of this event was of."""
    user: str | None = event["attributes"]["expected"]
    return user


def assert_each_came_once(events: list[dict[str, Any]], visitors: Visitors) -> None:
    received = Counter((event["attributes"]["request"], event["key"]) for event in events)
    told = expected(visitors.answered)
    wrong = {
        "not answered as expected": visitors.wrong,
        "lost": sorted(told - received),
        "twice": sorted(received - told - expected(visitors.unanswered)),
    }
    assert not any(wrong.values()), wrong


@pytest.mark.parametrize("kind", KINDS)
def test_each_event_is_of_the_user_of_its_request_and_comes_once(
    kind: str, start: Start, server: Server
) -> None:
    if kind == "uvicorn":
        pytest.importorskip("wsproto")
    running = start(kind)
    visitors = Visitors(running.port, PATHS, count=6)
    visitors.wait_for(4 * len(PATHS))
    running.stop()  # while they ask
    visitors.join()
    events = server.events
    assert_each_has_its_user(events)
    assert_each_came_once(events, visitors)
    assert len({event["attributes"]["pid"] for event in events}) == running.workers
    # The users are many, and some requests were of nobody, in each place.
    for key in {event["key"] for event in events}:
        of_this = [whose(event) for event in events if event["key"] == key]
        assert None in of_this
        assert len(set(of_this)) > 5, key
    assert running.complaints() == []


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost_when_the_server_is_told_to_end_amid_a_backlog(
    kind: str, start: Start, server: Server
) -> None:
    def script(_request: object) -> Reply:
        time.sleep(0.5)
        return Reply()

    server.script = script
    running = start(kind, max_workers=10, shutdown_timeout=20)
    visitors = Visitors(running.port, [path for path in PATHS if "talk" not in path], count=2)
    visitors.wait_for(12)
    told_at = time.monotonic()
    running.stop()
    visitors.join()
    assert_each_came_once(server.events, visitors)
    assert_each_has_its_user(server.events)
    late = [request for request in server.requests if request.at > told_at + 0.5]
    assert late, "there was no backlog"
    assert running.complaints() == []


@pytest.mark.parametrize("kind", ["uvicorn", "gunicorn, 2 workers"])
def test_what_cannot_be_delivered_in_time_is_said_in_the_log(
    kind: str, start: Start, server: Server
) -> None:
    answer = threading.Event()

    def script(_request: object) -> Reply:
        answer.wait(BOUND)
        return Reply()

    server.script = script
    try:
        running = start(kind, shutdown_timeout=0.5)
        visitors = Visitors(running.port, ["/alone/sync/async"])
        visitors.wait_for(40)
        visitors.leave()
        running.stop()
    finally:
        answer.set()
    told = re.findall(r"(\d+) events? (?:is|are) not delivered after 0\.5 s", running.said())
    assert sum(map(int, told)) == sum(expected(visitors.answered).values())
    assert len(told) <= running.workers


@pytest.mark.parametrize("how", STREAMS)
def test_a_visitor_who_leaves_amid_a_stream_leaves_nothing_behind(
    how: str, start: Start, server: Server
) -> None:
    running = start("uvicorn", max_workers=20)
    path = f"/before/{how}?count=1000000"
    for number in range(1, 7):
        headers = "".join(f"{name}: {value}\r\n" for name, value in headers_of(number).items())
        with socket.create_connection(("127.0.0.1", running.port), BOUND) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    visitors = Visitors(running.port, ["/before/sync/async", "/before/async/sync"])
    visitors.wait_for(60)
    visitors.leave()
    running.stop()
    events = server.events
    assert_each_has_its_user(events)
    streamed = [event for event in events if event["key"].startswith("chunk")]
    assert {event["attributes"]["request"] for event in streamed} == {
        f"visit-{number}" for number in range(1, 7)
    }

"""A server that is not there, or not yet."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from tests.faults._raw import NO_CONTENT, Peer, answer, answering
from tests.support.inside import is_breaker_open, workers_of
from tests.support.processes import until
from valued._delivery import retry as _retry


class Nobody:
    """A port on which nobody listens: bound, so that no other process gets it."""

    def __init__(self) -> None:
        self._sock = socket.socket()
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sock.bind(("127.0.0.1", 0))
        self.port: int = self._sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/events"

    def leave(self) -> None:
        self._sock.close()


def test_events_of_an_outage_arrive_once_it_is_over(serve: Any, connect: Any) -> None:
    nobody = Nobody()
    client = connect(nobody, retries=1000, max_workers=2)
    client.record(*map(str, range(10)))
    until(lambda: client.stats()["retried"] >= 2)
    assert client.flush(0) is False
    nobody.leave()
    server = serve(answering(), port=nobody.port)
    assert client.flush(60)
    assert sorted(server.keys) == sorted(map(str, range(10)))
    stats = client.stats()
    assert (stats["delivered"], stats["failed"], stats["dropped"]) == (10, 0, 0)


def test_an_outage_costs_a_few_log_lines_and_no_token(connect: Any, caplog: Any) -> None:
    nobody = Nobody()
    client = connect(nobody)
    client.record(*map(str, range(200)))
    until(lambda: is_breaker_open(client))
    assert client.close(0) is False
    lines = [record.getMessage() for record in caplog.records if record.name == "valued"]
    # The retries, and what was waiting; where attempts were under way, the first that failed and
    # then the others.
    assert 2 <= len(lines) <= 4, lines
    assert "s3cret" not in caplog.text
    nobody.leave()


def test_while_the_endpoint_is_down_one_event_probes_and_the_rest_waits(
    serve: Any, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_retry, "backoff", lambda *_args: 1.0)
    hangs, up = threading.Event(), threading.Event()
    held: list[object] = []

    def serving(peer: Peer) -> None:
        while (event := peer.read_request()) is not None:
            if hangs.is_set():
                held.append(event)
                up.wait(30)
                peer.send(NO_CONTENT)
            else:
                peer.send(answer("503 Service Unavailable"))

    client = connect(serve(serving))
    client.record(*map(str, range(100)))
    until(lambda: is_breaker_open(client))
    until(lambda: not workers_of(client))  # what was under way has told
    hangs.set()
    until(lambda: held)
    client.record("later")
    assert client.flush(0.2) is False  # many times what a worker takes to begin
    assert len(held) == 1
    up.set()
    assert client.flush(30)
    assert len(held) == 101
    assert client.stats()["failed"] == 0


def test_an_outage_that_outlasts_the_retries_is_told_to_on_error_for_all_that_waited(
    connect: Any,
) -> None:
    nobody = Nobody()
    client = connect(nobody, retries=2)
    client.record(*map(str, range(50)))
    assert client.flush(30)
    told = client.given_up(50)
    assert sorted(event["key"] for _, event in told) == sorted(map(str, range(50)))
    assert all("refused" in str(error) and error.attempts <= 3 for error, _ in told)
    assert sum(error.attempts for error, _ in told) < 20  # and not three for each
    nobody.leave()

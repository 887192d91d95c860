"""A server that accepts and never answers."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.faults._raw import Peer
from tests.support.processes import run_program


def silent(peer: Peer) -> None:
    while peer.read_request() is not None:
        pass
    peer.server.over.wait(30)


def test_an_attempt_ends_at_its_timeout_and_another_one_follows(serve: Any, connect: Any) -> None:
    server = serve(silent)
    client = connect(server, timeout=0.2, retries=1)
    client.record("a")
    assert client.flush(10)
    ((error, _),) = client.given_up(1)
    assert (error.status, error.attempts) == (None, 2)
    assert "timed out" in str(error).lower()
    assert server.keys == ["a", "a"]


def test_the_caller_does_not_notice(serve: Any, connect: Any) -> None:
    server = serve(silent)
    client = connect(server, timeout=20.0)
    started = time.monotonic()
    client.record(*map(str, range(500)))
    assert time.monotonic() - started < 5.0  # the first answer would take 20
    server.wait_for(1)
    assert client.stats()["pending"] == 500
    assert client.close(0.05) is False


def test_the_end_of_a_process_is_bounded_and_says_what_was_not_delivered(serve: Any) -> None:
    server = serve(silent)
    done = run_program("ends_with_events_pending.py", server.url, "0.5")
    ended = time.time()
    assert done.returncode == 0
    report = json.loads(done.stdout)
    # The end takes its 0.5 s, and what the interpreter needs: not the 10 s of an attempt.
    assert 0.5 <= ended - report["ends"] < 5.0
    assert report["pending"] == 3
    assert "the process ends with 3 events not delivered" in done.stderr
    assert "shutdown_timeout (0.5 s)" in done.stderr
    assert "s3cret" not in done.stdout + done.stderr


def test_a_shutdown_timeout_of_nothing_ends_at_once_and_says_so(serve: Any) -> None:
    server = serve(silent)
    done = run_program("ends_with_events_pending.py", server.url, "0")
    ended = time.time()
    assert done.returncode == 0
    assert ended - json.loads(done.stdout)["ends"] < 5.0
    assert "the process ends with 3 events not delivered" in done.stderr

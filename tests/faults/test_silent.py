"""A server that accepts and never answers."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.faults._raw import Peer
from tests.support.processes import run_program


def silent(peer: Peer) -> None:
    while peer.read_request() is not None:
        pass
    peer.server.over.wait(30)


def test_the_caller_does_not_notice(serve: Any, connect: Any) -> None:
    server = serve(silent)
    client = connect(server, timeout=20.0)
    started = time.monotonic()
    client.record(*map(str, range(500)))
    assert time.monotonic() - started < 5.0  # the first answer would take 20
    server.wait_for(1)
    assert client.stats()["pending"] == 500
    assert client.close(0.05) is False


@pytest.mark.parametrize("seconds", ["0.5", "0"])
def test_the_end_of_a_process_is_bounded_and_says_what_was_not_delivered(
    seconds: str, serve: Any
) -> None:
    server = serve(silent)
    done = run_program("ends_with_events_pending.py", server.url, seconds)
    ended = time.time()
    assert done.returncode == 0
    report = json.loads(done.stdout)
    # The end takes its time, and what the interpreter needs: not the 10 s of an attempt.
    assert float(seconds) <= ended - report["ends"] < 5.0
    assert report["pending"] == 3
    assert "the process ends with 3 events not delivered" in done.stderr
    assert f"shutdown_timeout ({seconds} s)" in done.stderr
    assert "s3cret" not in done.stdout + done.stderr

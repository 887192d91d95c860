"""One clock, which freezegun can't stop: ages, pauses and deadlines are right in frozen tests."""

from __future__ import annotations

import datetime
import logging
import re
import time
import types
from typing import Any

import pytest

import valued
from tests.support.processes import run
from tests.support.server import Reply, Request, Server
from valued._process import clock
from valued._process.clock import CLOCK

freezegun = pytest.importorskip("freezegun")
MOMENT = datetime.datetime(2030, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)


def test_the_clock_is_that_of_the_system() -> None:
    before, wall = time.monotonic(), time.time()
    found, found_wall = CLOCK.monotonic(), CLOCK.wall()
    assert before <= found <= time.monotonic()
    assert wall <= found_wall <= time.time()


def test_the_clock_goes_on_while_freezegun_stops_all_others() -> None:
    monotonic, wall = CLOCK.monotonic(), CLOCK.wall()
    with freezegun.freeze_time(MOMENT):
        assert time.time() == MOMENT.timestamp()
        assert 0 < CLOCK.monotonic() - monotonic < 60
        assert 0 < CLOCK.wall() - wall < 60


def test_the_clock_of_a_package_that_a_frozen_test_imports_goes_on() -> None:
    program = (
        "import time, freezegun\n"
        "before = time.monotonic(), time.time()\n"
        "with freezegun.freeze_time('2030-01-01'):\n"
        "    from valued._process.clock import CLOCK\n"
        "    during = CLOCK.monotonic(), CLOCK.wall()\n"
        "after = CLOCK.monotonic(), CLOCK.wall()\n"
        "assert all(a < b < c < a + 60 for a, b, c in zip(before, during, after))\n"
    )
    assert run("-c", program).stderr == ""


def test_where_time_is_not_built_in_it_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    other = types.SimpleNamespace(__spec__=None)
    monkeypatch.setattr(clock, "time", other)
    assert clock._unpatched_time() is other


def test_a_frozen_test_delivers_retries_and_flushes_in_time(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "valued")
    refused: list[Request] = []

    def script(request: Request) -> Reply:
        if refused:
            return Reply()
        refused.append(request)
        return Reply(503, {"Retry-After": "0"})

    server.script = script
    failed: list[Any] = []
    with (
        freezegun.freeze_time(MOMENT),
        valued.Client(
            "test-token", server.url, on_error=lambda *arguments: failed.append(arguments)
        ) as client,
    ):
        client.action("a", {"user.id": 1})
        began = CLOCK.monotonic()
        assert client.flush(10)
        assert CLOCK.monotonic() - began < 5
        stats = client.stats()
    assert (stats["delivered"], stats["failed"], stats["pending"], failed) == (1, 0, 0, [])
    assert [request.event["key"] for request in server.requests] == ["a", "a"]
    assert {request.event["occured_at"][:13] for request in server.requests} == {
        MOMENT.astimezone().isoformat()[:13]
    }
    [line] = caplog.messages
    [age] = re.findall(r"attempt in ([\d.]+) s", line)
    assert float(age) < 5


@pytest.mark.parametrize("timeout", [0.0, 0.3])
def test_a_flush_in_a_frozen_test_ends_when_its_time_is_over(timeout: float) -> None:
    refuse = valued.DeliveryError("busy", 503, retry_after=60)

    def transport(_event: dict[str, Any]) -> None:
        raise refuse

    with freezegun.freeze_time(MOMENT):
        client = valued.Client(transport)
        client.action("a", {"user.id": 1})
        began = CLOCK.monotonic()
        assert not client.flush(timeout)
        taken = CLOCK.monotonic() - began
        client.close(0)
    assert timeout <= taken < timeout + 2

"""10,000 generated calls with nasty objects: an error of ours or none, and what is accepted comes.

The seeds are printed; ``pytest -s`` shows them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded

import valued
from tests.support.hostile import SLOW, VALUES, check, seed, values
from tests.support.server import Server

CALLS, VALUES_ALONE = 10_000, 10_000


def _run(count: int, each: Callable[[Callable[[], Any]], None]) -> None:
    @seeded(seed())
    @settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(values(sorted(VALUES.keys() - SLOW)))
    def run(make: Callable[[], Any]) -> None:
        each(make)

    run()


@pytest.mark.timeout(1_800)
def test_generated_values_raise_errors_of_ours_or_are_plain_data() -> None:
    outcomes = {"accepted": 0, "refused": 0}

    def each(make: Callable[[], Any]) -> None:
        outcomes[check(make())] += 1

    _run(VALUES_ALONE, each)
    assert min(outcomes.values()) > 100, outcomes


@pytest.mark.timeout(1_800)
def test_each_generated_call_that_is_accepted_is_delivered(
    server: Server, client: valued.Client
) -> None:
    accepted = 0

    def each(make: Callable[[], Any]) -> None:
        nonlocal accepted
        for call in (
            lambda: client.action("k", {"user.id": 1, "attributes": {"a": make()}}),
            lambda: client.action("k", make(), attributes=make()),
            lambda: client.sync_user({"id": 1, "profile": make()}),
        ):
            try:
                call()
            except valued.ValuedError:
                continue
            accepted += 1

    _run(CALLS // 3, each)
    assert accepted > 100
    assert client.flush(120)
    assert len(server.requests) == accepted
    for request in server.requests:
        json.loads(request.body)

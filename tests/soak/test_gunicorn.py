"""All kinds of Gunicorn's workers, of which ``tests/prefork/test_gunicorn.py`` has a few."""

from __future__ import annotations

import pytest

from tests.prefork import test_gunicorn as short
from tests.prefork.test_gunicorn import Gate, Start
from tests.support.server import Server

start, gate = short.start, short.gate  # fixtures

KINDS = [
    "sync", "sync, preload", "gthread", "gthread, preload",
    "gevent", "gevent, preload", "gevent, patched early, preload",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_answer_has_its_events_once_though_sigterm_came_under_load(
    kind: str, start: Start, server: Server
) -> None:
    short.end_under_load(start(kind), server)


@pytest.mark.parametrize("then", ["at once", "until told", "until idle"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "preload" in kind])
def test_events_of_a_preloading_master_are_sent_by_it_alone(
    kind: str, then: str, start: Start, server: Server, gate: Gate
) -> None:
    short.record_before_the_fork(kind, then, start, server, gate)

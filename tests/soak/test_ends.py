"""Servers that end amid a backlog, which takes longer than they have: nothing is lost silently.

What was accepted has arrived, or the log of its process says that it was not delivered.
"""

from __future__ import annotations

import re
import signal
import time
from collections import defaultdict

import pytest

from tests.soak.figures import Figures, compare
from tests.soak.load import Load
from tests.soak.servers import (
    DJANGO,
    DJANGO_ASGI,
    DJANGO_WSGI,
    FASTAPI,
    FLASK,
    UVICORN_WORKER,
    Case,
    Start,
    gunicorn,
    uvicorn,
)
from tests.support.processes import until
from tests.support.server import Reply, Request, Server

REQUESTS = 600

#: Deliveries of each process at the same time, that of the thread which ends it included. A service
#: may have read what it could not answer in time: such an event is delivered, and the process can't
#: know.
AT_ONCE = 11

_ALL = ("page", "apage"), ("stream", "astream")
_ASYNC = ("apage",), ("astream",)
_OF_FLASK = ("page",), ("stream", "held")
_UVICORN = ("uvicorn",)
_WORKER = ("gunicorn", "uvicorn_worker")
_WITHOUT_LIFESPAN = uvicorn(DJANGO_ASGI, "--lifespan", "off")
_ARMED = ("-c", f"python:{DJANGO}.armed")

CASES = {
    "FastAPI, uvicorn": Case(uvicorn(FASTAPI), *_ALL, _UVICORN),
    "FastAPI, uvicorn, 2 workers": Case(uvicorn(FASTAPI, "--workers", "2"), *_ALL, _UVICORN),
    "FastAPI, UvicornWorker": Case(gunicorn(UVICORN_WORKER, FASTAPI), *_ALL, _WORKER),
    "FastAPI, UvicornWorker, preloaded": Case(
        gunicorn(UVICORN_WORKER, FASTAPI, preload=True), *_ALL, _WORKER, flush_on_signals=True
    ),
    "Django, uvicorn": Case(_WITHOUT_LIFESPAN, *_ALL, _UVICORN, django=True, flush_on_signals=True),
    "Django, UvicornWorker": Case(
        gunicorn(UVICORN_WORKER, DJANGO_ASGI), *_ALL, _WORKER, django=True, flush_on_signals=True
    ),
    "Django, UvicornWorker, preloaded, async views": Case(
        gunicorn(UVICORN_WORKER, DJANGO_ASGI, preload=True),
        *(*_ASYNC, _WORKER),
        django=True,
        flush_on_signals=True,
    ),
    "Django, UvicornWorker, preloaded, post_worker_init": Case(
        gunicorn(UVICORN_WORKER, DJANGO_ASGI, *_ARMED, preload=True),
        *(*_ALL, _WORKER),
        django=True,
        flush_on_signals=True,
    ),
    "Django, Gunicorn gthread, preloaded": Case(
        gunicorn("gthread", DJANGO_WSGI, "--threads", "4", preload=True),
        *(*_ALL, ("gunicorn",)),
        django=True,
        flush_on_signals=True,
    ),
    "Flask, Gunicorn sync, preloaded": Case(
        gunicorn("sync", FLASK, preload=True), *_OF_FLASK, ("gunicorn",), flush_on_signals=True
    ),
    "Flask, Gunicorn gevent, preloaded": Case(
        gunicorn("gevent", FLASK, preload=True),
        *(*_OF_FLASK, ("gunicorn", "gevent")),
        flush_on_signals=True,
    ),
}


def far_away(_request: Request) -> Reply:
    time.sleep(0.5)
    return Reply()


@pytest.mark.parametrize("name", CASES)
def test_what_is_accepted_is_delivered_or_the_log_says_that_it_is_not(
    name: str, start: Start, server: Server, keep: list[Figures]
) -> None:
    case = CASES[name]
    server.script = far_away
    running, journal, who = start(case)
    began = time.monotonic()
    load = Load(running.port, case.pages, case.streams, who)
    load.wait_for(REQUESTS)
    load.server_ends()
    told = time.monotonic()
    running.end(signal.SIGTERM)
    ended = time.monotonic()
    load.join()

    def figures() -> Figures:
        return compare(f"TERM: {name}", journal, server.events, load.expected)

    # A request that was sent may not have been read yet.
    until(lambda: not figures().lost or time.monotonic() > ended + 2)
    found = figures()
    found.seconds, found.end = ended - began, ended - told
    found.said_by = said_by(running.said())
    keep.append(found)
    assert (found.silent, found.twice, found.wrong, found.anonymous) == (0, 0, 0, 0), found
    assert found.recorded >= REQUESTS
    assert found.said is not None
    assert found.lost <= found.said <= found.lost + AT_ONCE * found.processes, found
    assert found.lost, "there was no backlog"
    assert "Traceback" not in running.said()


def said_by(log: str) -> dict[int, int]:
    """How many events were not delivered, by process."""
    final: dict[int, int] = defaultdict(int)
    # At a signal or a shutdown; the process may deliver some of these yet.
    at_first = dict(_said(log, r"(\d+) events? (?:is|are) not delivered after"))
    for pid, count in _said(log, r"the process ends with (\d+) events? not delivered"):
        final[pid] += count
    return at_first | final


def _said(log: str, what: str) -> list[tuple[int, int]]:
    found = re.findall(rf"^(\d+) valued: {what}", log, re.MULTILINE)
    return [(int(pid), int(count)) for pid, count in found]

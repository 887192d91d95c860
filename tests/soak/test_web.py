"""Web frameworks under real servers: each event once, and under the user whose request it is.

Workers are replaced all the time, the server is reloaded once, and ends while it is asked.
"""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Iterator

import pytest

from tests.soak.figures import Figures, compare
from tests.soak.load import USERS, Load
from tests.soak.servers import (
    DJANGO,
    DJANGO_ASGI,
    DJANGO_WSGI,
    FASTAPI,
    FLASK,
    RECYCLED,
    UVICORN_WORKER,
    Case,
    Start,
    gunicorn,
    uvicorn,
)
from tests.support.processes import until
from tests.support.server import Reply, Request, Server

REQUESTS = 2000


_ALL = ("page", "apage"), ("stream", "astream")
_SYNC = ("page",), ("stream",)  # asyncio doesn't run under gevent
_OF_FASTAPI = ("page", "apage", "only-async"), ("stream", "astream")
_OF_FLASK = ("page",), ("stream", "held")
_WORKERS: dict[str, tuple[str, ...]] = {"sync": (), "gthread": ("--threads", "4"), "gevent": ()}


def _under_gunicorn(preload: bool) -> Iterator[tuple[str, Case]]:
    how = "preloaded" if preload else ""
    for worker, options in _WORKERS.items():
        needs = ("gunicorn", "gevent") if worker == "gevent" else ("gunicorn",)
        start = functools.partial(gunicorn, worker, preload=preload)
        of_django = _SYNC if worker == "gevent" else _ALL
        yield (
            f"Django, Gunicorn {worker} {how}".strip(),
            Case(start(DJANGO_WSGI, *options, *RECYCLED), *of_django, needs, django=True),
        )
        yield (
            f"Flask, Gunicorn {worker} {how}".strip(),
            Case(start(FLASK, *options, *RECYCLED), *_OF_FLASK, ("flask", *needs)),
        )


CASES = {
    "Django, runserver": Case(
        ("-m", f"{DJANGO}.manage", "runserver", "--noreload"),
        *(*_ALL, ("django",)),
        django=True,
        flush_on_signals=True,
        reloads=False,
    ),
    **dict(_under_gunicorn(preload=False)),
    **dict(_under_gunicorn(preload=True)),
    "Django, uvicorn": Case(
        uvicorn(DJANGO_ASGI, "--lifespan", "off"),
        *(*_ALL, ("uvicorn",)),
        django=True,
        flush_on_signals=True,
        reloads=False,
    ),
    "Django, UvicornWorker": Case(
        gunicorn(UVICORN_WORKER, DJANGO_ASGI, *RECYCLED),
        *(*_ALL, ("gunicorn", "uvicorn_worker")),
        django=True,
        flush_on_signals=True,
    ),
    "FastAPI, uvicorn": Case(uvicorn(FASTAPI), *_OF_FASTAPI, ("fastapi", "uvicorn"), reloads=False),
    "FastAPI, uvicorn, 2 workers": Case(
        uvicorn(FASTAPI, "--workers", "2", "--limit-max-requests", "300"),
        *(*_OF_FASTAPI, ("fastapi", "uvicorn")),
    ),
    "FastAPI, UvicornWorker": Case(
        gunicorn(UVICORN_WORKER, FASTAPI, *RECYCLED),
        *(*_OF_FASTAPI, ("fastapi", "gunicorn", "uvicorn_worker")),
    ),
}


def slowly(_request: Request) -> Reply:
    """As a service some milliseconds away: whenever a worker ends, there are events to deliver."""
    time.sleep(0.005)
    return Reply()


@pytest.mark.parametrize("name", CASES)
def test_each_event_comes_once_and_under_its_own_user(
    name: str, start: Start, server: Server, keep: list[Figures]
) -> None:
    case = CASES[name]
    server.script = slowly
    running, journal, who = start(case, shutdown_timeout=20)
    began = time.monotonic()
    load = Load(running.port, case.pages, case.streams, who)
    load.wait_for(REQUESTS * 2 // 5)
    if case.reloads:
        running.process.send_signal(signal.SIGHUP)
    load.wait_for(REQUESTS)
    load.server_ends()
    told = time.monotonic()
    running.end(signal.SIGTERM)
    ended = time.monotonic()
    load.join()

    def figures() -> Figures:
        return compare(name, journal, server.events, load.expected)

    # A request that was sent may not have been read yet.
    until(lambda: not figures().lost or time.monotonic() > ended + 2, timeout=10)
    found = figures()
    found.seconds, found.end = ended - began, ended - told
    keep.append(found)
    assert (found.lost, found.twice, found.wrong, found.anonymous) == (0, 0, 0, 0), found
    assert found.recorded >= REQUESTS
    whose = [note["expected"] for note in journal.notes()]
    assert set(whose) == {None, *USERS}
    assert whose.count(None) > REQUESTS / 20
    assert found.processes >= (4 if case.reloads else 1)
    assert "Traceback" not in running.said()
    assert "not delivered" not in running.said()

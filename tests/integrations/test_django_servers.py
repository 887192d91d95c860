"""Django under real servers: several users at the same time, and how each server ends."""

from __future__ import annotations

import contextlib
import http.client
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.django_site import MODULE, Served, Site, Visitors
from tests.support.programs import free_port
from tests.support.server import Reply, Request, Server

pytest.importorskip("django")
pytest.importorskip("rest_framework")

SYNC = ("sync/page", "sync/stream", "sync/login", "sync/quiet")
BOTH = (*SYNC, "async/page", "async/stream", "async/login", "async/quiet")

#: All of them answer with HTML.
PAGES = BOTH

Start = Callable[..., Served]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.make(tmp_path_factory.mktemp("site"))


@pytest.fixture
def start(tmp_path: Path, server: Server, site: Site) -> Iterator[Start]:
    """Start a server of the site; what it said is in the report of a failure."""
    with contextlib.ExitStack() as started:

        def start(*command: str, port: int = 0, **valued: object) -> Served:
            environment = site.environment(TOKEN="any", ENDPOINT=server.url, **valued)
            return started.enter_context(Served(tmp_path, environment, *command, port=port))

        yield start


def slowly(_request: Request) -> Reply:
    """As a service some milliseconds away: when the server ends, there are events to deliver."""
    time.sleep(0.05)
    return Reply()


def gunicorn(*options: str) -> tuple[str, ...]:
    kind = "asgi" if "uvicorn_worker.UvicornWorker" in options else "wsgi"
    return (
        *("-m", "gunicorn", "--bind", "127.0.0.1:0", "--workers", "2", "--no-control-socket"),
        # A worker that is told to end in the instant of its fork doesn't hear of it.
        *("--graceful-timeout", "10"),
        *(*options, f"{MODULE}.{kind}:application"),
    )


UVICORN = ("-m", "uvicorn", "--port", "0", "--lifespan", "off", f"{MODULE}.asgi:application")

SERVERS = {
    "Gunicorn sync": (gunicorn("-k", "sync"), BOTH),
    "Gunicorn gthread, preload": (gunicorn("-k", "gthread", "--threads", "3", "--preload"), BOTH),
    "Gunicorn gevent": (gunicorn("-k", "gevent"), SYNC),
    "Gunicorn gevent, preload": (
        gunicorn("-k", "gevent", "--preload", "-c", f"python:{MODULE}.patched"),
        SYNC,
    ),
    "uvicorn": (UVICORN, BOTH),
    "Gunicorn with UvicornWorker": (gunicorn("-k", "uvicorn_worker.UvicornWorker"), BOTH),
    "Gunicorn with UvicornWorker, preload": (
        gunicorn(
            *("-k", "uvicorn_worker.UvicornWorker", "--preload"),
            *("-c", f"python:{MODULE}.armed"),
        ),
        BOTH,
    ),
}


@pytest.mark.parametrize("name", SERVERS)
def test_each_event_is_of_the_user_who_asked_and_none_is_lost_at_the_end(
    name: str, start: Start, server: Server, site: Site
) -> None:
    command, views = SERVERS[name]
    if "gevent" in name:
        pytest.importorskip("gevent")
    server.script = slowly
    running = start(*command, PAGE_VIEWS=True, FLUSH_ON_SIGNALS=True)
    visitors = Visitors(site, running.port, views)
    visitors.visit(each=8)
    running.end(signal.SIGTERM)
    visitors.assert_each_is_recorded_once_for_its_user(server.events, PAGES)
    assert "Traceback" not in running.said()


RUNSERVER = {
    "Ctrl-C": (("--noreload",), signal.SIGINT, "server"),
    "SIGTERM": (("--noreload",), signal.SIGTERM, "server"),
    "Ctrl-C with the reloader": ((), signal.SIGINT, "group"),
    "SIGTERM to the reloader's child": ((), signal.SIGTERM, "child"),
}


@pytest.mark.parametrize("end", RUNSERVER)
def test_runserver_loses_nothing_at_its_end(
    end: str, start: Start, server: Server, site: Site
) -> None:
    options, number, whom = RUNSERVER[end]
    if whom != "group":
        # Else the reloader's parent, which got the signal, too, kills its child 0.25 s later.
        server.script = slowly
    port = free_port()
    running = start(
        *("-m", f"{MODULE}.manage", "runserver", f"127.0.0.1:{port}", *options),
        port=port,
        PAGE_VIEWS=True,
        FLUSH_ON_SIGNALS=True,
    )
    visitors = Visitors(site, port, BOTH)
    visitors.visit(each=6)
    running.end(number, of=whom)
    visitors.assert_each_is_recorded_once_for_its_user(server.events, PAGES)
    assert "Traceback" not in running.said()


DROPPED = {
    "dropped": gunicorn("-k", "gthread", "--threads", "3"),
    "adropped": UVICORN,
}


@pytest.mark.parametrize("view", DROPPED)
def test_stream_that_its_reader_drops_ends_at_once_and_for_its_own_user(
    view: str, start: Start, server: Server, site: Site
) -> None:
    running = start(*DROPPED[view], FLUSH_ON_SIGNALS=True)
    readers = []
    for number, user in enumerate([*site.sessions] * 2):
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
        headers = {"X-Id": str(number), "X-Expected": str(user)}
        headers["Cookie"] = f"sessionid={site.sessions[user]}"
        connection.request("GET", f"/{view}", headers=headers)
        answer = connection.getresponse()
        assert len(answer.read(20_000)) == 20_000
        readers.append((connection, answer))
        if len(readers) == 2:  # two are read at the same time
            for connection, answer in readers:
                answer.close()
                connection.close()
            readers.clear()
    count = 2 * len(site.sessions)
    events = server.wait_for(count)
    running.end()
    assert len(server.events) == count
    assert {event["attributes"]["id"] for event in events} == {str(it) for it in range(count)}
    assert [
        event
        for event in events
        if str(event.get("user", {}).get("id")) != event["attributes"]["expected"]
    ] == []

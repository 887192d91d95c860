"""Fixtures that several files use."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.support import redis as redis_support
from tests.support.cli import Listening, listening
from tests.support.processes import Child
from tests.support.server import Server
from valued._events import converters as _converters
from valued._events import refusals as _refusals
from valued.integrations import _saying

_VARIABLES = (
    "VALUED_TOKEN", "VALUED_ENDPOINT", "VALUED_OUTBOX", "VALUED_DISABLED", "VALUED_INVALID",
    "VALUED_ANONYMOUS", "VALUED_ISOLATE_TASKS", "VALUED_RECORD", "VALUED_BLOCK",
    "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY",
)  # fmt: skip


# A run in the background of a shell has Ctrl-C ignored, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """All tests and what they import are there to the end: no collection looks at them again."""
    gc.collect()
    gc.freeze()
    gc.collect()  # this one counts how little is left to look at: it decides when the next one is


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in production, whatever is set outside: events go out in the background."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VALUED_ENV", "production")
    # Of a test that runs pytest. Importing these two takes longer than all the rest of that run.
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest -p no:faker")


@pytest.fixture(autouse=True)
def _registrations(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers ends with it."""
    monkeypatch.setattr(_converters, "_registered", dict(_converters._registered))
    monkeypatch.setattr(_converters, "_version", object())


@pytest.fixture(autouse=True)
def _disconnected() -> Iterator[None]:
    yield
    valued.disconnect(0)
    valued.set_executor(None)
    # Each test may hear of the same for the first time.
    _saying._said.clear()
    _refusals._log._values.clear()


@pytest.fixture
def server() -> Iterator[Server]:
    """A service on loopback that records what it gets."""
    server = Server()
    yield server
    server.close()


@pytest.fixture
def client(server: Server) -> Iterator[valued.Client]:
    """A client of that service, with the default pool."""
    client = valued.Client("test-token", server.url)
    yield client
    client.close(10)


@pytest.fixture
def sent() -> list[dict[str, Any]]:
    """What `recorder` was given."""
    return []


@pytest.fixture
def recorder(sent: list[dict[str, Any]]) -> valued.Client:
    """A client that delivers in the caller, into the list `sent`."""
    return valued.Client(sent.append, executor=valued.ImmediateExecutor())


@pytest.fixture
def fork() -> Iterator[Callable[..., Child]]:
    """Fork this process; the child calls a function and leaves. Whoever still runs is killed."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    children: list[Child] = []

    def start(function: Callable[..., Any], *args: Any) -> Child:
        children.append(Child(function, *args))
        return children[-1]

    yield start
    for child in children:
        child.end()


@pytest.fixture
def in_thread() -> Iterator[Callable[..., Future[Any]]]:
    """Call a function on a thread of its own; the future has its result."""
    with ThreadPoolExecutor(16, thread_name_prefix="test") as threads:
        yield threads.submit


@pytest.fixture
def listener() -> Iterator[Listening]:
    """``valued listen``, as the service."""
    with listening() as listener:
        yield listener


@pytest.fixture(scope="session")
def redis_program() -> Iterator[redis_support.Redis | None]:
    """A Redis server of this run; None where there is no such program."""
    server = redis_support.Redis() if redis_support.PROGRAM else None
    yield server
    if server is not None:
        server.close()


@pytest.fixture
def redis_server(redis_program: redis_support.Redis | None) -> redis_support.Redis:
    """That server, empty."""
    if redis_program is None:
        pytest.skip("there is no redis-server")
    redis_program.clear()
    return redis_program


@pytest.fixture
def broker(redis_program: redis_support.Redis | None, tmp_path: Path) -> dict[str, str]:
    """What tells an application of Celery's its broker: Redis where it can be had, else files."""
    if redis_program is None:
        return redis_support.filesystem(tmp_path / "broker")
    redis_program.clear()
    return {"BROKER": redis_program.url}

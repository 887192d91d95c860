"""Fixtures that several files use."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

import valued
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


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in production, whatever is set outside: events go out in the background."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VALUED_ENV", "production")


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

"""Fixtures for misbehaving servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import valued
from tests.faults._raw import Peer, RawServer
from tests.support.processes import until
from valued._delivery import retry as _retry


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    # A fiftieth of the usual: how long pauses are is tested elsewhere, without waiting for them.
    monkeypatch.setattr(_retry, "FIRST_PAUSE", 0.01)


@pytest.fixture
def serve() -> Iterator[Callable[..., RawServer]]:
    """Start a server that is a function of the raw socket."""
    servers: list[RawServer] = []

    def start(function: Callable[[Peer], object], port: int = 0) -> RawServer:
        servers.append(RawServer(function, port))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


class Watcher(valued.Client):
    """A client that notes what `on_error` was told."""

    told: list[tuple[valued.DeliveryError, dict[str, Any]]]

    def given_up(self, count: int) -> list[tuple[valued.DeliveryError, dict[str, Any]]]:
        """What `on_error` was told, once that was *count* times, as a flush doesn't wait for it."""
        until(lambda: len(self.told) >= count)
        assert len(self.told) == self.stats()["failed"] == count
        return self.told

    def record(self, *keys: str) -> None:
        for key in keys:
            self.action(key, {"user.id": 1})


@pytest.fixture
def connect() -> Iterator[Callable[..., Watcher]]:
    """Make a client of a server; options as the test needs them."""
    clients: list[Watcher] = []

    def make(server: RawServer, **options: Any) -> Watcher:
        told: list[tuple[valued.DeliveryError, dict[str, Any]]] = []
        client = Watcher(
            "s3cret-token",
            server.url,
            on_error=lambda error, event: told.append((error, event)),
            **options,
        )
        client.told = told
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close(1)

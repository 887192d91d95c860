"""Clients of a transport that can be held."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import valued
from tests.delivery.simulation import begun
from tests.delivery.support import Service

Make = Callable[..., valued.Client]


@pytest.fixture(autouse=True)
def _simulations_end() -> Iterator[None]:
    yield
    for simulation in list(begun):
        simulation.end()


@pytest.fixture
def untraced() -> Iterator[None]:
    """No trace function in this thread: coverage's has a lock, which a signal handler may need."""
    before = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(before)


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.hold.set()


@pytest.fixture
def make(service: Service) -> Iterator[Make]:
    """Make a client of that service."""
    clients: list[valued.Client] = []

    def make(**options: Any) -> valued.Client:
        clients.append(valued.Client(service, **options))
        return clients[-1]

    yield make
    service.hold.set()
    service.failure = None
    for client in clients:
        client.close(1)

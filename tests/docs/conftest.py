"""The environment of a reader."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.live import Service
from tests.docs.support import TOKEN
from tests.support.redis import Redis
from tests.support.server import Server


def _as_a_reader(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set the variables that the pages ask the reader to set."""
    monkeypatch.setenv("VALUED_TOKEN", TOKEN)
    monkeypatch.setenv("VALUED_ENDPOINT", url)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    for name in [name for name in os.environ if "COV" in name]:
        # Coverage would bring a handler of SIGTERM, which no reader has.
        monkeypatch.delenv(name)
    return folder


@pytest.fixture
def shell(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, and the environment of a reader."""
    return _as_a_reader(server.url, tmp_path, monkeypatch)


@pytest.fixture
def service() -> Iterator[Service]:
    """A service that answers late, so that something is left to deliver at an end."""
    service = Service()
    yield service
    service.close()


@pytest.fixture
def folder(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As `shell`, with that service."""
    return _as_a_reader(service.url, tmp_path, monkeypatch)


@pytest.fixture
def redis(redis_server: Redis, monkeypatch: pytest.MonkeyPatch) -> Redis:
    """A broker, named in ``REDIS_URL``."""
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    return redis_server

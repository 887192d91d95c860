"""The environment of a reader."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.live import Service
from tests.docs.support import TOKEN
from tests.support import redis as redis_support
from tests.support.server import Server


@pytest.fixture
def shell(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, and an environment as the pages ask the reader to set."""
    monkeypatch.setenv("VALUED_TOKEN", TOKEN)
    monkeypatch.setenv("VALUED_ENDPOINT", server.url)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in [name for name in os.environ if "COV" in name]:
        # Coverage would bring a handler of SIGTERM, which no reader has.
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def service() -> Iterator[Service]:
    """A service that answers late, so that something is left to deliver at an end."""
    service = Service()
    yield service
    service.close()


@pytest.fixture
def folder(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As `shell`, with that service."""
    monkeypatch.setenv("VALUED_TOKEN", TOKEN)
    monkeypatch.setenv("VALUED_ENDPOINT", service.url)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in [name for name in os.environ if "COV" in name]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def redis(monkeypatch: pytest.MonkeyPatch) -> Iterator[redis_support.Redis]:
    """A broker of this test's own, named in ``REDIS_URL``."""
    if redis_support.PROGRAM is None:
        pytest.skip("redis-server is not installed")
    server = redis_support.Redis()
    monkeypatch.setenv("REDIS_URL", server.url)
    yield server
    server.close()

"""What the tests of several commands share."""

from __future__ import annotations

import pytest

from tests.support.server import Server


@pytest.fixture
def delivery(server: Server) -> list[str]:
    """Options that lead to the service."""
    return ["--token", "cli-token", "--endpoint", server.url]

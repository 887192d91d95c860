"""What the tests of several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.listener import Site
from tests.support.server import Server


@pytest.fixture
def delivery(server: Server) -> list[str]:
    """Options that lead to the service."""
    return ["--token", "cli-token", "--endpoint", server.url]


@pytest.fixture
def run_site() -> Iterator[Callable[..., Site]]:
    """Make listeners with a history, which are closed after the test."""
    made: list[Site] = []

    def make(**options: Any) -> Site:
        made.append(Site(**options))
        return made[-1]

    yield make
    for site in made:
        site.close()


@pytest.fixture
def site(run_site: Callable[..., Site]) -> Site:
    return run_site()

"""The page of ``valued listen`` in a browser, which each module of tests starts once.

Not once for all tests: while it runs, its client has an event loop on the main thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import browser as browsers
from tests.support.cli import Listening, listening

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    missing = browsers.missing()
    if missing:
        pytest.skip(missing)
    with browsers.running() as browser:
        yield browser


@pytest.fixture(scope="module")
def server() -> Iterator[Listening]:  # type: ignore[override]
    """``valued listen``, cleared for each test."""
    with listening() as server:
        yield server


@pytest.fixture
def size() -> dict[str, Any]:
    """How the browser looks at the page; tests replace it."""
    return {"viewport": {"width": 1600, "height": 1000}}


@pytest.fixture
def shown(browser: Browser, server: Listening, size: dict[str, Any]) -> Iterator[browsers.Shown]:
    """The page, loaded and connected. At the end there was no error, and no dialog, in it."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], **size)
    try:
        control = server.url.replace("events", "control")
        nothing = {"fail": None, "delay": 0, "drop": 0, "paused": False}
        assert context.request.delete(server.url).status == 204
        assert context.request.post(control, data=nothing).status == 200
        shown = browsers.Shown(context.new_page(), server.url)
        shown.open()
        yield shown
        assert shown.troubles == []
    finally:
        context.close()


@pytest.fixture
def sender(server: Listening) -> Iterator[browsers.Sender]:
    sender = browsers.Sender(server.url)
    yield sender
    sender.close()

"""The page when its connection to the server ends."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.browser import Sender, Shown, event
from tests.support.cli import Listening, listening
from tests.support.programs import free_port
from tests.support.proxy import Listener, pump, shut

pytest.importorskip("playwright")

from playwright.sync_api import expect

if TYPE_CHECKING:
    from playwright.sync_api import Browser


class Line:
    """The line between the page and the server, which can be cut and mended."""

    def __init__(self, server: Listening) -> None:
        self._server = server.url
        self._open: list[socket.socket] = []
        self._is_cut = False
        self.heads: list[str] = []
        self._listener = Listener(self._carry)
        self.url = self._listener.url

    def _carry(self, page: socket.socket) -> None:
        if self._is_cut:
            return
        self.heads.append(page.recv(65536, socket.MSG_PEEK).decode("latin-1"))
        self._open.append(page)
        port = int(self._server.split(":")[2].partition("/")[0])
        with socket.create_connection(("127.0.0.1", port)) as server:
            pump(page, server)

    def cut(self) -> None:
        self._is_cut = True
        for page in self._open:
            shut(page)

    def mend(self) -> None:
        self._is_cut = False

    def close(self) -> None:
        self._listener.close()


@contextlib.contextmanager
def opened(browser: Browser, endpoint: str) -> Iterator[Shown]:
    """The page; what the browser writes of connections that fail is no trouble."""
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    try:
        shown = Shown(context.new_page(), endpoint)
        shown.open()
        yield shown
        assert [each for each in shown.troubles if "net::ERR" not in each] == []
    finally:
        context.close()


def test_a_line_that_was_cut_loses_nothing(browser: Browser, server: Listening) -> None:
    sender = Sender(server.url)
    with contextlib.closing(Line(server)) as line, opened(browser, line.url) as shown:
        for number in range(3):
            sender.send(event(key=f"before.{number}"))
        shown.wait_for("before", count=3)
        line.cut()
        expect(shown.page.locator("#state")).to_have_text("reconnecting")
        for number in range(3):
            sender.send(event(key=f"meanwhile.{number}"))
        line.mend()
        shown.wait_for("meanwhile", count=3)
        expect(shown.page.locator("#state")).to_have_text("live")
        shown.wait_for("before", count=3)  # once
        expect(shown.count("accepted")).to_have_text("6")
        assert any("last-event-id: " in head.lower() for head in line.heads)
    sender.close()


def test_a_server_that_is_started_again_begins_with_nothing(browser: Browser) -> None:
    port = ("--port", str(free_port()))
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(listening(*port))
        shown = stack.enter_context(opened(browser, first.url))
        sender = Sender(first.url)
        sender.send(event(key="to.first"))
        shown.wait_for("to.first")
        first.kill()
        sender.close()
        expect(shown.page.locator("#state")).to_have_text("reconnecting")
        shown.wait_for("to.first")
        second = stack.enter_context(listening(*port))
        expect(shown.page.locator("#state")).to_have_text("live", timeout=15_000)
        sender = Sender(second.url)
        sender.send(event(key="to.second"))
        sender.close()
        shown.wait_for("to.second")
        shown.wait_for(count=1)
        expect(shown.count("")).to_have_text("1")


def test_a_server_that_refuses_the_stream_is_asked_again(
    browser: Browser, server: Listening
) -> None:
    with opened(browser, server.url) as shown:
        shown.page.route("**/stream*", lambda route: route.fulfill(status=503))
        shown.page.reload()
        expect(shown.page.locator("#state")).to_have_text("reconnecting")
        shown.page.unroute("**/stream*")
        expect(shown.page.locator("#state")).to_have_text("live", timeout=15_000)
        shown.troubles.clear()

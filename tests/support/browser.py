"""A browser of this machine, and the page of ``valued listen`` in it."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def missing() -> str | None:
    """What tests in a browser lack here; None: nothing."""
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "playwright is not installed"
    return None if PROGRAM else "there is no chromium on PATH"


@contextlib.contextmanager
def running() -> Iterator[Browser]:
    """The browser, without a window."""
    from playwright.sync_api import sync_playwright

    # Without its sandbox, which can't be had by root; it shows nothing but the page.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PROGRAM, chromium_sandbox=False)
        try:
            yield browser
        finally:
            browser.close()


class Shown:
    """The page, and what went wrong in it."""

    def __init__(self, page: Page, endpoint: str) -> None:
        self.page = page
        self.endpoint = endpoint
        self.troubles: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("dialog", lambda dialog: self.troubles.append(dialog.message))

    def _console(self, message: Any) -> None:
        # Of a policy that is violated, the browser writes an error there.
        if message.type in ("error", "warning"):
            self.troubles.append(message.text)

    def open(self) -> None:
        """Load the page, and wait until it is connected."""
        self.page.goto(self.endpoint.removesuffix("events"))
        self.page.wait_for_selector("#state[data-state=live]")

    def rows(self, *words: str | int) -> Locator:
        """The rows of the list, from above; with *words*: those with all of them.

        A number is a status: as a string, it could also be a part of a time.
        """
        rows = self.page.locator(".row:not([hidden])")
        for word in words:
            if isinstance(word, int):
                rows = rows.filter(has=self.page.locator(".badge", has_text=str(word)))
            else:
                rows = rows.filter(has_text=word)
        return rows

    def wait_for(self, *words: str | int, count: int = 1) -> Locator:
        """Those rows, once there are *count* of them."""
        from playwright.sync_api import expect

        rows = self.rows(*words)
        expect(rows).to_have_count(count, timeout=15_000)
        return rows

    def open_event(self, *words: str | int) -> Locator:
        """Click the first of those rows; what is then shown of the event."""
        self.rows(*words).first.click(position={"x": 8, "y": 8})
        return self.page.locator("#detail")

    def count(self, kind: str) -> Locator:
        """The total of a kind of answers."""
        return self.page.locator(f"#kinds [data-kind='{kind}'] b")


class Sender:
    """A connection that sends whatever a test gives it, and answers with statuses."""

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        assert parts.hostname is not None
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)

    def send(self, body: object, **headers: str) -> int:
        """POST *body*, as JSON if it isn't bytes. Names of headers: underscores for hyphens."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection.request(
            "POST", "/events", content, {"Authorization": "Bearer a-secret-token", **named}
        )
        response = self._connection.getresponse()
        response.read()
        return response.status

    def close(self) -> None:
        self._connection.close()


def event(**fields: Any) -> dict[str, Any]:
    """An action, or what *fields* make of it."""
    return {
        "category": "action",
        "key": "report.generated",
        "user": {"id": 123},
        "occured_at": "2026-11-23T10:00:00+01:00",
        **fields,
    }

"""Other clients that record events and send them in the background, in an environment of their own.

Each is used as its documents say, at the server of the benchmarks. They send many events in one
request, so that their CPU time for an event is no measure of a client that may not.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks.events import ATTRIBUTES, DATA, KEY, TOKEN
from benchmarks.servers import ROOT

FOLDER: Final = ROOT / ".peers"
PACKAGES: Final = (
    "posthog", "segment-analytics-python", "rudder-sdk-python", "sentry-sdk", "requests", "psutil",
)  # fmt: skip
PROPERTIES: Final = {"customer": DATA["customer.id"], **ATTRIBUTES}
ROOM: Final = 1_000_000  # events that may wait, so that none is dropped


def environment() -> str:
    """The interpreter of the environment, which is made, with the latest packages, if need be."""
    folder = "Scripts" if sys.platform == "win32" else "bin"
    python = str(FOLDER / folder / "python")
    if not FOLDER.exists():
        venv.create(FOLDER, with_pip=True)
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES],
        stdout=sys.stderr, check=True,
    )  # fmt: skip
    return python


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


class PostHog:
    """posthog."""

    def __init__(self, url: str) -> None:
        import posthog  # type: ignore[import-not-found]

        self._client = posthog.Posthog(TOKEN, host=_origin(url), max_queue_size=ROOM)

    def record(self) -> None:
        self._client.capture(KEY, distinct_id="123", properties=PROPERTIES)

    def finish(self) -> None:
        self._client.flush()


class Segment:
    """segment-analytics-python."""

    def __init__(self, url: str) -> None:
        from segment.analytics.client import Client  # type: ignore[import-not-found]

        self._client = Client(TOKEN, host=_origin(url), max_queue_size=ROOM)

    def record(self) -> None:
        self._client.track("123", KEY, PROPERTIES)

    def finish(self) -> None:
        self._client.flush()


class Rudder:
    """rudder-sdk-python."""

    def __init__(self, url: str) -> None:
        from rudderstack.analytics.client import Client  # type: ignore[import-not-found]

        self._client = Client(TOKEN, host=_origin(url), max_queue_size=ROOM)

    def record(self) -> None:
        self._client.track("123", KEY, PROPERTIES)

    def finish(self) -> None:
        self._client.flush()


class Sentry:
    """sentry-sdk, a message with tags."""

    def __init__(self, url: str) -> None:
        import sentry_sdk  # type: ignore[import-not-found]

        parts = urlsplit(url)
        sentry_sdk.init(
            dsn=f"{parts.scheme}://{TOKEN}@{parts.netloc}/1", transport_queue_size=ROOM,
            default_integrations=False,
        )  # fmt: skip
        self._sdk = sentry_sdk

    def record(self) -> None:
        self._sdk.capture_message(KEY, tags=PROPERTIES)

    def finish(self) -> None:
        self._sdk.flush(300)


PEERS: Final[dict[str, Callable[..., Any]]] = {
    "posthog": PostHog,
    "segment": Segment,
    "rudder": Rudder,
    "sentry": Sentry,
}

"""The event that everything is measured with, and ways to deliver it in the background."""

from __future__ import annotations

import json
import queue
import tempfile
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

KEY: Final = "report.generated"
ATTRIBUTES: Final[dict[str, Any]] = {
    "format": "pdf",
    "pages": 7,
    "plan": "pro",
    "template": "quarterly",
}
#: What a caller gives; the dotted keys are those of the README.
DATA: Final[dict[str, Any]] = {"user.id": 123, "customer.id": 12, "attributes": ATTRIBUTES}
#: What is sent for it, and all that a yardstick has to encode.
EVENT: Final[dict[str, Any]] = {
    "category": "action",
    "key": KEY,
    "user": {"id": 123},
    "customer": {"id": 12},
    "attributes": ATTRIBUTES,
    "occured_at": "2026-11-23T10:00:00+01:00",
}
TOKEN: Final = "token"
HEADERS: Final = {
    "Content-Type": "application/json",
    "Authorization": f"Bearer {TOKEN}",
    "User-Agent": "yardstick",
}
ROOM: Final = 1_000_000  # events that may wait, so that none is dropped


class Sender(Protocol):
    """Records the event, and delivers it in the background."""

    def record(self) -> object:
        """Record it once."""

    def finish(self) -> None:
        """Wait until all that was recorded is delivered."""


class Never:
    """An executor that takes each job and runs none: the caller's part alone is measured."""

    def __init__(self) -> None:
        self._jobs: list[tuple[Any, ...]] = []  # as an executor keeps them in its queue

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> None:
        """Keep it."""
        self._jobs.append((fn, *args))


def outbox_options(durability: str) -> dict[str, Any]:
    """Options of our client for an outbox that is new; none for a *durability* of ``""``."""
    return {"outbox": tempfile.mkdtemp(), "durability": durability} if durability else {}


def never_sending(room: int, **options: Any) -> Any:
    """Our client, which takes *room* events and delivers none."""
    import valued

    return valued.Client(
        lambda _event: None, executor=Never(), max_queue=room, shutdown_timeout=0, **options
    )  # fmt: skip


class Valued:
    """Ours, by default."""

    def __init__(self, url: str, durability: str = "") -> None:
        import valued

        self.client = valued.Client(
            TOKEN, url, max_queue=ROOM, shutdown_timeout=0, **outbox_options(durability)
        )

    def record(self) -> None:
        self.client.action(KEY, DATA)

    def finish(self) -> None:
        assert self.client.flush(300), "not delivered in 300 s"
        stats = self.client.stats()
        assert stats["delivered"] == stats["accepted"], stats


class Urllib3:
    """The yardstick: the JSON in a `queue.SimpleQueue`; *threads* threads post it by one pool."""

    def __init__(self, url: str, threads: int = 1) -> None:
        import urllib3

        parts = urlsplit(url)
        self._path = parts.path
        self._pool = urllib3.HTTPConnectionPool(
            parts.hostname or "", parts.port, maxsize=threads, headers=HEADERS
        )
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._failed: BaseException | None = None
        self._start(threads)

    def _start(self, threads: int) -> None:
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def record(self) -> None:
        self._queue.put(json.dumps(EVENT))

    def finish(self) -> None:
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        if self._failed is not None:
            raise self._failed
        self._start(len(self._threads))  # so that more can be recorded, as with ours

    def _run(self) -> None:
        try:
            while (body := self._queue.get()) is not None:
                status = self._pool.urlopen("POST", self._path, body=body.encode()).status
                assert 200 <= status <= 299, status
        except BaseException as error:
            self._failed = error
            raise


class Peer:
    """Another client, see `benchmarks.peers.clients`."""

    def __init__(self, name: str, url: str) -> None:
        from benchmarks.peers.clients import CLIENTS

        self._record, self._finish = CLIENTS[name].make(url, ROOM)

    def record(self) -> None:
        self._record(KEY, customer=DATA["customer.id"], **ATTRIBUTES)

    def finish(self) -> None:
        self._finish()


def sender(subject: str, url: str, *, threads: int = 1, durability: str = "") -> Sender:
    """The one of that name; *threads* of the yardstick, *durability* of ours, with an outbox."""
    if subject == "valued":
        return Valued(url, durability)
    return Urllib3(url, threads) if subject == "urllib3" else Peer(subject, url)

"""Ways to deliver events in the background: ours, and the yardsticks, all with one interface."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from benchmarks.events import DATA, EVENT, HEADERS, KEY, TOKEN


class Sender(Protocol):
    """Records the event of `benchmarks.events`, and delivers it in the background."""

    def record(self) -> object:
        """Record it once."""

    def finish(self) -> None:
        """Wait until all that was recorded is delivered."""


class Never:
    """An executor that takes each job and runs none: the caller's part alone is measured."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> None:
        """Forget it."""


class Valued:
    """Ours, as it comes."""

    def __init__(self, url: str, **options: Any) -> None:
        import valued

        options = {"max_queue": 1_000_000, "shutdown_timeout": 0, **options}
        self.client = valued.Client(TOKEN, url, **options)

    def record(self) -> None:
        """By ``client.action``."""
        self.client.action(KEY, DATA)

    def finish(self) -> None:
        """By ``client.flush``; what was not delivered is an error."""
        assert self.client.flush(300), "not delivered in 300 s"
        stats = self.client.stats()
        assert stats["delivered"] == stats["accepted"], stats


class _Threads:
    """The texts in a `queue.SimpleQueue`, which *threads* threads take and post."""

    def __init__(self, url: str, threads: int = 1) -> None:
        self.url = url
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        self._failed: BaseException | None = None
        self._prepare(threads)
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
        # So that more can be recorded, as with ours.
        count = len(self._threads)
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        post = self._poster()
        try:
            while (text := self._queue.get()) is not None:
                status = post(text.encode())
                assert 200 <= status <= 299, status
        except BaseException as error:
            self._failed = error
            raise

    def _prepare(self, threads: int) -> None:
        """Make what the threads share."""

    def _poster(self) -> Callable[[bytes], int]:
        raise NotImplementedError


class Urllib3(_Threads):
    """``urlopen`` of one pool of `urllib3`: the yardstick."""

    def _prepare(self, threads: int) -> None:
        import urllib3

        parts = urlsplit(self.url)
        self._path = parts.path
        self._pool = urllib3.HTTPConnectionPool(
            parts.hostname or "", parts.port, maxsize=threads, headers=HEADERS
        )

    def _poster(self) -> Callable[[bytes], int]:
        return lambda body: self._pool.urlopen("POST", self._path, body=body).status


class HTTPClient(_Threads):
    """The standard library's `http.client`, a connection for each thread."""

    def _poster(self) -> Callable[[bytes], int]:
        import http.client

        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port)

        def post(body: bytes) -> int:
            connection.request("POST", parts.path, body, HEADERS)
            answer = connection.getresponse()
            answer.read()
            return answer.status

        return post


class Session(_Threads):
    """``post`` of a `requests.Session`, one for each thread."""

    def _poster(self) -> Callable[[bytes], int]:
        import requests

        session = requests.Session()
        return lambda body: session.post(self.url, data=body, headers=HEADERS).status_code


class Requests(_Threads):
    """``requests.post``, which makes a connection for each event."""

    def _poster(self) -> Callable[[bytes], int]:
        import requests

        return lambda body: requests.post(self.url, data=body, headers=HEADERS).status_code


SENDERS: Final[dict[str, Callable[..., Sender]]] = {
    "valued": Valued,
    "urllib3": Urllib3,
    "http.client": HTTPClient,
    "requests.Session": Session,
    "requests.post": Requests,
}


def sender(name: str, url: str, **options: Any) -> Sender:
    """The one of that *name*; those of other libraries included, see `benchmarks.peers`."""
    if name not in SENDERS:
        from benchmarks.peers import PEERS

        made: Sender = PEERS[name](url, **options)
        return made
    return SENDERS[name](url, **options)

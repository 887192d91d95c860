"""The mock server with its history, on a thread of the test; and who reads its stream."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import requests

from valued._service.history import History
from valued._service.server import Listener, Received

TOKEN = "a-secret-token"
EVENT: dict[str, Any] = {"category": "action", "key": "a.b", "user": {"id": 1}}


class Site:
    """A `Listener` with a history, and a program that asks it."""

    def __init__(self, history: History | None = None, **options: Any) -> None:
        self.received: list[Received] = []
        self.history = History() if history is None else history
        self.listener = Listener(self.received.append, history=self.history, **options)
        self.port = int(self.listener.url.rpartition(":")[2].partition("/")[0])
        self.url = f"http://127.0.0.1:{self.port}"
        self.session = requests.Session()
        self.session.trust_env = False
        self._thread = threading.Thread(target=self.listener.serve)
        self._thread.start()
        self._streams: list[Follower] = []

    def post(self, event: Any = EVENT, key: str | None = None, **headers: str) -> int:
        """Send an event: the status of the answer; 0: there was none."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        given = {"Authorization": f"Bearer {TOKEN}", **names}
        if key is not None:
            given["Idempotency-Key"] = key
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        try:
            return self.session.post(f"{self.url}/events", body, headers=given).status_code
        except requests.ConnectionError:
            return 0

    def ask(self, path: str, method: str = "GET", **options: Any) -> requests.Response:
        return self.session.request(method, f"{self.url}{path}", timeout=30, **options)

    def events(self, query: str = "") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask(f"/events?{query}").json()["events"]
        return found

    def control(self, **changes: Any) -> Any:
        answer = self.ask("/control", "POST", json=changes)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def follow(self, last: str = "", query: str = "") -> Follower:
        self._streams.append(Follower(self.port, last, query))
        return self._streams[-1]

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        self.session.close()
        self.listener.stop()
        self._thread.join(10)
        self.listener.close()


class Follower:
    """Reads the stream, as a browser does, but only when it is asked to."""

    def __init__(self, port: int, last: str = "", query: str = "") -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, 20)
        headers = {"Last-Event-ID": last} if last else {}
        self.connection.request("GET", f"/stream{query}", headers=headers)
        self.socket: socket.socket = self.connection.sock
        self.answer = self.connection.getresponse()
        self.last = last
        self.records: list[dict[str, Any]] = []
        self.hello: dict[str, Any] = {}

    def messages(self) -> Iterator[tuple[str, Any]]:
        """Each message, as it comes: its kind and its content. At the end of the stream it ends."""
        kind, last = "", self.last
        while line := self.answer.readline():
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "event":
                kind = value
            elif name == "id":
                last = value
            elif name == "data":
                content = json.loads(value)
                self.last = last
                if kind == "records":
                    self.records += content
                elif kind == "hello":
                    self.hello = content
                yield kind, content

    def next(self, wanted: str) -> Any:
        """The content of the next message of this kind."""
        for kind, content in self.messages():
            if kind == wanted:
                return content
        raise AssertionError(f"the stream ended before {wanted}")

    def until(self, count: int) -> list[dict[str, Any]]:
        """The records, once there are *count*."""
        messages = self.messages()
        while len(self.records) < count:
            if next(messages, None) is None:
                raise AssertionError(f"the stream ended after {len(self.records)} records")
        return self.records

    def close(self) -> None:
        self.answer.close()
        self.connection.close()
        self.socket.close()

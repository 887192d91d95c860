"""A service of the tests' own: a real server that records, and answers as it is told."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclasses.dataclass(frozen=True)
class Request:
    """What arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int  # the client's port: which connection it came on
    at: float

    @property
    def event(self) -> dict[str, Any]:
        return json.loads(self.body)


@dataclasses.dataclass(frozen=True)
class Reply:
    """What to answer."""

    status: int = 204
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    body: bytes = b""


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    owner: Server

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that breaks off is no failure of the test."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _HTTPServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(
            self.command,
            self.path,
            dict(self.headers.items()),
            body,
            self.client_address[1],
            time.monotonic(),
        )
        reply = self.server.owner.answer(request)
        if reply is None:  # the connection breaks without an answer
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.status != 204:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_HEAD = do_POST

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


class Server:
    """Records every request; *script*, if any, decides about the answer (None: break off)."""

    def __init__(self, script: Callable[[Request], Reply | None] | None = None) -> None:
        self.script = script or (lambda _request: Reply())
        self.requests: list[Request] = []
        self._changed = threading.Condition()
        self._http = _HTTPServer(("127.0.0.1", 0), _Handler)
        self._http.owner = self
        self.port: int = self._http.server_port
        self.url = f"http://127.0.0.1:{self.port}/events"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def answer(self, request: Request) -> Reply | None:
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        return self.script(request)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [request.event for request in list(self.requests)]

    def connections(self) -> set[int]:
        """The clients' ports that requests came from."""
        return {request.connection for request in list(self.requests)}

    def keys(self) -> list[str]:
        """The action keys that arrived, sorted."""
        return sorted(event["key"] for event in self.events)

    def wait_for(self, count: int, timeout: float = 10.0) -> list[dict[str, Any]]:
        """The events, once there are *count*; *timeout* bounds a failure, it is no pause."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: len(self.requests) >= count, timeout)
        assert arrived, f"{len(self.requests)} of {count} requests in {timeout} s"
        return self.events

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(10)

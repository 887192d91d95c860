"""The mock server, for development and tests: a `Listener`.

It answers ``POST /events`` with 204 after the event was reported, so an event that the sender
counts as delivered was seen here. Everything else is refused as the service would refuse it, with
the reasons. Connections are kept alive. A refused request is read to its end, or its connection is
closed, so that the next request is read from its beginning.

Other programs of the machine, and the pages that its browser shows, can reach it as well. So its
connections are bounded (`connections`), a request names this machine (`hosts`), and a page of
another site can read only the answers about events that it has sent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import socket
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

import valued
from valued._service import hosts, strict_json
from valued._service.connections import Connections, Doing
from valued._service.peers import Peers, Process
from valued._service.render import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: The most bytes of one event: some hundred times the size of a large one.
MAX_BODY: Final = 1024 * 1024

#: How many bytes of a refused request are read to keep the connection; else it is closed.
MAX_DISCARD: Final = 16 * MAX_BODY

#: Seconds to wait for answers in progress, or for a sender to read a refusal.
PATIENCE: Final = 2.0

_PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "POST, OPTIONS",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
}
_BEARER: Final = re.compile(r"Bearer +[!-~]+", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Received:
    """An event, and who sent it. *connection* is the sender's address."""

    event: dict[str, Any]
    pid: int | None
    process: str | None
    connection: str
    idempotency_key: str | None


class _Refusal(Exception):
    """Why a request is refused; *close*: the rest of the connection can't be read."""

    def __init__(
        self, status: int, *reasons: str, close: bool = False, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(status, *reasons)
        self.status = status
        self.reasons = reasons
        self.close = close
        self.headers = headers or {}


class Listener:
    """Listens as soon as it is made; `serve` answers, until `stop`; then call `close`.

    *port*: 0 picks a free one. *delay*: seconds before each answer. *failures*: pairs of a status
    and how many valid events are answered with it, before any is received. *report* is called with
    each event that is received, before its answer, on the thread of its connection, several at a
    time; what it raises ends the serving and is kept as ``trouble``. *names*: hosts that requests
    may name, besides *host* and the names of this machine. Raises `OSError` where the address can't
    be listened on. *connections*: with other bounds, for tests.
    """

    def __init__(
        self,
        report: Callable[[Received], object],
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        delay: float = 0.0,
        failures: Iterable[tuple[int, int]] = (),
        names: Iterable[str] = (),
        connections: Connections | None = None,
    ) -> None:
        self._report = report
        self._delay = delay
        self._names = {host.lower(), *(name.lower() for name in names)}
        self.connections: Final = Connections() if connections is None else connections
        self.peers: Final = Peers()
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # guards all below; held for short work on lists only
        self._failures = list(failures)
        self._pids: set[int] = set()
        self._received = 0
        self._refused = 0
        self.trouble: Exception | None = None
        self._server = _Server(self, host, port)
        shown = f"[{host}]" if ":" in host else host
        self.url: Final = f"http://{shown}:{self._server.server_port}/events"

    def serve(self) -> None:
        """Answer until `stop` is called, or an exception, such as `KeyboardInterrupt`, comes."""
        self._server.serve_forever(poll_interval=0.1)

    def stop(self) -> None:
        """End `serve`. Any thread may call, but the one that serves."""
        self._server.shutdown()

    def close(self) -> None:
        """Let answers in progress be finished, for at most 2 s, and close all connections."""
        self._server.server_close()
        self._stopping.set()
        self.connections.end_all(PATIENCE)

    def summary(self) -> str:
        """What was received, in one line."""
        with self._lock:
            return (
                f"{counted(self._received, 'event')} received, {self._refused} refused, on "
                f"{counted(self.connections.count, 'connection')} from "
                f"{counted(len(self._pids), 'process', 'processes')} of this machine"
            )

    # -- for the connections -----------------------------------------------------------------------

    def check_host(self, named: str) -> None:
        """Raise the refusal of a request that *named* another host; not where others may come."""
        is_private = hosts.is_loopback(self._server.server_name)
        if not is_private or hosts.is_this_machine(named, self._names):
            return
        raise _Refusal(
            403,
            f"Host: expected localhost or a loopback address, got {named[:100]!r}; if that is this "
            "machine, start `valued listen` with --allow-host",
        )

    def pause(self) -> None:
        """Wait for *delay* before an answer, unless the server is being closed."""
        self._stopping.wait(self._delay)

    def refused(self) -> None:
        """A request was refused."""
        with self._lock:
            self._refused += 1

    def fail_as_told(self) -> None:
        """Raise the refusal for the next valid event, if any of *failures* is left."""
        with self._lock:
            if not self._failures:
                return
            status, left = self._failures[0]
            self._failures[:1] = [(status, left - 1)] if left > 1 else []
        raise _Refusal(status, "as requested by --fail")

    def receive(self, received: Received) -> None:
        """Report an event, and count it."""
        try:
            self._report(received)
        except Exception as error:
            self.trouble = error
            self.stop()
            raise
        with self._lock:
            self._received += 1
            if received.pid is not None:
                self._pids.add(received.pid)


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # a silent sender can't delay the end
    request_queue_size = 1024  # all workers of a large server may connect at once
    allow_reuse_address = os.name != "nt"  # on Windows it would let two servers share a port

    def __init__(self, listener: Listener, host: str, port: int) -> None:
        self.listener = listener
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, address = found[0][0], found[0][4]
        super().__init__(address[:2], _Connection)  # type: ignore[arg-type]

    def server_bind(self) -> None:
        # Not the method of `HTTPServer`, which asks the name service for this machine's name.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next connection. Raises `OSError`, which is no error: it is asked again."""
        if not self.listener.connections.make_room():
            raise BlockingIOError
        try:
            connection, address = super().get_request()
        except OSError:  # no descriptor is free, for example
            self.listener.connections.save_descriptors()
            raise
        self.listener.connections.opened(connection)
        return connection, address

    def service_actions(self) -> None:
        """Called several times a second."""
        self.listener.connections.end_slow()

    def shutdown_request(self, request: Any) -> None:
        """The connection is over."""
        self.listener.connections.closing(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print a traceback, unless the sender broke off or the `Listener` keeps the error."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError) and error is not self.listener.trouble:
            super().handle_error(request, client_address)


class _Connection(BaseHTTPRequestHandler):
    """One connection, request by request, on a thread of its own."""

    protocol_version = "HTTP/1.1"
    server_version = f"valued-listen/{valued.__version__}"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = -1  # an answer is sent as a whole
    server: _Server

    def setup(self) -> None:
        super().setup()
        self._sender: Process | None = None
        self._is_in_step = True

    def finish(self) -> None:
        super().finish()
        if not self._is_in_step:
            self._hear_out()

    def handle_one_request(self) -> None:
        """Read a request and answer it."""
        self.rfile.peek(1)  # type: ignore[attr-defined] # returns when the request begins
        self._does(Doing.READING)
        super().handle_one_request()
        self._does(Doing.WAITING)

    def _does(self, doing: Doing) -> bool:
        return self.server.listener.connections.does(self.connection, doing)

    def __getattr__(self, name: str) -> Any:
        # `http.server` looks for one method per verb: here one method answers all of them.
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def handle_expect_100(self) -> bool:
        """Send the 100 at once: the sender waits for it."""
        going_on = super().handle_expect_100()
        self.wfile.flush()
        return going_on

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the answer says what is wrong with a request."""

    def _answer(self) -> None:
        listener = self.server.listener
        try:
            body = self._arrived()
            listener.pause()
            self._decide(body)
        except _Refusal as refusal:
            listener.refused()
            self._does(Doing.SENDING)
            self._is_in_step = not refusal.close
            self.close_connection = self.close_connection or refusal.close
            self._reply(refusal.status, refusal.headers, refusal.reasons)
        else:
            self._does(Doing.SENDING)
            self._reply(204, _PREFLIGHT if self.command == "OPTIONS" else {})

    def _decide(self, body: bytes) -> None:
        """Accept the event; else raise the refusal."""
        listener = self.server.listener
        listener.check_host(", ".join(self.headers.get_all("Host", [])))
        if not self._is_at_events():
            raise _Refusal(404, "not found: send events to /events")
        if self.command == "OPTIONS":
            return
        if self.command != "POST":
            raise _Refusal(405, "send events by POST", headers={"Allow": "POST, OPTIONS"})
        if not _BEARER.fullmatch(self.headers.get("Authorization", "").strip()):
            raise _Refusal(
                401,
                "Authorization: expected 'Bearer TOKEN'",
                headers={"WWW-Authenticate": "Bearer"},
            )
        event = _event(body)
        listener.fail_as_told()
        if self._sender is None:
            self._sender = listener.peers.find(self.client_address, self.connection.getsockname())
        pid, name = self._sender
        host, port = self.client_address[:2]
        connection = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        key = self.headers.get("Idempotency-Key")
        listener.receive(Received(event, pid, name, connection, key))

    def _reply(self, status: int, headers: dict[str, str], reasons: tuple[str, ...] = ()) -> None:
        self.send_response(status)
        if self.command in ("POST", "OPTIONS") and self._is_at_events():
            self.send_header("Access-Control-Allow-Origin", "*")
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        content = json.dumps({"errors": reasons}).encode() if reasons and status != 304 else b""
        if content:
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _is_at_events(self) -> bool:
        return self.path.partition("?")[0] == "/events"

    def _arrived(self) -> bytes:
        """The body; raises a refusal if there is none, or if the request was ended."""
        try:
            body = self._body()
        except _Refusal:
            if self._does(Doing.ANSWERING):
                raise
            reason = "the request did not arrive in time, or there are too many connections"
            raise _Refusal(408, reason, close=True) from None
        if not self._does(Doing.ANSWERING):
            self.close_connection = True  # it was ended right after: this is the last answer
        return body

    def _body(self) -> bytes:
        """The body, read to its end; raises a refusal if its length isn't known."""
        if "Transfer-Encoding" in self.headers:
            raise _Refusal(411, "send a Content-Length; chunks are not supported", close=True)
        lengths = set(self.headers.get_all("Content-Length", []))
        if not lengths:
            if self.command == "POST":
                raise _Refusal(411, "send a Content-Length", close=True)
            return b""
        length = lengths.pop().strip()
        if lengths or not (length.isascii() and length.isdigit() and len(length) < 16):
            raise _Refusal(400, "Content-Length: expected one whole number", close=True)
        size = int(length)
        if size > MAX_BODY:
            reason = f"an event may have at most {MAX_BODY} bytes, this one has {size}"
            raise _Refusal(413, reason, close=not self._discard(size))
        body = self.rfile.read(size)
        if len(body) < size:
            raise _Refusal(400, "the body ended before its Content-Length", close=True)
        return body

    def _discard(self, size: int) -> bool:
        """Read and ignore *size* bytes; False: they are too many, or did not arrive."""
        if size > MAX_DISCARD:
            return False
        while size and (piece := self.rfile.read(min(size, 65536))):
            size -= len(piece)
        return size == 0

    def _hear_out(self) -> None:
        """Read what is still coming, so that the sender gets the answer before the close.

        A connection that is closed with unread bytes is reset, and the sender loses what it has not
        read of the answer by then.
        """
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(PATIENCE)
            left = MAX_DISCARD
            while left > 0 and (piece := self.connection.recv(65536)):
                left -= len(piece)


def _event(body: bytes) -> dict[str, Any]:
    try:
        event = strict_json.parsed(body)
    except ValueError as error:
        raise _Refusal(400, f"the body: {error}") from None
    try:
        valued.validate(event)
    except valued.ValidationError as error:
        raise _Refusal(400, *error.problems) from None
    except valued.ValuedError as error:
        raise _Refusal(400, str(error)) from None
    checked: dict[str, Any] = event
    return checked

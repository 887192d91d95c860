"""The connections of the mock server, request by request: reads each, and sends its answer.

Connections are kept alive. A refused request is read to its end, or its connection is closed, so
that the next request is read from its beginning.
"""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

import valued
from valued._service import bodies, hosts, lanes
from valued._service.connections import Connections, Doing
from valued._service.intake import Intake, Request
from valued._service.page import HEADERS
from valued._service.peers import Peers
from valued._service.refusals import Answer, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from valued._service.controls import Controls
    from valued._service.lanes import Sender
    from valued._service.site import Site

#: Seconds to wait for answers in progress, or for a sender to read a refusal.
PATIENCE: Final = 2.0

_PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "POST, OPTIONS",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
}


class Server(ThreadingHTTPServer):
    """Accepts connections, each with a thread of its own. *site*: None where there is no page.

    *seen* is called with each request that has arrived, before it is answered.
    """

    daemon_threads = True  # a silent sender can't delay the end
    request_queue_size = 1024  # all workers of a large server may connect at once
    allow_reuse_address = os.name != "nt"  # on Windows it would let two servers share a port

    def __init__(
        self,
        host: str,
        port: int,
        *,
        names: set[str],
        connections: Connections,
        controls: Controls,
        intake: Intake,
        seen: Callable[[Request], object] | None,
    ) -> None:
        self.names: Final = names
        self.connections: Final = connections
        self.controls: Final = controls
        self.intake: Final = intake
        self.seen: Final = seen
        self.site: Site | None = None
        self.peers: Final = Peers()
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, address = found[0][0], found[0][4]
        super().__init__(address[:2], Connection)  # type: ignore[arg-type]
        self.is_private: Final = hosts.is_loopback(self.server_name)

    def server_bind(self) -> None:
        # Not the method of `HTTPServer`, which asks the name service for this machine's name.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next connection. Raises `OSError`, which is no error: it is asked again."""
        if not self.connections.make_room():
            raise BlockingIOError
        try:
            connection, address = super().get_request()
        except OSError:  # no descriptor is free, for example
            self.connections.save_descriptors()
            raise
        self.connections.opened(connection)
        return connection, address

    def service_actions(self) -> None:
        """Called several times a second."""
        self.connections.end_slow()

    def shutdown_request(self, request: Any) -> None:
        """The connection is over."""
        self.connections.closing(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print a traceback, unless the sender broke off or the intake keeps the error."""
        error = sys.exc_info()[1]
        if error is self.intake.trouble:
            self.shutdown()
        elif not isinstance(error, OSError):
            super().handle_error(request, client_address)

    def check_host(self, named: str) -> None:
        """Raise the refusal of a request that *named* another host; not where others may come."""
        if not self.is_private or hosts.is_this_machine(named, self.names):
            return
        raise Refusal(
            403,
            f"Host: expected localhost or a loopback address, got {named[:100]!r}; if that is this "
            "machine, start `valued listen` with --allow-host",
        )


class Connection(BaseHTTPRequestHandler):
    """One connection, request by request, on a thread of its own."""

    protocol_version = "HTTP/1.1"
    server_version = f"valued-listen/{valued.__version__}"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = -1  # an answer is sent as a whole
    server: Server

    def setup(self) -> None:
        super().setup()
        self._sender: Sender | None = None
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
        return self.server.connections.does(self.connection, doing)

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
        request = Request(self.command, self.path, self.headers, self._find_sender)
        site = self.server.site
        if site is not None and site.has(request):
            self._answer_site(site, request)
            return
        try:
            request.body = self._arrived()
            if self.server.seen is not None:
                self.server.seen(request)
            self.server.controls.hold(self._is_gone)
            answer = self._decide(request)
        except Refusal as refusal:
            self.server.intake.refused(request, refusal)
            answer = self._refused(refusal)
        self._does(Doing.SENDING)
        if answer.status:
            self._reply(
                answer, is_open=request.path == "/events" and self.command in ("POST", "OPTIONS")
            )
        else:
            self.close_connection = True

    def _decide(self, request: Request) -> Answer:
        """The answer to an event, or to the preflight of one; raises the refusal."""
        self.server.check_host(", ".join(self.headers.get_all("Host", [])))
        if request.path != "/events":
            raise Refusal(404, "not found: send events to /events")
        if self.command == "OPTIONS":
            return Answer(204, _PREFLIGHT)
        if self.command != "POST":
            raise Refusal(405, "send events by POST", headers={"Allow": "POST, OPTIONS"})
        return self.server.intake.take(request)

    def _refused(self, refusal: Refusal) -> Answer:
        self._is_in_step = not refusal.close
        self.close_connection = self.close_connection or refusal.close
        return refusal.answer()

    # -- for pages and programs --------------------------------------------------------------------

    def _answer_site(self, site: Site, request: Request) -> None:
        self.server.connections.is_reader(self.connection)
        try:
            request.body = self._arrived()
            site.check(request)
            if request.path == "/stream":
                self._stream(site, request)
                return
            answer = site.answer(request, self._is_gone)
        except Refusal as refusal:
            refused = self._refused(refusal)
            answer = Answer(refused.status, {**refused.headers, **HEADERS}, refused.content)
        self._does(Doing.SENDING)
        self._reply(answer)

    def _stream(self, site: Site, request: Request) -> None:
        if not self.server.connections.begin_stream(self.connection):
            raise Refusal(503, "there are too many streams")
        self.close_connection = True  # its end is that of the stream
        self.send_response(200)
        self.send_header("Connection", "close")
        self.send_header("Content-Type", "text/event-stream")
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        for text in site.stream(request).messages():
            if text:
                self._does(Doing.SENDING)  # which has a bound, where the reader doesn't read
                self.wfile.write(text)
                self.wfile.flush()
            if not self._does(Doing.STREAMING) or self._is_gone():
                return

    def _is_gone(self) -> bool:
        """Whether the other end has closed the connection; what it sends meanwhile is left."""
        self.connection.settimeout(0)
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:  # pragma: no cover - it was reset; most are closed
            return True
        finally:
            self.connection.settimeout(None)

    # -- bytes -------------------------------------------------------------------------------------

    def _reply(self, answer: Answer, *, is_open: bool = False) -> None:
        self.send_response(answer.status)
        if is_open:
            self.send_header("Access-Control-Allow-Origin", "*")
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        has_content = answer.status not in (204, 304)
        if has_content:
            self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        if has_content and self.command != "HEAD":
            self.wfile.write(answer.content)

    def _find_sender(self) -> Sender:
        if self._sender is None:
            theirs, ours = self.client_address, self.connection.getsockname()
            host, port = theirs[:2]
            shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            self._sender = lanes.sender(shown, host, self.server.peers.find(theirs, ours))
        return self._sender

    def _arrived(self) -> bytes:
        """The body; raises a refusal if there is none, or if the request was ended."""
        try:
            body = bodies.read(self.command, self.headers, self.rfile)
        except Refusal:
            if self._does(Doing.ANSWERING):
                raise
            reason = "the request did not arrive in time, or there are too many connections"
            raise Refusal(408, reason, close=True) from None
        if not self._does(Doing.ANSWERING):
            self.close_connection = True  # it was ended right after: this is the last answer
        return body

    def _hear_out(self) -> None:
        """Read what is still coming, so that the sender gets the answer before the close.

        A connection that is closed with unread bytes is reset, and the sender loses what it has not
        read of the answer by then.
        """
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(PATIENCE)
            left = bodies.MAX_DISCARD
            while left > 0 and (piece := self.connection.recv(65536)):
                left -= len(piece)

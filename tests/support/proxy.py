"""Servers that get the raw socket, and a proxy made of one."""

from __future__ import annotations

import contextlib
import http.client
import io
import select
import socket
import ssl
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

BOUND = 10.0  # seconds; bounds a failure


class Listener:
    """Listens on loopback, and calls *serve* with the socket of each connection, on a thread.

    The socket is closed when *serve* returns. All that are left are shut down at the end.
    """

    def __init__(
        self,
        serve: Callable[[socket.socket], object],
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._serve = serve
        self._context = context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http{'s' if context else ''}://127.0.0.1:{self.port}/events"
        self.accepted = threading.Semaphore(0)  # released for each connection that was made
        self.ended = threading.Semaphore(0)  # released for each that *serve* has done with
        self.peers: list[int] = []  # the clients' ports, in the order in which they came
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                accepted, (_host, port) = self._socket.accept()
            except OSError:  # closed
                return
            self._open.add(accepted)
            self.peers.append(port)
            self._threads.append(threading.Thread(target=self._run, args=(accepted,), daemon=True))
            self._threads[-1].start()
            self.accepted.release()

    def _run(self, accepted: socket.socket) -> None:
        # A client that breaks off is no failure of the test.
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(self.ended.release)
            stack.enter_context(accepted)
            stack.callback(self._open.discard, accepted)
            served: socket.socket = accepted
            if self._context is not None:
                self._open.discard(accepted)
                served = self._context.wrap_socket(accepted, server_side=True)
                self._open.add(served)
                stack.enter_context(served)
                stack.callback(self._open.discard, served)
            self._serve(served)

    def close(self) -> None:
        shut(self._socket)
        self._socket.close()
        self._threads[0].join(BOUND)
        for accepted in list(self._open):
            shut(accepted)
        for thread in self._threads:
            thread.join(BOUND)
            assert not thread.is_alive()

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def read_head(stream: io.BufferedIOBase) -> list[str]:
    """The lines of a request up to the empty one; none: nothing came any more."""
    lines: list[str] = []
    while line := stream.readline().decode("latin-1").strip():
        lines.append(line)
    return lines


def read_request(stream: io.BufferedIOBase) -> list[str]:
    """The same, and the body behind it is read, too."""
    lines = read_head(stream)
    for line in lines:
        name, _, value = line.partition(": ")
        if name.lower() == "content-length":
            stream.read(int(value))
    return lines


class Proxy(Listener):
    """Forwards requests to http URLs, and opens tunnels. *heads*: what it was asked, in order."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.heads: list[list[str]] = []
        super().__init__(self._proxy, context)
        self.url = self.url.removesuffix("/events")

    def _proxy(self, client: socket.socket) -> None:
        with client.makefile("rb") as stream:
            while head := read_head(stream):
                self.heads.append(head)
                method, target, _version = head[0].split(" ")
                if method == "CONNECT":
                    host, _, port = target.rpartition(":")
                    with socket.create_connection((host, int(port)), BOUND) as server:
                        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                        pump(client, server)
                    return
                client.sendall(_forwarded(method, target, head[1:], stream))


def _forwarded(method: str, target: str, lines: list[str], stream: io.BufferedIOBase) -> bytes:
    headers = dict(line.split(": ", 1) for line in lines)
    body = stream.read(int(headers.get("Content-Length", 0)))
    host, _, path = target.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=BOUND)
    try:
        connection.request(method, f"/{path}", body, headers)
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    head = f"HTTP/1.1 {answer.status} {answer.reason}\r\n"
    if answer.status != 204:
        head += f"Content-Length: {len(content)}\r\n"
    return head.encode() + b"\r\n" + content


def pump(client: socket.socket, server: socket.socket) -> None:
    """Carry bytes both ways until one side is at its end."""
    other = {client: server, server: client}
    while True:
        # What TLS has decrypted already, `select` doesn't see.
        waiting = isinstance(client, ssl.SSLSocket) and client.pending()
        for side in [client] if waiting else select.select([client, server], [], [])[0]:
            data = side.recv(65536)
            if not data:
                return
            other[side].sendall(data)

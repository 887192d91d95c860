"""A server that is a function: it gets the raw socket of each connection."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


class Peer:
    """One connection, seen from the server."""

    def __init__(self, sock: socket.socket, server: RawServer, number: int) -> None:
        self.sock = sock
        self.server = server
        self.number = number  # 1 for the first connection
        self.served = False  # for the function to note what it has done
        self._rest = b""

    def read_request(self) -> dict[str, Any] | None:
        """The event of the next request, which is noted; None when the client has closed."""
        head = self.read_head()
        if head is None:
            return None
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:])
        }
        length = int(headers.get("content-length", 0))
        while len(self._rest) < length:
            self._rest += self.sock.recv(65536)
        body, self._rest = self._rest[:length], self._rest[length:]
        self.server.note(head.split(" ", 1)[0], headers, body)
        return json.loads(body) if body else {}

    def read_head(self) -> str | None:
        """The next request's first line and headers; None when the client has closed."""
        while b"\r\n\r\n" not in self._rest:
            received = self.sock.recv(65536)
            if not received:
                return None
            self._rest += received
        head, self._rest = self._rest.split(b"\r\n\r\n", 1)
        return head.decode("latin-1")

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reset(self) -> None:
        """Close so that the client gets an RST in place of a FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class RawServer:
    """Runs *function* with each connection, on a thread of its own; closes it afterwards."""

    def __init__(self, function: Callable[[Peer], object], port: int = 0) -> None:
        self._function = function
        self._changed = threading.Condition()
        self._socks: list[socket.socket] = []
        #: Set at the end of the test, for those who hold an answer until then.
        self.over = threading.Event()
        self.methods: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/events"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def connections(self) -> int:
        return len(self._socks)

    @property
    def keys(self) -> list[str]:
        """The action keys that arrived, in order."""
        return [json.loads(body)["key"] for body in self.bodies]

    def note(self, method: str, headers: dict[str, str], body: bytes) -> None:
        with self._changed:
            self.methods.append(method)
            self.headers.append(headers)
            self.bodies.append(body)
            self._changed.notify_all()

    def wait_for(self, count: int, timeout: float = 10.0) -> None:
        """Wait for *count* requests; *timeout* bounds a failure."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.bodies) >= count, timeout)

    def close(self) -> None:
        self.over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                sock, _ = self._listener.accept()
                self._socks.append(sock)
                peer = Peer(sock, self, len(self._socks))
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: Peer) -> None:
        with contextlib.suppress(OSError):  # the client broke off, or the test is over
            self._function(peer)
        peer.sock.close()


def answering(*answers: bytes) -> Callable[[Peer], None]:
    """Answers the requests with *answers* in turn, on whatever connection, then with 204."""
    left = list(answers)

    def serve(peer: Peer) -> None:
        while peer.read_request() is not None:
            peer.send(left.pop(0) if left else NO_CONTENT)

    return serve


def answer(status: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body

"""One connection: bounded in time, its descriptor checked, and closed by a forked child.

A child inherits every descriptor of its parent. If it used one, it would mix two streams. If it
shut one down, it would end the parent's connection. If it kept one open, the parent's own close
would have no effect. So each process lists its connections, and a child only closes the inherited
descriptors: no FIN and no TLS close-notify is sent, because the parent still uses the connection.

Code that closes all descriptors, as daemons do, closes ours as well, and what the application opens
next gets their numbers. So device and inode are compared before something is written.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import http.client
import os
import socket
import sys
from typing import TYPE_CHECKING, Any, Final

import urllib3.connection
import urllib3.exceptions
from urllib3.exceptions import ConnectTimeoutError, LocationParseError, NewConnectionError

from valued._http.mocks import base_in_urllib3, connecting_is_replaced, is_defined_in
from valued._http.reading import CLOSED_BY_OTHERS, TimedResponse, is_plain, remaining
from valued._process import shutdown
from valued._process.clock import CLOCK
from valued._process.descriptors import Identity, cookie, detach, identity, is_readable
from valued._process.fork import PerProcess, ProcessToken, WeakList

if TYPE_CHECKING:
    from valued._http.addresses import Addresses

    _HTTPConnection = urllib3.connection.HTTPConnection
else:
    # This may be imported during a test, while a recorder has replaced urllib3's class.
    _HTTPConnection = base_in_urllib3(urllib3.connection.HTTPConnection)

#: Seconds of a request's time, at most, that connecting leaves for the answer; of a short time a
#: quarter. Without it, the service would get an event whose answer comes too late for us.
ANSWER_TIME: Final = 1.0

#: Seconds in which the other end of a kept-alive connection has to acknowledge what was sent. A NAT
#: or a firewall may have forgotten the connection, and says nothing.
#: (Linux counts from a full receive window, too: an event on which a service stops reading for so
#: long goes on a new connection, where it has all of the request's time.)
ACKNOWLEDGED_IN: Final = 2.0

#: Seconds that an answer on a kept-alive connection may take while the process ends. After that the
#: request is repeated on a new connection, with the same idempotency key.
ANSWERED_IN: Final = 1.0

#: Seconds between two looks whether the process ends.
LOOK_AGAIN: Final = 0.25

#: Seconds without a packet after which the system asks whether the other end is there; how often it
#: asks; and the seconds between.
KEEPALIVE: Final = {"TCP_KEEPIDLE": 30, "TCP_KEEPCNT": 3, "TCP_KEEPINTVL": 5}


def _close_inherited(connections: WeakList[ForkAwareConnection]) -> None:
    for connection in connections.living():
        connection.close_inherited()


#: The connections of each process, including those in use.
_connections: Final[PerProcess[WeakList[ForkAwareConnection]]] = PerProcess(
    WeakList, forget=_close_inherited
)


def socket_options() -> list[tuple[int, int, int]]:
    """The options of each socket: no delay, keepalive."""
    found = [*_HTTPConnection.default_socket_options, (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # pragma: no branch - each system has its own selection
            found.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return found


class StaleConnection(ConnectionError):
    """A kept-alive connection ended before the first byte of a response, or counts as ended."""


def _send_all(sock: Any, request: bytes, deadline: float) -> None:
    """Send *request*, which mostly fits into the system's buffer: then without waiting for room."""
    sent = 0
    if is_plain(sock):  # urllib3 sets a timeout before it uses the connection itself
        if sock.gettimeout() != 0:
            sock.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            sent = sock.send(request)
    if sent < len(request):
        sock.settimeout(remaining(deadline))
        sock.sendall(memoryview(request)[sent:])


def connects_itself(connection_class: type) -> bool:
    """Whether connections of this class of urllib3's don't connect as `RacingConnection` does."""
    # Also where the application replaced urllib3's method.
    method = connection_class._new_conn  # type: ignore[attr-defined]  # noqa: SLF001
    return not is_defined_in(method, urllib3.connection)


def _not_resolved(connection: Any, error: socket.gaierror) -> Exception:
    kind = getattr(urllib3.exceptions, "NameResolutionError", None)
    if kind is None:  # pragma: no cover - urllib3 1.26
        return NewConnectionError(connection, f"Failed to resolve {connection.host!r}: {error}")
    return kind(connection.host, connection, error)  # type: ignore[no-any-return]


class RacingConnection(_HTTPConnection):
    """A connection that is made to the address that answers first: see `addresses`."""

    #: Set in the subclass that a pool uses.
    _addresses: Addresses

    def _new_conn(self) -> socket.socket:
        # Not a number: it is a request of the application's own.
        if not isinstance(self.timeout, (int, float)) or connecting_is_replaced():
            return super()._new_conn()
        # The exceptions are those of urllib3's own method.
        host = self._dns_host.strip("[]").replace("%25", "%")  # of a zone, as in fe80::1%25eth0
        try:
            host.encode("idna")
        except UnicodeError:
            raise LocationParseError(f"{host!r}, label empty or too long") from None
        try:
            new = self._addresses.connect(
                (host, self.port),
                self.timeout,
                self.source_address,
                self.socket_options or (),
            )
        except socket.gaierror as error:
            raise _not_resolved(self, error) from error
        except TimeoutError as error:
            message = f"Connection to {self.host} timed out: {error}"
            raise ConnectTimeoutError(self, message) from error
        except OSError as error:
            message = f"Failed to establish a new connection: {error}"
            raise NewConnectionError(self, message) from error
        sys.audit("http.client.connect", self, self.host, self.port)
        return new


class ForkAwareConnection(_HTTPConnection):
    """A connection whose descriptor a forked child can close, from the first packet on.

    The exception is a connection that is being made at the moment of the fork: nothing was sent on
    it, and the child keeps it open until the child ends.
    """

    @property
    def response_class(self) -> Any:  # type: ignore[override]  # it is only read
        """Makes a response that is read from this connection."""
        return functools.partial(TimedResponse, is_ours=self.is_ours)

    #: The descriptor, with its device and inode, while it belongs to this connection.
    _descriptor: Identity | None = None

    #: That of its socket; empty: there is none to compare.
    _cookie = b""

    #: The socket after `close`. The rest of a response may still be read from it (after
    #: ``Connection: close``), and until then its descriptor stays open.
    _closed_sock: Any = None

    #: When it has to be connected, by the clock; None: no bound.
    _connected_by: float | None = None

    #: Whether a request was sent on it, and answered.
    _is_kept = False

    #: The process that this connection belongs to; set in the subclass that a pool uses.
    _born: ProcessToken

    def connect(self) -> None:
        """Connect, and leave time to read an answer."""
        timeout = self.timeout
        if not isinstance(timeout, (int, float)):  # a request of the application's own
            super().connect()
            return
        self.timeout = timeout - min(ANSWER_TIME, timeout / 4)
        self._connected_by = deadline = CLOCK.monotonic() + self.timeout
        super().connect()
        if CLOCK.monotonic() > deadline:
            self.close()
            raise ConnectTimeoutError(self, f"Connecting to {self.host} took too long")

    def _new_conn(self) -> socket.socket:
        new = super()._new_conn()
        if not self._born.is_current():
            # In a child, gevent continues the parent's greenlets. One of them may have been
            # connecting here. Its event belongs to the parent, which sends it.
            new.close()
            raise ConnectionAbortedError("this process was forked in the middle of a delivery")
        self._descriptor = identity(new.fileno())
        self._cookie = cookie(new)
        _connections.get().add(self)
        return new

    def _tunnel(self) -> None:
        self._limit_next_step()
        super()._tunnel()
        self._limit_next_step()  # the handshake with the service

    def _limit_next_step(self) -> None:
        """Give the next step of connecting the time that is left."""
        if self._connected_by is not None and self.sock is not None and self.is_ours():
            self.sock.settimeout(remaining(self._connected_by))

    def send(self, data: Any) -> None:
        """Send a part of a request."""
        if self.sock is not None and not self.is_ours():
            raise ConnectionAbortedError(CLOSED_BY_OTHERS)
        super().send(data)

    def exchange(self, request: bytes, deadline: float) -> http.client.HTTPResponse:
        """Send *request*, head and body, on this idle connection, and read the response's head.

        *deadline*: for both, and for reading the body later. Raises `StaleConnection`, what sockets
        raise, and `http.client.HTTPException`; after that, the connection can't be used any more.
        """
        sock = self.sock
        if sock is None:
            raise StaleConnection("closed in a forked child")
        try:
            if not self.is_ours():
                raise StaleConnection(CLOSED_BY_OTHERS)
            _send_all(sock, request, deadline)
            self._wait_for_answer(sock, deadline)
            response = TimedResponse(sock, method="POST", is_ours=self.is_ours, deadline=deadline)
            has_begun = response.fp.peek(1)
        except OSError as error:
            if isinstance(error, TimeoutError) and error.errno != errno.ETIMEDOUT:
                raise  # the time of this request is over
            raise StaleConnection(str(error)) from error
        if not has_begun:
            raise StaleConnection("closed by the other end without a response")
        response.begin()
        return response

    def _wait_for_answer(self, sock: socket.socket, deadline: float) -> None:
        """Wait for the first byte. Raises `StaleConnection`, `TimeoutError`."""
        too_late = CLOCK.monotonic() + ANSWERED_IN
        while not is_readable(sock, min(LOOK_AGAIN, remaining(deadline))):
            now = CLOCK.monotonic()
            if now >= deadline:
                raise TimeoutError("timed out")
            if now >= too_late and shutdown.is_ending():
                raise StaleConnection("no answer in time at the end of the process")

    def expect_acknowledgements(self) -> None:
        """From now on it is kept: where nothing acknowledges what is sent, it ends soon.

        Not for a new connection: on a line that is so slow, each event would come too late.
        """
        if self._is_kept or not self.is_ours():
            return
        self._is_kept = True
        option = getattr(socket, "TCP_USER_TIMEOUT", None)  # only on Linux
        with contextlib.suppress(OSError, AttributeError):  # TLS in the TLS of a proxy
            if option is not None and self.sock is not None:
                self.sock.setsockopt(socket.IPPROTO_TCP, option, int(ACKNOWLEDGED_IN * 1000))

    def is_ours(self) -> bool:
        """Whether the descriptor still belongs to this connection.

        Code that closes all descriptors, as daemons do, closes it as well, and what the application
        opens next gets its number.
        """
        if self._cookie and hasattr(self.sock, "getsockopt"):
            return cookie(self.sock) == self._cookie
        return self._descriptor is None or self._descriptor == identity(self._descriptor[0])

    def close(self) -> None:
        if not self.is_ours():  # forget it: to close it would close what has its number now
            detach(self.sock)
            self.sock = None
        self._descriptor = None
        self._closed_sock = self.sock or self._closed_sock
        super().close()

    def close_inherited(self) -> None:
        """Close the descriptor in a forked child. Takes no lock, raises nothing."""
        numbers = [detach(self.sock), detach(self._closed_sock)]
        descriptor = self._descriptor
        self.sock = self._closed_sock = self._descriptor = None
        if descriptor is not None and descriptor[0] not in numbers:
            _replace_by_null(descriptor)
        for number in numbers:
            if number >= 0:
                with contextlib.suppress(OSError):
                    os.close(number)


def _replace_by_null(descriptor: Identity) -> None:
    """Close a connection in a TLS handshake: its socket is a local variable of the code making it.

    That code runs in a thread that the child doesn't have, or in a greenlet that still runs, and
    that will read, write and close by the number. So the number stays in use, for the null device.
    """
    number = descriptor[0]
    if identity(number) == descriptor:  # else it is closed, or another file's number by now
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number, inheritable=False)
            os.close(null)

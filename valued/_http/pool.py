"""Connections for `requests` that a forked child closes without a trace on the wire.

A child inherits every descriptor of its parent. If it used one, it would mix two streams. If it
shut one down, it would end the parent's connection. If it kept one open, the parent's own close
would have no effect. So each process lists its connections, and a child only closes the inherited
descriptors: no FIN and no TLS close-notify is sent, because the parent still uses the connection.

urllib3 keeps idle connections in a queue with a lock, and empties the queue in a finalizer, at the
latest when the process ends. If a thread of the parent held that lock at the fork, the child would
wait for it for ever. So the queue here has no lock: it is a list, whose ``append`` and ``pop`` are
atomic.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import queue
from typing import TYPE_CHECKING, Any, Final

import requests.adapters
import urllib3.connection
from urllib3.util.connection import is_connection_dropped

from valued._http.mocks import NETWORK, base_in_urllib3, connection_classes, what_is_replaced
from valued._process.clock import CLOCK
from valued._process.fork import PerProcess, ProcessToken, WeakList

if TYPE_CHECKING:
    import socket

    _HTTPConnection = urllib3.connection.HTTPConnection
else:
    # This may be imported during a test, while a recorder has replaced urllib3's class.
    _HTTPConnection = base_in_urllib3(urllib3.connection.HTTPConnection)

#: Seconds that a request gets at least, however little is left: a socket's timeout of 0 would mean
#: not to wait at all, and raise another exception.
MIN_TIMEOUT: Final = 0.001


def _close_inherited(connections: WeakList[ForkAwareConnection]) -> None:
    for connection in connections.living():
        connection.close_inherited()


#: The connections of each process, including those in use.
_connections: Final[PerProcess[WeakList[ForkAwareConnection]]] = PerProcess(
    WeakList, forget=_close_inherited
)


def remaining(deadline: float) -> float:
    """Seconds until *deadline*, a time of `CLOCK.monotonic`; at least `MIN_TIMEOUT`."""
    return max(MIN_TIMEOUT, deadline - CLOCK.monotonic())


class StaleConnection(ConnectionError):
    """A kept-alive connection ended without a byte of a response: it was closed while idle."""


class DeadlineReader(io.RawIOBase):
    """Reads from a socket until a deadline, a time of `CLOCK.monotonic`."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase, deadline: float) -> None:
        self._sock = sock
        self._raw = raw
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def readinto(self, buffer: Any, /) -> int | None:
        left = self._deadline - CLOCK.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """A response with one timeout for all of it, in place of one for each read from the socket.

    With a timeout for each read, a server that sends a byte now and then could block a worker, or
    the exit of the process, for ever.
    """

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        timeout = sock.gettimeout()
        if timeout is not None:
            deadline = CLOCK.monotonic() + timeout
            self.fp = io.BufferedReader(DeadlineReader(sock, self.fp.detach(), deadline))

    def begin(self) -> None:
        super().begin()
        while 100 <= self.status < 200 and self.status != http.client.SWITCHING_PROTOCOLS:
            # `http.client` skips 100 only, and would return any other 1xx as the response.
            self.headers = self.msg = None  # type: ignore[assignment]
            super().begin()


class ForkAwareConnection(_HTTPConnection):
    """A connection whose descriptor a forked child can close, from the first packet on.

    The exception is a connection that is being made at the moment of the fork: nothing was sent on
    it, and the child keeps it open until the child ends.
    """

    response_class = _Response

    #: The descriptor, with its device and inode, while it belongs to this connection.
    _descriptor: tuple[int, int, int] | None = None

    #: The socket after `close`. The rest of a response may still be read from it (after
    #: ``Connection: close``), and until then its descriptor stays open.
    _closed_sock: Any = None

    #: The process that this connection belongs to; set in the subclass that a pool uses.
    _born: ProcessToken

    def _new_conn(self) -> socket.socket:
        new = super()._new_conn()
        if not self._born.is_current():
            # In a child, gevent continues the parent's greenlets. One of them may have been
            # connecting here. Its event belongs to the parent, which sends it.
            new.close()
            raise ConnectionAbortedError("this process was forked in the middle of a delivery")
        self._descriptor = _identity(new.fileno())
        _connections.get().add(self)
        return new

    def exchange(self, request: bytes, deadline: float) -> http.client.HTTPResponse:
        """Send *request*, head and body, on this idle connection, and read the response's head.

        *deadline*: for both, and for reading the body later. Raises what sockets raise, and
        `http.client.HTTPException`; after that, the connection can't be used any more.
        """
        sock = self.sock
        if sock is None:
            raise StaleConnection("closed in a forked child")
        sock.settimeout(remaining(deadline))
        try:
            sock.sendall(request)
        except TimeoutError:
            raise
        except OSError as error:
            raise StaleConnection(str(error)) from error
        sock.settimeout(remaining(deadline))
        response = self.response_class(sock, method="POST")
        try:
            has_begun = response.fp.peek(1)
        except ConnectionError as error:
            raise StaleConnection(str(error)) from error
        if not has_begun:
            raise StaleConnection("closed by the other end without a response")
        response.begin()
        return response

    def is_ours(self) -> bool:
        """Whether the descriptor still belongs to this connection.

        Code that closes all descriptors, as daemons do, closes it as well, and what the application
        opens next gets its number.
        """
        return self._descriptor is None or self._descriptor == _identity(self._descriptor[0])

    def close(self) -> None:
        if not self.is_ours():  # forget it: to close it would close what has its number now
            _detach(self.sock)
            self.sock = None
        self._descriptor = None
        self._closed_sock = self.sock or self._closed_sock
        super().close()

    def close_inherited(self) -> None:
        """Close the descriptor in a forked child. Takes no lock, raises nothing."""
        numbers = [_detach(self.sock), _detach(self._closed_sock)]
        descriptor = self._descriptor
        self.sock = self._closed_sock = self._descriptor = None
        if descriptor is not None and descriptor[0] not in numbers:
            _replace_by_null(descriptor)
        for number in numbers:
            if number >= 0:
                with contextlib.suppress(OSError):
                    os.close(number)


def _identity(number: int) -> tuple[int, int, int] | None:
    """A descriptor, with the device and inode that it stands for; None: it is closed."""
    try:
        status = os.fstat(number)
    except OSError:
        return None
    return number, status.st_dev, status.st_ino


def _detach(sock: Any) -> int:
    """The descriptor, detached from *sock*; -1: it has none.

    The socket object may be closed at any later time, when the number may be in use again.
    """
    try:
        # With TLS inside the TLS of a proxy, a connection has an object that wraps a socket.
        return -1 if sock is None else int(getattr(sock, "socket", sock).detach())
    except OSError:  # a gevent socket, which TLS has detached already
        return -1


def _replace_by_null(descriptor: tuple[int, int, int]) -> None:
    """Close a connection in a TLS handshake: its socket is a local variable of the code making it.

    That code runs in a thread that the child doesn't have, or in a greenlet that still runs, and
    that will read, write and close by the number. So the number stays in use, for the null device.
    """
    number = descriptor[0]
    if _identity(number) == descriptor:  # else it is closed, or another file's number by now
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number, inheritable=False)
            os.close(null)


class LockFreeQueue(queue.LifoQueue[Any]):
    """What urllib3's pools use of a `queue.LifoQueue`, without a lock. Never waits."""

    def __init__(self, maxsize: int = 0) -> None:
        # Without a call of the base class, which would make the locks.
        self.maxsize = maxsize
        self._content: list[Any] = []

    def qsize(self) -> int:
        return len(self._content)

    def get(self, block: bool = False, timeout: float | None = None) -> Any:  # noqa: FBT001, FBT002
        try:
            return self._content.pop()
        except IndexError:
            raise queue.Empty from None

    def put(self, item: Any, block: bool = False, timeout: float | None = None) -> None:  # noqa: FBT001, FBT002
        # Two threads may be here at once: one connection too many is harmless.
        if len(self._content) < self.maxsize:
            self._content.append(item)
        elif item is not None:
            # No `queue.Full`, for which urllib3 logs a warning: at exit the main thread sends as
            # well as the workers, so one connection more than there are workers is normal.
            item.close()


def checkout_idle(pool: Any) -> ForkAwareConnection | None:
    """Take an idle connection that looks alive out of *pool*; None: there is none."""
    idle = pool.pool
    with contextlib.suppress(queue.Empty):
        while idle is not None:  # None: the pool was closed
            connection: ForkAwareConnection | None = idle.get()
            if connection is not None and connection.sock is not None:
                if connection.is_ours() and not is_connection_dropped(connection):
                    return connection
                connection.close()
    return None


def checkin(pool: Any, connection: ForkAwareConnection) -> None:
    """Return *connection* to *pool*. It is closed if the pool is full, or was closed."""
    idle = pool.pool
    if idle is None:
        connection.close()
    else:
        idle.put(connection)


def fork_aware(pool_class: Any, born: ProcessToken) -> Any:
    """A subclass of *pool_class*, of urllib3, with our connections and our queue."""
    used = pool_class.ConnectionCls
    if issubclass(used, ForkAwareConnection):
        return pool_class
    if base_in_urllib3(pool_class) is pool_class:
        used = base_in_urllib3(used)  # not a recorder's; a pool class of other code keeps its own
    connection_class = type("Connection", (ForkAwareConnection, used), {"_born": born})
    names = {"ConnectionCls": connection_class, "QueueCls": LockFreeQueue}
    return type("Pool", (pool_class,), names)


def _make_fork_aware(manager: Any, born: ProcessToken) -> None:
    """Let the pool manager make our pools, of whatever kind it makes (plain, TLS, SOCKS)."""
    manager.pool_classes_by_scheme = {
        scheme: fork_aware(pool, born) for scheme, pool in manager.pool_classes_by_scheme.items()
    }


class Adapter(requests.adapters.HTTPAdapter):
    """A transport adapter for a `requests.Session` that belongs to one process."""

    #: While connections are replaced: their classes, and an adapter that uses them.
    _replaced: tuple[object, requests.adapters.HTTPAdapter] | None = None

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """For direct connections."""
        super().init_poolmanager(*args, **kwargs)
        self._born = ProcessToken()
        _make_fork_aware(self.poolmanager, self._born)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        """For connections through a proxy; called for each request."""
        manager = super().proxy_manager_for(proxy, **kwargs)
        # Each time: another thread may have made it just now, and not have come to this line yet.
        _make_fork_aware(manager, self._born)
        return manager

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        """A pool for a request made by the session."""
        if what_is_replaced() != NETWORK:
            return super().get_connection_with_tls_context(*args, **kwargs)
        # Idle connections lead to the real network, and our pools don't know the replacements. One
        # adapter is used while the replacements are in place, since vcr.py removes its patch from
        # all threads for a moment with each connection that it makes.
        classes = connection_classes()
        if self._replaced is None or self._replaced[0] != classes:
            self._replaced = classes, requests.adapters.HTTPAdapter(pool_maxsize=1, max_retries=0)
        return self._replaced[1].get_connection_with_tls_context(*args, **kwargs)

    def close(self) -> None:
        """Close all idle connections."""
        super().close()
        if self._replaced is not None:
            self._replaced[1].close()
            self._replaced = None

"""Connections for `requests` whose descriptors a forked child can close without a trace.

A child inherits every descriptor of its parent. Using one would mix two streams. Shutting one down
would end the parent's connection. Keeping one open would make the parent's own close ineffective.
So each process knows its connections, and a child only closes the descriptors: no FIN and no TLS
close-notify is sent, because the parent still uses the connection.

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
import time
from typing import TYPE_CHECKING, Any, Final

import requests.adapters
import urllib3.connection
from urllib3.util.connection import is_connection_dropped

from valued._http.mocks import WIRE, connections, original, replaced
from valued._process.fork import Birthplace, PerProcess
from valued._process.weak import WeakList

if TYPE_CHECKING:
    import socket

    _Base = urllib3.connection.HTTPConnection
else:
    # This may be imported during a test, while a recorder has replaced urllib3's class.
    _Base = original(urllib3.connection.HTTPConnection)

#: Seconds that an attempt gets at least, however late it is.
LEAST: Final = 0.001


class _Connections(WeakList["_LetGo"]):
    """The connections of one process, including those in use."""

    def let_go(self) -> None:
        for connection in self.living():
            connection.let_go()


_here: Final[PerProcess[_Connections]] = PerProcess(_Connections, forget=_Connections.let_go)


class _Paced(io.RawIOBase):
    """Reads from a socket until a deadline."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase, deadline: float) -> None:
        self._sock = sock
        self._raw = raw
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def readinto(self, buffer: Any, /) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _NothingSaid(http.client.RemoteDisconnected):
    """The connection ended before the first byte of an answer."""


class _Stale(ConnectionError):
    """The same on a kept-alive connection: the other end closed it while it was idle."""


def is_stale(error: BaseException) -> bool:
    """Whether *error* was caused by a kept-alive connection that was closed while idle."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, _Stale):
        cause = cause.__context__
    return cause is not None


class _Answer(http.client.HTTPResponse):
    """An answer whose timeout is for the whole answer, not for each read from the socket.

    Otherwise a server that sends a byte now and then could block a worker, or the exit of the
    process, for ever.
    """

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        timeout = sock.gettimeout()
        if timeout is not None:
            deadline = time.monotonic() + timeout
            self.fp = io.BufferedReader(_Paced(sock, self.fp.detach(), deadline))

    def begin(self) -> None:
        try:
            said = self.fp.peek(1)
        except ConnectionError as error:
            raise _NothingSaid(str(error)) from error
        if not said:
            raise _NothingSaid("Remote end closed connection without response")
        super().begin()
        while 100 <= self.status < 200 and self.status != http.client.SWITCHING_PROTOCOLS:
            # `http.client` takes any 1xx but 100 for the answer, which follows it.
            self.headers = self.msg = None  # type: ignore[assignment]
            super().begin()


class _LetGo(_Base):
    """A connection that its process knows, from the first packet on.

    The exception is a connection that is being made at the moment of the fork: nothing was sent on
    it, and the child keeps it open until the child ends.
    """

    response_class = _Answer

    #: The descriptor, with its device and inode, while it belongs to this connection.
    _descriptor: tuple[int, int, int] | None = None

    #: The socket with which it was closed. An answer after which the server closes is still read
    #: from it, and keeps the descriptor open until then.
    _closing: Any = None

    #: The process of the session that this connection belongs to.
    _born: Birthplace

    def _new_conn(self) -> socket.socket:
        new = super()._new_conn()
        if not self._born.is_here():
            # In a child, gevent goes on with the parent's greenlets, wherever one of them waits:
            # for this connection, or in the check of a kept one that was closed here since. The
            # event that it was about to send belongs to the parent, which sends it.
            new.close()
            raise ConnectionAbortedError("this process was forked in the middle of a delivery")
        status = os.fstat(new.fileno())
        self._descriptor = (new.fileno(), status.st_dev, status.st_ino)
        _here.get().add(self)
        return new

    def exchange(self, request: bytes, seconds: float) -> http.client.HTTPResponse:
        """Send *request*, head and body, on this kept-alive connection.

        Raises what sockets raise, and `http.client.HTTPException`; then don't use it any more.
        """
        sock = self.sock
        if sock is None:
            raise _Stale("closed in a forked child")
        deadline = time.monotonic() + seconds
        sock.settimeout(seconds)
        try:
            sock.sendall(request)
        except TimeoutError:
            raise
        except OSError as error:
            raise _Stale(str(error)) from error
        sock.settimeout(max(LEAST, deadline - time.monotonic()))
        answer = self.response_class(sock, method="POST")
        try:
            answer.begin()
        except _NothingSaid as error:
            raise _Stale(str(error)) from error
        return answer

    def close(self) -> None:
        self._descriptor = None
        self._closing = self.sock or self._closing
        super().close()

    def let_go(self) -> None:
        """Close the descriptor in a forked child. Takes no lock, raises nothing."""
        numbers = [_detached(self.sock), _detached(self._closing)]
        descriptor = self._descriptor
        self.sock = self._closing = self._descriptor = None
        if descriptor is not None and descriptor[0] not in numbers:
            _cut_off(descriptor)
        for number in numbers:
            if number >= 0:
                with contextlib.suppress(OSError):
                    os.close(number)


def _cut_off(descriptor: tuple[int, int, int]) -> None:
    """Close a connection in a TLS handshake: its socket is a local variable of the code making it.

    That code runs in a thread that the child doesn't have, or in a greenlet that lives on, and will
    read, write and close by the number. So the number stays occupied, or it could be reused.
    """
    number, *identity = descriptor
    with contextlib.suppress(OSError):  # closed already, which is fine
        status = os.fstat(number)
        if identity == [status.st_dev, status.st_ino]:  # else the number was reused already
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number, inheritable=False)
            os.close(null)


def _detached(sock: Any) -> int:
    """The descriptor, detached from *sock*; -1: it has none.

    The socket object may be closed at any later time, when the number may be reused.
    """
    try:
        # With TLS inside the TLS of a proxy, a connection has an object that wraps a socket.
        return -1 if sock is None else int(getattr(sock, "socket", sock).detach())
    except OSError:  # a gevent socket, which TLS has detached already
        return -1


class _Stack(queue.LifoQueue[Any]):
    """What urllib3's pools use of a `queue.LifoQueue`, without a lock. Never waits."""

    def __init__(self, maxsize: int = 0) -> None:
        # Don't call the base class: it makes the locks.
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
            # Don't raise `queue.Full`, for which urllib3 logs a warning: at exit the main thread
            # sends as well as the workers, so one connection more than workers is normal.
            item.close()


def take_kept(pool: Any) -> _LetGo | None:
    """An idle connection of *pool* that looks alive, for `give_back`; None: there is none."""
    stack = pool.pool
    with contextlib.suppress(queue.Empty):
        while stack is not None:  # None: the pool was closed
            connection: _LetGo | None = stack.get()
            if connection is not None and connection.sock is not None:
                if not is_connection_dropped(connection):
                    return connection
                connection.close()
    return None


def give_back(pool: Any, connection: _LetGo) -> None:
    """Return *connection* to *pool*."""
    stack = pool.pool
    if stack is None:
        connection.close()
    else:
        stack.put(connection)


def _derived(pool: Any, born: Birthplace) -> Any:
    """A subclass of *pool*, a pool class of urllib3, with our connections and our queue."""
    if issubclass(pool.ConnectionCls, _LetGo):
        return pool
    # A pool class that isn't urllib3's keeps its own class of connections.
    base = original(pool.ConnectionCls) if original(pool) is pool else pool.ConnectionCls
    connection = type("Connection", (_LetGo, base), {"_born": born})
    return type("Pool", (pool,), {"ConnectionCls": connection, "QueueCls": _Stack})


def _adopt(manager: Any, born: Birthplace) -> None:
    """Let the pool manager make our pools, of whatever kind it makes (plain, TLS, SOCKS)."""
    manager.pool_classes_by_scheme = {
        scheme: _derived(pool, born) for scheme, pool in manager.pool_classes_by_scheme.items()
    }


class Adapter(requests.adapters.HTTPAdapter):
    """A transport adapter for a `requests.Session` that belongs to one process."""

    #: The classes that replace connections, and an adapter that uses them.
    _other: tuple[object, requests.adapters.HTTPAdapter] | None = None

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """For direct connections."""
        super().init_poolmanager(*args, **kwargs)
        self._born = Birthplace()
        _adopt(self.poolmanager, self._born)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        """For connections through a proxy; called for each request."""
        manager = super().proxy_manager_for(proxy, **kwargs)
        # Each time: another thread may have just made it, and not have reached this line yet.
        _adopt(manager, self._born)
        return manager

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        """A pool for a request made by the session."""
        if replaced() != WIRE:
            return super().get_connection_with_tls_context(*args, **kwargs)
        # Idle connections lead to the network, and our pools don't know the replacements. Use one
        # adapter while the replacements are in place: with each connection that it makes, vcr.py
        # removes its patch from all threads for a moment.
        there = connections()
        if self._other is None or self._other[0] != there:
            self._other = there, requests.adapters.HTTPAdapter(pool_maxsize=1, max_retries=0)
        return self._other[1].get_connection_with_tls_context(*args, **kwargs)

    def close(self) -> None:
        """Close all idle connections."""
        super().close()
        if self._other is not None:
            self._other[1].close()
            self._other = None

"""Connections of `requests` that a forked child can let go of.

A child inherits every descriptor of its parent. To use one would mix two streams, to shut one down
would end the parent's, and to keep one would make the parent's own close no close. So each process
knows its connections, and a child closes the descriptors, nothing else: no FIN, no TLS close-notify
goes out, because the parent still holds the connection.

urllib3 keeps idle connections in a queue with a lock, and empties it in a finalizer, at the end of
the process at the latest. In a child whose parent had a thread at that queue in the instant of the
fork, that never ends. So the queue here has no lock: it is a list, whose ``append`` and ``pop`` are
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

from valued._fork import Birthplace, PerProcess
from valued._seams import WIRE, connections, original, replaced
from valued._weak import WeakList

if TYPE_CHECKING:
    import socket

    _Base = urllib3.connection.HTTPConnection
else:
    # This may be imported amid a test, with a recorder's class in the place of urllib3's.
    _Base = original(urllib3.connection.HTTPConnection)

#: Seconds that an attempt has at least, however late it is.
LEAST: Final = 0.001


class _Connections(WeakList["_LetGo"]):
    """The connections of one process, those in use included."""

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
    """That, on a connection which had served before: it was closed while nobody looked."""


def is_stale(error: BaseException) -> bool:
    """Whether *error* comes of a kept-alive connection that was closed while it was kept."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, _Stale):
        cause = cause.__context__
    return cause is not None


class _Answer(http.client.HTTPResponse):
    """An answer that has, as a whole, the time that the socket has for a single read.

    Else a server that sends a byte now and then could hold a worker, or the end of the process, for
    as long as it likes.
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
            # `http.client` takes any of them but 100 for the answer, which comes behind.
            self.headers = self.msg = None  # type: ignore[assignment]
            super().begin()


class _LetGo(_Base):
    """A connection that its process knows of, from its first packet on.

    Out of reach is one that is still being made in the instant of the fork: it has carried nothing,
    and the child holds it open until it ends.
    """

    response_class = _Answer

    #: The descriptor with the device and inode that it had, for as long as it is this connection's.
    _descriptor: tuple[int, int, int] | None = None

    #: What it was closed with. An answer after which the server closes is read on from there, and
    #: holds the descriptor open until it has come.
    _closing: Any = None

    #: Where the session is at home that this connection belongs to.
    _born: Birthplace

    def _new_conn(self) -> socket.socket:
        new = super()._new_conn()
        if not self._born.is_here():
            # gevent goes on with its parent's greenlets in a child, wherever one of them waits: for
            # this connection, or in a look whether a kept one, let go of since, is still alive.
            # What it was about to send is the parent's, which sends it.
            new.close()
            raise ConnectionAbortedError("this process was forked in the middle of a delivery")
        status = os.fstat(new.fileno())
        self._descriptor = (new.fileno(), status.st_dev, status.st_ino)
        _here.get().add(self)
        return new

    def exchange(self, request: bytes, seconds: float) -> http.client.HTTPResponse:
        """Send *request*, which is all of it, on this connection; it has served before.

        Raises what sockets raise, and `http.client.HTTPException`; then the connection is spent.
        """
        sock = self.sock
        if sock is None:
            raise _Stale("let go of in a forked child")
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
        """Close the descriptor in a forked child; neither locks nor raises."""
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
    """Let go of a connection in a TLS handshake: its socket is a local of whoever makes it.

    That is a thread that the child doesn't have, or a greenlet that lives on, and will read, write
    and close by the number. So that it meets no stranger there, the number stays taken.
    """
    number, *identity = descriptor
    with contextlib.suppress(OSError):  # closed already, which is what is wanted
        status = os.fstat(number)
        if identity == [status.st_dev, status.st_ino]:  # else it is somebody else's by now
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number, inheritable=False)
            os.close(null)


def _detached(sock: Any) -> int:
    """The descriptor, taken out of *sock*; -1: it has none.

    Its object may be closed at any later time, when the number is somebody else's.
    """
    try:
        # With TLS inside the TLS of a proxy, what a connection has is no socket, but holds one.
        return -1 if sock is None else int(getattr(sock, "socket", sock).detach())
    except OSError:  # a socket of gevent's, which TLS has detached already
        return -1


class _Stack(queue.LifoQueue[Any]):
    """What urllib3's pools ask of a `queue.LifoQueue`, without a lock. Never waits."""

    def __init__(self, maxsize: int = 0) -> None:
        # Not the base's: it makes the locks.
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
        # Two threads may be here at once: one connection more than wanted is no harm.
        if len(self._content) < self.maxsize:
            self._content.append(item)
        elif item is not None:
            # Not `queue.Full`, of which urllib3 warns in the log: whoever ends the process sends
            # beside the workers, so one connection more than there are workers is in order.
            item.close()


def take_kept(pool: Any) -> _LetGo | None:
    """A connection of *pool* that is kept and looks alive, for `give_back`; None: there is none."""
    stack = pool.pool
    with contextlib.suppress(queue.Empty):
        while stack is not None:  # else somebody closed the pool
            connection: _LetGo | None = stack.get()
            if connection is not None and connection.sock is not None:
                if not is_connection_dropped(connection):
                    return connection
                connection.close()
    return None


def give_back(pool: Any, connection: _LetGo) -> None:
    """Keep *connection* in *pool*."""
    stack = pool.pool
    if stack is None:
        connection.close()
    else:
        stack.put(connection)


def _derived(pool: Any, born: Birthplace) -> Any:
    """*pool*, a class of urllib3's pools, with connections and a queue of ours."""
    if issubclass(pool.ConnectionCls, _LetGo):
        return pool
    # A pool of somebody else's has the connections that it is to have.
    base = original(pool.ConnectionCls) if original(pool) is pool else pool.ConnectionCls
    connection = type("Connection", (_LetGo, base), {"_born": born})
    return type("Pool", (pool,), {"ConnectionCls": connection, "QueueCls": _Stack})


def _adopt(manager: Any, born: Birthplace) -> None:
    """Have the pool manager make pools of ours, whatever kind it makes (plain, TLS, SOCKS)."""
    manager.pool_classes_by_scheme = {
        scheme: _derived(pool, born) for scheme, pool in manager.pool_classes_by_scheme.items()
    }


class Adapter(requests.adapters.HTTPAdapter):
    """A transport adapter for a `requests.Session` that belongs to one process."""

    #: What stands in the place of connections, and an adapter that uses it.
    _other: tuple[object, requests.adapters.HTTPAdapter] | None = None

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """For direct connections."""
        super().init_poolmanager(*args, **kwargs)
        self._born = Birthplace()
        _adopt(self.poolmanager, self._born)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        """For connections by a proxy; called for each request."""
        manager = super().proxy_manager_for(proxy, **kwargs)
        # Each time: another thread may have made it in this instant, and not come as far as this.
        _adopt(manager, self._born)
        return manager

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        """A pool for a request of the session's own."""
        if replaced() != WIRE:
            return super().get_connection_with_tls_context(*args, **kwargs)
        # Those that are kept lead to the network, and ours know nothing of what stands there now.
        # One adapter for as long as it does: with each connection that it makes, vcr.py takes its
        # patch away from all threads for an instant.
        there = connections()
        if self._other is None or self._other[0] != there:
            self._other = there, requests.adapters.HTTPAdapter(pool_maxsize=1, max_retries=0)
        return self._other[1].get_connection_with_tls_context(*args, **kwargs)

    def close(self) -> None:
        """Close all connections that are kept."""
        super().close()
        if self._other is not None:
            self._other[1].close()
            self._other = None

"""Pools of kept-alive connections for `requests`, without locks that a fork could leave held.

urllib3 keeps idle connections in a queue with a lock, and empties the queue in a finalizer, at the
latest when the process ends. If a thread of the parent held that lock at the fork, the child would
wait for it for ever. So the queue here has no lock: it is a list, whose ``append`` and ``pop`` are
atomic.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable
from typing import Any, ClassVar, Final, NamedTuple

import requests.adapters

from valued._http.addresses import Addresses
from valued._http.mocks import NETWORK, base_in_urllib3, connection_classes, what_is_replaced
from valued._http.wire import ForkAwareConnection, RacingConnection, connects_itself, socket_options
from valued._options import threads_are_off
from valued._process.clock import CLOCK
from valued._process.descriptors import is_readable
from valued._process.fork import ProcessToken
from valued._process.threads import is_hub_for_each_thread, start_thread

#: Seconds for which a connection is kept that isn't used. Load balancers, NATs and servers close
#: idle ones after 60 s and more.
IDLE_TIMEOUT: Final = 50.0


class LockFreeQueue(queue.LifoQueue[Any]):
    """What urllib3's pools use of a `queue.LifoQueue`, without a lock. Never waits.

    A connection that has been in it for more than *idle_timeout* seconds is closed.
    """

    idle_timeout: ClassVar[float] = IDLE_TIMEOUT

    def __init__(self, maxsize: int = 0) -> None:
        # Without a call of the base class, which would make the locks.
        self.maxsize = maxsize
        self._content: list[Any] = []

    def qsize(self) -> int:
        return len(self._content)

    def get(self, block: bool = False, timeout: float | None = None) -> Any:  # noqa: FBT001, FBT002
        while True:
            try:
                item, since = self._content.pop()
            except IndexError:
                raise queue.Empty from None
            if item is None or CLOCK.since_boot() - since <= self.idle_timeout:
                return item
            item.close()

    def put(self, item: Any, block: bool = False, timeout: float | None = None) -> None:  # noqa: FBT001, FBT002
        # Two threads may be here at once: one connection too many is harmless.
        if len(self._content) < self.maxsize:
            self._content.append((item, CLOCK.since_boot()))
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
                # Whether its descriptor is ours is looked at again before something is written.
                if not is_readable(connection.sock, 0):  # else the other end closed it
                    connection.expect_acknowledgements()
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


def _start(run: Callable[[], None]) -> None:
    if threads_are_off():
        raise RuntimeError("uWSGI runs without threads")
    if is_hub_for_each_thread():
        raise RuntimeError("gevent's sockets in a thread of its own would leave a hub behind")
    start_thread(run)


class ForkAwarePools(NamedTuple):
    """Makes pools of urllib3's that share what one adapter knows."""

    born: ProcessToken
    addresses: Addresses
    idle_timeout: float

    def derive(self, pool_class: Any) -> Any:
        """A subclass of *pool_class*, of urllib3, with our connections and our queue."""
        used = pool_class.ConnectionCls
        if issubclass(used, ForkAwareConnection):
            return pool_class
        if base_in_urllib3(pool_class) is pool_class:
            used = base_in_urllib3(used)  # not a recorder's; other code's class keeps its own
        # Connections through SOCKS, for example, are made in another way.
        racing = () if connects_itself(used) else (RacingConnection,)
        bases = (ForkAwareConnection, *racing, used)
        own = {"_born": self.born, "_addresses": self.addresses}
        queue_class = type("Queue", (LockFreeQueue,), {"idle_timeout": self.idle_timeout})
        names = {"ConnectionCls": type("Connection", bases, own), "QueueCls": queue_class}
        return type("Pool", (pool_class,), names)

    def apply_to(self, manager: Any) -> None:
        """Let the pool manager make our pools, of whatever kind it makes (plain, TLS, SOCKS)."""
        manager.pool_classes_by_scheme = {
            scheme: self.derive(pool) for scheme, pool in manager.pool_classes_by_scheme.items()
        }


class Adapter(requests.adapters.HTTPAdapter):
    """A transport adapter for a `requests.Session` that belongs to one process."""

    #: While connections are replaced: their classes, and an adapter that uses them.
    _replaced: tuple[object, requests.adapters.HTTPAdapter] | None = None

    def __init__(self, pool_size: int = 10, idle_timeout: float = IDLE_TIMEOUT) -> None:
        self._pools = ForkAwarePools(ProcessToken(), Addresses(_start), idle_timeout)
        super().__init__(pool_connections=1, pool_maxsize=pool_size, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """For direct connections."""
        super().init_poolmanager(*args, **kwargs, socket_options=socket_options())
        self._pools.apply_to(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        """For connections through a proxy; called for each request."""
        manager = super().proxy_manager_for(proxy, **kwargs, socket_options=socket_options())
        # Each time: another thread may have made it just now, and not have come to this line yet.
        self._pools.apply_to(manager)
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

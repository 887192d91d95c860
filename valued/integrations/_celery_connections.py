"""Connections of a `Relay` to the broker.

A publish must be bounded in time, and Celery's own pool of connections is not: it waits for a place
in the pool, and its sockets have no timeout. It isn't reset by ``os.fork`` either, only in children
of billiard. So a `Relay` has connections of its own, in each process.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Final

#: Seconds after which an idle connection isn't used again: NATs may have forgotten it.
_IDLE: Final = 50.0


class Connections:
    """A process's connections to the broker, with the seconds that bound each."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        # Guards both; held for list work only.
        self._lock = threading.Lock()
        self._idle: list[tuple[Any, float, float]] = []  # with its bound, and since when
        self._all: list[Any] = []  # those in use, too

    @contextlib.contextmanager
    def borrow(self, connect: Callable[[], Any], bound: float) -> Any:
        """An idle connection whose bound is not above *bound*, else a new one.

        An exception closes it and all that are idle: the broker may have been started again.
        """
        now = time.monotonic()
        with self._lock:
            found = [one for one in self._idle if one[1] <= bound and now - one[2] < _IDLE]
            one = found[-1] if found else None
            stale = [each for each in self._idle if now - each[2] >= _IDLE]
            self._idle = [each for each in self._idle if each is not one and each not in stale]
        self._end([each[0] for each in stale])
        connection, bound = (connect(), bound) if one is None else one[:2]
        if one is None:
            with self._lock:
                self._all.append(connection)
        try:
            yield connection
        except BaseException:
            self.close()
            self._end([connection])
            raise
        with self._lock:
            self._idle.append((connection, bound, time.monotonic()))

    def close(self) -> None:
        """Close what is idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        self._end([each[0] for each in idle])

    def _end(self, connections: list[Any]) -> None:
        with self._lock:
            self._all = [each for each in self._all if not any(each is one for one in connections)]
        for connection in connections:
            # Without taking leave of an AMQP broker: one that hangs would be waited for.
            with contextlib.suppress(Exception):
                # Not `connection.connection`: that would connect again after a failure.
                connection._connection.collect()  # noqa: SLF001
            with contextlib.suppress(Exception):
                connection.release()

    def disarm(self) -> None:
        """In a forked child: close the descriptors, without a word to the broker.

        py-amqp would shut down the connection, which is the parent's. redis-py knows of forks.
        """
        for connection in list(self._all):
            with contextlib.suppress(Exception):
                os.close(connection._connection.sock.detach())  # noqa: SLF001 - as above


def prepare(app: Any) -> None:
    """Import what a publish needs: at the end of a process, or after a fork, that may fail."""
    with app.connection_for_write() as connection:
        _ = connection.transport, app.backend, app.amqp.router, app.amqp.send_task_message


def connect(app: Any, timeout: float) -> Any:
    """A connection on which no step takes longer than *timeout*, with that for all its hosts."""
    one = app.connection_for_write()
    hosts = max(1, len(one.alt or ()))
    bound = timeout / hosts
    options = {
        **one.transport_options,
        "max_retries": hosts - 1,  # each host once: the client tries again
        "connect_retries_timeout": timeout,  # of all of them
        # Of Redis.
        "socket_timeout": bound,
        "socket_connect_timeout": bound,
        "retry_on_timeout": False,
    }
    if one.transport.driver_type == "amqp":
        # An answer for each message: else one that is written counts as taken.
        options.update(read_timeout=bound, write_timeout=bound, confirm_publish=True)
    one.release()
    # No heartbeat: nothing would send it while the connection is idle.
    return app.connection_for_write(connect_timeout=bound, heartbeat=0, transport_options=options)

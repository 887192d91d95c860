"""Finds out whether a mock or a recorder has replaced what requests pass through.

`responses`, `requests_mock` and vcr.py replace methods of `requests`, or the classes below it that
make connections, for as long as a test runs. They must see our requests, too. So the session sends
while something is replaced, in place of our own shorter way (see `route`).

vcr.py restores the originals for a moment, while it makes connections of its own. So a replacement
counts as removed only after a second look. And since two simultaneous requests can make vcr.py miss
one, our requests go one by one meanwhile.
"""

from __future__ import annotations

import contextlib
import operator
import socket
import threading
import time
import types
from collections.abc import Iterator
from typing import Any, Final

import requests.adapters
import requests.sessions
import urllib3.connectionpool
import urllib3.util.connection

from valued._process.clock import CLOCK
from valued._process.fork import PerProcess

#: What can be replaced: nothing; a method that a session calls; the classes that make connections.
NOTHING, METHOD, NETWORK = 0, 1, 2

#: Modules whose sockets lead to the real network. Any other one replaces it.
_SOCKET_MODULES: Final = frozenset({"_socket", "eventlet", "gevent", "socket", "socks"})

_Adapter: Final = requests.adapters.HTTPAdapter
_Session: Final = requests.sessions.Session
_HTTPPool: Final = urllib3.connectionpool.HTTPConnectionPool
_HTTPSPool: Final = urllib3.connectionpool.HTTPSConnectionPool

#: What the last look found, and what that means. Replaced as a whole: threads need no lock.
_last: tuple[tuple[Any, ...], int] = ((None,) * 9, NOTHING)

#: Seconds that the originals must stay in place before they count as restored.
_SETTLE_TIME: Final = 0.02

#: Held by the one request that uses replaced connections.
_one_request: Final = PerProcess(threading.RLock)


def what_is_replaced(timeout: float = 0.0) -> int:
    """`NOTHING`, `METHOD` or `NETWORK`.

    *timeout*: seconds that it may wait for another request in progress, where connections were
    replaced a moment ago. Called for each request: it takes 1 us.
    """
    global _last
    seen, meaning = _last
    now = _look()
    if all(map(operator.is_, now, seen)):  # a wrapper may be equal to what it wraps
        return meaning
    if meaning == NETWORK != _meaning(now):
        try:
            with one_at_a_time(timeout):
                end = CLOCK.monotonic() + _SETTLE_TIME
                while _meaning(now) != NETWORK and CLOCK.monotonic() < end:
                    time.sleep(_SETTLE_TIME / 20)
                    now = _look()
        except TimeoutError:
            return NETWORK
    _last = now, _meaning(now)
    return _last[1]


@contextlib.contextmanager
def one_at_a_time(timeout: float) -> Iterator[None]:
    """For a request while connections are replaced. Raises `TimeoutError` after *timeout* s."""
    lock = _one_request.get()
    if not lock.acquire(timeout=min(timeout, threading.TIMEOUT_MAX)):
        raise TimeoutError("timed out waiting for another request, while connections are replaced")
    try:
        yield
    finally:
        lock.release()


def connection_classes() -> tuple[Any, ...]:
    """The classes that made connections at the last look, without and with TLS, and sockets."""
    return _last[0][6:]


def base_in_urllib3(cls: Any) -> Any:
    """The class of urllib3 that *cls* is, or is derived from."""
    return next((base for base in cls.__mro__ if _package(base) == "urllib3"), cls)


def _look() -> tuple[Any, ...]:
    """What is in place now: six methods, then `connection_classes`."""
    return (
        _Adapter.send,
        _Session.send,
        _Session.get_adapter,
        _Session.request,
        _Session.post,
        _HTTPPool.urlopen,
        _HTTPPool.ConnectionCls,
        _HTTPSPool.ConnectionCls,
        socket.socket,
    )


def _meaning(look: tuple[Any, ...]) -> int:
    # Compare by where each comes from, not with what was there when this was imported: that may
    # happen during a test, with a mock in place.
    http, https, sock = map(_package, look[6:])
    if not (http == https == "urllib3" and sock in _SOCKET_MODULES):
        return NETWORK
    homes = (requests.adapters, *[requests.sessions] * 4, urllib3.connectionpool)
    return NOTHING if all(map(is_defined_in, look[:6], homes)) else METHOD


def connecting_is_replaced() -> bool:
    """Whether tests or applications replaced how urllib3 connects, for example by PySocks."""
    home = urllib3.util.connection
    return not is_defined_in(home.create_connection, home) or _package(socket.socket) == "socks"


def is_defined_in(method: object, home: types.ModuleType) -> bool:
    """Whether *method* is a function that the module *home* itself defines."""
    # Not by its name or module, nor by `isinstance`: a wrapper looks like what it wraps.
    return type(method) is types.FunctionType and method.__globals__ is vars(home)


def _package(cls: Any) -> str:
    return str(getattr(cls, "__module__", "")).partition(".")[0]

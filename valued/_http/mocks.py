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
import socket
import threading
import time
import types
from collections.abc import Iterator
from typing import Any, Final

import requests.adapters
import requests.sessions
import urllib3.connectionpool

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

#: What the last look found: six methods, three classes, and what that means. One tuple, replaced as
#: a whole, so that threads need no lock.
_last: tuple[Any, ...] = (None,) * 9 + (NOTHING,)

#: Seconds that the originals must stay in place before they count as restored.
_SETTLE_TIME: Final = 0.02

#: Held by the one request that uses replaced connections.
_one_request: Final = PerProcess(threading.RLock)


def what_is_replaced(timeout: float = 0.0) -> int:
    """`NOTHING`, `METHOD` or `NETWORK`.

    *timeout*: seconds that it may wait for another request in progress, where connections were
    replaced a moment ago. Called for each request, so it has no loop: it takes 0.2 us.
    """
    adapter_send, send, get_adapter, request, post, urlopen, http, https, sock, meaning = _last
    if (
        _Adapter.send is adapter_send
        and _Session.send is send
        and _Session.get_adapter is get_adapter
        and _Session.request is request
        and _Session.post is post
        and _HTTPPool.urlopen is urlopen
        and _HTTPPool.ConnectionCls is http
        and _HTTPSPool.ConnectionCls is https
        and socket.socket is sock
    ):
        return int(meaning)
    return _look_again(timeout)


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
    """The classes that made connections at the last look."""
    return _last[6:9]


def base_in_urllib3(cls: Any) -> Any:
    """The class of urllib3 that *cls* is, or is derived from."""
    return next((base for base in cls.__mro__ if _package(base) == "urllib3"), cls)


def _look_again(timeout: float) -> int:
    global _last
    now = _look()
    if _last[-1] == NETWORK != now[-1]:
        try:
            with one_at_a_time(timeout):
                end = CLOCK.monotonic() + _SETTLE_TIME
                while now[-1] != NETWORK and CLOCK.monotonic() < end:
                    time.sleep(_SETTLE_TIME / 20)
                    now = _look()
        except TimeoutError:
            return NETWORK
    _last = now
    return int(now[-1])


def _look() -> tuple[Any, ...]:
    # Compare by where each comes from, not with what was there when this was imported: that may
    # happen during a test, with a mock in place.
    of_sessions = (_Session.send, _Session.get_adapter, _Session.request, _Session.post)
    methods = (_Adapter.send, *of_sessions, _HTTPPool.urlopen)
    homes = (requests.adapters, *[requests.sessions] * len(of_sessions), urllib3.connectionpool)
    classes = (_HTTPPool.ConnectionCls, _HTTPSPool.ConnectionCls, socket.socket)
    http, https, sock = map(_package, classes)
    if not (http == https == "urllib3" and sock in _SOCKET_MODULES):
        meaning = NETWORK
    elif not all(map(_is_defined_in, methods, homes)):
        meaning = METHOD
    else:
        meaning = NOTHING
    return (*methods, *classes, meaning)


def _is_defined_in(method: object, home: types.ModuleType) -> bool:
    # Not by its name or module, nor by `isinstance`: a wrapper looks like what it wraps.
    return type(method) is types.FunctionType and method.__globals__ is vars(home)


def _package(cls: Any) -> str:
    return str(getattr(cls, "__module__", "")).partition(".")[0]

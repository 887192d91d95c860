"""Finds out whether a mock or a recorder has replaced what requests pass through.

`responses`, `requests_mock` and vcr.py replace methods of `requests`, or the connections below, for
as long as a test runs. They must see our requests, too.

vcr.py restores the originals for a moment, while it makes connections of its own. So a replacement
counts as removed only after a second look. And since two simultaneous requests can make it miss
one, our requests go one by one.
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

from valued._process.fork import PerProcess

#: What was replaced: nothing; a method that a session calls; the classes of connections.
NOTHING, METHOD, WIRE = 0, 1, 2

#: Modules whose sockets are real ones, used in production; all others replace the network.
_SOCKETS: Final = frozenset({"_socket", "eventlet", "gevent", "socket", "socks"})

_Adapter: Final = requests.adapters.HTTPAdapter
_Session: Final = requests.sessions.Session
_Plain: Final = urllib3.connectionpool.HTTPConnectionPool
_TLS: Final = urllib3.connectionpool.HTTPSConnectionPool

#: What the last look found in each place, and what that means. One tuple, replaced as a whole.
_last: tuple[Any, ...] = (None,) * 9 + (NOTHING,)

#: Seconds that the originals must stay in place before they count as restored.
_PATIENCE: Final = 0.02

#: Held by the one request that uses the replaced connections.
_turn: Final = PerProcess(threading.RLock)


def replaced(seconds: float = 0.0) -> int:
    """What was replaced. Called for each request, therefore without a loop: it takes 0.2 us.

    *seconds*: how long it may wait for another request that is in progress.
    """
    adapter_send, send, get_adapter, request, post, urlopen, plain, tls, sock, found = _last
    if (
        _Adapter.send is adapter_send
        and _Session.send is send
        and _Session.get_adapter is get_adapter
        and _Session.request is request
        and _Session.post is post
        and _Plain.urlopen is urlopen
        and _Plain.ConnectionCls is plain
        and _TLS.ConnectionCls is tls
        and socket.socket is sock
    ):
        return int(found)
    return _look(seconds)


@contextlib.contextmanager
def alone(seconds: float) -> Iterator[None]:
    """For a request while connections are replaced. Raises `TimeoutError` after *seconds*."""
    turn = _turn.get()
    if not turn.acquire(timeout=min(seconds, threading.TIMEOUT_MAX)):
        raise TimeoutError("timed out waiting for another request, while connections are replaced")
    try:
        yield
    finally:
        turn.release()


def connections() -> tuple[Any, ...]:
    """The classes that made connections at the last look."""
    return _last[6:9]


def _look(seconds: float) -> int:
    global _last
    found = _present()
    if _last[-1] == WIRE != found[-1]:
        try:
            with alone(seconds):
                end = time.monotonic() + _PATIENCE
                while found[-1] != WIRE and time.monotonic() < end:
                    time.sleep(_PATIENCE / 20)
                    found = _present()
        except TimeoutError:
            return WIRE
    _last = found
    return int(found[-1])


def _present() -> tuple[Any, ...]:
    """What is in each place now, and what that means."""
    # Compare by where each comes from, not with what was there when this was imported: that may
    # happen during a test, with a mock in place.
    of_sessions = (_Session.send, _Session.get_adapter, _Session.request, _Session.post)
    methods = (_Adapter.send, *of_sessions, _Plain.urlopen)
    homes = (requests.adapters, *[requests.sessions] * len(of_sessions), urllib3.connectionpool)
    classes = (_Plain.ConnectionCls, _TLS.ConnectionCls, socket.socket)
    if _root(classes[-1]) not in _SOCKETS or {_root(one) for one in classes[:2]} != {"urllib3"}:
        found = WIRE
    elif not all(map(_is_at_home, methods, homes)):
        found = METHOD
    else:
        found = NOTHING
    return (*methods, *classes, found)


def _is_at_home(method: object, home: types.ModuleType) -> bool:
    # Not by its name or module, nor by `isinstance`: a wrapper looks like what it wraps.
    return type(method) is types.FunctionType and method.__globals__ is vars(home)


def _root(one: Any) -> str:
    return str(getattr(one, "__module__", "")).partition(".")[0]


def original(one: Any) -> Any:
    """The class of urllib3 that *one* is, or is derived from."""
    return next((base for base in one.__mro__ if _root(base) == "urllib3"), one)

"""Whether somebody has put something of their own where requests pass: a mock, or a recorder.

`responses`, `requests_mock` and vcr.py replace methods of `requests`, or the connections below, for
as long as a test runs. Who does so is to see our requests as they see all others.

vcr.py puts the originals back for the instants in which it makes connections of its own. So what
was replaced is believed to be gone only after a second look; and as two threads at once leave it
with the originals in place, our requests go one by one.
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

from valued._fork import PerProcess

#: Nothing; a method that a session calls; what connections are made of.
NOTHING, METHOD, WIRE = 0, 1, 2

#: Modules whose sockets do what sockets do, in production: the rest stands in for a network.
_SOCKETS: Final = frozenset({"_socket", "eventlet", "gevent", "socket", "socks"})

_Adapter: Final = requests.adapters.HTTPAdapter
_Session: Final = requests.sessions.Session
_Plain: Final = urllib3.connectionpool.HTTPConnectionPool
_TLS: Final = urllib3.connectionpool.HTTPSConnectionPool

#: What was found in each place, and what it is. One tuple, so that threads see one or the other.
_last: tuple[Any, ...] = (None,) * 9 + (NOTHING,)

#: Seconds that originals have to stay in their place until they are believed to be back.
_PATIENCE: Final = 0.02

#: Held by the one request that passes what stands in the place of connections.
_turn: Final = PerProcess(threading.RLock)


def replaced(seconds: float = 0.0) -> int:
    """What is not in its place. For each request, and so without a loop: it takes 0.2 us.

    *seconds*: how long it may wait for another request that is under way.
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
    """For a request where connections are replaced. Raises `TimeoutError` after *seconds*."""
    turn = _turn.get()
    if not turn.acquire(timeout=min(seconds, threading.TIMEOUT_MAX)):
        raise TimeoutError("timed out behind another request, while connections are replaced")
    try:
        yield
    finally:
        turn.release()


def connections() -> tuple[Any, ...]:
    """What connections were made of at the last look."""
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
    """What is in each place, and what that is."""
    # By where each comes from, not by what was there when this was imported: that may happen amid
    # a test, with a mock in place.
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
    # Not by its name or module, nor by `isinstance`: a wrapper passes for what it wraps.
    return type(method) is types.FunctionType and method.__globals__ is vars(home)


def _root(one: Any) -> str:
    return str(getattr(one, "__module__", "")).partition(".")[0]


def original(one: Any) -> Any:
    """The class of urllib3's that *one* is, or which it derives from and stands in the place of."""
    return next((base for base in one.__mro__ if _root(base) == "urllib3"), one)

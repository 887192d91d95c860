"""Descriptors of ours, of which other code may know nothing.

Code that closes all descriptors, as daemons do, closes ours as well, and what the application opens
next gets their numbers. Two things are done about that. Descriptors that are kept or written to
have high numbers, which the system gives to others only when hundreds are open. And device and
inode are compared before something is done by the number. An instant lies between that look and the
system call, and a TLS handshake makes no look: only the first of the two helps there.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import traceback
from typing import Any, Final

if sys.platform != "win32":  # pragma: no branch - Windows
    import fcntl

#: The numbers of descriptors that are kept begin here. A new descriptor gets the lowest number that
#: is free; and most systems allow 1,024.
HIGH: Final = 512

#: Linux's socket option ``SO_COOKIE``, which Python doesn't name.
_COOKIE: Final = 57

#: A number, with the device and the inode that it stands for.
Identity = tuple[int, int, int]


def identity(number: int) -> Identity | None:
    """A descriptor, with the device and inode that it stands for; None: it is closed."""
    try:
        status = os.fstat(number)
    except OSError:
        return None
    return number, status.st_dev, status.st_ino


def cookie(sock: Any) -> bytes:
    """What the system gives to this socket only; empty: it has none, for example not on macOS.

    It tells sockets apart as `identity` does. But Python holds the interpreter's lock meanwhile,
    where `os.fstat` lets go of it, and a thread that computes may then keep it for 5 ms.
    """
    if sys.platform != "linux":  # pragma: no cover - another system
        return b""
    try:
        return bytes(sock.getsockopt(socket.SOL_SOCKET, _COOKIE, 8))
    except OSError:  # it is closed, no socket any more, or the system doesn't know the option
        return b""


def detach(sock: Any) -> int:
    """The descriptor, detached from *sock*; -1: it has none.

    The socket object may be closed at any later time, when the number may be in use again.
    """
    try:
        # With TLS inside the TLS of a proxy, a connection has an object that wraps a socket.
        return -1 if sock is None else int(getattr(sock, "socket", sock).detach())
    except OSError:  # a gevent socket, which TLS has detached already
        return -1


def close(sock: Any, known: Identity | None) -> None:
    """Close *sock*, unless its number means something else than *known* by now. Raises nothing."""
    if known is None or identity(known[0]) != known:
        detach(sock)  # else it would close, at some time, what has its number now
    else:
        with contextlib.suppress(OSError):
            sock.close()


def move_up(number: int) -> int:
    """The same open file under a high number. If there is none, it stays as it is."""
    if sys.platform == "win32":  # pragma: no cover - no outbox there
        return number
    try:
        high = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, HIGH)
    except (OSError, ValueError):  # fewer are allowed, or all are in use
        return number
    with contextlib.suppress(OSError):  # other code closed it in this instant
        # `os.fstat` lets go of the interpreter's lock, so any other thread may run after it. The
        # last look keeps the lock: the outbox's files are non-blocking, and hardly any of other
        # code is.
        if _is_same_file(high, number) and os.get_blocking(number) == os.get_blocking(high):
            os.close(number)
    return high


def new_socket(family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket with a high number. Raises `OSError`.

    A signal handler that raises in here leaves no descriptor open.
    """
    low = socket.socket(family, kind, protocol)
    if sys.platform == "win32":  # pragma: no cover - all tests of numbers need Unix
        return low
    numbers: list[int] = []
    try:
        # Straight into the list: nothing can be raised between the system call and an assignment.
        numbers.extend(map(fcntl.fcntl, [low.fileno()], [fcntl.F_DUPFD_CLOEXEC], [HIGH]))
        high = socket.socket(family, kind, protocol, fileno=numbers[0])
    except (OSError, ValueError):  # as in `move_up`
        return low
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # frees, and so closes, a socket made already
        for number in numbers:
            if _is_same_file(number, low.fileno()):
                os.close(number)
        low.close()
        raise
    known = cookie(high)
    if cookie(low) == known if known else _is_same_file(high.fileno(), low.fileno()):
        low.close()
    else:
        low.detach()  # in this instant, other code closed it, and something else has its number
    return high


def _is_same_file(number: int, other: int) -> bool:
    one, two = identity(number), identity(other)
    return one is not None and two is not None and one[1:] == two[1:]


def is_readable(sock: Any, seconds: float) -> bool:
    """Whether, within *seconds*, there is something to read from *sock*, or its other end closed.

    urllib3's function for this chooses the system call once; gevent and eventlet replace or remove
    it, maybe later.
    """
    if not hasattr(select, "poll"):
        return bool(select.select([sock], [], [], seconds)[0])
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(seconds * 1000))

"""Reading an answer, and giving each step of a request the time that is left of it."""

from __future__ import annotations

import http.client
import io
import socket
from typing import TYPE_CHECKING, Any, Final

from valued._process.clock import CLOCK
from valued._process.descriptors import is_readable

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds that a request gets at least, however little is left: a socket's timeout of 0 would mean
#: not to wait at all, and raise another exception.
MIN_TIMEOUT: Final = 0.001

#: Why a connection can't be used any more.
CLOSED_BY_OTHERS: Final = "other code closed the descriptor of this connection"


def remaining(deadline: float) -> float:
    """Seconds until *deadline*, a time of `CLOCK.monotonic`; at least `MIN_TIMEOUT`."""
    return max(MIN_TIMEOUT, deadline - CLOCK.monotonic())


class DeadlineReader(io.RawIOBase):
    """Reads from the socket of a connection until a deadline, a time of `CLOCK.monotonic`.

    *has_begun*: whether there is something to read already.
    """

    def __init__(
        self,
        sock: socket.socket,
        raw: io.RawIOBase,
        deadline: float,
        is_ours: Callable[[], bool],
        *,
        has_begun: bool = False,
    ) -> None:
        self._sock = sock
        self._raw = raw
        self._deadline = deadline
        self._is_ours = is_ours
        self._has_begun = has_begun

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def readinto(self, buffer: Any, /) -> int | None:
        sock, left = self._sock, self._deadline - CLOCK.monotonic()
        has_begun, self._has_begun = self._has_begun, False
        if left <= 0 or not (has_begun or _has_read(sock) or is_readable(sock, left)):
            raise TimeoutError("timed out")
        if not self._is_ours():  # or the bytes of another socket would be read
            raise ConnectionAbortedError(CLOSED_BY_OTHERS)
        if not is_plain(sock):  # it may have to read more than there is now
            sock.settimeout(remaining(self._deadline))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def is_plain(sock: Any) -> bool:
    """Whether it is a socket without TLS."""
    return isinstance(sock, socket.socket) and not hasattr(sock, "pending")


def _has_read(sock: Any) -> bool:
    """Whether more was read from the system than was asked for, or that isn't known."""
    pending = getattr(sock, "pending", None)
    if pending is not None:
        return bool(pending())
    return not isinstance(sock, socket.socket)  # TLS in the TLS of a proxy


class TimedResponse(http.client.HTTPResponse):
    """A response with one timeout for all of it, in place of one for each read from the socket.

    With a timeout for each read, a server that sends a byte now and then could block a worker, or
    the exit of the process, for ever. *deadline*: that of a response whose first byte is
    there; None: the socket's timeout from now on.
    """

    def __init__(
        self,
        sock: socket.socket,
        *args: Any,
        is_ours: Callable[[], bool],
        deadline: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(sock, *args, **kwargs)
        has_begun, timeout = deadline is not None, sock.gettimeout()
        if deadline is None and timeout is not None:
            deadline = CLOCK.monotonic() + timeout
        if deadline is not None:
            raw = self.fp.detach()
            reader = DeadlineReader(sock, raw, deadline, is_ours, has_begun=has_begun)
            self.fp = io.BufferedReader(reader)

    def begin(self) -> None:
        super().begin()
        while 100 <= self.status < 200 and self.status != http.client.SWITCHING_PROTOCOLS:
            # `http.client` skips 100 only, and would return any other 1xx as the response.
            self.headers = self.msg = None  # type: ignore[assignment]
            super().begin()

"""The connections of the mock server: a bounded number, and a bounded time for each request.

Each has a thread, which blocks while it reads and writes. It is ended by shutting down its socket:
the thread then reads the end of the stream, and can still answer.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import threading
import time
from typing import Final

#: The most connections: some for each of a hundred workers, and half of the descriptors that most
#: systems allow.
MAX_CONNECTIONS: Final = 512

#: Seconds that a request may take to arrive, from its first byte on, and its sender to read the
#: answer: far above a client's timeout.
REQUEST_TIMEOUT: Final = 30.0

#: The most streams. They last as long as their readers like, so they don't count as connections.
MAX_STREAMS: Final = 16

#: Seconds to wait for a connection to end before others are looked after again.
A_MOMENT: Final = 0.1


class Doing(enum.Enum):
    """What a connection does."""

    WAITING = enum.auto()  # for the first byte of a request
    READING = enum.auto()
    ANSWERING = enum.auto()  # it is being delayed, or reported
    SENDING = enum.auto()
    STREAMING = enum.auto()  # there is nothing to send
    ENDING = enum.auto()  # it was told to


class Connections:
    """Those that are open. Any thread may call.

    Where there are *most*, and one more comes, the one ends that has waited longest for its next
    request, or for the rest of one. If requests are being answered on all of them, the new one has
    to wait. *timeout*: seconds; see `REQUEST_TIMEOUT`.
    """

    def __init__(self, most: int = MAX_CONNECTIONS, timeout: float = REQUEST_TIMEOUT) -> None:
        self.count = 0
        self._most = most
        self._timeout = timeout
        # Guards all; held for short work on the dict only.
        self._changed = threading.Condition()  # notified when a connection ends
        # The one that has done the same for the longest time comes first.
        self._open: dict[socket.socket, tuple[Doing, float]] = {}
        self._streams: set[socket.socket] = set()  # those of them that are streams
        self._readers: set[socket.socket] = set()  # those of pages and programs

    def __len__(self) -> int:
        return len(self._open)

    def make_room(self) -> bool:
        """Whether there is room for one more; if not, end one, and wait for a moment."""
        with self._changed:
            if not self._has_room():
                self._end_one()
                self._changed.wait_for(self._has_room, A_MOMENT)
            return self._has_room()

    def begin_stream(self, connection: socket.socket) -> bool:
        """*connection* is a stream from now on; False: there are enough, or it was told to end."""
        with self._changed:
            if len(self._streams) >= MAX_STREAMS or self._open[connection][0] is Doing.ENDING:
                return False
            self._streams.add(connection)
            self._changed.notify_all()
            return True

    def save_descriptors(self) -> None:
        """The system has no descriptor for another one: end one, and wait for a moment."""
        with self._changed:
            self._end_one()
            self._changed.wait(A_MOMENT)

    def end_slow(self) -> None:
        """End those whose request has not arrived in time, or whose answer was not read."""
        latest = time.monotonic() - self._timeout
        with self._changed:
            for connection, (doing, since) in self._open.items():
                if since < latest and doing in (Doing.READING, Doing.SENDING):
                    reads = doing is Doing.READING
                    self._end(connection, socket.SHUT_RD if reads else socket.SHUT_RDWR)

    def end_all(self, timeout: float) -> None:
        """End all, each after the answer that it is at; wait for *timeout* seconds at most.

        A stream has no such end: it is broken off.
        """
        with self._changed:
            for connection in self._open:
                is_stream = connection in self._streams
                self._end(connection, socket.SHUT_RDWR if is_stream else socket.SHUT_RD)
            self._changed.wait_for(lambda: not self._open, timeout)

    def opened(self, connection: socket.socket) -> None:
        """There is a new one."""
        with self._changed:
            self._open[connection] = Doing.WAITING, time.monotonic()
            self.count += 1

    def is_reader(self, connection: socket.socket) -> None:
        """*connection* is no sender's, so it isn't counted."""
        with self._changed:
            if connection not in self._readers:
                self._readers.add(connection)
                self.count -= 1

    def does(self, connection: socket.socket, doing: Doing) -> bool:
        """*connection* does something else from now on; False: no, it was told to end."""
        with self._changed:
            if self._open[connection][0] is Doing.ENDING:
                return False
            del self._open[connection]
            self._open[connection] = doing, time.monotonic()
            return True

    def closing(self, connection: socket.socket) -> None:
        """*connection* is about to be closed."""
        with self._changed:
            self._open.pop(connection, None)
            self._streams.discard(connection)
            self._readers.discard(connection)
            self._changed.notify_all()

    def _has_room(self) -> bool:
        return len(self._open) - len(self._streams) < self._most

    def _end_one(self) -> None:
        for connection, (doing, _) in self._open.items():
            if doing in (Doing.WAITING, Doing.READING):
                self._end(connection, socket.SHUT_RD)
                return

    def _end(self, connection: socket.socket, how: int) -> None:
        self._open[connection] = Doing.ENDING, 0.0
        with contextlib.suppress(OSError):  # its other end was faster
            connection.shutdown(how)

"""An address at which nothing answers, on Linux.

The queue of a listener is full: the kernel drops what comes, as a network that leads nowhere does.
"""

from __future__ import annotations

import socket

import pytest


class DeadAddress:
    """A listener on *port* that takes no connection any more. Nothing answers there."""

    def __init__(self, address: str, port: int) -> None:
        self._sockets = [socket.socket()]
        self._sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sockets[0].bind((address, port))
        self._sockets[0].listen(0)
        for _ in range(3):  # the queue has room for one, or two
            self._sockets.append(socket.socket())
            self._sockets[-1].setblocking(False)
            self._sockets[-1].connect_ex((address, port))
        with pytest.raises(TimeoutError):
            socket.create_connection((address, port), timeout=0.05).close()

    def close(self) -> None:
        for one in self._sockets:
            one.close()

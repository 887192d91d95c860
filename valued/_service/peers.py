"""Finds the process at the other end of a connection, with `psutil`.

Only processes of this machine can be found, and maybe none of other users: the system decides that.
If several processes share a socket after forks, the process that made it is found.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

#: How many times to look, if the process that was found ends before its name is read.
LOOKS: Final = 3

#: The addresses of a connection, the peer's first.
Ends: TypeAlias = tuple[tuple[str, int], tuple[str, int]]


class Process(NamedTuple):
    """The process at the other end; both are None if it is not known."""

    pid: int | None = None
    name: str | None = None


class Peers:
    """Finds processes by connections. Any thread may call."""

    def __init__(self) -> None:
        # Held for one look at all sockets, which takes some 20 ms. Threads that wait for it
        # meanwhile share the next look.
        self._lock = threading.Lock()
        self._looked_at = 0.0
        self._holders: dict[Ends, int] = {}

    def find(self, theirs: tuple[Any, ...], ours: tuple[Any, ...]) -> Process:
        """The process whose socket has the address *theirs* and is connected to *ours*."""
        ends = _address(theirs), _address(ours)
        import psutil

        try:
            for _ in range(LOOKS):
                pid = self._holder(ends)
                if pid is None:
                    break
                try:
                    maker = _maker(psutil.Process(pid), ends)
                    return Process(maker.pid, maker.name())
                except psutil.NoSuchProcess:
                    continue
        except Exception:  # noqa: BLE001 - no event is refused because its sender is unknown
            return Process()
        return Process()

    def _holder(self, ends: Ends) -> int | None:
        asked_at = time.monotonic()
        with self._lock:
            # An earlier look may have seen an older connection with this port.
            if self._looked_at <= asked_at:
                self._looked_at = time.monotonic()
                self._holders = {
                    found: pid for pid, socket in _sockets() if (found := _ends(socket)) and pid
                }
            return self._holders.get(ends)


def _sockets() -> Iterable[tuple[int | None, Any]]:
    import psutil

    try:
        return [(socket.pid, socket) for socket in psutil.net_connections("tcp")]
    except psutil.AccessDenied:  # macOS shows all of them to root only, and each user their own
        found = []
        for process in psutil.process_iter():
            found += [(process.pid, socket) for socket in _of(process)]
        return found


def _of(process: Any) -> list[Any]:
    """The sockets of a process; none if access is denied."""
    import psutil

    try:
        # psutil before 6.0 has the second name only.
        look = getattr(process, "net_connections", None) or process.connections
        return list(look("tcp"))
    except psutil.Error:
        return []


def _maker(process: Any, ends: Ends) -> Any:
    """The oldest one of *process* and its ancestors that hold the socket: forks inherit it."""
    parent = process.parent()
    while parent is not None and any(_ends(socket) == ends for socket in _of(parent)):
        process, parent = parent, parent.parent()
    return process


def _ends(socket: Any) -> Ends | None:
    return (_address(socket.laddr), _address(socket.raddr)) if socket.raddr else None


def _address(address: tuple[Any, ...]) -> tuple[str, int]:
    host, port = address[:2]  # an IPv6 address has four parts
    return host.removeprefix("::ffff:").partition("%")[0], port

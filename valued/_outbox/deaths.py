"""Noticing at once that another process has died, on Linux.

A thread waits in one `poll` for the ends of the processes that share the directory, each by a
descriptor of the kernel's (a pidfd), and for datagrams with the names of new owners. A new owner
sends its name to the owners of its parent, and to those that its first scan found alive. Nothing of
it is needed: what was missed is found by the next scan.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import select
import struct
from typing import TYPE_CHECKING, Any, Final

from valued._outbox.announce import address, is_possible, tell
from valued._outbox.marks import read_mark
from valued._process.fork import PerProcess

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Set

    from valued._outbox.workspace import Workspace

#: Processes that are watched at most, as each takes a descriptor. The scan finds the others.
MOST_WATCHED: Final = 200

#: Names that came together from which on some may have been lost: the kernel keeps ten or more.
MANY_NAMES: Final = 8

#: The longest time that `poll` takes, in milliseconds.
_LONGEST: Final = 2**31 - 1

_NAME: Final = re.compile(rb"[0-9a-f]{32}")
_CREDENTIALS: Final = struct.Struct("3i")  # of the sender, by the kernel: pid, user, group


class _Descriptor:
    """A descriptor, of a socket maybe, that is closed only while its number is its own.

    Code that closes all descriptors may close it, and its number may be used again.
    """

    def __init__(self, number: int, inbox: socket.socket | None = None) -> None:
        self.number = number
        self.socket = inbox
        self._identity = self._look()
        _open.get().add(self)

    def _look(self) -> tuple[int, int] | None:
        try:
            status = os.fstat(self.number)
        except OSError:  # pragma: no cover - other code closed it
            return None
        return status.st_ino, status.st_dev

    def is_there(self) -> bool:
        """Whether the number is still its own."""
        return self._identity is not None and self._look() == self._identity

    def close(self) -> None:
        """Close it. Raises nothing."""
        _open.get().discard(self)
        self.close_number()

    def close_number(self) -> None:
        """Close it, in any process. Raises nothing."""
        is_there, self._identity = self.is_there(), None
        if self.socket is not None:
            self.socket.detach()  # else it closes the number by itself, whatever that is by then
        if is_there:  # pragma: no branch - else other code closed it
            with contextlib.suppress(OSError):
                os.close(self.number)


def _close_inherited(descriptors: Set[_Descriptor]) -> None:
    for descriptor in list(descriptors):
        descriptor.close_number()


# A child closes inherited descriptors, as those of files.
_open: Final[PerProcess[set[_Descriptor]]] = PerProcess(set, _close_inherited)


def _inbox(owner: str) -> _Descriptor:
    """Where *owner* can be told names. Raises `OSError`."""
    import socket

    inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        inbox.settimeout(0)
        inbox.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        inbox.bind(address(owner))
    except BaseException:  # pragma: no cover - no descriptor, or an interruption
        inbox.close()
        raise
    return _Descriptor(inbox.fileno(), inbox)


class Deaths:
    """The deaths of processes that share the directory. Nothing raises an `Exception`.

    *look*: makes a scan due. Any thread may call, but `wait` only one at a time: the descriptors
    are its own.
    """

    def __init__(self, workspace: Workspace, look: Callable[[], object]) -> None:
        self._workspace = workspace
        self._look = look
        self._owner = ""  # under whose name the inbox is
        self._inbox: _Descriptor | None = None
        self._ends = False
        self._watched: dict[str, _Descriptor] = {}  # processes, by the name of their owner
        self._heard: collections.deque[str] = collections.deque()  # owners to be watched
        self._seen: Set[str] = frozenset()  # living owners that the last scan found

    def watch(self) -> bool:
        """See `Journal.watch`."""
        workspace = self._workspace
        owner = workspace.owner
        if owner is None or not is_possible():
            return False
        if self._inbox is not None:
            return True  # pragma: no cover - another thread was faster
        try:
            inbox = _inbox(owner.name)
        except OSError:  # pragma: no cover - no descriptor is free
            return False
        with workspace.lock:
            is_late = workspace.owner is not owner  # released meanwhile
            if not is_late:  # pragma: no branch - else released in this instant
                self._ends, self._owner, self._seen = False, owner.name, frozenset()
                self._inbox = inbox
        if is_late:  # pragma: no cover - likewise
            inbox.close()
            return False
        self._look()  # which owners began before, nothing told
        return True

    def unwatch(self) -> None:
        """See `Journal.unwatch`."""
        self._ends = True
        self._ring()

    def _ring(self) -> None:
        """Wake the thread that waits."""
        inbox = self._inbox
        if inbox is not None and inbox.socket is not None and inbox.is_there():
            # An error: it has something to read anyway, or it is being closed.
            with contextlib.suppress(OSError):
                inbox.socket.sendto(b"", address(self._owner))

    def see(self, owner: str, others: Set[str]) -> None:
        """A scan of *owner*, which is this process, found that *others* are alive."""
        if not is_possible():
            return
        if self._inbox is not None and self._owner != owner:
            self.unwatch()  # pragma: no cover - it has begun under another name
        new, self._seen = others - self._seen, frozenset(others)
        for name in new:
            tell(name, owner)
        if new and self._inbox is not None:
            self._heard.extend(new)
            self._ring()

    def wait(self, timeout: float) -> bool:
        """See `Journal.wait_for_deaths`."""
        inbox = self._inbox
        goes_on = False
        try:
            goes_on = inbox is not None and self._wait(inbox, timeout)
        except OSError:  # pragma: no cover - other code closed a descriptor
            pass
        finally:
            if not goes_on:
                self._close()
        return goes_on

    def _wait(self, inbox: _Descriptor, timeout: float) -> bool:
        """Wait once. Whether to go on. Raises `OSError`."""
        if self._watch_heard():  # pragma: no cover - it died before it was looked at
            self._look()
            return not self._ends
        if self._ends:  # pragma: no cover - ended in this instant
            return False
        numbers = {process.number: name for name, process in self._watched.items()}
        poll = select.poll()
        for number in (inbox.number, *numbers):
            poll.register(number, select.POLLIN)
        ready = poll.poll(None if numbers else min(max(0.0, timeout) * 1000, _LONGEST))
        for number, _ in ready:
            if number != inbox.number:
                self._watched.pop(numbers[number]).close()
                self._look()
            elif inbox.is_there():
                self._listen(inbox.socket)
            else:  # pragma: no cover - other code has closed it
                return False
        return bool(ready) and not self._ends

    def _listen(self, inbox: Any) -> None:
        """Read which owners are new. Raises `OSError`."""
        import socket

        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                name, extra, _, _ = inbox.recvmsg(64, socket.CMSG_SPACE(_CREDENTIALS.size))
                # Any user of the machine may send.
                users = [_CREDENTIALS.unpack(data)[1] for _, _, data in extra]
                if users == [os.getuid()] and _NAME.fullmatch(name):
                    self._heard.append(name.decode())
                    count += 1
        if count >= MANY_NAMES:  # pragma: no cover - dozens of processes begin at once
            self._look()

    def _watch_heard(self) -> bool:
        """Watch the owners that were heard of. Whether one of them is dead already."""
        is_dead = False
        while self._heard:
            name = self._heard.popleft()
            if name not in self._watched and len(self._watched) < MOST_WATCHED:
                is_dead |= not self._watch(name)
        return is_dead

    def _watch(self, name: str) -> bool:
        """Watch an owner. False: its process has ended already."""
        workspace = self._workspace
        try:
            content = read_mark(workspace.disk, workspace.paths.mark(name))
            here = workspace.processes.here()
            # It uses another directory, or another machine; or it has left.
            if content is None or content[0][2:] != here[2:] or content[0].pid == here.pid:
                return True
            process = _Descriptor(os.pidfd_open(content[0].pid))
        except ProcessLookupError:  # pragma: no cover - it died in this instant
            return False
        except OSError:  # pragma: no cover - no descriptor is free
            return True
        try:
            # Looked at now: the pid can't be used again any more.
            is_alive = workspace.processes.is_alive(content[0]) is not False
        except OSError:  # pragma: no cover - no descriptor is free
            is_alive = True
        if is_alive:
            self._watched[name] = process
        else:  # pragma: no cover - its pid was used again
            process.close()
        return is_alive

    def _close(self) -> None:
        watched, self._watched = self._watched, {}
        for process in watched.values():
            process.close()
        self._heard.clear()
        inbox, self._inbox = self._inbox, None
        if inbox is not None:  # pragma: no branch - else it was never made
            inbox.close()

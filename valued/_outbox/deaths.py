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
import types
from typing import TYPE_CHECKING, Final

from valued._outbox.disk import Descriptor
from valued._outbox.owners import names_of_parent, read_mark
from valued._process.descriptors import move_up, new_socket

if TYPE_CHECKING:
    from collections.abc import Callable, Set

    from valued._outbox.disk import Disk
    from valued._outbox.owners import OutboxPaths, Processes

#: Processes that are watched at most, as each takes a descriptor. The scan finds the others.
MOST_WATCHED: Final = 200

#: Names that came together from which on some may have been lost: the kernel keeps ten or more.
MANY_NAMES: Final = 8

#: The longest time that `poll` takes, in milliseconds.
_LONGEST: Final = 2**31 - 1

_NAME: Final = re.compile(rb"[0-9a-f]{32}")
_CREDENTIALS: Final = struct.Struct("3i")  # of the sender, by the kernel: pid, user, group


def is_possible() -> bool:
    """Whether deaths can be noticed at once here.

    Not where `poll` or threads are replaced, by gevent for example: this one would stop them all.
    """
    import _thread

    genuine = types.BuiltinFunctionType
    return (
        hasattr(os, "pidfd_open")
        and isinstance(getattr(select, "poll", None), genuine)
        and isinstance(_thread.start_new_thread, genuine)
    )


def announce(name: str) -> None:
    """Tell the parent of this process that it begins as the owner *name*. Raises nothing."""
    parents = names_of_parent()
    if parents and is_possible():
        for parent in list(parents):
            _tell(parent, name)


def _tell(owner: str, name: str) -> None:
    """Tell *owner* that the owner *name* is there. Raises nothing, and never waits."""
    import socket  # not with `import valued`

    # An error: that one doesn't listen, or has too much to read, or there are no descriptors.
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
    ):
        sender.settimeout(0)
        sender.sendto(name.encode(), _address(owner))


def _address(owner: str) -> bytes:
    """Where *owner* is told."""
    return b"\0valued-" + owner.encode()  # no file: the kernel forgets it with the process


def _inbox(owner: str) -> Descriptor:
    """Where *owner* can be told names. Raises `OSError`."""
    import socket

    inbox = new_socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        inbox.settimeout(0)
        inbox.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        inbox.bind(_address(owner))
    except BaseException:  # pragma: no cover - no descriptor, or an interruption
        inbox.close()
        raise
    return Descriptor(os, inbox.fileno(), inbox)


class Deaths:
    """The deaths of processes that share the directory. Nothing raises an `Exception`.

    *look*: makes a scan due. Any thread may call, but `wait` only one at a time: the descriptors
    are its own.
    """

    def __init__(
        self, paths: OutboxPaths, disk: Disk, processes: Processes, look: Callable[[], object]
    ) -> None:
        self._paths = paths
        self._disk = disk
        self._processes = processes
        self._look = look
        self._owner = ""  # under whose name the inbox is
        self._inbox: Descriptor | None = None
        self._ends = False
        self._watched: dict[str, Descriptor] = {}  # processes, by the name of their owner
        self._heard: collections.deque[str] = collections.deque()  # owners to be watched
        self._seen: Set[str] = frozenset()  # living owners that the last scan found

    def watch(self, owner: str) -> bool:
        """See `Journal.watch`. *owner*: this process."""
        if not is_possible():
            return False
        if self._inbox is not None:
            return True  # pragma: no cover - another thread was faster
        try:
            inbox = _inbox(owner)
        except OSError:  # pragma: no cover - no descriptor is free, or another thread was faster
            return False
        self._ends, self._owner, self._seen = False, owner, frozenset()
        self._inbox = inbox
        self._look()  # which owners began before, nothing told
        return True

    def unwatch(self) -> None:
        """See `Journal.unwatch`."""
        self._ends = True
        self._ring()

    def _ring(self) -> None:
        """Wake the thread that waits."""
        # Not by the inbox itself: where other code has closed it, that thread waits for it still.
        if self._inbox is not None:
            _tell(self._owner, "")

    def see(self, owner: str, others: Set[str]) -> None:
        """A scan of *owner*, which is this process, found that *others* are alive."""
        if not is_possible():
            return
        if self._inbox is not None and self._owner != owner:
            self.unwatch()  # pragma: no cover - it has begun under another name
        new, self._seen = others - self._seen, frozenset(others)
        for name in new:
            _tell(name, owner)
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

    def _wait(self, inbox: Descriptor, timeout: float) -> bool:
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
                self._listen(inbox)
            else:  # pragma: no cover - other code has closed it
                return False
        return bool(ready) and not self._ends

    def _listen(self, inbox: Descriptor) -> None:
        """Read which owners are new. Raises `OSError`."""
        import socket

        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                name, extra, _, _ = inbox.socket.recvmsg(64, socket.CMSG_SPACE(_CREDENTIALS.size))
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
        process = None
        try:
            content = read_mark(self._disk, self._paths.mark(name))
            here = self._processes.here()
            # It uses another directory, or another machine; or it has left.
            if content is None or content[0][2:] != here[2:] or content[0].pid == here.pid:
                return True
            process = Descriptor(os, move_up(os.pidfd_open(content[0].pid)))
            # Looked at now: the pid can't be used again any more.
            if self._processes.is_alive(content[0]) is not False:
                self._watched[name] = process
                return True
        except ProcessLookupError:  # pragma: no cover - it died in this instant
            return False
        except OSError:  # pragma: no cover - no descriptor is free: the scan finds it
            return True
        finally:
            if process is not None and name not in self._watched:  # pragma: no cover - likewise
                process.close()
        return False  # pragma: no cover - its pid was used again

    def _close(self) -> None:
        watched, self._watched = self._watched, {}
        for process in watched.values():
            process.close()
        self._heard.clear()
        inbox, self._inbox = self._inbox, None
        if inbox is not None:  # pragma: no branch - else it was never made
            inbox.close()

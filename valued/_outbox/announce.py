"""Names of new owners, told to other processes of the machine by datagrams, on Linux.

The receiver watches the process of the new owner: see `deaths`.
"""

from __future__ import annotations

import contextlib
import os
import select
import types

from valued._outbox.identity import names_of_parent


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
            tell(parent, name)


def address(owner: str) -> bytes:
    """Where *owner* is told."""
    return b"\0valued-" + owner.encode()  # no file: the kernel forgets it with the process


def tell(owner: str, name: str) -> None:
    """Tell *owner* that the owner *name* is there. Raises nothing, and never waits."""
    import socket  # not with `import valued`

    # An error: that one doesn't listen, or has too much to read, or there are no descriptors.
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
    ):
        sender.settimeout(0)
        sender.sendto(name.encode(), address(owner))

"""Writes events into a file instead of sending them, so that a test can look at them.

There is no lock, no thread and no open descriptor: each event opens the file, appends one line with
one write, and closes it. So threads, forked children and other programs can write into the same
file, in order.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from valued._errors import ValuedError
from valued._process.fork import current_pid

#: The file; None: nothing is recorded, events are sent. A fork copies it.
target: str | None = None

#: Whether recording an event for an endpoint on another machine is an error.
blocked: bool = False

#: The name of a recording that has ended: the first one is number 1.
_ENDED: Final = "0"

# O_BINARY exists on Windows only. Never O_CREAT: a missing file belongs to a test that is over.
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0)


class RealEndpointError(ValuedError, RuntimeError):
    """A test recorded an event that would be sent to an endpoint that isn't on this machine.

    Raised by the call that records, under pytest with ``valued_block = true``. ``host``: of the
    endpoint.
    """

    __module__ = "valued.testing"  # where users find it

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.host = host

    def __str__(self) -> str:
        return (
            f"a test would send this event to {self.host}, and valued_block forbids it: "
            "let the test use the fixture valued_events, or valued.testing.recorded()"
        )


def begin(home: str) -> None:
    """Record from now on, in a program that a test started and that doesn't record already.

    *home*: the directory with the recordings of the testing process. The newest one is used.
    """
    global target
    target = _newest(home) or os.path.join(home, _ENDED)


def _newest(home: str) -> str | None:
    try:
        numbers = [int(name) for name in os.listdir(home)]
    except (OSError, ValueError):
        return None
    return os.path.join(home, str(max(numbers))) if numbers else None


def record(body: bytes) -> None:
    """Append an event. If the recording has ended: to the newest one; if there is none, drop it."""
    file = target
    if file is None:  # another thread has ended the recording since the caller looked
        return
    line = b'{"pid":%d,"event":%b}\n' % (current_pid(), body)
    if not _append(file, line):
        # This process outlived its test and is used in another one, as those of a pool are.
        newest = _newest(os.path.dirname(file))
        if newest is not None:
            _append(newest, line)


def _append(file: str, line: bytes) -> bool:
    """Write *line* to the end of *file*, if it can be written; whether the file is there."""
    try:
        descriptor = os.open(file, _FLAGS)
    except OSError:
        return False
    with contextlib.suppress(OSError):  # a full disk is no reason to break the application
        os.write(descriptor, line)
    os.close(descriptor)
    return True


def refuse(endpoint: str) -> None:
    """Raise `RealEndpointError` unless the host of this URL is this machine."""
    # Only tests come here: an import of the library is not to load this.
    from urllib.parse import urlsplit

    from valued._http.endpoint import is_loopback

    host = urlsplit(endpoint).hostname or ""
    if not is_loopback(host):
        raise RealEndpointError(host)

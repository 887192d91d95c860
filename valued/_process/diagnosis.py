"""What the system knows of this process: its start, and its threads.

It is asked when something is wrong already: no descriptor may be free, or /proc may be missing. So
nothing here raises, and what can't be had is left out.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from valued._process import interpreter
from valued._process.fork import PerProcess, current_pid

#: The start of each process that asked for it, once it could be had; at most one entry.
_started: Final[PerProcess[list[float]]] = PerProcess(list)


def prepare() -> None:
    """Import psutil, and look once; or refuse an isolated interpreter. Called by a new client.

    A child that is forked while another thread imports a module waits for ever when it needs that
    module. Not imported at the top, since that would slow down every import of the library.
    """
    interpreter.refuse_isolated()
    import psutil  # noqa: F401

    started()


def started() -> float | None:
    """When this process was started, in seconds since the epoch; None: the system doesn't say.

    A process asks the system once; but for a failure, after which the next call asks again.
    """
    known = _started.get()
    if not known:
        import psutil

        with contextlib.suppress(OSError, psutil.Error):
            known.append(psutil.Process().create_time())
    return known[0] if known else None


def identity() -> tuple[int, float | None]:
    """The pid of this process, and `started`."""
    return current_pid(), started()


def has_os_threads(native_ids: set[int]) -> bool:
    """Whether the kernel still counts one of these threads as part of this process.

    Up to Python 3.12 it does for a moment after ``Thread.join``, and a fork then causes a warning.
    That warning is from the same place, so where there is no /proc, there is none.
    """
    return any(os.path.exists(f"/proc/self/task/{each}") for each in native_ids)

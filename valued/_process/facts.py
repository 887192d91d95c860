"""Facts about this process: which interpreter runs it, when it started, which threads it has.

===================================  ===============================================================
interpreter                          what holds
===================================  ===============================================================
main                                 everything
sub, which shares the lock of main   threads end with it: its exit delivers, then joins the threads.
(mod_wsgi has one for each site)     Signals belong to the main interpreter
isolated, with a lock of its own     refused: it allows no daemon threads, and can't load psutil
===================================  ===============================================================

The rest is asked when something is wrong already: no descriptor may be free, or /proc may be
missing. So it doesn't raise, and what can't be had is left out.
"""

from __future__ import annotations

import _thread
import contextlib
import importlib
import os
from typing import Any, Final

from valued._errors import ValuedError
from valued._process.fork import PerProcess, current_pid

#: The start of each process that asked for it, once it could be had; at most one entry.
_started: Final[PerProcess[list[float]]] = PerProcess(list)


def refuse_isolated() -> None:
    """Raise `ValuedError` in an interpreter that allows no daemon threads."""
    # New in 3.12, as are the public functions that make such interpreters.
    are_allowed = getattr(_thread, "daemon_threads_allowed", None)
    if are_allowed is not None and not are_allowed():  # pragma: no cover - untraced
        raise ValuedError(
            "this is an isolated subinterpreter, which allows no daemon threads: record events in "
            "the main interpreter, or in a process of its own"
        )


def is_main_interpreter() -> bool:
    """Whether this is the main interpreter of the process."""
    found = getattr(_thread, "_is_main_interpreter", None)  # from 3.12 on
    if found is not None:  # pragma: no cover - from 3.12 on
        return bool(found())
    try:
        interpreters: Any = importlib.import_module("_xxsubinterpreters")
    except ImportError:  # this Python was built without subinterpreters
        return True
    return bool(interpreters.get_current() == interpreters.get_main())


def prepare() -> None:
    """Import what is asked later, and ask once. Refuses an isolated interpreter. For a new client.

    A child that is forked while another thread imports a module waits for ever when it needs that
    module. Not imported at the top, since that would slow down every import of the library.
    """
    refuse_isolated()
    is_main_interpreter()
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

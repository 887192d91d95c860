"""Ends of a process: whoever has events to send hears of it in time, however the process ends.

===============================================  ==================================================
the process                                      is heard of by
===============================================  ==================================================
script, ``sys.exit``, unhandled exception, a     ``atexit``
bare ``os.fork`` child that ends so
multiprocessing child (``Process``, ``Pool``,    `multiprocessing.util.Finalize`, and ``atexit``
``ProcessPoolExecutor``)                         from 3.13 on: the second finds nothing to do
``os._exit``, SIGKILL, SIGTERM without a         nothing can hear of it
handler
===============================================  ==================================================

Nothing is registered at import, but with the first event of each process: multiprocessing empties
its registry in a child after the fork hooks ran. An inherited handler finds nothing to do in a
child, since what it looks at belongs to a process.
"""

from __future__ import annotations

import atexit
import sys
import threading
import time
import weakref
from typing import Any, Final, Protocol

from valued._fork import PerProcess


class Leaver(Protocol):
    """Somebody who has something to finish."""

    def leave(self, started: float) -> None:
        """Finish. *started*: `time.monotonic` of the beginning of the end."""


class _Leavers:
    def __init__(self) -> None:
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()
        self.unfinished: set[Leaver] = set()
        self.hooked = False


_here: Final[PerProcess[_Leavers]] = PerProcess(_Leavers)


def enroll(leaver: Leaver) -> None:
    """Let *leaver* hear of the end of this process. Held weakly. Any thread may call."""
    leavers = _here.get()
    leavers.known.add(leaver)
    if leavers.hooked:
        return
    leavers.hooked = True
    atexit.unregister(_leave)  # the parent's registration, in a child that inherited it
    atexit.register(_leave)
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing.util import Finalize

        # Among the first priorities that run (0 and above, before children are joined), behind
        # those of pools and managers, which may record events as they end.
        Finalize(None, _leave, exitpriority=0)


def keep(leaver: Leaver) -> None:
    """Hold *leaver* until `release`: it has events that no thread is busy with."""
    _here.get().unfinished.add(leaver)


def release(leaver: Leaver) -> None:
    """*leaver* has nothing left to send."""
    _here.get().unfinished.discard(leaver)


def is_ending() -> bool:
    """Whether the interpreter is past the end of its main thread: no handler will be called."""
    return not threading.main_thread().is_alive()


def _leave() -> None:
    leavers = _here.peek()
    if leavers is None:
        return
    started = time.monotonic()  # one beginning for all: the bound is on the end as a whole
    for leaver in list(leavers.known):
        leaver.leave(started)

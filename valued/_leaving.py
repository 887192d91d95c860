"""Ends of a process: whoever has events to send hears of it in time, however the process ends.

===============================================  ==================================================
the process                                      is heard of by
===============================================  ==================================================
script, ``sys.exit``, unhandled exception, a     ``atexit``
bare ``os.fork`` child that ends so, a uWSGI
worker, a Gunicorn worker
multiprocessing child (``Process``, ``Pool``,    `multiprocessing.util.Finalize`, and ``atexit``
``ProcessPoolExecutor``)                         from 3.13 on: the second finds nothing to do
child of Celery's prefork pool                   its signal ``worker_process_shutdown``
SIGTERM without a handler of the application's   `flush_on_signals`, where it was called
``os._exit``, SIGKILL                            nothing can hear of it
===============================================  ==================================================

Nothing is registered at import, but with the first event of each process: multiprocessing empties
its registry in a child after the fork hooks ran. An inherited handler finds nothing to do in a
child, since what it looks at belongs to a process.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from valued._fork import PerProcess, end_by_signal
from valued._weak import WeakList

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


class Leaver(Protocol):
    """Somebody who has something to finish."""

    def leave(self, started: float) -> None:
        """Finish. *started*: `time.monotonic` of the beginning of the end."""


class _Leavers:
    def __init__(self) -> None:
        self.known: WeakList[Leaver] = WeakList()
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
    celery = sys.modules.get("celery.signals")
    if celery is not None:
        # By its id: a child that inherited the parent's connection has it once all the same.
        celery.worker_process_shutdown.connect(_leave_celery, weak=False, dispatch_uid="valued")


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
    for leaver in leavers.known.living():
        leaver.leave(started)


def _leave_celery(**_signal: Any) -> None:
    _leave()


def flush_on_signals(*signals: int) -> None:
    """Deliver what was accepted before a signal ends this process; opt-in.

    *signals*: default ``signal.SIGTERM``. For processes that are ended so and have no handler of
    their own, such as the workers of ``with multiprocessing.Pool(initializer=
    valued.flush_on_signals) as pool``, which are terminated at the end of the block. The process
    then ends by the same signal, after ``shutdown_timeout`` seconds at the latest; a second signal
    ends it at once.

    A handler that was there is called in place of that: whether, and how, the process ends is its
    affair, and an end by ``sys.exit`` delivers anyway. A signal that is ignored stays ignored, and
    a handler of C code, which can't be called, stays the only one.

    Main thread only (`ValueError` elsewhere, as from ``signal.signal``). Forked children inherit
    it. May be called again. The handler itself waits for nothing, so it can't wait for a lock that
    the thread which it interrupted holds: a thread of its own does the rest.
    """
    for number in signals or (signal.SIGTERM,):
        before = signal.getsignal(number)
        if before is signal.SIG_DFL:
            signal.signal(number, _Handler(None))
        elif callable(before) and not isinstance(before, _Handler):
            signal.signal(number, _Handler(before))


class _Handler:
    """What `flush_on_signals` installs. *before*: the handler that was there; None: the default."""

    def __init__(self, before: Callable[[int, FrameType | None], Any] | None) -> None:
        self._before = before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._before is not None:
            self._before(number, frame)
            return
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        thread = threading.Thread(
            target=_leave_by, args=(number,), name="valued-leaving", daemon=True
        )
        # No thread can be started where the interpreter ends already; it delivers as it does.
        with contextlib.suppress(RuntimeError):
            # Not `thread.start()` here: it takes locks, which the interrupted code may hold.
            _thread.start_new_thread(thread.start, ())


def _leave_by(number: int) -> None:
    try:
        _leave()
    finally:
        end_by_signal(number)

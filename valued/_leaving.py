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
SIGTERM without a handler of the application's   `valued.flush_on_signals`, where it was called
``os._exit``, SIGKILL                            nothing can hear of it
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
from typing import TYPE_CHECKING, Final, Protocol

from valued._fork import PerProcess
from valued._weak import WeakList

if TYPE_CHECKING:
    from collections.abc import Callable


#: Seconds between a `flush_at_end` that was not enough and the exit, up to which both are one end,
#: with one bound. A server that ran the first takes milliseconds from there.
SAME_END: Final = 1.0


class Leaver(Protocol):
    """Somebody who has something to finish."""

    def leave(self, started: float) -> None:
        """Finish. *started*: `time.monotonic` of the beginning of the end."""

    def hurry(self, started: float) -> bool:
        """Deliver in the time that `leave` would have, and go on; whether all was settled."""

    def say_what_is_left(self, started: float) -> object:
        """Log how many events are not delivered, in the time of an end that began at *started*."""

    def flush(self, deadline: float | None) -> bool:
        """Wait until what was accepted is settled; False: *deadline* came."""


class _Leavers:
    def __init__(self) -> None:
        self.known: WeakList[Leaver] = WeakList()
        self.unfinished: set[Leaver] = set()
        self.hooked = False
        self.greeted = False
        self.ending = False  # whether Celery has told this process that it ends
        self.last: list[Callable[[], object]] = []  # what to call when all have finished
        #: Of the last `flush_at_end`: when it began and returned, and who was not done by then.
        self.late: tuple[float, float, list[Leaver]] = 0.0, 0.0, []


_here: Final[PerProcess[_Leavers]] = PerProcess(_Leavers)


def enroll(leaver: Leaver) -> None:
    """Let *leaver* hear of the end of this process. Held weakly. Any thread may call."""
    leavers = _here.get()
    leavers.known.add(leaver)
    hook_exit()
    if not leavers.greeted:
        leavers.greeted = True
        for greet in _greeters:
            greet()


def hook_exit() -> None:
    """Have all finish when this process ends. Any thread may call; once is enough."""
    leavers = _here.get()
    if leavers.hooked:
        return
    leavers.hooked = True
    # urllib3 closes its idle connections in a finalizer, which `weakref` runs by a handler of its
    # own. The last one registered runs first: so that one, now, and then ours, which uses them.
    weakref.finalize(leavers, int)
    atexit.unregister(_exit)  # the parent's registration, in a child that inherited it
    atexit.register(_exit)
    if _is_multiprocessing_child():
        from multiprocessing.util import Finalize

        # Among the first priorities that run (0 and above, before children are joined), behind
        # those of pools and managers, which may record events as they end.
        Finalize(None, _exit, exitpriority=0)


def on_exit(last: Callable[[], object]) -> None:
    """Call *last* when this process ends, after all have finished. Needs `hook_exit`."""
    _here.get().last.append(last)


#: Called with the first event of each process that has any.
_greeters: Final[list[Callable[[], object]]] = []


def on_first_event(greet: Callable[[], object]) -> None:
    """Call *greet*, which must not raise, in this process and each that it forks, once each."""
    if greet not in _greeters:
        _greeters.append(greet)


def keep(leaver: Leaver) -> None:
    """Hold *leaver* until `release`: it has events that no thread is busy with."""
    _here.get().unfinished.add(leaver)


def release(leaver: Leaver) -> None:
    """*leaver* has nothing left to send."""
    _here.get().unfinished.discard(leaver)


def is_ending() -> bool:
    """Whether the process is so near its end that no handler will be called any more."""
    leavers = _here.peek()
    if leavers is not None and leavers.ending:
        return True
    if not main_thread_is_over():
        return False
    if _is_multiprocessing_child():
        return True  # finalizers run before other threads are waited for
    # Handlers run when all threads but daemons have ended, which may be days after the main one.
    main = threading.main_thread()
    others = (each for each in threading.enumerate() if each is not main and not each.daemon)
    return not any(each.is_alive() for each in others)


def is_over() -> bool:
    """Whether all handlers have run, and Python takes itself apart.

    Nothing can be imported any more, which urllib3 does amid a request: what was sent by then could
    neither be confirmed nor be sent again, and threads that are started then end in a crash.
    """
    return sys.meta_path is None


def main_thread_is_over() -> bool:
    """Whether the main thread has nothing left to run but the end of the process."""
    # Both are asked: with gevent and Python 3.13 the main thread counts as alive to the very end.
    return getattr(threading, "_SHUTTING_DOWN", False) or not threading.main_thread().is_alive()


def _is_multiprocessing_child() -> bool:
    process = sys.modules.get("multiprocessing.process")
    # By the name: billiard's processes are known there, too, but not to `parent_process`.
    return process is not None and process.current_process().name != "MainProcess"


def leave() -> None:
    """The process ends: have everybody finish."""
    now = time.monotonic()
    leavers = _here.peek()
    began, returned, late = (0.0, 0.0, []) if leavers is None else leavers.late
    for leaver in enrolled():
        # One beginning for all: the bound is on the end as a whole.
        leaver.leave(began if leaver in late and now - returned < SAME_END else now)


def _exit() -> None:
    leave()
    leavers = _here.peek()
    while leavers is not None and leavers.last:
        leavers.last.pop()()


def hurry() -> None:
    """The process may end: have everybody deliver."""
    now = time.monotonic()
    for leaver in enrolled():
        leaver.hurry(now)


def enrolled() -> list[Leaver]:
    """Those of this process."""
    leavers = _here.peek()
    return [] if leavers is None else leavers.known.living()


def flush_at_end() -> bool:
    """The process is about to end: deliver what can be in time, and say what can't."""
    started = time.monotonic()
    late = [leaver for leaver in enrolled() if not leaver.hurry(started)]
    for leaver in late:
        leaver.say_what_is_left(started)
    _here.get().late = started, time.monotonic(), late
    return not late


def end_here() -> None:
    """The process ends, and no handler will hear of it: have everybody finish."""
    _here.get().ending = True
    leave()

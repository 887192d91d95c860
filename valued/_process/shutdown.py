"""Exits of a process: senders are notified in time, in whatever way the process ends.

===============================================  ==================================================
the process                                      is noticed by
===============================================  ==================================================
script, ``sys.exit``, unhandled exception, a     ``atexit``
bare ``os.fork`` child that ends so, a uWSGI
worker, a Gunicorn worker
multiprocessing child (``Process``, ``Pool``,    `multiprocessing.util.Finalize`, and ``atexit``
``ProcessPoolExecutor``)                         from 3.13 on: the second finds nothing to do
child of Celery's prefork pool                   its signal ``worker_process_shutdown``
SIGTERM without a handler of the application     `valued.flush_on_signals`, if it was called
``os._exit``, SIGKILL                            nothing can notice it
===============================================  ==================================================

Nothing is registered at import, only with the first event of each process: multiprocessing empties
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

from valued._process.fork import PerProcess
from valued._process.weak import WeakList

if TYPE_CHECKING:
    from collections.abc import Callable


#: If the exit follows an incomplete `flush_at_end` within so many seconds, both share one time
#: limit. A server that called `flush_at_end` exits within milliseconds.
SAME_END: Final = 1.0


class Leaver(Protocol):
    """A sender that may have something to finish at exit."""

    def leave(self, started: float) -> None:
        """Finish. *started*: `time.monotonic` when the exit began."""

    def hurry(self, started: float) -> bool:
        """Deliver in the time that `leave` would have, then go on. Whether all was settled."""

    def say_what_is_left(self, started: float) -> object:
        """Log how many events were not delivered in the time of an exit begun at *started*."""

    def flush(self, deadline: float | None) -> bool:
        """Wait until what was accepted is settled; False: *deadline* passed."""


class _Leavers:
    def __init__(self) -> None:
        self.known: WeakList[Leaver] = WeakList()
        self.unfinished: set[Leaver] = set()
        self.hooked = False
        self.greeted = False
        self.ending = False  # whether Celery has announced the end of this process
        self.last: list[Callable[[], object]] = []  # what to call when all have finished
        #: The last `flush_at_end`: when it began and returned, and which senders weren't done.
        self.late: tuple[float, float, list[Leaver]] = 0.0, 0.0, []


_here: Final[PerProcess[_Leavers]] = PerProcess(_Leavers)


def enroll(leaver: Leaver) -> None:
    """Notify *leaver* of the exit of this process, by a weak reference. Any thread may call."""
    leavers = _here.get()
    leavers.known.add(leaver)
    hook_exit()
    if not leavers.greeted:
        leavers.greeted = True
        for greet in _greeters:
            greet()


def hook_exit() -> None:
    """Let all finish when this process ends. Any thread may call; once is enough."""
    leavers = _here.get()
    if leavers.hooked:
        return
    leavers.hooked = True
    # urllib3 closes its idle connections in a finalizer, which `weakref` runs in an exit handler.
    # The handler registered last runs first. So make `weakref` register its handler now, and then
    # register ours, which uses the connections.
    weakref.finalize(leavers, int)
    atexit.unregister(_exit)  # the parent's registration, in a child that inherited it
    atexit.register(_exit)
    if _is_multiprocessing_child():
        from multiprocessing.util import Finalize

        # Priorities of 0 and above run before children are joined. 0 runs after those of pools and
        # managers, which may record events as they end.
        Finalize(None, _exit, exitpriority=0)


def on_exit(last: Callable[[], object]) -> None:
    """Call *last* when this process ends, after all have finished. Needs `hook_exit`."""
    _here.get().last.append(last)


#: Called with the first event of each process that has any.
_greeters: Final[list[Callable[[], object]]] = []


def on_first_event(greet: Callable[[], object]) -> None:
    """Call *greet* with the first event of this process and of each process forked from it.

    It must not raise.
    """
    if greet not in _greeters:
        _greeters.append(greet)


def keep(leaver: Leaver) -> None:
    """Keep *leaver* alive until `release`: it has events that no thread works on."""
    _here.get().unfinished.add(leaver)


def release(leaver: Leaver) -> None:
    """Undo `keep`: *leaver* has nothing left to send."""
    _here.get().unfinished.discard(leaver)


def is_ending() -> bool:
    """Whether the process is so close to its end that no exit handler will be called any more."""
    leavers = _here.peek()
    if leavers is not None and leavers.ending:
        return True
    if not main_thread_is_over():
        return False
    if _is_multiprocessing_child():
        return True  # finalizers run before other threads are waited for
    # Handlers run when all non-daemon threads have ended, maybe days after the main thread.
    main = threading.main_thread()
    others = (each for each in threading.enumerate() if each is not main and not each.daemon)
    return not any(each.is_alive() for each in others)


def is_over() -> bool:
    """Whether all exit handlers have run, and the interpreter is being finalized.

    Nothing can be imported any more, and urllib3 imports during a request: an event sent then could
    be neither confirmed nor retried, and a thread started then ends in a crash.
    """
    return sys.meta_path is None


def main_thread_is_over() -> bool:
    """Whether the main thread has nothing left to run but the exit of the process."""
    # Check both: with gevent and Python 3.13 the main thread counts as alive to the very end.
    return getattr(threading, "_SHUTTING_DOWN", False) or not threading.main_thread().is_alive()


def _is_multiprocessing_child() -> bool:
    process = sys.modules.get("multiprocessing.process")
    # By the name: that includes billiard's processes, which `parent_process` doesn't know.
    return process is not None and process.current_process().name != "MainProcess"


def leave() -> None:
    """The process ends: let all senders finish."""
    now = time.monotonic()
    leavers = _here.peek()
    began, returned, late = (0.0, 0.0, []) if leavers is None else leavers.late
    for leaver in enrolled():
        # One start time for all: the time limit is for the exit as a whole.
        leaver.leave(began if leaver in late and now - returned < SAME_END else now)


def _exit() -> None:
    leave()
    leavers = _here.peek()
    while leavers is not None and leavers.last:
        leavers.last.pop()()


def hurry() -> None:
    """The process may end: let all senders deliver."""
    now = time.monotonic()
    for leaver in enrolled():
        leaver.hurry(now)


def enrolled() -> list[Leaver]:
    """The senders of this process."""
    leavers = _here.peek()
    return [] if leavers is None else leavers.known.living()


def flush_at_end() -> bool:
    """The process is about to end: deliver what is possible in time, and log the rest."""
    started = time.monotonic()
    late = [leaver for leaver in enrolled() if not leaver.hurry(started)]
    for leaver in late:
        leaver.say_what_is_left(started)
    _here.get().late = started, time.monotonic(), late
    return not late


def end_here() -> None:
    """The process ends, and no exit handler will run: let all senders finish."""
    _here.get().ending = True
    leave()

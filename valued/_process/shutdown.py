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
import weakref
from collections.abc import Callable
from typing import Final, Protocol

from valued._process.clock import CLOCK
from valued._process.facts import is_main_interpreter
from valued._process.fork import PerProcess, WeakList

#: If the exit follows an incomplete `flush_at_end` within so many seconds, both share one time
#: limit. A server that called `flush_at_end` exits within milliseconds.
SAME_END: Final = 1.0

#: How the name of each thread of ours begins.
THREADS: Final = "valued-"


class ExitListener(Protocol):
    """A pipeline, which may have something to finish at exit. Times are of `CLOCK.monotonic`."""

    def on_exit(self, started: float) -> object:
        """Finish what the exit, which began at *started*, leaves time for."""

    def flush_now(self, started: float) -> bool:
        """Deliver in the time that `on_exit` would have, then go on. Whether all was settled."""

    def log_remaining(self, started: float) -> object:
        """Log how many events were not delivered in the time of an exit begun at *started*."""

    def end_threads(self) -> object:
        """Tell all threads to end, after `on_exit`. It doesn't wait for them."""

    def flush(self, deadline: float | None) -> bool:
        """Wait until what was accepted is settled; False: *deadline* passed."""


class Reports(Protocol):
    """It counts, and may have counted what it hasn't logged yet."""

    def log_remaining(self) -> object:
        """Log it."""


class _Exit:
    """What one process does at its exit."""

    def __init__(self) -> None:
        self.listeners: WeakList[ExitListener] = WeakList()
        self.kept: set[ExitListener] = set()
        self.is_hooked = False
        self.had_first_event = False
        self.is_announced = False  # by Celery: no exit handler will run
        self.reports: WeakList[Reports] = WeakList()  # they log after the listeners
        self.last: list[Callable[[], object]] = []  # called after the reports, each once
        #: The last `flush_at_end`: when it began and returned, and which listeners weren't done.
        self.late: tuple[float, float, list[ExitListener]] = 0.0, 0.0, []


_here: Final[PerProcess[_Exit]] = PerProcess(_Exit)

#: Called with the first event of each process that has any.
_on_first_event: Final[list[Callable[[], object]]] = []


def register(listener: ExitListener) -> None:
    """Notify *listener* of the exit of this process, by a weak reference. Any thread may call."""
    here = _here.get()
    here.listeners.add(listener)
    hook_exit()
    if not here.had_first_event:
        here.had_first_event = True
        for function in _on_first_event:
            function()


def registered() -> list[ExitListener]:
    """The listeners of this process that are alive."""
    here = _here.peek()
    return [] if here is None else here.listeners.living()


def on_first_event(function: Callable[[], object]) -> None:
    """Call *function* with the first event of this process and of each process forked from it.

    It must not raise.
    """
    if function not in _on_first_event:
        _on_first_event.append(function)


def keep(listener: ExitListener) -> None:
    """Keep *listener* alive until `release`: it has events that no thread works on."""
    _here.get().kept.add(listener)


def release(listener: ExitListener) -> None:
    """Undo `keep`: *listener* has nothing left to send."""
    _here.get().kept.discard(listener)


def report_at_exit(reports: Reports) -> None:
    """Have *reports*, held weakly, log what remains when this process ends, after the listeners."""
    _here.get().reports.add(reports)
    hook_exit()


def call_last(function: Callable[[], object]) -> None:
    """Call *function* as the last step of the exit; it may end the process."""
    _here.get().last.append(function)
    hook_exit()


def hook_exit() -> None:
    """Let all listeners finish when this process ends. Any thread may call; once is enough."""
    here = _here.get()
    if here.is_hooked:
        return
    here.is_hooked = True
    # urllib3 closes its idle connections in a finalizer, which `weakref` runs in an exit handler.
    # The handler registered last runs first. So make `weakref` register its handler now, and then
    # register ours, which uses the connections.
    weakref.finalize(here, int)
    atexit.unregister(_exit)  # the parent's registration, in a child that inherited it
    atexit.register(_exit)
    if _is_multiprocessing_child():
        from multiprocessing.util import Finalize

        # Priorities of 0 and above run before children are joined. 0 runs after those of pools and
        # managers, which may record events as they end.
        Finalize(None, _exit, exitpriority=0)


def is_ending() -> bool:
    """Whether the process is so close to its end that no exit handler will be called any more."""
    here = _here.peek()
    if here is not None and here.is_announced:
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
    main = threading.main_thread()
    # Up to Python 3.12, `is_alive` marks a living thread as ended, for ever, where a signal handler
    # raises within it.
    has_ended = getattr(main, "_is_stopped", None)
    if has_ended is None:  # pragma: no cover - from 3.13 on
        has_ended = not main.is_alive()
    # Check both: with gevent and Python 3.13 the main thread counts as alive to the very end.
    return bool(has_ended or getattr(threading, "_SHUTTING_DOWN", False))


def exit_waits_for_threads() -> bool:
    """Whether the main thread is over, and other threads may go on for long."""
    return main_thread_is_over() and not is_ending()


def _is_multiprocessing_child() -> bool:
    process = sys.modules.get("multiprocessing.process")
    # By the name: that includes billiard's processes, which `parent_process` doesn't know.
    return process is not None and process.current_process().name != "MainProcess"


def notify_exit() -> None:
    """The process ends: let all listeners finish, then log what was counted and not logged."""
    here = _here.peek()
    if here is None:
        return
    import logging  # imported already, by a client; not at the top, as it is slow

    now = CLOCK.monotonic()
    began, returned, late = here.late
    # What a handler writes to may be closed by now. `logging` would print a traceback for each of
    # our lines, for which nothing can be done any more.
    raises, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        for listener in registered():
            # One start time for all: the time limit is for the exit as a whole.
            listener.on_exit(began if listener in late and now - returned < SAME_END else now)
        for reports in here.reports.living():
            reports.log_remaining()
    finally:
        logging.raiseExceptions = raises


def _exit() -> None:
    """What runs at the end of the process, or of a subinterpreter."""
    notify_exit()
    here = _here.peek()
    if here is None:
        return
    if not is_main_interpreter():
        _join_threads()
    while here.last:
        here.last.pop()()


def _join_threads() -> None:
    """Wait for all threads of ours; without a bound, since Python ends the process if one is left.

    They are in their last attempts. Only a look-up of a name that no server answers takes longer,
    which is made in the same thread here, and that has a bound of the system's.
    """
    for listener in registered():
        listener.end_threads()
    while threads := [thread for thread in threading.enumerate() if _is_left(thread)]:
        for thread in threads:  # each may start another one before its end
            thread.join()


def _is_left(thread: threading.Thread) -> bool:
    # By the name: that includes those of clients that are gone.
    return thread.name.startswith(THREADS) and thread is not threading.current_thread()


def flush_now() -> None:
    """The process may end: let all listeners deliver."""
    now = CLOCK.monotonic()
    for listener in registered():
        listener.flush_now(now)


def flush_at_end() -> bool:
    """The process is about to end: deliver what is possible in time, and log the rest."""
    started = CLOCK.monotonic()
    late = [listener for listener in registered() if not listener.flush_now(started)]
    for listener in late:
        listener.log_remaining(started)
    _here.get().late = started, CLOCK.monotonic(), late
    return not late


def exit_without_handlers() -> None:
    """The process ends, and no exit handler will run: let all listeners finish."""
    _here.get().is_announced = True
    notify_exit()

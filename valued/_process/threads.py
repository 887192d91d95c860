"""Starting threads that can't hold up the end of the process."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Final

#: Of the thread that made them; blocked, they would end the process without a word.
_FAULTS: Final = ("SIGSEGV", "SIGFPE", "SIGILL")


@contextlib.contextmanager
def signals_elsewhere() -> Iterator[None]:
    """Have threads that are started meanwhile get no signal, under uWSGI.

    Its handlers are C code, and end the process on whichever thread the kernel chose: on one of
    ours during a delivery. Elsewhere, programs that a transport starts would inherit it.
    """
    if "uwsgi" not in sys.modules:
        yield
        return
    faults = {getattr(signal, name) for name in _FAULTS}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - faults)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def remember_thread() -> None:
    """Let this thread end without a traceback, though a fork made `threading` forget it.

    Asked for it, it knows it again. It forgets greenlets of gevent's, which live on in a child, and
    threads that were started there by a hook before its own.
    """
    threading.current_thread()


def is_hub_for_each_thread() -> bool:
    """Whether gevent replaced sockets, and threads are the system's.

    A thread that looks up a name then makes a hub, whose descriptors and threads outlive it.
    """
    monkey = sys.modules.get("gevent.monkey")
    return (
        monkey is not None
        and monkey.is_module_patched("socket")
        and not monkey.is_module_patched("threading")
    )


def start_thread(run: Callable[[], object]) -> None:
    """Run *run* on a daemon thread. Raises `RuntimeError` where no thread can be started."""

    def runs() -> None:
        try:
            run()
        finally:
            remember_thread()

    thread = threading.Thread(target=runs, name="valued-lookup", daemon=True)
    with signals_elsewhere():
        thread.start()

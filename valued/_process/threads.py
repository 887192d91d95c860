"""Starting threads that can't hold up the end of the process."""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Final

from valued._process.facts import is_main_interpreter

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
    """Run *run*, which must not raise, on a thread that nothing waits for.

    Raises `RuntimeError` where none can be started. `threading` doesn't know it: in a fork hook,
    other code may be at work before `threading` has reset what it knows of the parent's threads,
    and a thread that is started at that moment would end before it runs.
    """
    if not is_main_interpreter():  # pragma: no cover - no subinterpreter is traced
        raise RuntimeError("a subinterpreter has to wait for its threads when it ends")
    with signals_elsewhere():
        _thread.start_new_thread(run, ())

"""Which interpreter of the process this is. mod_wsgi, for one, has a subinterpreter for each site.

===================================  ===============================================================
interpreter                          what holds
===================================  ===============================================================
main                                 everything
sub, which shares the lock of main   threads end with it: its exit delivers, then joins the threads.
                                     Signals belong to the main interpreter
isolated, with a lock of its own     refused: it allows no daemon threads, and can't load psutil
===================================  ===============================================================
"""

from __future__ import annotations

import _thread
import importlib
from typing import Any

from valued._errors import ValuedError


def refuse_isolated() -> None:
    """Raise `ValuedError` in an interpreter that allows no daemon threads."""
    # New in 3.12, as are the public functions that make such interpreters.
    are_allowed = getattr(_thread, "daemon_threads_allowed", None)
    if are_allowed is not None and not are_allowed():  # pragma: no cover - untraced
        raise ValuedError(
            "this is an isolated subinterpreter, which allows no daemon threads: record events in "
            "the main interpreter, or in a process of its own"
        )


def is_main() -> bool:
    """Whether this is the main interpreter of the process."""
    found = getattr(_thread, "_is_main_interpreter", None)  # from 3.12 on
    if found is not None:  # pragma: no cover - from 3.12 on
        return bool(found())
    try:
        interpreters: Any = importlib.import_module("_xxsubinterpreters")
    except ImportError:  # this Python was built without subinterpreters
        return True
    return bool(interpreters.get_current() == interpreters.get_main())

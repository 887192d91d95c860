"""Whether this code runs within a garbage collection, where context variables stay as they are.

Up to Python 3.11 a collection can begin during the change of a context variable. What finalizers
change there gets lost, or crashes the interpreter; in a context of its own, nothing of the kind
happens.
"""

from __future__ import annotations

import contextvars
import gc
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

_collecting: Final[set[int]] = set()  # the threads that do


def _note(phase: str, _info: dict[str, Any]) -> None:
    (_collecting.add if phase == "start" else _collecting.discard)(threading.get_ident())


gc.callbacks.extend([_note] if sys.version_info < (3, 12) else [])


def call(function: Callable[..., Any], /, *args: Any) -> None:
    """Call *function*, in a context of its own where this is a garbage collection."""
    if threading.get_ident() in _collecting:
        contextvars.copy_context().run(function, *args)
    else:
        function(*args)

"""What finalizers do within a garbage collection stays out of the context that it came upon."""

from __future__ import annotations

import contextvars
import gc
import sys
from typing import Any

from valued.integrations import _collecting

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="before")


class Ends:
    def __init__(self) -> None:
        self.itself: Any = self

    def __del__(self) -> None:
        _collecting.call(variable.set, "within")


def test_a_finalizer_changes_no_context_up_to_python_3_11() -> None:
    def work() -> None:
        Ends()
        gc.collect()
        within = variable.get()
        _collecting.call(variable.set, "after")
        assert (within, variable.get()) == (expected, "after")

    expected = "before" if sys.version_info < (3, 12) else "within"
    contextvars.copy_context().run(work)

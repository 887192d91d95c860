"""The instants of a call at which a signal handler could run, found with `sys.settrace`."""

from __future__ import annotations

import ast
import functools
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import valued

ROOT = Path(valued.__file__).parent
#: Where exceptions are raised: what delivers, and its surroundings; not what makes the event.
PARTS = tuple(str(ROOT / part) for part in ("_delivery", "_outbox", "_process", "_client.py"))


@functools.cache
def calling(path: str) -> frozenset[int]:
    """The lines of a file in which something is called."""
    calls = (node for node in ast.walk(parsed(path)) if isinstance(node, ast.Call))
    return frozenset(
        line for call in calls for line in range(call.lineno, (call.end_lineno or call.lineno) + 1)
    )


@functools.cache
def blocks(path: str) -> list[tuple[int, int, int]]:
    """Of each `with` and `finally`: the line at which it ends the block, whose lines follow."""
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.With):
            found.append((node.lineno, node.body[0].lineno, node.end_lineno or 0))
        elif isinstance(node, ast.Try) and node.finalbody:
            first = node.finalbody[0].lineno
            found.append((first, node.body[0].lineno, first - 1))
    return found


@functools.cache
def loops(path: str) -> dict[int, int]:
    """Of each loop: its first line, and the last one of a `for`, which ends without a look."""
    nodes = (node for node in ast.walk(parsed(path)) if isinstance(node, (ast.For, ast.While)))
    return {
        node.lineno: (isinstance(node, ast.For) and node.end_lineno) or sys.maxsize
        for node in nodes
    }


@functools.cache
def parsed(path: str) -> ast.Module:
    return ast.parse(Path(path).read_text("utf-8"))


def is_exact(path: str, line: int, before: int) -> bool:
    """Whether a signal handler may run between these two lines of a function.

    The interpreter looks for signals as a function begins, when a call of C code has returned,
    and as it jumps back. It doesn't look where a `with` ends or a `finally` begins, and no
    statement could be protected from an exception that a trace function raises there. Nor does it
    look where a `for` ends: Python 3.11 is confused by such an exception.
    """
    jumped_back = line <= before and line in loops(path)
    if not jumped_back and before not in calling(path):
        return False
    if line > loops(path).get(before, line):
        return False
    return not any(line == end and first <= before <= last for end, first, last in blocks(path))


class Trace:
    """Counts instants of a call in this thread, and calls *then* at the one of number *at*."""

    def __init__(self, at: int = 0, then: Callable[[FrameType], None] | None = None) -> None:
        self.seen = 0
        self._at = at
        self._then = then

    def run(self, call: Callable[[], object]) -> None:
        before = sys.gettrace()
        # Python 3.11 is confused by a trace function that raises into a `__del__`: none of an
        # earlier client may come in here.
        gc.disable()
        sys.settrace(self._begun)
        try:
            call()
        finally:
            sys.settrace(before)
            gc.enable()

    def _begun(self, frame: FrameType, _event: str, _arg: object) -> Any:
        path = frame.f_code.co_filename
        if not path.startswith(PARTS):
            return None
        previous = 0  # the first line follows the beginning, which counts

        def local(frame: FrameType, event: str, _arg: object) -> Any:
            nonlocal previous
            if event == "line":
                line, before, previous = frame.f_lineno, previous, frame.f_lineno
                if before and is_exact(path, line, before):
                    self._step(frame)
            return local

        self._step(frame)
        return local

    def _step(self, frame: FrameType) -> None:
        self.seen += 1
        if self.seen == self._at and self._then is not None:
            self._then(frame)

"""Every lock that hangs off some objects, held by another thread around a fork."""

import gc
import logging
import threading
import types
from collections.abc import Callable
from typing import Any

LOCKS = (type(threading.Lock()), type(threading.RLock()))
ELSEWHERE = (type, types.ModuleType, types.FunctionType, types.FrameType, logging.Logger)


def locks_of(*roots: Any) -> list[Any]:
    """Every lock that is reachable, but by classes, modules and functions."""
    found, seen, todo = [], {}, list(roots)
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing  # kept, or its id might become another's
        if isinstance(thing, LOCKS):
            found.append(thing)
        elif not isinstance(thing, ELSEWHERE):
            todo.extend(gc.get_referents(thing))
    return found


def hold(locks: list[Any]) -> Callable[[], None]:
    """Let another thread hold them, until the function that is returned is called.

    Not waited for: one that is held already (an idle thread's) is held, which is the aim.
    """
    are_held, release = threading.Event(), threading.Event()

    def run() -> None:
        taken = [lock for lock in locks if lock.acquire(blocking=False)]
        are_held.set()
        release.wait(30)
        for lock in taken:
            lock.release()

    thread = threading.Thread(target=run)
    thread.start()
    assert are_held.wait(10)

    def end() -> None:
        release.set()
        thread.join()

    return end

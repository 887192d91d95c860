"""Celery's tasks, by its signals: a scope of its own for each, and the exit of a pool's child.

Nothing here imports Celery. If the application has imported it, a client connects to three signals:

``worker_process_shutdown``
    A child of the prefork pool will call ``os._exit`` soon.
``task_prerun``, ``task_postrun``
    Each task starts with the defaults of each scope, and its changes end with it. A task that runs
    eagerly belongs to its caller, and keeps the caller's data. For a client with
    ``isolate_tasks=False`` nothing changes.
"""

from __future__ import annotations

import contextvars
import sys
from collections.abc import Callable
from typing import Any, Final

from valued._process import shutdown

#: Identifies our receivers in Celery.
_UID: Final = "valued"

#: What ends the scope of the task that runs in this context.
_end: Final[contextvars.ContextVar[Callable[[], None] | None]] = contextvars.ContextVar(
    "valued_end_of_task", default=None
)

listening = False

#: Begins the scope of a task, and returns what ends it.
_scope_of_task: Callable[[], Callable[[], None]] | None = None


def listen(scope_of_task: Callable[[], Callable[[], None]]) -> None:
    """Connect to the signals, if Celery is imported. Any thread may call; once is enough.

    Called when a client is made, and with each event until Celery is imported. *scope_of_task*:
    is called as a task begins; what it returns is called as the task ends.
    """
    global listening, _scope_of_task
    _scope_of_task = scope_of_task
    signals = sys.modules.get("celery.signals")
    # A child inherits its parent's connections to the signals, and must not wait for a signal's
    # lock, which a thread of the parent may have held at the fork.
    if signals is None or listening:
        return
    for signal, receiver in (
        (signals.worker_process_shutdown, _end_process),
        (signals.task_prerun, _begin_task),
        (signals.task_postrun, _end_task),
    ):
        signal.connect(receiver, weak=False, dispatch_uid=_UID)
    # First: a receiver of the application's may set the task's user.
    _move(signals.task_prerun, _begin_task, 0)
    listening = True


def _move(signal: Any, receiver: Any, place: int) -> None:
    """Have *receiver* called first (0), or last (-1)."""
    with signal.lock:  # or a receiver that is being connected could get lost
        receivers = signal.receivers
        if receivers and receivers[place][1] is not receiver:
            ours = [entry for entry in receivers if entry[1] is receiver]
            others = [entry for entry in receivers if entry[1] is not receiver]
            # In place: Celery keeps the list.
            receivers[:] = [*others, *ours] if place else [*ours, *others]


def _begin_task(task: Any = None, **_signal: Any) -> None:
    if not task.request.is_eager and _scope_of_task is not None:
        # Last: a receiver of the application's, which may be connected by now, may record events.
        _move(sys.modules["celery.signals"].task_postrun, _end_task, -1)
        _end.set(_scope_of_task())


def _end_task(task: Any = None, **_signal: Any) -> None:
    end = _end.get()
    if end is not None and not task.request.is_eager:
        _end.set(None)
        end()


def _end_process(**_signal: Any) -> None:
    # Receivers after this one may record events, even the first ones of this process.
    shutdown.exit_without_handlers()

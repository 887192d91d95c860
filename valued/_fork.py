"""Which process this is, and what a fork does. No other module asks for the pid.

The promise, part by part:

==============================  =======================  ==========================================
part                            in the parent            in the child
==============================  =======================  ==========================================
events accepted, not sent       sent, once               none: they are the parent's
worker threads, locks           untouched; a fork waits  new, built with the first event
                                for nothing
connections, TLS included       go on being used         inherited descriptors are closed without a
                                                         word on the wire
figures                         go on                    zero, with the child's pid and start time
clients, scopes, converters,    as they were             as they were
options
executor given as a factory     as it was                called again with the first event
executor given as an instance   as it was                a warning, once; a default pool sends
==============================  =======================  ==========================================

It rests on one mechanism: whatever belongs to a process hangs off a `PerProcess`, under the pid
that built it. The value of another pid is never used, only handed to ``forget``, once. The child
therefore takes no lock, since all locks of the parent hang off values that it doesn't look at.

That comparison is made wherever the value is asked for, so a fork made in C, of which Python hears
nothing (uWSGI as it comes), is noticed with the first event. ``os.register_at_fork`` only makes it
prompt: the parent's descriptors are closed at once, and not with an event that may never come.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """A value that each process builds for itself, when it first asks for it.

    *build* may run twice when two threads ask first at the same instant (one result is kept, the
    same for both), so it must be cheap and start nothing. *forget* gets the value that a child
    inherited; it runs in the child, maybe in a fork hook: it must not lock, log, start or raise.
    """

    __slots__ = ("__weakref__", "_build", "_forget", "_values")

    def __init__(self, build: Callable[[], T], forget: Callable[[T], None] | None = None) -> None:
        self._build = build
        self._forget = forget
        # Each operation on it is atomic (`get`, `setdefault`, `pop`), so no lock is needed that
        # a thread could hold while another one forks. It never holds more than one living entry.
        self._values: dict[int, T] = {}
        _owners.add(self)

    def get(self) -> T:
        """This process's value. Any thread may call."""
        value = self._values.get(os.getpid())
        return self._renew() if value is None else value

    def peek(self) -> T | None:
        """This process's value if it was built already."""
        return self._values.get(os.getpid())

    def forget_parent(self) -> None:
        """Let go of what another process built. Does nothing in that process itself."""
        here = os.getpid()
        for pid in list(self._values):
            if pid != here:
                # Two threads may come here together after a fork in C: `pop` gives it to one.
                inherited = self._values.pop(pid, None)
                if inherited is not None and self._forget is not None:
                    self._forget(inherited)

    def _renew(self) -> T:
        value = self._values.setdefault(os.getpid(), self._build())
        self.forget_parent()
        return value


class Birthplace:
    """Remembers in which process it was made."""

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made: PerProcess[object] = PerProcess(object)
        self._made.get()

    def is_here(self) -> bool:
        """Whether that is this process, and not an ancestor of it."""
        return self._made.peek() is not None


# Weak: a hook can't be unregistered, so there is one hook, and owners come and go.
_owners: Final[weakref.WeakSet[PerProcess[Any]]] = weakref.WeakSet()


def _in_child() -> None:
    # No lock: its holder may be a thread that the child doesn't have. Only what another process
    # built is let go of: a hook that ran before this one may have recorded an event already.
    for owner in list(_owners):
        owner.forget_parent()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_in_child)


def identity() -> tuple[int, float]:
    """The pid and the start time (seconds since the epoch) of this process."""
    # Here and not above: it would cost every import of the library for a figure that few ask for.
    import psutil

    process = psutil.Process()
    return process.pid, process.create_time()

"""Which process this is, and what a fork does. No other module asks for the pid.

The promise, part by part:

==============================  =======================  ==========================================
part                            in the parent            in the child
==============================  =======================  ==========================================
events accepted, not sent       sent, once               none: they are the parent's
worker threads, locks           untouched; a fork waits  new, built with the first event
                                for nothing
connections, TLS included       go on being used         inherited descriptors are closed; nothing
                                                         is sent
stats                           go on                    zero, with the child's pid and start time
clients, scopes, converters,    as they were             as they were
options
executor given as a factory     as it was                called again with the first event
executor given as an instance   as it was                a warning, once; a default pool sends
outbox                          goes on                  a mark and files of its own with the first
                                                         event; inherited descriptors are closed
==============================  =======================  ==========================================

It relies on one mechanism: all state of a process belongs to a `PerProcess`, under the pid that
built it. The value of another pid is never used, only passed to ``forget``, once. Therefore the
child takes no lock: all locks of the parent are in values that the child doesn't look at.

The pid is compared whenever the value is needed. So a fork made in C, which Python doesn't notice
(uWSGI by default, ``fork`` called by ctypes), is detected with the first event. The hooks
(``os.register_at_fork``, and uWSGI's own ``post_fork_hook``) only make it prompt: the parent's
descriptors are closed at once, and not with an event that may never come. All three ways run the
same reset.

A child that is forked on a thread of ours, by a transport for example, has that thread as its main
thread. After the call returns, that thread has nothing to do in the child, and ends.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")


class WeakList(Generic[T]):
    """Lists objects without keeping them alive. Any thread may call anything.

    It can be listed while other threads add to it: each operation is a single operation of a dict,
    so it is atomic. `weakref.WeakSet` raises a `RuntimeError` then. There is no lock that a thread
    could hold while another one forks.
    """

    __slots__ = ("__weakref__", "_references")

    def __init__(self) -> None:
        self._references: dict[weakref.ref[T], None] = {}

    def add(self, element: T) -> None:
        """Add *element*, by a weak reference; once, however often this is called."""
        self._references[weakref.ref(element, self._references.pop)] = None

    def living(self) -> list[T]:
        """The elements that are alive, as a new list, in the order in which they were added."""
        found = [reference() for reference in list(self._references)]
        return [element for element in found if element is not None]


class PerProcess(Generic[T]):
    """A value that each process builds for itself when it first needs it.

    *build* may run twice if two threads need the value at the same moment (both get the same
    result), so it must be cheap and start nothing. *forget* gets the value that a child inherited.
    It runs in the child, maybe in a fork hook: it must not lock, log, start threads or raise.
    """

    __slots__ = ("__weakref__", "_build", "_forget", "_values")

    def __init__(self, build: Callable[[], T], forget: Callable[[T], None] | None = None) -> None:
        self._build = build
        self._forget = forget
        # Each operation on it is atomic (`get`, `setdefault`, `pop`), so no lock is needed that
        # a thread could hold while another one forks. It has at most one entry that is in use.
        self._values: dict[int, T] = {}
        _owners.add(self)

    def get(self) -> T:
        """This process's value. Any thread may call."""
        value = self._values.get(os.getpid())
        return self._renew() if value is None else value

    def peek(self) -> T | None:
        """This process's value if it was built already, else None."""
        return self._values.get(os.getpid())

    def forget_parent(self) -> None:
        """Forget what another process built. Does nothing in that process itself."""
        here = os.getpid()
        for pid in list(self._values):
            if pid != here:
                # Two threads may come here together after a fork in C: `pop` gives it to one.
                inherited = self._values.pop(pid, None)
                if inherited is not None and self._forget is not None:
                    self._forget(inherited)

    def _renew(self) -> T:
        value = self._values.setdefault(os.getpid(), self._build())
        if len(self._values) > 1:  # a fork that ran no hook: reset all others, too
            _in_child()
        return value


class ProcessToken:
    """Remembers in which process it was made."""

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made: PerProcess[object] = PerProcess(object)
        self._made.get()

    def is_current(self) -> bool:
        """Whether that was this process, and not an ancestor of it."""
        return self._made.peek() is not None


# Weak: a hook can't be unregistered, so there is one hook for all, while owners come and go.
_owners: Final[WeakList[PerProcess[Any]]] = WeakList()


def _in_child() -> None:
    # No lock: its holder may be a thread that the child doesn't have. Only forget what another
    # process built: a hook that ran before this one may have recorded an event already.
    for owner in _owners.living():
        owner.forget_parent()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_in_child)


def _join_uwsgi() -> None:
    """Let uWSGI, which forks in C, call the reset in its workers, too.

    It looks the hook up by name after each fork. If other code replaces the hook later
    (`uwsgidecorators` does), the reset comes later, with the first event.
    """
    uwsgi = sys.modules.get("uwsgi")  # the server itself makes the module, before any import
    if uwsgi is None:
        return
    before = getattr(uwsgi, "post_fork_hook", None)

    def post_fork_hook() -> None:
        _in_child()
        if before is not None:
            before()

    uwsgi.post_fork_hook = post_fork_hook  # type: ignore[attr-defined]


_join_uwsgi()


def is_uwsgi_master() -> bool:
    """Whether this is a uWSGI master, in which no thread of ours may run.

    It forks in C, at any time. If a thread holds the interpreter's lock at that moment, the worker
    inherits a lock that is never released, and waits for ever.
    """
    uwsgi = sys.modules.get("uwsgi")
    return uwsgi is not None and uwsgi.masterpid() == os.getpid()


def current_pid() -> int:
    """The pid of this process."""
    return os.getpid()


def send_signal(number: int) -> None:
    """Send the signal *number* to this process, not to its children."""
    os.kill(os.getpid(), number)

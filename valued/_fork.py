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
outbox                          goes on                  a mark and files of its own with the first
                                                         event; inherited descriptors are closed
==============================  =======================  ==========================================

It rests on one mechanism: whatever belongs to a process hangs off a `PerProcess`, under the pid
that built it. The value of another pid is never used, only handed to ``forget``, once. The child
therefore takes no lock, since all locks of the parent hang off values that it doesn't look at.

That comparison is made wherever the value is asked for, so a fork made in C, of which Python hears
nothing (uWSGI as it comes, ``fork`` called by ctypes), is noticed with the first event. The hooks
(``os.register_at_fork``, and uWSGI's own ``post_fork_hook``) only make it prompt: the parent's
descriptors are closed at once, and not with an event that may never come. All three roads run the
same reset.

A child that is forked on a thread of ours, by a transport for example, has that thread as its main
one: what it does after the call is nobody's work any more, so it finds nothing to do and ends.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Any, Final, Generic, NamedTuple, TypeVar

from valued._weak import WeakList

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
        if len(self._values) > 1:  # a fork that no hook told of: all others are to hear of it, too
            _in_child()
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
_owners: Final[WeakList[PerProcess[Any]]] = WeakList()


def _in_child() -> None:
    # No lock: its holder may be a thread that the child doesn't have. Only what another process
    # built is let go of: a hook that ran before this one may have recorded an event already.
    for owner in _owners.living():
        owner.forget_parent()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_in_child)


def _join_uwsgi() -> None:
    """Let uWSGI, which forks in C, call the reset in its workers, too.

    It looks the hook up by its name after each fork. Whoever replaces it later (`uwsgidecorators`
    does) costs us the promptness, nothing else.
    """
    uwsgi = sys.modules.get("uwsgi")  # made by the server itself, so it is there from the start
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
    """Whether this is a master of uWSGI, in which no thread of ours may run.

    It forks in C, at any later time, too. A thread that has the interpreter's lock in that instant
    takes it along, and the worker waits for it for ever.
    """
    uwsgi = sys.modules.get("uwsgi")
    return uwsgi is not None and uwsgi.masterpid() == os.getpid()


def is_spawning() -> bool:
    """Whether this thread pickles for a child that multiprocessing, or billiard, is starting.

    Only then does a pickle stay between a process and its child; the standard library guards its
    own ``AuthenticationString`` by the same mark.
    """
    for name in ("multiprocessing.context", "billiard.context"):
        context = sys.modules.get(name)
        if context is not None and context.get_spawning_popen() is not None:
            return True
    return False


def trial_pickle(part: object) -> None:
    """Pickle *part* as it would be in the pickle that this thread is making, and forget the result.

    Raises whatever the part raises. What multiprocessing can hand to a child, it can only while the
    child is being started.
    """
    import pickle

    reduction = sys.modules.get("multiprocessing.reduction") if is_spawning() else None
    (reduction.ForkingPickler if reduction is not None else pickle).dumps(part)


def import_psutil() -> None:
    """Import what is used below. For who makes a client.

    A child that is forked while another thread imports a module waits for ever where it needs that
    one. Not above, as it would cost every import of the library.
    """
    import psutil  # noqa: F401


def identity() -> tuple[int, float]:
    """The pid and the start time (seconds since the epoch) of this process."""
    import psutil

    process = psutil.Process()
    return process.pid, process.create_time()


class Mark(NamedTuple):
    """Which process this is, told to others on the same machine, and to those that come later.

    A pid is used again; with the start of its process it is not. Both mean something only where the
    same pids are seen: *boot*, *namespace* and *host* say where that is.
    """

    pid: int
    #: On Linux in ticks since the boot, as the kernel counts: the time since the epoch that is
    #: calculated from it moves when the clock is set.
    start: str
    boot: str
    namespace: str
    host: str

    @classmethod
    def of_this_process(cls) -> Mark:
        """The mark of this process."""
        pid = os.getpid()
        return cls(pid, _start(pid) or "", *_pid_space(), os.uname().nodename)


def lives(mark: Mark) -> bool | None:
    """Whether the process of *mark* lives, stopped ones included; None: it can't be seen from here.

    One that has ended and not been waited for by its parent (a zombie) doesn't.
    """
    here = Mark.of_this_process()
    if mark[2:] != here[2:] or not mark.start:
        return None
    return _start(mark.pid) == mark.start


def _pid_space() -> tuple[str, str]:
    """The boot, and the namespace that pids are counted in; empty where there are none to tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            return file.read().strip(), os.readlink("/proc/self/ns/pid")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return "", ""  # any other error says nothing of where this is: too many open files, say


def _start(pid: int) -> str | None:
    """When the process *pid* was started, in a form to compare; None: there is none.

    Raises `OSError` where this process can't look, `PermissionError` where it may not.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in parentheses, may hold anything.
            fields = file.read().rpartition(b")")[2].split()
    except FileNotFoundError:
        return None if os.path.exists("/proc/self/stat") else _start_by_psutil(pid)
    except ProcessLookupError:  # it ended between `open` and `read`
        return None
    # A leader that has ended while threads of it still run is no dead process.
    state, threads, start = fields[0], int(fields[17]), fields[19]
    return None if state in b"ZX" and threads <= 1 else start.decode()


def _start_by_psutil(pid: int) -> str | None:
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return repr(process.create_time())
    except psutil.AccessDenied as error:
        raise PermissionError(errno.EACCES, "there is such a process, and it is hidden") from error
    except psutil.Error:
        return None


def send_signal(number: int) -> None:
    """Send this process, and none that it forked, the signal *number*."""
    os.kill(os.getpid(), number)


def has_os_threads(native_ids: set[int]) -> bool:
    """Whether the kernel still counts one of these threads to this process.

    It does so for an instant after ``Thread.join`` up to Python 3.12, and warns of a fork by it.
    """
    import psutil

    return any(thread.id in native_ids for thread in psutil.Process().threads())

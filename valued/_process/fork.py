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

import errno
import os
import sys
from collections.abc import Callable
from typing import Any, Final, Generic, NamedTuple, TypeVar

from valued._process.weak import WeakList

T = TypeVar("T")


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


class Birthplace:
    """Remembers in which process it was made."""

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made: PerProcess[object] = PerProcess(object)
        self._made.get()

    def is_here(self) -> bool:
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


def import_psutil() -> None:
    """Import the module used below. Called when a client is made.

    A child that is forked while another thread imports a module waits for ever when it needs that
    module. Not imported at the top, since that would slow down every import of the library.
    """
    import psutil  # noqa: F401


def identity() -> tuple[int, float]:
    """The pid and the start time (seconds since the epoch) of this process."""
    import psutil

    process = psutil.Process()
    return process.pid, process.create_time()


class Mark(NamedTuple):
    """Identifies a process, for other processes and for later ones.

    A pid may be reused, but not together with the start time of its process. Both are valid only
    where the same pids are visible: *boot*, *namespace* and *host* say where that is.
    """

    pid: int
    #: On Linux in ticks since the boot, as the kernel counts them: a time since the epoch,
    #: calculated from it, would change when the clock is set.
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
    """Whether the process of *mark* is alive, maybe stopped; None: it can't be seen from here.

    A process that has ended, and that its parent hasn't waited for (a zombie), isn't alive.
    """
    here = Mark.of_this_process()
    if mark[2:] != here[2:] or not mark.start:
        return None
    return _start(mark.pid) == mark.start


def _pid_space() -> tuple[str, str]:
    """The id of the boot, and the pid namespace; empty if the system has none."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            return file.read().strip(), os.readlink("/proc/self/ns/pid")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return "", ""  # any other error, such as too many open files, proves nothing: it is raised


def _start(pid: int) -> str | None:
    """When the process *pid* was started, in a form for comparison; None: there is no such process.

    Raises `OSError` if this process can't look, and `PermissionError` if it may not.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in parentheses, may contain anything.
            fields = file.read().rpartition(b")")[2].split()
    except FileNotFoundError:
        return None if os.path.exists("/proc/self/stat") else _start_by_psutil(pid)
    except ProcessLookupError:  # it ended between `open` and `read`
        return None
    # A process whose main thread has ended while other threads run isn't dead.
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
        raise PermissionError(errno.EACCES, "the process exists, and it is hidden") from error
    except psutil.Error:
        return None


def send_signal(number: int) -> None:
    """Send the signal *number* to this process, not to its children."""
    os.kill(os.getpid(), number)


def has_os_threads(native_ids: set[int]) -> bool:
    """Whether the kernel still counts one of these threads as part of this process.

    Up to Python 3.12 it does for a moment after ``Thread.join``, and a fork then causes a warning.
    """
    import psutil

    process = psutil.Process()
    try:
        return any(thread.id in native_ids for thread in process.threads())
    except psutil.NoSuchProcess:
        # Older psutil takes a thread that ends at this moment for the process. Look again.
        return True

"""What writes the stats of one process: at most once a second, and at its end.

It is called by threads that send, after an attempt, and never by the call of an event. Where
attempts end within a second after a write, one more write follows when that second is over.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

from valued._process import shutdown
from valued._process.clock import CLOCK
from valued._process.fork import PerProcess, current_pid, is_uwsgi_master
from valued._process.reporting import Reporter
from valued._process.threads import start_thread
from valued._status.files import StatusDirectory, add, no_stats

#: Runs a function on a thread. Raises `RuntimeError` where none idles and none can be started.
Submit = Callable[[Callable[[], None]], object]

#: Seconds between two writes of a process.
INTERVAL: Final = 1.0

#: Seconds until the disk is tried again after an error.
RETRY_INTERVAL: Final = 10.0

#: Seconds that the end of a client waits for the disk, which may hang.
LAST_MOMENT: Final = 0.2

#: Seconds that the end of a process waits for it: what is not written then is lost.
AT_EXIT: Final = 0.4


class _File:
    """What this process writes in one directory, for all of its clients. Any thread may call."""

    def __init__(self, directory: StatusDirectory) -> None:
        self._directory = directory
        self._name = f"{current_pid()}-{os.urandom(16).hex()}"
        self._reporter = Reporter(None)
        # Held while it writes. Not re-entrant: a signal handler that wrote in between would write
        # newer counts, and the write that it interrupts replaced them by older ones.
        self._lock = threading.Lock()
        # By reference, and these are equal: several threads may add a client at once.
        self._clients: dict[weakref.ref[ClientStatus], Callable[[], dict[str, Any]]] = {}
        self._gone = no_stats()  # the sums of clients that are no more
        self._is_begun = False
        self._ended = False
        self.has_changed = False
        self.next_write = CLOCK.monotonic()
        shutdown.report_at_exit(self)

    def add(self, client: ClientStatus, figures: Callable[[], dict[str, Any]]) -> None:
        """Write the *figures* of *client*, too."""
        self._clients[weakref.ref(client)] = figures

    def finish(self, timeout: float = LAST_MOMENT) -> None:
        """Write now, for the last time maybe, and wait for it so long. Raises nothing."""
        done = threading.Lock()
        done.acquire()

        def run() -> None:
            self.write(timeout)
            done.release()

        clients = [reference() for reference in list(self._clients)]
        living = [client for client in clients if client is not None]
        sends_in_calls = bool(living) and not any(client.has_monitor() for client in living)
        if sends_in_calls or is_uwsgi_master():
            run()  # such a client has no threads, and in a uWSGI master none may run
            return
        # First a client's own thread: `park` waits until it has ended. From Python 3.12 on, no
        # thread can be started in exit handlers, but one that has sent events may idle.
        for submit in (*(client.submit for client in living), start_thread):
            try:
                submit(run)
            except RuntimeError:
                continue
            done.acquire(timeout=timeout)
            return
        # No thread: the last second of counts is missing. Written in this thread, a disk that hangs
        # would keep the process from ending.

    def write(self, timeout: float = 0.0) -> None:
        """Write now. *timeout*: how long to wait for another thread that writes. Raises nothing."""
        if not self._lock.acquire(timeout=timeout):
            return
        try:
            self.has_changed = False  # first: what changes from here on is written later
            self.next_write = CLOCK.monotonic() + INTERVAL
            self._directory.write(self._name, self._content())
            if not self._is_begun:
                self._is_begun = True
                self._directory.fold()
        except OSError as error:
            self.next_write = CLOCK.monotonic() + RETRY_INTERVAL
            self._reporter.warn("status", "%d times the stats could not be written: %s", str(error))
        finally:
            self._lock.release()

    def _content(self) -> dict[str, Any]:
        stats, found = no_stats(), []
        for reference, figures in list(self._clients.items()):
            is_gone = reference() is None  # asked first: its figures don't change after that
            of_client = figures()
            found.append(of_client)
            if is_gone:
                del self._clients[reference]
                add(self._gone, of_client, pending=True)
            else:
                add(stats, of_client, pending=True)
        add(stats, self._gone, pending=True)
        error_at, error = max((one["error"] for one in found if one["error"]), default=(None, ""))
        return {
            "command": os.path.basename(sys.argv[0]) if sys.argv else "",
            "ended": self._ended,
            "stats": stats,
            "oldest": min((one["oldest"] for one in found if one["oldest"]), default=None),
            "error": error,
            "error_at": error_at,
        }

    def log_remaining(self) -> None:
        """The process ends: write for the last time. See `shutdown.Reports`."""
        self._ended = True
        self.finish(AT_EXIT)
        self._reporter.log_remaining()


#: What this process writes, by directory.
_here: Final[PerProcess[dict[str, _File]]] = PerProcess(dict)


class ClientStatus:
    """What one client in one process has written. Any thread may call; nothing raises.

    *figures*: its stats, with ``oldest`` (when the oldest pending event was accepted, in seconds
    since the epoch, or None) and ``error`` (when, and what; or None). *has_monitor*: whether a
    thread will look at `next_due`. *submit*: runs the last write on a thread of the client.
    """

    def __init__(
        self,
        directory: StatusDirectory,
        figures: Callable[[], dict[str, Any]],
        has_monitor: Callable[[], bool],
        submit: Submit,
    ) -> None:
        self._directory = directory
        self._figures = figures
        self.has_monitor: Final = has_monitor
        self.submit: Final = submit
        self._file: _File | None = None

    def note(self, *, later: bool = False) -> None:
        """An attempt has ended: write, if a second has passed. *later*: not yet."""
        file = self._mine()
        file.has_changed = True
        if not later and CLOCK.monotonic() >= file.next_write:
            file.write()

    def next_due(self) -> float | None:
        """When to write what has changed; None: nothing has."""
        file = self._file
        if file is None or not file.has_changed or not self.has_monitor():
            return None
        return file.next_write

    def tend(self, *, now: bool = False) -> None:
        """Write what is due; *now*: what has changed."""
        moment = self.next_due()
        if moment is not None and (now or CLOCK.monotonic() >= moment):
            self._mine().write()

    def finish(self) -> None:
        """Write now: there may be no later opportunity."""
        self._mine().finish()

    def _mine(self) -> _File:
        if self._file is None:
            files = _here.get()
            file = files.get(self._directory.path)
            if file is None:
                file = files.setdefault(self._directory.path, _File(self._directory))
            file.add(self, self._figures)
            self._file = file
        return self._file

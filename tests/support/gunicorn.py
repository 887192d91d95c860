"""Gunicorn as a real program, and visitors who load it."""

from __future__ import annotations

import collections
import http.client
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.support.programs import BOUND, Program
from tests.support.visitors import Visitors as _Visitors

#: Workers of each server.
WORKERS = 2

# The control socket would be a thread of the master's, and a file in the user's home.
_CONFIGURATION = """
control_socket_disable = True

def post_worker_init(worker):
    application = worker.wsgi

    def naming_itself(environ, start_response):
        def start(status, headers, *more):
            return start_response(status, [*headers, ("X-Pid", str(worker.pid))], *more)

        return application(environ, start)

    worker.wsgi = naming_itself
"""

_LOGGED = re.compile(r"\[.+?\] \[(\d+)\] \[(\w+)\] (.*)")


class Gunicorn(Program):
    """A server on a free port of loopback.

    *options* are of Gunicorn's command line, *python* of the interpreter's, *configuration* is the
    text of its configuration file. Its own log goes to a file; what then still comes on the error
    stream, a traceback or a warning, was said by other code.
    """

    def __init__(
        self,
        folder: Path,
        app: str,
        *options: str,
        python: Iterable[str] = (),
        configuration: str = "",
        **environment: str,
    ) -> None:
        self._log = folder / "gunicorn.log"
        file = folder / "gunicorn.conf.py"
        file.write_text(configuration + _CONFIGURATION, "utf-8")
        super().__init__(
            folder / "gunicorn.stderr",
            *(*python, "-m", "gunicorn", "--config", file),
            *("--bind", "127.0.0.1:0", "--workers", str(WORKERS)),
            # A worker that is told to end in the instant of its fork doesn't hear of it: CPython
            # forgets a signal that comes before the child's first step.
            *("--graceful-timeout", "10"),
            *("--error-logfile", self._log, *options, app),
            env={**os.environ, **environment},
        )
        with self._starting():
            # It listens from here on: who connects earlier than the workers are there waits.
            self.port = int(self.wait_for_log(r"Listening at: http://127\.0\.0\.1:(\d+)")[1])

    # -- what it says ------------------------------------------------------------------------------

    def log(self) -> str:
        """What Gunicorn logged."""
        return self._log.read_text("utf-8") if self._log.exists() else ""

    def stderr(self) -> str:
        """What other code said."""
        return super().said()

    def said(self) -> str:
        """All of it, for the report of a failure."""
        return f"-- gunicorn: log\n{self.log()}\n-- gunicorn: stderr\n{self.stderr()}"

    def complaints(self) -> list[str]:
        """The messages in the log that are more than news, without pids."""
        logged = [_LOGGED.fullmatch(line) for line in self.log().splitlines()]
        return [
            "a line of another form" if line is None else re.sub(r"pid:\d+", "pid", line[3])
            for line in logged
            if line is None or line[2] not in ("INFO", "DEBUG")
        ]

    def assert_said_nothing(self, *, besides: str | tuple[str, ...] = ()) -> None:
        """Nothing but news, on any road. Python prints what a hook or a finalizer raises.

        *besides*: lines of the error stream that hold this, or one of these, are expected.
        """
        expected = (besides,) if isinstance(besides, str) else besides
        lines = [
            line
            for line in self.stderr().splitlines()
            if not any(part in line for part in expected)
        ]
        assert not lines, lines
        assert not self.complaints(), self.complaints()

    def booted(self) -> list[int]:
        """The pids of all workers there ever were."""
        return [int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", self.log())]

    def is_leaving(self, pid: int) -> bool:
        """Whether this worker has had its ``--max-requests``: the log says so before the answer."""
        return f"[{pid}] [INFO] Autorestarting worker" in self.log()

    def workers(self, besides: Iterable[int] = ()) -> set[int]:
        """The pids of its two workers, once there are two, none of them among *besides*."""
        gone = set(besides)

        def two() -> set[int] | None:
            pids = {child.pid for child in psutil.Process(self.pid).children()}
            return pids if len(pids) == WORKERS and not pids & gone else None

        pids: set[int] = self.wait_until(two)
        return pids

    def wait_for_log(self, pattern: str) -> re.Match[str]:
        """The first place in the log that matches."""
        found: re.Match[str] = self.wait_until(lambda: re.search(pattern, self.log()))
        return found

    # -- ending ------------------------------------------------------------------------------------

    def stop(self) -> float:
        """End it politely; the seconds it took. It must leave no process, with status 0."""
        started = time.monotonic()
        family = psutil.Process(self.pid).children(recursive=True)
        self.process.terminate()
        status = self.process.wait(BOUND)
        seconds = time.monotonic() - started
        assert status == 0, f"status {status}\n{self.said()}"
        left = [process for process in family if _is_alive(process)]
        assert not left, left
        return seconds


def _is_alive(process: psutil.Process) -> bool:
    """Unlike psutil, which takes one that has ended and was not waited for as running."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Visitors(_Visitors):
    """Every fourth request is a POST. What is noted of an answer: the process that gave it."""

    def what(self, number: int) -> tuple[str, str]:
        return ("POST", "/reports") if number % 4 == 0 else ("GET", f"/reports/{number}")

    def ask(
        self, connection: http.client.HTTPConnection, name: str, what: tuple[str, str]
    ) -> tuple[int, object]:
        connection.request(*what, headers={"X-Request-Id": name, "X-User-Id": "7"})
        answer = connection.getresponse()
        answer.read()
        return answer.status, int(answer.headers.get("X-Pid", 0))

    def count_of_events(self) -> int:
        """How many events the answers tell of."""
        return len(list(self._expected(self.answered)))

    def pids(self) -> set[int]:
        """The processes that answered."""
        return set(self.answered.values())

    def wait_for_pids(self, pids: Iterable[int]) -> None:
        """Until each of these processes has answered."""
        self.wait_until(lambda: self.pids().issuperset(pids))

    def wait_for_processes(self, count: int) -> None:
        """Until *count* processes have answered."""
        self.wait_until(lambda: len(self.pids()) >= count)

    def assert_each_event_came_once(self, events: Iterable[tuple[str, str, int]]) -> None:
        """Compare *events* (id, category, pid of who sent it) with the answers.

        One page view for each request that was answered, and an action if it was a POST, each from
        the process that answered. Of those that were not answered each may be there, once.
        """
        events = list(events)
        received = collections.Counter((name, category) for name, category, _pid in events)
        expected = set(self._expected(self.answered))
        allowed = expected.union(self._expected(self.unanswered))
        wrong: dict[str, Any] = {
            "not answered as expected": self.wrong,
            "lost": expected - received.keys(),
            "twice": [event for event, times in received.items() if times > 1],
            "never asked for": received.keys() - allowed,
            "from another process": [
                event for event in events if event[2] != self.answered.get(event[0], event[2])
            ],
        }
        assert not any(wrong.values()), wrong

    def _expected(self, names: Iterable[str]) -> Iterator[tuple[str, str]]:
        for name in names:
            yield name, "pageview"
            if self.what(int(name.rpartition("-")[2]))[0] == "POST":
                yield name, "action"

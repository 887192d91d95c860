"""Gunicorn as a real program, and visitors who load it."""

from __future__ import annotations

import collections
import contextlib
import http.client
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent.parent

#: Seconds that bound a failure; nothing here lasts so long.
BOUND = 30.0

#: Seconds between two looks at a log or at a process table: neither can be waited for.
LOOK_AGAIN = 0.01

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


class Gunicorn:
    """A server on a free port of loopback, in a session of its own.

    *options* are of Gunicorn's command line, *python* of the interpreter's, *configuration* is the
    text of its configuration file. Its own log goes to a file; what then still comes on the error
    stream, a traceback or a warning, was said by somebody else.
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
        self._stderr = folder / "gunicorn.stderr"
        file = folder / "gunicorn.conf.py"
        file.write_text(configuration + _CONFIGURATION, "utf-8")
        command = [
            *(sys.executable, *python, "-m", "gunicorn", "--config", str(file)),
            *("--bind", "127.0.0.1:0", "--workers", str(WORKERS)),
            # A worker that is told to end in the instant of its fork doesn't hear of it: CPython
            # forgets a signal that comes before the child's first step.
            *("--graceful-timeout", "10"),
            *("--error-logfile", str(self._log), *options, app),
        ]
        with self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
            )
        self._has_ended = False
        self.pid = self._process.pid
        try:
            # It listens from here on: who connects earlier than the workers are there waits.
            self.port = int(self.wait_for_log(r"Listening at: http://127\.0\.0\.1:(\d+)")[1])
        except BaseException:
            self.kill()
            raise

    # -- what it says ------------------------------------------------------------------------------

    def log(self) -> str:
        """What Gunicorn logged."""
        return self._log.read_text("utf-8") if self._log.exists() else ""

    def stderr(self) -> str:
        """What anybody else said."""
        return self._stderr.read_text("utf-8")

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
        return self.wait_until(lambda: re.search(pattern, self.log()))

    def wait_until(self, condition: Callable[[], Any]) -> Any:
        """What *condition* returns once that is true."""
        deadline = time.monotonic() + BOUND
        while not (result := condition()):
            assert self._process.poll() is None, f"it ended\n{self.said()}"
            assert time.monotonic() < deadline, f"not in {BOUND} s\n{self.said()}"
            time.sleep(LOOK_AGAIN)
        return result

    # -- ending ------------------------------------------------------------------------------------

    def send(self, number: int) -> None:
        """Send the master a signal."""
        self._process.send_signal(number)

    def stop(self) -> float:
        """End it politely; the seconds it took. It must leave nobody behind, with status 0."""
        started = time.monotonic()
        family = psutil.Process(self.pid).children(recursive=True)
        self._process.terminate()
        status = self._process.wait(BOUND)
        seconds = time.monotonic() - started
        assert status == 0, f"status {status}\n{self.said()}"
        left = [process for process in family if process.is_running()]
        assert not left, left
        self._has_ended = True
        return seconds

    def kill(self) -> None:
        """End whoever is left of it: all of its session, by that one's id, which is the pid."""
        if not self._has_ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait(BOUND)


class Visitors:
    """Threads that ask, each on a kept-alive connection, one request after the other.

    They end with the server: when it refuses connections. So it can be stopped under their load.
    Every fourth request is a POST; with every tenth comes a new connection, since a connection
    stays with one worker. Nothing is asked twice: what was not answered may have been done.
    """

    def __init__(self, port: int, name: str = "visit", count: int = 4) -> None:
        self._port = port
        self._name = name
        # Guards what came of the requests.
        self._changed = threading.Condition()  # notified when something came of one
        self._posted: set[str] = set()
        self._answered: dict[str, int] = {}  # by which process
        self._unanswered: dict[str, str] = {}  # why
        self._refused: dict[str, str] = {}  # how
        self._stop = threading.Event()
        self._numbers = itertools.count(1)
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        there_is_a_server = True
        while there_is_a_server and not self._stop.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=BOUND)
            for _ in range(10):
                number = next(self._numbers)
                post = number % 4 == 0
                there_is_a_server = self.ask(
                    connection,
                    f"{self._name}-{number}",
                    *(("POST", "/reports") if post else ("GET", f"/reports/{number}")),
                )
                if not there_is_a_server or self._stop.is_set():
                    break
            connection.close()

    def ask(
        self, connection: http.client.HTTPConnection, name: str, method: str, path: str
    ) -> bool:
        """Ask once; whether there is still a server."""
        if method == "POST":
            self._posted.add(name)
        try:
            connection.request(method, path, headers={"X-Request-Id": name, "X-User-Id": "7"})
            answer = connection.getresponse()
            answer.read()
        except TimeoutError as error:
            self._note(self._refused, name, repr(error))  # it hangs, which is no way to end
            return False
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self._note(self._unanswered, name, repr(error))
            return not isinstance(error, ConnectionRefusedError)
        if 200 <= answer.status <= 299:
            self._note(self._answered, name, int(answer.headers["X-Pid"]))
        else:
            self._note(self._refused, name, f"{answer.status} {answer.reason}")
        return True

    def _note(self, where: dict[str, Any], name: str, what: object) -> None:
        with self._changed:
            where[name] = what
            self._changed.notify_all()

    def answered(self) -> dict[str, int]:
        """The processes that answered, by the ids of the requests."""
        with self._changed:
            return dict(self._answered)

    def count_of_events(self) -> int:
        """How many events the answers tell of."""
        return len(list(self._expected(self.answered())))

    def pids(self) -> set[int]:
        """The processes that answered."""
        return set(self.answered().values())

    def wait_for(self, count: int) -> None:
        """Until *count* requests are answered."""
        self._wait_until(lambda: len(self._answered) >= count)

    def wait_for_pids(self, pids: Iterable[int]) -> None:
        """Until each of these processes has answered."""
        self._wait_until(lambda: self.pids().issuperset(pids))

    def wait_for_processes(self, count: int) -> None:
        """Until *count* processes have answered."""
        self._wait_until(lambda: len(self.pids()) >= count)

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            met = self._changed.wait_for(condition, BOUND)
        assert met, f"not in {BOUND} s: {self._answered} {self._refused} {self._unanswered}"

    def leave(self) -> None:
        """Ask no more; returns when the last request is answered, or not."""
        self._stop.set()
        self.join()

    def join(self) -> None:
        """Wait until they have ended, as they do with the server."""
        for thread in self._threads:
            thread.join(BOUND)
            assert not thread.is_alive()

    def assert_each_event_came_once(self, events: Iterable[tuple[str, str, int]]) -> None:
        """Compare *events* (id, category, pid of who sent it) with the answers.

        One page view for each request that was answered, and an action if it was a POST, each from
        the process that answered. Of those that were not answered each may be there, once.
        """
        events = list(events)
        received = collections.Counter((name, category) for name, category, _pid in events)
        expected = set(self._expected(self._answered))
        allowed = expected.union(self._expected(self._unanswered))
        wrong = {
            "not answered as expected": self._refused,
            "lost": expected - received.keys(),
            "twice": [event for event, times in received.items() if times > 1],
            "never asked for": received.keys() - allowed,
            "from another process": [
                event for event in events if event[2] != self._answered.get(event[0], event[2])
            ],
        }
        assert not any(wrong.values()), wrong

    def _expected(self, names: Iterable[str]) -> Iterator[tuple[str, str]]:
        for name in names:
            yield name, "pageview"
            if name in self._posted:
                yield name, "action"

"""uWSGI as a real program: started, asked, stopped, and its log read."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import http.client
import itertools
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil

from tests.support.processes import PROGRAMS
from tests.support.programs import BOUND, Program, free_port
from tests.support.visitors import Visitors

#: The one that was installed for this Python.
UWSGI = Path(sys.executable).with_name("uwsgi")

#: In a line of the log that nobody wants to read. uWSGI shouts DAMN where a worker died.
_TROUBLE = re.compile(
    r"Traceback|Exception|Error|Fatal|\wWarning:|DAMN|Segmentation|:valued:", re.I
)


@functools.cache
def version() -> tuple[int, ...]:
    """Of the uWSGI that is installed."""
    done = subprocess.run(
        [UWSGI, "--version"], capture_output=True, text=True, check=True, timeout=BOUND
    )
    return tuple(int(part) for part in re.findall(r"\d+", done.stdout)[:3])


@dataclasses.dataclass(frozen=True)
class Answer:
    """To a request: the event that it recorded, and the process that did."""

    id: str
    pid: int
    #: Events of that process that were not settled when the call had returned.
    pending: int
    #: In which processes the application's own hook had run, as this one remembers.
    hooks: list[int]


class Gate:
    """Holds requests inside of the workers until as many as are wanted are there."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.settimeout(BOUND)
        self.port: int = self._listener.getsockname()[1]

    @contextlib.contextmanager
    def held(self, count: int) -> Iterator[None]:
        """Wait for *count* of them; they go on at the end of the block."""
        with contextlib.ExitStack() as inside:
            for _ in range(count):
                inside.enter_context(self._listener.accept()[0])
            yield

    def let_pass(self, count: int) -> None:
        """Wait for *count* of them, then let them go on together."""
        with self.held(count):
            pass

    def close(self) -> None:
        self._listener.close()


class Uwsgi(Program):
    """A master with its workers, which run ``programs/uwsgi_app.py``.

    *options* are of uWSGI's command line, *environment* is read by the application.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        processes: int = 4,
        threads: int = 1,
        **environment: str,
    ) -> None:
        self.processes = processes
        self.threads = threads
        self._fifo = folder / "fifo"
        self._statistics = folder / "statistics"
        self._ids = itertools.count(1)
        self.gate = Gate()
        # It must be a given one: uWSGI finds the socket again by it, when it is reloaded.
        self.port = free_port()
        if threads > 1:
            options = (*options, "--threads", str(threads))
        super().__init__(
            folder / "uwsgi.log",
            *("--http-socket", f"127.0.0.1:{self.port}", "--need-app", "--disable-logging"),
            *("--master", "--master-fifo", self._fifo, "--processes", str(processes)),
            *("--wsgi-file", PROGRAMS / "uwsgi_app.py", "--stats", self._statistics),
            # What a reload runs. By itself it takes the Python that the virtual environment was
            # made of, and there no uWSGI is installed.
            *("--binary-path", sys.executable, *options),
            env={**os.environ, "GATE": str(self.gate.port), **environment},
            program=UWSGI,
        )
        with self._starting():
            self.wait_until(lambda: len(self.workers()) == processes)
            self.ask_all(silent=1)  # from here on each has its application, and heeds signals

    # -- what it says ------------------------------------------------------------------------------

    def complaints(self) -> list[str]:
        """The lines of the log that are no usual talk."""
        return [line for line in self.said().splitlines() if _TROUBLE.search(line)]

    def workers(self) -> set[int]:
        """The pids of the workers that there are."""
        return {child.pid for child in psutil.Process(self.pid).children()}

    def wait_until_idle(self) -> None:
        """Until no worker is in a request: it is for a moment after its answer was read."""
        self.wait_until(lambda: {worker["status"] for worker in self._statistics_now()} == {"idle"})

    def _statistics_now(self) -> list[dict[str, Any]]:
        with socket.socket(socket.AF_UNIX) as statistics:
            statistics.settimeout(BOUND)
            statistics.connect(str(self._statistics))
            with statistics.makefile() as text:
                return json.load(text)["workers"]

    def ports(self, pid: int, server_port: int) -> set[int]:
        """Our ends of this process's connections to a server."""
        return {
            connection.laddr.port
            for connection in psutil.Process(pid).net_connections("tcp")
            if connection.raddr and connection.raddr.port == server_port
        }

    # -- requests ----------------------------------------------------------------------------------

    def ask(self, **query: Any) -> Answer:
        """One request. Raises `OSError` or `http.client.HTTPException` where it isn't answered."""
        query = {"id": f"request-{next(self._ids)}", **query}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=BOUND)
        with contextlib.closing(connection):
            connection.request("GET", f"/?{urlencode(query)}")
            answer = connection.getresponse()
            body = answer.read()
        assert answer.status == 200, f"{answer.status} {body!r}\n{self.said()}"
        return Answer(**json.loads(body))

    def ask_all(self, **query: Any) -> list[Answer]:
        """One request to each thread of each worker: all are under way at the same time."""
        count = self.processes * self.threads
        with ThreadPoolExecutor(count) as callers:
            answers = [callers.submit(self.ask, gate=1, **query) for _ in range(count)]
            self.gate.let_pass(count)
            return [answer.result(BOUND) for answer in answers]

    @contextlib.contextmanager
    def load(self, callers: int = 6) -> Iterator[Load]:
        """Requests without a pause, as long as the block lasts."""
        load = Load(self, callers)
        try:
            yield load
        finally:
            load.leave()

    # -- ending ------------------------------------------------------------------------------------

    def signal(self, number: int) -> None:
        """Send the master a signal."""
        self.process.send_signal(number)

    def end_gracefully(self) -> None:
        """Ask for an end that lets each worker finish its request; no signal asks for that."""
        self._fifo.write_text("q")

    def wait(self) -> None:
        """Wait for the end, which was asked for; no process may be left."""
        self.process.wait(BOUND)
        assert self.is_gone(), f"some of it still runs\n{self.said()}"

    def stop(self) -> None:
        """End it gracefully; nobody may have complained."""
        self.end_gracefully()
        self.wait()
        assert self.complaints() == []

    def kill(self) -> None:
        self.gate.close()
        super().kill()


class Load(Visitors):
    """Callers who ask, each time on a new connection. What is noted is the answer."""

    def __init__(self, uwsgi: Uwsgi, callers: int) -> None:
        self._uwsgi = uwsgi
        super().__init__(uwsgi.port, "load-", callers)

    def what(self, number: int) -> None:
        """Only its id differs."""

    def ask(self, _connection: object, name: str, what: None) -> tuple[int, Answer]:
        return 200, self._uwsgi.ask(id=name)

    @property
    def answers(self) -> list[Answer]:
        return list(self.answered.values())

    def wait_for(self, count: int) -> None:
        """Until *count* more are answered."""
        super().wait_for(len(self.answered) + count)


def ids(answers: Iterable[Answer]) -> list[str]:
    """Of the events that were recorded, sorted."""
    return sorted(answer.id for answer in answers)

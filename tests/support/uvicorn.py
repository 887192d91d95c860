"""uvicorn, and Gunicorn with its worker, as real programs; and visitors who load them."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.processes import until
from tests.support.programs import BOUND, Program
from tests.support.visitors import Visitors as _Visitors

#: Kinds of servers, and the processes that each serves with.
KINDS = {"uvicorn": 1, "uvicorn, 2 workers": 2, "gunicorn, 2 workers": 2}

# What nobody wants to read. That a worker ended by SIGTERM is how uvicorn's end, says Gunicorn.
_COMPLAINT = re.compile(r"Traceback|Error|ERROR|WARNING|CRITICAL|Warning|not delivered|events? ")
_NORMAL = re.compile(r"Worker \(pid:\d+\) was sent SIGTERM!")


class ASGIServer(Program):
    """A server of *kind* on a free port of loopback.

    *options* are of its command line; *environment* is read by the application.
    """

    def __init__(
        self, folder: Path, kind: str, app: str, *options: str, **environment: str
    ) -> None:
        self.workers = KINDS[kind]
        super().__init__(
            folder / "server.log",
            *(*_command(kind, folder), *options, app),
            env={**os.environ, **environment},
        )
        with self._starting():
            pattern = r"(?:running on|Listening at:) http://127\.0\.0\.1:(\d+)"
            found: re.Match[str] = self.wait_until(lambda: re.search(pattern, self.said()))
            self.port = int(found[1])
            # Before, uvicorn's workers refuse connections, and not all of them would serve.
            ready = "Application startup complete"
            self.wait_until(lambda: self.said().count(ready) == self.workers)

    def complaints(self) -> list[str]:
        """The lines that are more than news."""
        lines = self.said().splitlines()
        return [line for line in lines if _COMPLAINT.search(line) and not _NORMAL.search(line)]

    def stop(self) -> None:
        """End it politely; it must leave no process."""
        self.process.terminate()
        status = self.process.wait(BOUND)
        # A uvicorn without workers ends by the signal, which it raises again when it is done.
        assert status in (0, -signal.SIGTERM), f"status {status}\n{self.said()}"
        # What multiprocessing started beside the workers ends when it finds that they have.
        until(self.is_gone)


def _command(kind: str, folder: Path) -> list[str]:
    if kind.startswith("uvicorn"):
        command = ["-m", "uvicorn", "--host", "127.0.0.1", "--port", "0", "--no-access-log"]
        return [*command, *(("--workers", str(KINDS[kind])) if KINDS[kind] > 1 else ())]
    # The control socket would be a file in the user's home.
    configuration = folder / "gunicorn.conf.py"
    configuration.write_text("control_socket_disable = True\ngraceful_timeout = 10\n", "utf-8")
    return [
        *("-m", "gunicorn", "--config", str(configuration), "--bind", "127.0.0.1:0"),
        *("--workers", str(KINDS[kind]), "--worker-class", "uvicorn_worker.UvicornWorker"),
    ]


@contextlib.contextmanager
def websocket(port: int, path: str, headers: dict[str, str]) -> Iterator[Callable[[str], str]]:
    """A connection; the function says a word and returns the answer."""
    from wsproto import ConnectionType, WSConnection
    from wsproto.events import AcceptConnection, Request, TextMessage

    connection = WSConnection(ConnectionType.CLIENT)
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    with socket.create_connection(("127.0.0.1", port), BOUND) as stream:

        def ask(event: Any, kind: type[Any]) -> Any:
            stream.sendall(connection.send(event))
            while True:
                for answer in connection.events():
                    assert isinstance(answer, kind), answer
                    return answer
                connection.receive_data(stream.recv(65536))

        ask(Request(host="127.0.0.1", target=path, extra_headers=pairs), AcceptConnection)
        yield lambda word: str(ask(TextMessage(word), TextMessage).data)


class Visitors(_Visitors):
    """They ask for *paths* in turn, each time as a user of its own, or as none.

    What is noted of a request is its path.
    """

    BREAKS = (Exception,)  # of a websocket, too

    def __init__(self, port: int, paths: list[str], count: int = 4) -> None:
        self._paths = paths
        super().__init__(port, count=count)

    def what(self, number: int) -> str:
        return self._paths[number % len(self._paths)]

    def ask(
        self, connection: http.client.HTTPConnection, name: str, what: str
    ) -> tuple[int, object]:
        headers = headers_of(int(name.rpartition("-")[2]))
        if what.endswith("/talk"):
            with websocket(self.port, what, headers) as say:
                return (200 if {say("hello") for _ in range(3)} == {"heard"} else 500), what
        connection.request("GET", what, headers=headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status, what


def headers_of(number: int) -> dict[str, str]:
    """What the request of this number says: its id, and its user's, who has no other."""
    user = {} if number % 3 == 0 else {"X-User-Id": f"user-{number}"}
    return {"X-Request-Id": f"visit-{number}", **user}

"""uvicorn, and Gunicorn with its worker, as real programs; and visitors who load them."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.gunicorn import BOUND, LOOK_AGAIN, ROOT
from tests.support.processes import until

#: Kinds of servers, and the processes that each serves with.
KINDS = {"uvicorn": 1, "uvicorn, 2 workers": 2, "gunicorn, 2 workers": 2}

# What nobody wants to read. That a worker ended by SIGTERM is how uvicorn's end, says Gunicorn.
_COMPLAINT = re.compile(r"Traceback|Error|ERROR|WARNING|CRITICAL|Warning|not delivered|events? ")
_NORMAL = re.compile(r"Worker \(pid:\d+\) was sent SIGTERM!")


class ASGIServer:
    """A server of *kind* on a free port of loopback, in a session of its own.

    *options* are of its command line; *environment* is read by the application. All that it, and
    whoever runs in it, says goes to one file.
    """

    def __init__(
        self, folder: Path, kind: str, app: str, *options: str, **environment: str
    ) -> None:
        self._log = folder / "server.log"
        self.workers = KINDS[kind]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *_command(kind, folder), *options, app],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._has_ended = False
        self.pid = self._process.pid
        try:
            pattern = r"(?:running on|Listening at:) http://127\.0\.0\.1:(\d+)"
            found: re.Match[str] = self.wait_until(lambda: re.search(pattern, self.said()))
            self.port = int(found[1])
            # Before, uvicorn's workers refuse connections, and not all of them would serve.
            ready = "Application startup complete"
            self.wait_until(lambda: self.said().count(ready) == self.workers)
        except BaseException:
            self.kill()
            raise

    def said(self) -> str:
        """All that was said so far."""
        return self._log.read_text("utf-8", "replace")

    def complaints(self) -> list[str]:
        """The lines that are more than news."""
        lines = self.said().splitlines()
        return [line for line in lines if _COMPLAINT.search(line) and not _NORMAL.search(line)]

    def wait_until(self, condition: Callable[[], Any]) -> Any:
        """What *condition* returns once that is true."""
        deadline = time.monotonic() + BOUND
        while not (result := condition()):
            assert self._process.poll() is None, f"it ended\n{self.said()}"
            assert time.monotonic() < deadline, f"not in {BOUND} s\n{self.said()}"
            time.sleep(LOOK_AGAIN)
        return result

    def stop(self) -> None:
        """End it politely; it must leave nobody behind."""
        self._process.terminate()
        status = self._process.wait(BOUND)
        # A uvicorn without workers ends by the signal, which it raises again when it is done.
        assert status in (0, -signal.SIGTERM), f"status {status}\n{self.said()}"
        # What multiprocessing started beside the workers ends when it finds that they have.
        until(self._is_gone)
        self._has_ended = True

    def _is_gone(self) -> bool:
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def kill(self) -> None:
        """End whoever is left of it: all of its session, by that one's id, which is the pid."""
        if not self._has_ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait(BOUND)


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


class Visitors:
    """Threads that ask for *paths* in turn, one request after the other, each of a user of its own.

    Every third request is of nobody. They end with the server: when it refuses connections. Nothing
    is asked twice: what was not answered may have been done.
    """

    def __init__(self, port: int, paths: list[str], count: int = 4) -> None:
        self._port = port
        self._paths = paths
        self._changed = threading.Condition()  # guards what came of the requests
        #: The path, by the id of the request.
        self.answered: dict[str, str] = {}
        self.unanswered: dict[str, str] = {}
        self.wrong: list[object] = []
        self._stop = threading.Event()
        self._numbers = itertools.count(1)
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        there_is_a_server = True
        while there_is_a_server and not self._stop.is_set():
            # With every tenth comes a new connection: a connection stays with one process.
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=BOUND)
            for _ in range(10):
                there_is_a_server = self._ask(connection)
                if not there_is_a_server or self._stop.is_set():
                    break
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection) -> bool:
        """Ask once; whether there is still a server."""
        number = next(self._numbers)
        path, name = self._paths[number % len(self._paths)], f"visit-{number}"
        try:
            if path.endswith("/talk"):
                with websocket(self._port, path, headers_of(number)) as say:
                    status = {say("hello") for _ in range(3)} == {"heard"} and 200
            else:
                connection.request("GET", path, headers=headers_of(number))
                answer = connection.getresponse()
                answer.read()
                status = answer.status
        except TimeoutError:  # it hangs, which is no way to end
            self._note(lambda: self.wrong.append((name, path, "no answer")))
            return False
        except Exception as error:
            connection.close()
            self._note(lambda: self.unanswered.update({name: path}))
            return not isinstance(error, ConnectionRefusedError)
        if status == 200:
            self._note(lambda: self.answered.update({name: path}))
        else:
            self._note(lambda: self.wrong.append((name, path, status)))
        return True

    def _note(self, note: Callable[[], object]) -> None:
        with self._changed:
            note()
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        """Until *count* requests are answered."""
        with self._changed:
            met = self._changed.wait_for(lambda: len(self.answered) >= count or self.wrong, BOUND)
        assert met, f"not in {BOUND} s: {len(self.answered)} {self.unanswered}"
        assert not self.wrong, self.wrong

    def leave(self) -> None:
        """Ask no more; returns when the last request is answered, or not."""
        self._stop.set()
        self.join()

    def join(self) -> None:
        """Wait until they have ended, as they do with the server."""
        for thread in self._threads:
            thread.join(BOUND)
            assert not thread.is_alive()


def headers_of(number: int) -> dict[str, str]:
    """What the request of this number says: its id, and its user's, who has no other."""
    user = {} if number % 3 == 0 else {"X-User-Id": f"user-{number}"}
    return {"X-Request-Id": f"visit-{number}", **user}

"""For tests of your application: what it recorded, and a service on this machine.

>>> with valued.testing.recorded() as events:
...     generate(1)
>>> events.one("report.generated", user={"id": 1})

With pytest, use the fixtures ``valued_events`` and ``valued_service``.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from valued._http import recording as _recording
from valued._http.recording import RealEndpointError
from valued._process.fork import PerProcess
from valued._redaction import hide
from valued.testing._matching import Events, Line, counted

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Events", "RealEndpointError", "Request", "Service", "recorded", "service"]

#: The token in the environment of `service`, where there is none.
TEST_TOKEN: Final = "test-token"  # noqa: S105 - no secret


# -- recording -------------------------------------------------------------------------------------


class _Recording:
    """One file, and what was in it when the recording ended."""

    def __init__(self, path: str) -> None:
        self.path: Final = path
        self._kept = b""
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))

    def read(self) -> list[Line]:
        # What follows the last end of a line is still being written, or was when a disk was full.
        lines = self._content().split(b"\n")[:-1]
        return [Line(**json.loads(line)) for line in lines]

    def clear(self) -> None:
        self._kept = b""
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self.path, 0)

    def end(self) -> None:
        self._kept = self._content()
        with contextlib.suppress(OSError):  # on Windows, a process may be writing
            os.unlink(self.path)

    def nothing(self) -> str:
        return "nothing was recorded"

    def _content(self) -> bytes:
        try:
            with io.FileIO(self.path) as file:  # a test may have replaced `open`
                return file.readall()
        except FileNotFoundError:
            return self._kept


class _Recordings:
    """The recordings of this process that are under way, the innermost last.

    All of them are in one directory, whose name the environment has. It is there as long as there
    are any, and keeps its name as long as this process runs: a program that started in one test,
    such as multiprocessing's fork server, may start processes in another one, and a pool that was
    made in one test may be used in another one.
    """

    def __init__(self) -> None:
        self._home = os.path.join(tempfile.gettempdir(), f"valued-{os.urandom(8).hex()}")
        self._open: list[_Recording] = []
        self._count = 0
        self._before: str | None = None
        self._environment = contextlib.ExitStack()

    def begin(self) -> _Recording:
        # It is there where it could not be removed.
        os.makedirs(self._home, 0o700, exist_ok=True)
        # No number twice: a process that outlives its test notices that the recording has ended.
        self._count += 1
        try:
            recording = _Recording(os.path.join(self._home, str(self._count)))
        except OSError:
            self._clean()
            raise
        if not self._open:
            self._before = _recording.target
            self._environment.enter_context(_environment(VALUED_RECORD=self._home))
        self._open.append(recording)
        _recording.target = recording.path
        return recording

    def end(self, recording: _Recording) -> None:
        if recording not in self._open:
            return  # a forked child leaves the block of its parent, who still needs the file
        self._open.remove(recording)
        if not self._open:
            # First: a client that another thread makes now would begin to record by it.
            self._environment.close()
        _recording.target = self._open[-1].path if self._open else self._before
        recording.end()
        self._clean()

    def _clean(self) -> None:
        if not self._open:
            shutil.rmtree(self._home, ignore_errors=True)


_recordings: Final[PerProcess[_Recordings]] = PerProcess(_Recordings)


@contextlib.contextmanager
def recorded() -> Iterator[Events]:
    """Record events, and send none, in the block; its value is an `Events`.

    It applies to every client of this process, no matter when it was made, in all threads; to
    children that are forked in the block; and to programs that are started in it, which see the
    variable ``VALUED_RECORD``. If such a process outlives the block, it sends nothing, and the next
    block sees its events. Not to children that were forked before the block, nor to programs that
    don't get the variable: they send. Events that were accepted before the block and are still
    pending are sent meanwhile.

    Of nested blocks, the inner one records. After the block, all is as it was, and the events can
    still be read. One thread at a time may enter. Raises `OSError` if no file can be made in the
    directory for temporary files.
    """
    recordings = _recordings.get()
    recording = recordings.begin()
    try:
        yield Events(recording)
    finally:
        _recordings.get().end(recording)


@contextlib.contextmanager
def _environment(**changes: str | None) -> Iterator[None]:
    """In the block, these variables have these values; None: they are not set."""
    before = {name: os.environ.get(name) for name in changes}
    _set_environment(changes)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(changes: Mapping[str, str | None]) -> None:
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


# -- a service -------------------------------------------------------------------------------------


class Request(NamedTuple):
    """A request that a `Service` got, whatever it answered.

    ``method`` and ``path``: strings. ``headers``: a mapping; the token is in it, and a ``repr``
    doesn't show it. ``body``: the bytes as they arrived.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def event(self) -> Any:
        """The body, decoded from JSON. Raises `ValueError` if it is none."""
        return json.loads(self.body)


class _ServiceEvents:
    """The events that the service took."""

    def __init__(self, requests: list[Request]) -> None:
        self.lines: list[Line] = []
        self._requests = requests

    def read(self) -> list[Line]:
        return self.lines.copy()

    def clear(self) -> None:
        self.lines.clear()

    def nothing(self) -> str:
        if self._requests:
            requests = (
                "1 request" if len(self._requests) == 1 else f"{len(self._requests)} requests"
            )
            return f"nothing was taken of what arrived ({requests})"
        if _recording.target is not None:
            return "nothing arrived; a recording is on and takes the events"
        return (
            "nothing arrived; a client that was made before the fixture sends elsewhere: "
            "make the client after the fixture, for example by valued.connect()"
        )


class Service:
    """A mock server: HTTP on this machine, which checks events as the service does.

    ``url``: where to send events, a string. ``events``: those that it took, an `Events`.
    ``requests``: all that it got, a list of `Request`. It answers, on threads of its own, from its
    construction to `Service.close`; ``with Service() as service:`` closes it. Any thread may call
    any method. A forked child can send to it, and must not ask it.
    """

    def __init__(self) -> None:
        self.requests: Final[list[Request]] = []
        source = _ServiceEvents(self.requests)
        self.events: Final = Events(source)
        self._listener = _listener(source, self.requests)
        self.url: Final[str] = self._listener.url
        self._thread = threading.Thread(
            target=self._listener.serve, name="valued-service", daemon=True
        )
        self._thread.start()

    def fail(self, status: int = 503, times: int | None = None) -> None:
        """Answer the next *times* events with *status*, and don't take them.

        *times*: None for all of them, until the next call of ``fail``; 0 to answer normally again.
        """
        self._listener.controls.fail(status, times, reason="as requested by the test")

    def delay(self, seconds: float) -> None:
        """Wait *seconds* before each answer, from now on."""
        self._listener.controls.delay = seconds

    def wait(self, count: int, timeout: float = 5.0) -> Events:
        """Wait until *count* events were taken, *timeout* seconds at most; as `Events.wait`."""
        return self.events.wait(count, timeout)

    def clear(self) -> None:
        """Forget the events and the requests so far."""
        self.events.clear()
        self.requests.clear()

    def close(self) -> None:
        """Stop. It waits up to 2 seconds for answers under way. May be called again."""
        if self._thread.is_alive():
            self._listener.stop()
            self._thread.join()
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Service {self.url}, {counted(self.events)}>"


def _listener(events: _ServiceEvents, requests: list[Request]) -> Any:
    """The server of ``valued listen``, without its page."""
    # Only here: most tests need none.
    from valued._service import server

    def seen(request: server.Request) -> None:
        headers = {
            name: hide(value) if name.lower() == "authorization" else value
            for name, value in request.headers.items()
        }
        requests.append(Request(request.method, request.target, headers, request.body))

    def report(received: server.Received) -> None:
        events.lines.append(Line(received.pid, received.event))

    return server.Listener(report, seen=seen)


@contextlib.contextmanager
def service() -> Iterator[Service]:
    """A `Service` for the block, and an environment that leads clients to it.

    In the block, ``VALUED_ENDPOINT`` is its URL, ``VALUED_TOKEN`` is set (to a test token, unless
    it was), ``VALUED_DISABLED`` and ``VALUED_OUTBOX`` are not, and ``no_proxy`` names this machine.
    Clients that are made in the block, and programs that are started in it, send to it. A client
    that exists already keeps its endpoint. After the block, the variables are as they were.
    """
    direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    with (
        Service() as made,
        _environment(
            VALUED_ENDPOINT=made.url,
            VALUED_TOKEN=os.environ.get("VALUED_TOKEN") or TEST_TOKEN,
            VALUED_DISABLED=None,
            VALUED_OUTBOX=None,  # what waits there is real, and would be delivered here
            no_proxy=direct if direct == "*" else f"{direct},127.0.0.1".lstrip(","),
        ),
    ):
        yield made

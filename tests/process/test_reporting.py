"""What is said of trouble: on the logger `valued`, and to `on_error`."""

from __future__ import annotations

import io
import logging
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.support.clock import Clock
from tests.support.processes import run
from tests.support.server import Reply, Server
from valued._process.reporting import QUIET, Reporter, counted

ERROR = valued.DeliveryError("the service answered 503", 503, attempts=2, age=1.5)


@pytest.fixture
def clock() -> Clock:
    return Clock(0.0)  # as a monotonic clock may stand right after the machine has started


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The lines of the logger `valued` at its usual level, as the application sees them."""
    caplog.set_level(logging.INFO, "valued")

    def said() -> list[str]:
        assert {record.name for record in caplog.records} <= {"valued"}
        return [record.getMessage() for record in caplog.records]

    return said


def test_one_line_a_minute_of_each_kind_that_tells_how_many_there_were(
    clock: Clock, lines: Callable[[], list[str]]
) -> None:
    reporter = Reporter(None, clock)
    for _ in range(1000):
        reporter.retrying(ERROR)
    reporter.gave_up(ERROR, b"{}")
    clock.now = QUIET - 0.01
    reporter.retrying(ERROR)
    reporter.gave_up(ERROR, b"{}")
    assert lines() == [
        f"1 delivery failed and will be retried; the latest: {ERROR}",
        f"1 event failed permanently; the latest: {ERROR}",
    ]
    clock.now = QUIET
    reporter.retrying(ERROR)
    reporter.gave_up(ERROR, b"{}")
    assert lines()[2:] == [
        f"1001 deliveries failed and will be retried; the latest: {ERROR}",
        f"2 events failed permanently; the latest: {ERROR}",
    ]


def test_no_count_is_lost_between_threads(
    clock: Clock, lines: Callable[[], list[str]], in_thread: Callable[..., Any]
) -> None:
    reporter = Reporter(None, clock)
    start = threading.Barrier(4)

    def report() -> None:
        start.wait(10)
        for _ in range(500):
            reporter.warn("kind", "%d")

    for future in [in_thread(report) for _ in range(4)]:
        future.result(10)
    clock.now = QUIET
    reporter.warn("kind", "%d")
    assert sum(map(int, lines())) == 2001


def test_two_that_speak_in_one_instant_count_each_event_once(
    lines: Callable[[], list[str]],
) -> None:
    def clock() -> float:  # called between counting and looking: the other one comes right there
        nonlocal first
        if first:
            first = False
            reporter.warn("kind", "%d", count=2)
        return 0.0

    first = True
    reporter = Reporter(None, clock)
    reporter.warn("kind", "%d", count=1)
    assert lines() == ["3"]


def test_counts_start_again_after_each_line_and_none_is_no_line(
    clock: Clock, lines: Callable[[], list[str]]
) -> None:
    reporter = Reporter(None, clock)
    for minute, count in enumerate([5, 2, 0]):
        clock.now = minute * QUIET
        reporter.warn("kind", "%d", count=count)
    assert lines() == ["5", "2"]


def test_on_error_hears_of_every_event_and_not_of_retries(clock: Clock) -> None:
    heard: list[Any] = []
    reporter = Reporter(lambda *arguments: heard.append(arguments), clock)
    for number in range(100):
        reporter.retrying(ERROR)
        reporter.gave_up(ERROR, b'{"n":%d}' % number)
    assert heard == [(ERROR, {"n": number}) for number in range(100)]


def test_on_error_that_raises_is_logged_with_its_traceback_once_a_minute(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_error: valued.DeliveryError, _event: dict[str, Any]) -> None:
        raise LookupError("broken on_error")

    reporter = Reporter(broken, clock)
    for _ in range(100):
        reporter.gave_up(ERROR, b"{}")
    clock.now = QUIET
    reporter.gave_up(ERROR, b"{}")
    said = [record for record in caplog.records if "on_error" in record.getMessage()]
    assert [record.getMessage() for record in said] == [
        "on_error raised 1 time; its events stay failed",
        "on_error raised 100 times; its events stay failed",
    ]
    assert "LookupError: broken on_error" in caplog.text


def test_the_body_is_shown_at_debug_only(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "valued")
    Reporter(None, clock).gave_up(ERROR, b'{"key":"private"}')
    assert [record.levelname for record in caplog.records if "private" in record.getMessage()] == [
        "DEBUG"
    ]


@pytest.fixture
def broken_log() -> Iterator[list[str]]:
    """A log whose handler raises, as an application's own may."""
    emitted: list[str] = []

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            emitted.append(record.getMessage())
            raise OSError("disk full")

    handler = Broken()
    log = logging.getLogger("valued")
    log.addHandler(handler)
    yield emitted
    log.removeHandler(handler)


def test_a_log_that_raises_keeps_nothing_from_going_on(clock: Clock, broken_log: list[str]) -> None:
    heard: list[Any] = []
    reporter = Reporter(lambda _error, event: heard.append(event), clock)
    reporter.retrying(ERROR)
    reporter.gave_up(ERROR, b'{"n":1}')
    assert heard == [{"n": 1}]
    assert len(broken_log) == 2


def test_an_event_recorded_by_the_log_itself_is_no_endless_loop(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = Reporter(None, clock)
    depth = 0

    class Recording(logging.Handler):
        def emit(self, _record: logging.LogRecord) -> None:
            nonlocal depth
            depth += 1
            reporter.gave_up(ERROR, b"{}")

    handler = Recording()
    monkeypatch.setattr(logging.getLogger("valued"), "handlers", [handler])
    reporter.gave_up(ERROR, b"{}")
    assert depth == 1


# -- with a real client ----------------------------------------------------------------------------


def test_figures_stay_right_when_on_error_raises(server: Server) -> None:
    def broken(_error: valued.DeliveryError, _event: dict[str, Any]) -> None:
        raise LookupError("broken on_error")

    server.script = lambda _request: Reply(400)
    with valued.Client("test-token", server.url, on_error=broken) as client:
        for _ in range(10):
            client.action("a", {"user.id": 1})
        assert client.flush(10)
        stats = client.stats()
        assert (stats["accepted"], stats["failed"], stats["pending"]) == (10, 10, 0)


def test_delivery_trouble_shows_no_token_at_any_level(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    heard: list[valued.DeliveryError] = []
    server.script = lambda request: Reply(
        401, body=f"no such token: {request.headers['Authorization']}".encode()
    )
    client = valued.Client(
        "s3cret-token", server.url, on_error=lambda error, _event: heard.append(error)
    )
    with client:
        client.action("a", {"user.id": 1})
        assert client.flush(10)
    assert "failed permanently" in caplog.text
    assert "no such token" in str(heard[0])
    assert "s3cret" not in f"{caplog.text} {heard} {heard[0]} {vars(heard[0])} {client!r}"


def test_a_warning_is_seen_where_no_logging_is_configured() -> None:
    program = (
        "import valued\n"
        "def refuse(event): raise valued.DeliveryError('no', 400)\n"
        "valued.Client(refuse).action('k', {'user.id': 1})\n"
    )
    done = run("-c", program)
    assert done.stderr.startswith("valued: 1 event failed permanently; the latest: no (1 attempt")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "configure",
    [
        "logging.basicConfig(format='%(name)s|%(message)s')",
        """handler = logging.StreamHandler()
handler.setFormatter(logging.Formatter('%(name)s|%(message)s'))
logging.getLogger('valued').addHandler(handler)""",
    ],
    ids=["root", "valued"],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_where_logging_is_configured_a_line_is_said_once_and_as_it_is(
    configure: str, when: str
) -> None:
    imports = ["import logging", "import valued"]
    program = [*imports, configure] if when == "after" else [imports[0], configure, imports[1]]
    program += [
        "from valued._process.reporting import Reporter",
        "Reporter(None).retrying(valued.DeliveryError('no'))",
    ]
    done = run("-c", "\n".join(program))
    assert done.stderr.startswith("valued|1 delivery failed and will be retried; the latest: no")
    assert done.stderr.count("\n") == 1


def test_a_library_that_is_silenced_stays_silent() -> None:
    program = (
        "import logging, valued\n"
        "logging.getLogger('valued').addHandler(logging.NullHandler())\n"
        "from valued._process.reporting import Reporter\n"
        "Reporter(None).retrying(valued.DeliveryError('no'))\n"
    )
    assert run("-c", program).stderr == ""


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The logger `valued`, cut off from the root's handlers; pytest adds its own to it."""
    logger = logging.getLogger("valued")
    before = logger.handlers[:]
    logger.propagate = False
    yield logger
    logger.propagate = True
    logger.handlers[:] = before


def test_a_stream_that_is_closed_says_nothing_and_the_others_go_on(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logger.handlers.clear()
    closed, stream, errors = io.StringIO(), io.StringIO(), io.StringIO()
    closed.close()
    for one, level in ((closed, 0), (stream, 0), (errors, logging.ERROR)):
        handler = logging.StreamHandler(one)
        handler.setLevel(level)
        logger.addHandler(handler)
    Reporter(None).retrying(ERROR)
    assert stream.getvalue() == f"1 delivery failed and will be retried; the latest: {ERROR}\n"
    assert errors.getvalue() == ""
    assert capsys.readouterr().err == ""


def test_where_each_stream_is_closed_the_line_is_on_stderr(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = io.StringIO()
    closed.close()
    logger.handlers[:] = [logging.StreamHandler(closed)]
    Reporter(None).retrying(ERROR)
    line = f"valued: 1 delivery failed and will be retried; the latest: {ERROR}\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("handlers", [0, 1])
def test_where_stderr_is_closed_too_nothing_is_raised(
    handlers: int, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stderr", closed)
    logger.handlers[:] = [logging.StreamHandler(closed)] * handlers
    logger.warning("not seen")


BROKEN_AT_EXIT = {
    "descriptor": "handler = logging.FileHandler(sys.argv[1]); os.close(handler.stream.fileno())",
    "target": """closed = io.StringIO(); closed.close()
handler = MemoryHandler(1, 0, logging.StreamHandler(closed))""",
    "disk": "handler = logging.StreamHandler(open('/dev/full', 'w'))",
    "format": """handler = logging.StreamHandler()
handler.setFormatter(logging.Formatter('%(no)s'))""",
    "raises": "handler = logging.StreamHandler(); handler.emit = lambda record: 1 / 0",
    "filter": "handler = logging.StreamHandler(); handler.addFilter(lambda record: 1 / 0)",
    "no stderr": "handler = logging.StreamHandler(); handler.stream = sys.stderr = None",
}


@pytest.mark.parametrize("how", BROKEN_AT_EXIT)
def test_a_log_that_is_broken_at_the_exit_prints_no_traceback(how: str, tmp_path: Path) -> None:
    program = (
        "import io, logging, os, sys, threading, valued\n"
        "from logging.handlers import MemoryHandler\n"
        f"{BROKEN_AT_EXIT[how]}\n"
        "logging.getLogger('valued').addHandler(handler)\n"
        "never = threading.Event()\n"
        "client = valued.Client(lambda event: never.wait(), shutdown_timeout=0.1)\n"
        "client.action('a', {'user.id': 1})\n"
    )
    done = run("-c", program, str(tmp_path / "log"))
    assert done.returncode == 0
    # The disk is full for Python's own last flush, too.
    assert "valued" not in done.stderr
    assert "Logging error" not in done.stderr


#: What `logging` itself does at the exit, which takes the lock, is over when it is taken for ever.
LOCKED = """
import atexit, threading
def hold():
    handler.lock = threading.Lock()
    handler.lock.acquire()
atexit.register(hold)
import logging, valued
class Late:
    def __init__(self, client):
        self.client = client
    def __del__(self):
        self.client.action("late", {"user.id": 1})
logging.basicConfig()
handler = logging.getLogger().handlers[0]
kept = Late(valued.Client(print))
"""


def test_a_lock_that_a_stopped_thread_holds_does_not_hang_the_end() -> None:
    done = run("-c", LOCKED, timeout=20)
    assert done.returncode == 0
    assert done.stderr.startswith("valued: events recorded while the Python interpreter shuts down")


def test_the_end_of_pytest_with_the_service_down_is_no_logging_error(tmp_path: Path) -> None:
    # The application's handler writes where pytest has redirected stderr, and closed it since.
    (tmp_path / "test_app.py").write_text(
        "import logging, socket, sys, valued\n"
        "def test_app():\n"
        "    logging.getLogger('valued').addHandler(logging.StreamHandler(sys.stderr))\n"
        "    with socket.create_server(('127.0.0.1', 0)) as probe:\n"
        "        port = probe.getsockname()[1]\n"
        "    url = f'http://127.0.0.1:{port}/events'\n"
        "    client = valued.Client('t0ken-of-tests', url, shutdown_timeout=0.2)\n"
        "    client.action('a', {'user.id': 1})\n"
    )
    settings = tmp_path / "pytest.ini"
    settings.write_text("[pytest]\n")
    plain = ("-p", "no:cacheprovider", "-p", "no:logging", "-c", str(settings))
    done = run("-m", "pytest", "-q", *plain, str(tmp_path))
    assert done.returncode == 0, done.stdout
    assert "Logging error" not in done.stderr + done.stdout
    assert "1 event not delivered: shutdown_timeout (0.2 s) is over" in done.stderr


def test_each_line_that_counts_is_right_for_one() -> None:
    templates = {
        line
        for path in Path(valued.__file__).parent.rglob("*.py")
        for line in re.findall(r'"([^"\n]*%d [^"\n]*)"', path.read_text("utf-8"))
        if re.match(r"(?:the process ends with |on_error raised )?%d (?!bytes|\{)", line)
    }
    assert len(templates) >= 10
    for line in templates:
        one = counted(line, 1)
        assert one != line, line
        assert not re.match(r".*%d \w+s (?:were|are)\b", one)
        assert counted(line, 2) == line


def test_what_comes_too_late_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    reporter = Reporter(None)
    reporter.too_late()
    reporter.too_late()
    assert len(caplog.records) == 1


#: Alone in its process, since all clients of a process are flushed.
ONE_LEFT = """
import threading
import valued
opened = threading.Event()
client = valued.Client(lambda _event: opened.wait(10), shutdown_timeout=0.1)
client.action("a", {"user.id": 1})
assert not valued.flush_all()
opened.set()
assert client.close(10)
"""


def test_one_event_that_is_left_is_told_in_the_singular() -> None:
    done = run("-c", ONE_LEFT)
    assert done.returncode == 0
    assert done.stderr == (
        "valued: 1 event is not delivered after 0.1 s: if the process ends now, it is lost, "
        "unless it is in an outbox\n"
    )

"""The WSGI middleware: whose events these are, however the body is sent."""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import gc
import io
import os
import socket
import subprocess
import threading
import weakref
import wsgiref.simple_server
import wsgiref.util
import wsgiref.validate
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

import valued
from tests.support.processes import PROGRAMS, run, run_program
from tests.support.programs import BOUND
from tests.support.server import Server
from tests.support.uwsgi import UWSGI
from valued.integrations.wsgi import ScopeMiddleware

Environ = dict[str, Any]
App = Callable[[Environ, Any], Iterable[bytes]]


@pytest.fixture(autouse=True)
def _connected(recorder: valued.Client) -> None:
    valued.connect(recorder)


def environ_of(user: object = None, **more: Any) -> Environ:
    environ: Environ = {**more}
    wsgiref.util.setup_testing_defaults(environ)
    if user is not None:
        environ["HTTP_X_USER_ID"] = user
    return environ


def user_of(environ: Environ) -> dict[str, Any] | None:
    user = environ.get("HTTP_X_USER_ID")
    return None if user is None else {"user": {"id": user}}


def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
    return lambda data: None


def record(expected: object) -> None:
    valued.action("recorded", {"customer.id": 1}, attributes={"expected": expected})


def streaming(chunks: int = 3, *, at_end: bool = True) -> App:
    """An application that sets its user itself, and records with each chunk and at the end."""

    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        user = environ["HTTP_X_USER_ID"]
        start_response("200 OK", [("Content-Type", "text/plain")])
        valued.scope.user = {"id": user}

        def body() -> Iterator[bytes]:
            try:
                for chunk in range(chunks):
                    record(user)
                    yield b"%d" % chunk
            finally:
                if at_end:
                    record(user)

        return body()

    return app


def users(sent: list[dict[str, Any]]) -> list[object]:
    """Whose the events are; each must be of the user that it names."""
    found = [event.get("user", {}).get("id") for event in sent]
    assert found == [event["attributes"]["expected"] for event in sent]
    return found


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    assert valued.scope.to_dict() == {}
    yield
    assert valued.scope.to_dict() == {}


# -- bodies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [[b"a", b"b"], (b"a",), []])
def test_a_list_or_a_tuple_is_returned_as_it_is(body: Iterable[bytes], sent: list[Any]) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        valued.scope.user_id = 7
        record(7)
        return body

    environ = environ_of()
    before = dict(environ)
    assert ScopeMiddleware(app)(environ, start) is body
    assert users(sent) == [7]
    assert environ == before


def test_a_file_of_the_servers_class_is_returned_as_it_is() -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        assert environ["wsgi.file_wrapper"] is wsgiref.util.FileWrapper  # servers compare it, too
        made.append(environ["wsgi.file_wrapper"](io.BytesIO(b"text")))
        return made[0]

    made: list[Any] = []
    environ = environ_of(**{"wsgi.file_wrapper": wsgiref.util.FileWrapper})
    body = ScopeMiddleware(app)(environ, start)
    assert body is made[0]
    assert environ["wsgi.file_wrapper"] is wsgiref.util.FileWrapper


def test_a_file_of_the_servers_function_is_returned_as_it_is() -> None:
    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"text"])

    def wrapper(file: Any, size: int = 10) -> Body:
        made.append(Body())
        return made[-1]

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        environ["wsgi.file_wrapper"](io.BytesIO(), size=3)
        environ["wsgi.file_wrapper"](io.BytesIO(), 3)
        return made[environ["which"]] if environ["which"] is not None else Body()

    made: list[Body] = []
    for which in (0, 1):
        environ = environ_of(**{"wsgi.file_wrapper": wrapper}, which=which)
        assert ScopeMiddleware(ScopeMiddleware(app))(environ, start) is made[which]
        assert environ["wsgi.file_wrapper"] is wrapper
        made.clear()
    # Another body is a stream, though one of the server's was made on the way.
    body = ScopeMiddleware(app)(environ_of(**{"wsgi.file_wrapper": wrapper}, which=None), start)
    assert not isinstance(body, Body)
    assert list(body) == [b"text"]


def test_a_file_wrapper_that_the_application_sets_stays() -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        environ["wsgi.file_wrapper"] = "its own"
        return []

    environ = environ_of(**{"wsgi.file_wrapper": lambda file: file})
    ScopeMiddleware(app)(environ, start)
    assert environ["wsgi.file_wrapper"] == "its own"


@pytest.mark.parametrize("how", ["generator", "iterable with a close", "application is one"])
def test_each_chunk_and_the_close_belong_to_the_request(how: str, sent: list[Any]) -> None:
    class Body:
        def __iter__(self) -> Iterator[bytes]:
            record(7)
            return self.chunks()

        def chunks(self) -> Iterator[bytes]:
            record(7)
            yield b"a"
            record(7)

        def close(self) -> None:
            record(7)

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        valued.scope.user_id = 7
        return Body() if how == "iterable with a close" else streaming(2)(environ, start_response)

    def generator(environ: Environ, start_response: Any) -> Iterator[bytes]:
        yield from streaming(2)(environ, start_response)

    body: Any = ScopeMiddleware(generator if how == "application is one" else app)(
        environ_of(7), start
    )
    list(body)
    body.close()
    assert users(sent) == [7] * (4 if how == "iterable with a close" else 3)


def test_a_body_is_closed_once_and_is_at_its_end_then(sent: list[Any]) -> None:
    class Body:
        closed = 0

        def __iter__(self) -> Iterator[bytes]:
            yield b"a"
            yield b"b"

        def close(self) -> None:
            self.closed += 1

    inner = Body()
    body: Any = ScopeMiddleware(lambda environ, start_response: inner)(environ_of(), start)
    assert next(body) == b"a"
    body.close()
    body.close()
    assert list(body) == []
    del body
    assert inner.closed == 1


def test_a_close_that_raises_ends_the_request_and_is_not_called_again() -> None:
    class Body:
        closed = 0

        def __iter__(self) -> Iterator[bytes]:
            return iter([])

        def close(self) -> None:
            self.closed += 1
            raise RuntimeError("on purpose")

    inner = Body()
    environ = environ_of()
    before = dict(environ)
    body: Any = ScopeMiddleware(lambda environ, start_response: inner)(environ, start)
    assert environ != before
    with pytest.raises(RuntimeError, match="on purpose"):
        body.close()
    body.close()
    assert inner.closed == 1
    assert environ == before


# -- whose events these are ------------------------------------------------------------------------


def test_interleaved_streams_have_each_their_own_user(sent: list[Any]) -> None:
    app = ScopeMiddleware(streaming())
    first: Any = app(environ_of(1), start)
    second: Any = app(environ_of(2), start)
    for _ in range(3):
        next(first)
        next(second)
    first.close()
    second.close()
    assert users(sent) == [1, 2] * 4


def test_a_stream_that_is_read_in_other_threads_keeps_its_user(
    sent: list[Any], in_thread: Callable[..., Future[Any]]
) -> None:
    app = ScopeMiddleware(streaming())
    body: Any = app(environ_of(1), start)
    with valued.isolated(user={"id": 2}):
        next(body)
        assert valued.scope.user_id == 2
    assert in_thread(lambda: (next(body), valued.scope.to_dict())).result(10) == (b"1", {})
    assert in_thread(lambda: (body.close(), valued.scope.to_dict())).result(10) == (None, {})
    assert users(sent) == [1, 1, 1]


def test_a_generator_within_a_body_that_is_closed_early_ends_in_its_request(
    sent: list[Any],
) -> None:
    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return streaming()(environ_of(1), start)  # type: ignore[return-value]

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        return Body()

    body: Any = ScopeMiddleware(app)(environ_of(1), start)
    next(body)
    with valued.isolated(user={"id": 2}):
        body.close()
    assert users(sent) == [1, 1]


@pytest.mark.parametrize(("begun", "closed"), [(True, True), (True, False), (False, False)])
def test_a_stream_that_is_not_read_to_its_end_ends_as_its_own_user_and_leaves_nothing_behind(
    begun: bool, closed: bool, sent: list[Any]
) -> None:
    body: Any = ScopeMiddleware(streaming())(environ_of(1), start)
    if begun:
        next(body)
    with valued.isolated(user={"id": 2}):  # the next request on this thread
        if closed:
            body.close()
        del body
        gc.collect()
        assert valued.scope.to_dict() == {"user": {"id": 2}}
    assert users(sent) == [1, 1] * begun


def test_a_nested_block_that_is_open_across_chunks_leaves_nothing_behind(sent: list[Any]) -> None:
    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        with valued.nested(user={"id": 1}):
            record(1)
            yield b"a"
            yield b"b"

    body: Any = ScopeMiddleware(app)(environ_of(), start)
    next(body)
    assert valued.scope.to_dict() == {}
    next(body)
    assert valued.scope.to_dict() == {}
    body.close()
    assert users(sent) == [1]


def test_what_one_request_sets_is_gone_for_the_next_and_what_the_thread_held_is_back(
    sent: list[Any],
) -> None:
    def app(environ: Environ, start_response: Any) -> list[bytes]:
        assert valued.scope.to_dict() == {}
        valued.scope.user_id = environ["HTTP_X_USER_ID"]
        record(environ["HTTP_X_USER_ID"])
        return []

    with valued.nested(user={"id": "of the thread"}):
        for user in (1, 2):
            ScopeMiddleware(app)(environ_of(user), start)
        assert valued.scope.user_id == "of the thread"
    assert users(sent) == [1, 2]


@pytest.mark.parametrize("when", ["call", "first chunk", "later chunk"])
def test_exceptions_go_to_the_server_and_leave_nothing_behind(when: str) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        valued.scope.user_id = 1
        if when == "call":
            raise RuntimeError("on purpose")
        return body()

    def body() -> Iterator[bytes]:
        if when == "later chunk":
            yield b"a"
        raise RuntimeError("on purpose")

    environ = environ_of()
    before = dict(environ)

    def serve() -> None:
        with contextlib.closing(ScopeMiddleware(app)(environ, start)) as chunks:  # type: ignore
            list(chunks)

    with pytest.raises(RuntimeError, match="on purpose"):
        serve()
    assert environ == before


def test_a_request_that_is_over_is_freed_at_once() -> None:
    class Input(io.BytesIO):
        """The server's connection, which should go with its request."""

    def serve(app: App) -> weakref.ref[Input]:
        input = Input()
        environ = environ_of(1, **{"wsgi.input": input})
        body: Any = ScopeMiddleware(app, user_of)(environ, start)
        list(body)
        if hasattr(body, "close"):
            body.close()
        return weakref.ref(input)

    gc.collect()
    gc.disable()
    try:
        assert serve(lambda environ, start_response: [])() is None
        assert serve(streaming())() is None
    finally:
        gc.enable()


# -- data ------------------------------------------------------------------------------------------


def test_data_is_called_at_the_first_event_only(sent: list[Any]) -> None:
    def data(environ: Environ) -> dict[str, Any] | None:
        asked.append(environ)
        return user_of(environ)

    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        for _ in range(environ["events"]):
            record(environ.get("HTTP_X_USER_ID"))
            yield b""

    asked: list[Environ] = []
    silent = environ_of(1, events=0)
    loud = environ_of(2, events=2)
    anonymous = environ_of(events=2)
    for environ in (silent, loud, anonymous):
        list(ScopeMiddleware(app, data)(environ, start))
    assert users(sent) == [2, 2, None, None]
    # None is asked for again: there may have been a login meanwhile.
    assert [environ is anonymous for environ in asked] == [False, True, True]
    assert asked[0] is loud


def test_what_data_raises_the_event_raises_and_what_is_no_function_is_refused() -> None:
    def data(environ: Environ) -> None:
        raise LookupError("no session")

    def app(environ: Environ, start_response: Any) -> list[bytes]:
        with pytest.raises(LookupError, match="no session"):
            record(1)
        return []

    ScopeMiddleware(app, data)(environ_of(), start)
    with pytest.raises(valued.ValidationError, match="data: expected a function of environ, got d"):
        ScopeMiddleware(streaming(), {"user": 1})  # type: ignore[arg-type]


# -- applied twice, and not connected --------------------------------------------------------------


def test_applied_twice_the_outermost_counts_and_the_inner_one_enters_its_unit(
    sent: list[Any],
) -> None:
    def in_another_thread(app: App) -> App:
        def middleware(environ: Environ, start_response: Any) -> Iterable[bytes]:
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                # A thread that served another one before.
                pool.submit(setattr, valued.scope, "user_id", "another").result(10)
                return pool.submit(app, environ, start_response).result(10)

        return middleware

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        record(1)
        return streaming()(environ, start_response)

    inner = ScopeMiddleware(app, lambda environ: {"user": {"id": "inner"}})
    environ = environ_of(1)
    before = dict(environ)
    body: Any = ScopeMiddleware(in_another_thread(inner), user_of)(environ, start)
    list(body)
    body.close()
    assert users(sent) == [1] * 5
    assert environ == before


def test_an_environ_that_is_served_again_is_another_request(sent: list[Any]) -> None:
    environ = environ_of(1)
    for user in (1, 2):
        environ["HTTP_X_USER_ID"] = user
        body: Any = ScopeMiddleware(streaming())(environ, start)
        list(body)
        body.close()
    assert users(sent) == [1] * 4 + [2] * 4


def test_where_nothing_is_connected_a_request_is_passed_through() -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        assert environ == before
        return body

    body = iter([b"a"])
    valued.disconnect(0)
    environ = environ_of()
    before = dict(environ)
    assert ScopeMiddleware(app)(environ, start) is body
    valued.connect(lambda event: None)


# -- a server --------------------------------------------------------------------------------------


class _Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


def test_a_server_that_checks_the_protocol_finds_nothing(sent: list[Any]) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/file":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return environ["wsgi.file_wrapper"](io.BytesIO(b"012"))  # type: ignore[no-any-return]
        environ["HTTP_X_USER_ID"] = 1
        return streaming()(environ, start_response)

    checked = wsgiref.validate.validator(
        ScopeMiddleware(wsgiref.validate.validator(ScopeMiddleware(app)))
    )
    with wsgiref.simple_server.make_server("127.0.0.1", 0, checked, handler_class=_Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            for path in ("/stream", "/file"):
                with urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=10) as answer:
                    assert answer.read() == b"012"
        finally:
            server.shutdown()
            thread.join(10)
    assert users(sent) == [1] * 4


def _ask(port: int, path: str, user: str) -> bytes:
    asking = Request(f"http://127.0.0.1:{port}{path}", headers={"X-User-Id": user})
    with urlopen(asking, timeout=BOUND) as answer:
        return answer.read()  # type: ignore[no-any-return]


@pytest.mark.skipif(not UWSGI.exists(), reason="no uwsgi is installed for this Python")
def test_uwsgi_sends_a_file_by_itself(server: Server, tmp_path: Path) -> None:
    program = PROGRAMS / "wsgi_files.py"
    log = tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as listener, log.open("wb") as said:
        port = listener.getsockname()[1]
        listener.set_inheritable(True)
        running = subprocess.Popen(
            [UWSGI, "--http-socket", f"fd://{listener.fileno()}", "--need-app", "--enable-threads",
             "--die-on-term", "--wsgi-file", program],
            env={**os.environ, "VALUED_TOKEN": "test-token", "VALUED_ENDPOINT": server.url},
            stdin=subprocess.DEVNULL, stdout=said, stderr=said, pass_fds=[listener.fileno()],
        )  # fmt: skip
    try:
        for user in ("1", "2"):
            assert _ask(port, "/file", user) == program.read_bytes()
            assert _ask(port, "/stream", user) == b"chunk" * 3
        server.wait_for(10)
        running.terminate()
        running.wait(BOUND)
    finally:
        running.kill()
        running.wait(BOUND)
        print(log.read_text())
    assert users(server.events).count("1") == users(server.events).count("2") == 5
    assert log.read_text().count("via sendfile()") == 2


def test_a_stream_that_is_collected_amid_the_change_of_a_context_variable_breaks_nothing() -> None:
    """Up to Python 3.11, a change within another one crashes the interpreter, or gets lost."""
    done = run_program("collects_streams.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_what_a_close_resets_is_reset_for_the_servers_thread() -> None:
    """Such as Werkzeug's `LocalManager`, below this middleware."""
    current: contextvars.ContextVar[object] = contextvars.ContextVar("current", default=None)

    class Body:
        def __iter__(self) -> Any:
            return iter([b""])

        def close(self) -> None:
            current.set(None)

    def app(_environ: Any, _start: Any) -> Any:
        current.set("a user")
        return Body()

    body: Any = ScopeMiddleware(app)({}, start)
    list(body)
    body.close()
    assert current.get() is None


def test_a_body_in_a_cycle_ends_as_its_own_user(sent: list[dict[str, Any]]) -> None:
    def app(_environ: Any, _start: Any) -> Any:
        cycle: list[Any] = []

        def chunks() -> Iterator[bytes]:
            try:
                yield b"".join(cycle[1:])
            finally:
                record(1)

        cycle.append(chunks())
        return cycle[0]

    body: Any = ScopeMiddleware(app, lambda _environ: {"user.id": 1})({}, start)
    next(body)
    with valued.isolated(user={"id": 2}):
        del body
        gc.collect()
    assert users(sent) == [1]


def test_a_stream_that_is_left_at_the_end_of_the_interpreter_prints_nothing() -> None:
    program = """
import sys
import types

kept = sys.modules["kept"] = types.ModuleType("kept")

import valued
from valued.integrations import wsgi

valued.connect(lambda event: None)

def stream(environ, start_response):
    start_response("200 OK", [])
    yield b"chunk"
    yield b"chunk"

kept.body = wsgi.ScopeMiddleware(stream)({}, lambda *_: None)
next(kept.body)
# Modules that something refers to are emptied one after the other, later ones first.
sys.referred = [kept, wsgi]
"""
    done = run("-c", program)
    assert (done.returncode, done.stderr) == (0, "")

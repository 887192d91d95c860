"""The stand-in for the service: what it answers, and that connections stay in step."""

from __future__ import annotations

import http.client
import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

import valued
from tests.support.processes import until
from valued._service.connections import Connections, Doing
from valued._service.server import MAX_BODY, MAX_DISCARD, Listener, Received

EVENT = {"category": "action", "key": "a.b", "user": {"id": 1}}
BODY = json.dumps(EVENT)
AUTHORIZATION = {"Authorization": "Bearer t"}


class Running:
    """A listener that serves on a thread, and a connection to it."""

    def __init__(self, **options: Any) -> None:
        self.received: list[Received] = []
        self.listener = Listener(options.pop("report", self.received.append), **options)
        self.port = int(self.listener.url.rpartition(":")[2].partition("/")[0])
        self._thread = threading.Thread(target=self.listener.serve)
        self._thread.start()
        self.connection = http.client.HTTPConnection(
            self.listener._server.server_name, self.port, 10
        )
        self.connection.connect()

    def ask(
        self, method: str = "POST", path: str = "/events", body: str | None = BODY, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, Any]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, body, {**AUTHORIZATION, **names})
        return self.answer()

    def answer(self, method: str = "POST") -> tuple[int, http.client.HTTPMessage, Any]:
        answer = self.connection.getresponse()
        content = answer.read()
        return answer.status, answer.headers, json.loads(content) if content else None

    def raw(self, text: bytes) -> bytes:
        """Send bytes on a connection of their own; all of the answer, up to its end."""
        with socket.create_connection(("127.0.0.1", self.port), 10) as connection:
            connection.sendall(text)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
            return answer

    def close(self) -> None:
        self.connection.close()
        self.listener.stop()
        self._thread.join(10)
        self.listener.close()


@pytest.fixture
def run_listener() -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def make(**options: Any) -> Running:
        made.append(Running(**options))
        return made[-1]

    yield make
    for running in made:
        running.close()


@pytest.fixture
def running(run_listener: Callable[..., Running]) -> Running:
    return run_listener()


def is_in_step(running: Running) -> bool:
    """Whether the connection is as it was, and the next request on it is understood."""
    ours = running.connection.sock
    return running.ask()[0] == 204 and running.connection.sock is ours


def test_event_is_answered_204_after_it_was_reported(running: Running) -> None:
    status, headers, content = running.ask(path="/events?a=b", Idempotency_Key="k-1")
    assert (status, content) == (204, None)
    assert headers["Access-Control-Allow-Origin"] == "*"
    assert "Content-Length" not in headers
    (received,) = running.received
    assert (received.event, received.idempotency_key) == (EVENT, "k-1")
    host, port = running.connection.sock.getsockname()
    assert received.connection == f"{host}:{port}"


def test_event_of_an_unknown_process_is_received(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "net_connections", lambda _kind: [])
    assert running.ask()[0] == 204
    assert (running.received[0].pid, running.received[0].process) == (None, None)
    assert "from 0 processes of this machine" in running.listener.summary()


def test_connection_is_kept_for_the_next_event(running: Running) -> None:
    assert all(is_in_step(running) for _ in range(3))
    assert len({received.connection for received in running.received}) == 1
    assert running.listener.summary() == (
        "3 events received, 0 refused, on 1 connection from 1 process of this machine"
    )


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Basic dDp0", "t", "Bearer a b", "Bearertoken"]
)
def test_missing_or_malformed_authorization_is_401(
    authorization: str | None, running: Running
) -> None:
    given = {} if authorization is None else {"Authorization": authorization}
    running.connection.request("POST", "/events", BODY, given)
    status, headers, content = running.answer()
    assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
    assert content == {"errors": ["Authorization: expected 'Bearer TOKEN'"]}
    assert running.received == []
    assert is_in_step(running)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "the body: not JSON in UTF-8: "),
        ("{", "the body: not JSON in UTF-8: "),
        (b"\xff", "the body: not JSON in UTF-8: "),
        ("[" * 100_000, "the body: not JSON in UTF-8: "),
        ('{"a": NaN}', "the body: not JSON in UTF-8: NaN is not JSON"),
        ('{"a": {"b": 1, "c": [{"d": 1, "d": 1}]}}', 'the body: the key "d" occurs twice'),
        ("[]", "event: expected a mapping"),
        ("{}", "category: expected one of"),
        ('{"category": "action"}', "key: expected"),
        ('{"category": "action", "key": "a", "user": {"id": 1e999}}', "user.id: "),
    ],
)
def test_body_that_is_no_event_is_400_with_the_reasons(
    body: Any, reason: str, running: Running
) -> None:
    status, headers, content = running.ask(body=body)
    assert (status, headers["Content-Type"]) == (400, "application/json")
    assert content["errors"][0].startswith(reason)
    assert len(content["errors"]) == (2 if body == '{"category": "action"}' else 1)
    assert is_in_step(running)
    assert len(running.received) == 1


@pytest.mark.parametrize("path", ["/", "/event", "/events/", "/events/1"])
@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS"])
def test_other_paths_are_404(method: str, path: str, running: Running) -> None:
    assert running.ask(method, path)[0] == 404
    assert is_in_step(running)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "BREW"])
def test_other_methods_are_405_with_those_that_are_allowed(method: str, running: Running) -> None:
    status, headers, _ = running.ask(method)
    assert (status, headers["Allow"]) == (405, "POST, OPTIONS")
    assert "Access-Control-Allow-Origin" not in headers  # nothing for pages of other sites
    assert is_in_step(running)


def test_answer_to_head_has_no_body(running: Running) -> None:
    status, headers, content = running.ask("HEAD", body=None)
    assert (status, content) == (405, None)
    assert int(headers["Content-Length"]) > 0
    assert is_in_step(running)


def test_preflight_of_a_browser_is_allowed(running: Running) -> None:
    running.connection.request("OPTIONS", "/events", headers={"Origin": "https://example.com"})
    status, headers, content = running.answer()
    assert (status, content) == (204, None)
    assert headers["Access-Control-Allow-Origin"] == "*"
    assert headers["Access-Control-Allow-Methods"] == "POST, OPTIONS"
    assert headers["Access-Control-Allow-Headers"] == "Authorization, Content-Type"
    assert is_in_step(running)
    assert running.listener.summary().startswith("1 event received, 0 refused")


HEAD = b"POST /events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer t\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Transfer-Encoding: chunked\r\n", 411),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 411),
        (b"", 411),
        (b"Content-Length: -5\r\n", 400),
        (b"Content-Length: +5\r\n", 400),
        (b"Content-Length: five\r\n", 400),
        (b"Content-Length: 99999999999999999999\r\n", 400),
        (b"Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        (b"Content-Length: %d\r\n" % (MAX_DISCARD + 1), 413),
    ],
)
def test_body_without_a_known_end_is_refused_and_the_connection_closed(
    head: bytes, status: int, running: Running
) -> None:
    # What follows is no second request: it must not be answered.
    answer = running.raw(HEAD + head + b"\r\n" + b"5\r\nhello\r\n0\r\n\r\n" + b"x" * 200_000)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"Connection: close" in answer
    assert answer.count(b"HTTP/1.1") == 1
    assert running.received == []


def test_largest_body_is_taken_a_larger_one_is_413_and_the_connection_is_kept(
    running: Running,
) -> None:
    assert running.ask(body=BODY + " " * (MAX_BODY - len(BODY)))[0] == 204
    status, _, content = running.ask(body=" " * (MAX_BODY + 1))
    assert status == 413
    assert str(MAX_BODY) in content["errors"][0]
    assert is_in_step(running)


@pytest.mark.parametrize("size", [len(BODY) + 1, MAX_BODY + 1])
def test_body_that_ends_early_is_no_event(size: int, running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port), 10) as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % size + BODY.encode())
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(65536).startswith(b"HTTP/1.1 4")
    assert running.received == []


def test_malformed_request_line_is_400(running: Running) -> None:
    assert b" 400 " in running.raw(b"GET /events now HTTP/1.1\r\n\r\n")


def test_sender_that_asks_whether_to_go_on_is_told_so_at_once(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port), 10) as connection:
        length = b"Content-Length: %d\r\n" % len(BODY)  # twice: the same is still a length
        connection.sendall(HEAD + length + length + b"Expect: 100-continue\r\n\r\n")
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 204 ")


def test_first_events_fail_as_told_and_are_not_reported(
    run_listener: Callable[..., Running],
) -> None:
    running = run_listener(failures=[(503, 2), (304, 1), (429, 1)])
    statuses = [running.ask()[0] for _ in range(2)] + [running.ask(body="{}")[0]]
    statuses += [running.ask()[0] for _ in range(4)]
    assert statuses == [503, 503, 400, 304, 429, 204, 204]
    assert len(running.received) == 2
    assert running.listener.summary().startswith(
        "2 events received, 1 refused, 4 simulated errors, on 1 connection"
    )


def test_client_delivers_what_failed_at_first(run_listener: Callable[..., Running]) -> None:
    running = run_listener(failures=[(503, 3)])
    with valued.Client("t", running.listener.url) as client:
        for number in range(5):
            client.action("a.b", {"user.id": number})
        assert client.flush(10)
    assert sorted(received.event["user"]["id"] for received in running.received) == [0, 1, 2, 3, 4]


def test_delay_comes_before_the_answer(run_listener: Callable[..., Running]) -> None:
    running = run_listener(delay=0.05)
    asked_at = time.monotonic()
    assert running.ask()[0] == 204
    assert time.monotonic() - asked_at >= 0.05


def test_close_answers_what_is_under_way_and_ends_what_idles(
    run_listener: Callable[..., Running],
) -> None:
    running = run_listener(delay=600)
    idle = socket.create_connection(("127.0.0.1", running.port), 10)
    running.connection.request("POST", "/events", BODY, AUTHORIZATION)
    until(lambda: len(running.listener.connections) == 2)  # that one, and the idle one
    open_ = running.listener.connections._open
    until(lambda: Doing.ANSWERING in [doing for doing, _ in list(open_.values())])
    running.listener.stop()
    running.listener.close()
    assert running.answer()[0] == 204
    assert len(running.received) == 1
    assert idle.recv(1) == b""
    idle.close()


def test_report_that_raises_ends_the_serving_and_the_event_is_not_acknowledged(
    run_listener: Callable[..., Running],
) -> None:
    error = RuntimeError("no more")

    def report(_received: Received) -> None:
        raise error

    running = run_listener(report=report)
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        running.ask()
    running._thread.join(10)
    assert not running._thread.is_alive()
    assert running.listener.trouble is error


def test_sender_that_breaks_off_is_not_worth_a_word(
    run_listener: Callable[..., Running], capfd: pytest.CaptureFixture[str]
) -> None:
    reset = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")  # linger, no time: a reset
    running = run_listener()
    with socket.create_connection(("127.0.0.1", running.port), 10) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
    assert is_in_step(running)
    running.close()  # waits for the connections' threads
    assert capfd.readouterr().err == ""


def test_defect_of_our_own_is_a_traceback(
    running: Running, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("valued._service.bodies.check", None)
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        running.ask()
    running.close()
    assert "TypeError: 'NoneType' object is not callable" in capfd.readouterr().err


def test_only_verbs_are_looked_up_as_answers(running: Running) -> None:
    handler_class: Any = running.listener._server.RequestHandlerClass
    with pytest.raises(AttributeError, match="missing"):
        _ = handler_class.__new__(handler_class).missing


@pytest.mark.parametrize(
    ("host", "names", "status"),
    [
        ("localhost", [], 204),
        ("LocalHost:1", [], 204),
        ("app.localhost", [], 204),
        ("127.0.0.1", [], 204),
        ("127.9.9.9:80", [], 204),
        ("[::1]", [], 204),
        ("[::1]:4567", [], 204),
        ("host.docker.internal:4567", ["Host.Docker.internal"], 204),
        ("host.docker.internal", [], 403),
        ("evil.example:4567", ["host.docker.internal"], 403),
        ("localhost.evil.example", [], 403),
        ("notlocalhost", [], 403),
        ("192.168.0.7", [], 403),
        ("[::1", [], 403),
        ("", [], 403),
    ],
)
def test_on_loopback_a_request_has_to_name_this_machine(
    host: str, names: list[str], status: int, run_listener: Callable[..., Running]
) -> None:
    running = run_listener(names=names)
    answered, _, content = running.ask(Host=host)
    assert answered == status
    assert len(running.received) == (status == 204)
    if status == 403:
        assert content["errors"][0].startswith("Host: expected localhost or a loopback address, ")
        assert "--allow-host" in content["errors"][0]
    assert running.ask()[0] == 204  # the connection is kept


def test_a_second_host_in_a_request_is_not_overlooked(running: Running) -> None:
    head = b"POST /events HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n"
    answer = running.raw(head + b"Connection: close\r\nContent-Length: 0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403 ")


def test_where_others_can_reach_it_any_name_is_good(run_listener: Callable[..., Running]) -> None:
    assert run_listener(host="0.0.0.0").ask(Host="web-1.internal")[0] == 204


def test_listens_on_ipv6(run_listener: Callable[..., Running]) -> None:
    try:
        running = run_listener(host="::1")
    except OSError:
        pytest.skip("no IPv6 here")
    assert running.listener.url.startswith("http://[::1]:")
    assert running.ask()[0] == 204
    assert running.received[0].connection.startswith("[::1]:")
    assert running.received[0].pid is not None


def test_many_connections_at_once(running: Running) -> None:
    together = threading.Barrier(50)

    def ask() -> int:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
        together.wait(20)
        connection.request("POST", "/events", BODY, AUTHORIZATION)
        status = connection.getresponse().status
        connection.close()
        return status

    with ThreadPoolExecutor(50) as threads:
        assert {future.result(30) for future in [threads.submit(ask) for _ in range(50)]} == {204}
    assert len({received.connection for received in running.received}) == 50


# -- senders that can't be trusted -----------------------------------------------------------------


def test_slow_connections_have_a_bounded_number_of_threads_and_a_client_is_served(
    run_listener: Callable[..., Running],
) -> None:
    running = run_listener(connections=Connections(most=20))
    before = threading.active_count()
    slow = []
    for _ in range(200):
        slow.append(socket.create_connection(("127.0.0.1", running.port), 10))
        slow[-1].sendall(b"POST /events HTTP/1.1\r\n")
        assert threading.active_count() - before < 25
    with valued.Client("t", running.listener.url) as client:
        client.action("a.b", {"user.id": 1})
        assert client.flush(10)
    assert len(running.received) == 1
    for connection in slow:
        connection.close()


def test_one_connection_more_ends_the_one_that_has_waited_longest(
    run_listener: Callable[..., Running],
) -> None:
    running = run_listener(connections=Connections(most=3))
    idle, kept = (socket.create_connection(("127.0.0.1", running.port), 10) for _ in range(2))
    until(lambda: len(running.listener.connections) == 3)
    assert running.ask()[0] == 204  # the first of the three, but it was used since
    with socket.create_connection(("127.0.0.1", running.port), 10) as another:
        assert idle.recv(1) == b""
        for connection in (kept, another):
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY.encode())
            assert connection.recv(65536).startswith(b"HTTP/1.1 204 ")
    assert is_in_step(running)
    idle.close()
    kept.close()


def test_while_all_are_being_answered_one_more_waits(run_listener: Callable[..., Running]) -> None:
    inside, leave = threading.Event(), threading.Event()

    def report(_received: Received) -> None:
        inside.set()
        assert leave.wait(10)

    running = run_listener(report=report, connections=Connections(most=1))
    running.connection.request("POST", "/events", BODY, AUTHORIZATION)
    assert inside.wait(10)
    with socket.create_connection(("127.0.0.1", running.port), 10) as waiting:
        waiting.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY.encode())
        connections = running.listener.connections
        until(lambda: connections._changed._waiters)  # type: ignore[attr-defined]
        assert (len(connections), connections.count) == (1, 1)
        leave.set()
        assert running.answer()[0] == 204  # it is ended for the other one after its answer
        assert waiting.recv(65536).startswith(b"HTTP/1.1 204 ")


@pytest.mark.parametrize("part", [b"", b"Content-Length: 9\r\n", b"Content-Length: 9\r\n\r\n{"])
def test_a_request_that_does_not_arrive_in_time_is_408(
    part: bytes, run_listener: Callable[..., Running]
) -> None:
    running = run_listener(connections=Connections(timeout=0.2))
    began = time.monotonic()
    answer = running.raw(HEAD + part)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"Connection: close" in answer
    assert time.monotonic() - began >= 0.2
    assert is_in_step(running)  # idle for longer than that: only requests have a bound


def test_a_request_that_has_arrived_when_its_connection_is_ended_is_answered(
    run_listener: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = run_listener()
    connections = running.listener.connections
    does = Connections.does

    def ended(self: Connections, connection: socket.socket, doing: Doing) -> bool:
        if doing is Doing.ANSWERING:  # in this instant
            self._end_one()
        return does(self, connection, doing)

    monkeypatch.setattr(Connections, "does", ended)
    status, headers, _ = running.ask()
    assert (status, headers["Connection"], len(running.received)) == (204, "close", 1)
    until(lambda: len(connections) == 0)


def test_a_sender_that_does_not_read_its_answers_is_let_go() -> None:
    connections = Connections(timeout=0.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname(), 10)
        connection, _ = server.accept()
    with sender, connection, ThreadPoolExecutor(1) as threads:
        connections.opened(connection)
        connections.does(connection, Doing.SENDING)
        sending = threads.submit(connection.sendall, bytes(50_000_000))
        connections.end_slow()
        assert isinstance(sending.exception(10), OSError)


def test_without_a_free_descriptor_an_idle_connection_is_ended(running: Running) -> None:
    until(lambda: len(running.listener.connections) == 1)
    another = socket.socket()
    another.settimeout(10)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Numbers below are in use. Not 0, which is also the bound of what `poll` accepts.
    resource.setrlimit(resource.RLIMIT_NOFILE, (5, before[1]))
    try:
        another.connect(("127.0.0.1", running.port))
        assert running.connection.sock.recv(1) == b""
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        another.close()
    running.connection.close()
    assert running.ask()[0] == 204

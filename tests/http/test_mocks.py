"""Mocks and recorders, of `requests` or of the network below it, see our requests as all others."""

from __future__ import annotations

import functools
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import requests_mock
import responses
import vcr
import wrapt

import valued
from tests.support.processes import Child, run
from tests.support.server import Reply, Server
from tests.support.tls import Authority, TLSServer
from valued import Connection
from valued._http import mocks

TOKEN = "t0ken-that-nobody-may-see"
DATA = {"user.id": 1}
BOUND = 10.0  # seconds; bounds a failure


class _Client(valued.Client):
    """Sends on a thread in the background, whatever runs this test."""

    def send(self, key: str) -> None:
        self.action(key, DATA)
        assert self.flush(BOUND)


@pytest.fixture
def client(server: Server) -> Iterator[_Client]:
    client = _Client(TOKEN, server.url, retries=0)
    yield client
    client.close(BOUND)


def keys(bodies: list[Any]) -> list[str]:
    return [json.loads(body)["key"] for body in bodies]


# -- mocks of requests -----------------------------------------------------------------------------


def by_responses(url: str) -> Any:
    mock = responses.RequestsMock()
    mock.post(url, status=204)
    return mock, lambda: [call.request for call in mock.calls]


def by_requests_mock(url: str) -> Any:
    mock = requests_mock.Mocker()
    mock.post(url, status_code=204)
    return mock, lambda: mock.request_history


@pytest.mark.parametrize("mocked", [by_responses, by_requests_mock])
def test_a_mock_sees_each_event_and_none_goes_over_the_wire(
    mocked: Callable[[str], Any], server: Server, client: _Client
) -> None:
    client.send("before")
    mock, seen = mocked(server.url)
    with mock:
        client.send("first")
        client.send("second")
        assert keys([request.body for request in seen()]) == ["first", "second"]
        assert seen()[0].headers["Authorization"] == f"Bearer {TOKEN}"
        assert "Idempotency-Key" in seen()[0].headers
    client.send("after")
    assert [event["key"] for event in server.events] == ["before", "after"]
    assert len(server.connections()) == 1  # the one from before is kept
    assert client.stats()["delivered"] == 4


def test_responses_may_be_active_before_the_client_is_made(server: Server) -> None:
    with responses.RequestsMock() as mock:
        mock.post(server.url, status=204)
        client = _Client(TOKEN, server.url)
        client.send("first")
        assert len(mock.calls) == 1
    client.send("after")
    client.send("once more")
    client.close(BOUND)
    assert [event["key"] for event in server.events] == ["after", "once more"]
    assert len(server.connections()) == 1


def test_a_request_that_responses_does_not_expect_fails_with_the_reason(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    connection = Connection(TOKEN, server.url)
    connection.post(b"{}")
    with responses.RequestsMock(), pytest.raises(valued.DeliveryError) as caught:
        connection.post(b"{}")
    assert "Connection refused by Responses" in str(caught.value)
    assert getattr(caught.value.__cause__, "request", None) is None
    assert len(server.requests) == 1
    connection.close()


def test_a_request_that_responses_passes_through_arrives(server: Server, client: _Client) -> None:
    client.send("before")
    with responses.RequestsMock() as mock:
        mock.add_passthru(server.url)
        mock.post(server.url + "/unused")
        mock.assert_all_requests_are_fired = False
        client.send("first")
    assert [event["key"] for event in server.events] == ["before", "first"]


def test_requests_mock_may_be_active_before_the_client_and_answer_with_an_error(
    server: Server,
) -> None:
    with requests_mock.Mocker() as mock:
        mock.post(server.url, [{"status_code": 401, "text": f"{TOKEN} unknown"}])
        connection = Connection(TOKEN, server.url)
        with pytest.raises(valued.DeliveryError) as caught:
            connection.post(b"{}")
        assert (caught.value.status, caught.value.body) == (401, "<secret> unknown")
    connection.post(b"{}")
    connection.close()
    assert len(server.requests) == 1


def test_a_mock_of_one_session_applies_from_the_next_request(server: Server) -> None:
    connection = Connection(TOKEN, server.url)
    connection.post(b"1")
    session = connection.session
    connection.post(b"2")
    with requests_mock.Mocker(session=session) as mock:
        mock.post(server.url, status_code=204)
        connection.post(b"3")
        assert mock.call_count == 1
    connection.post(b"4")
    connection.close()
    assert [request.body for request in server.requests] == [b"1", b"2", b"4"]
    assert len(server.connections()) == 1


# -- recorders -------------------------------------------------------------------------------------


def cassette(path: Path, mode: str) -> Any:
    recorder = vcr.VCR(record_mode=mode, filter_headers=["authorization"])
    return recorder.use_cassette(str(path), match_on=["method", "uri"], allow_playback_repeats=True)


@pytest.mark.parametrize("serializer", ["yaml", "json"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_cassette_is_recorded_saved_and_replayed(
    server: Server, tmp_path: Path, when: str, serializer: str
) -> None:
    server.script = lambda _request: Reply(200, body=b"thanks")
    path = tmp_path / f"cassette.{serializer}"

    def made() -> _Client:
        client = _Client(TOKEN, server.url, retries=0)
        client.action("outside", DATA)
        assert client.flush(BOUND)
        return client

    client = made() if when == "after" else None
    recorder = vcr.VCR(serializer=serializer, filter_headers=["authorization"])
    with recorder.use_cassette(str(path), record_mode="all") as tape:
        client = client or made()
        client.send("recorded")
        assert tape.requests[-1].uri == server.url
        assert keys([tape.requests[-1].body]) == ["recorded"]
    text = path.read_text("utf-8")
    assert "recorded" in text
    assert TOKEN not in text
    assert "valued._redaction" not in text
    on_the_wire = len(server.requests)
    options: dict[str, Any] = {"record_mode": "none", "match_on": ["method", "uri"]}
    with recorder.use_cassette(str(path), allow_playback_repeats=True, **options) as tape:
        client.send("replayed")
        client.send("replayed, too")
        assert tape.play_count == 2
    assert len(server.requests) == on_the_wire
    client.send("after")
    client.send("after, too")
    client.close(BOUND)
    assert len(server.requests) == on_the_wire + 2
    assert client.stats()["failed"] == 0


def test_a_cassette_with_the_token_can_be_saved_and_read(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "cassette.yaml"
    connection = Connection(TOKEN, server.url)
    with vcr.use_cassette(str(path)):
        connection.post(b"{}")
    with vcr.use_cassette(str(path), record_mode="none") as tape:
        assert tape.requests[0].headers["Authorization"] == f"Bearer {TOKEN}"
        connection.post(b"{}")
        assert tape.all_played
    assert len(server.requests) == 1


def test_a_cassette_records_requests_by_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.bundle))
    service = TLSServer(authority)
    path = str(tmp_path / "cassette.yaml")
    try:
        connection = Connection(TOKEN, service.url)
        connection.post(b"1")
        with vcr.use_cassette(path):
            connection.post(b"2")
        assert len(service.requests) == 2
        with vcr.use_cassette(path, record_mode="none") as tape:
            connection.post(b"3")
            assert tape.all_played
        connection.post(b"4")
        connection.close()
        assert [request.body for request in service.requests] == [b"1", b"2", b"4"]
    finally:
        service.close()


def test_ten_threads_at_once_are_recorded_and_replayed_as_one_is(
    server: Server, tmp_path: Path
) -> None:
    # vcr.py itself is not safe for threads: it takes its patch away for the others, too.
    client = _Client(TOKEN, server.url, retries=0, executor=lambda: ThreadPoolExecutor(10))
    client.send("outside")
    path = str(tmp_path / "cassette.yaml")
    with vcr.use_cassette(path, record_mode="all") as tape:
        for number in range(50):
            client.action(f"recorded {number}", DATA)
        assert client.flush(BOUND)
        assert len(tape.requests) == 50
    assert len(server.requests) == 51
    options = {"match_on": ["method", "uri"], "allow_playback_repeats": True}
    with vcr.use_cassette(path, record_mode="none", **options) as tape:
        for number in range(200):
            client.action(f"replayed {number}", DATA)
        assert client.flush(BOUND)
        assert tape.play_count == 200
    assert len(server.requests) == 51
    client.send("after")
    assert len(server.requests) == 52
    assert client.stats()["delivered"] == 252
    client.close(BOUND)


def test_an_original_that_is_restored_for_an_instant_lets_no_request_pass(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, looks = socket.socket, []

    class Socket(socket.socket):
        pass

    def look() -> tuple[Any, ...]:
        looks.append(present())
        monkeypatch.setattr(socket, "socket", Socket)
        return looks[-1]

    present = mocks._look
    connection = Connection(TOKEN, server.url)
    connection.post(b"{}")
    monkeypatch.setattr(socket, "socket", Socket)
    connection.post(b"{}")
    monkeypatch.setattr(mocks, "_look", look)
    monkeypatch.setattr(socket, "socket", real)
    assert mocks.what_is_replaced(BOUND) == mocks.NETWORK
    assert [mocks._meaning(found) for found in looks] == [mocks.NOTHING, mocks.NETWORK]
    connection.close()


def test_a_request_that_waits_too_long_for_another_on_a_replaced_network_fails(
    server: Server, in_thread: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Socket(socket.socket):
        pass

    held, over = threading.Event(), threading.Event()

    def hold(_request: object) -> Reply:
        held.set()
        over.wait(BOUND)
        return Reply()

    server.script = hold
    connection = Connection(TOKEN, server.url)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", Socket)
        first = in_thread(connection.post, b"1")
        assert held.wait(BOUND)
        with pytest.raises(valued.DeliveryError, match="waiting for another request"):
            connection.post(b"2", timeout=0.05)
    # The patch is gone, but a request that is still under way may restore it.
    with pytest.raises(valued.DeliveryError, match="waiting for another request"):
        connection.post(b"3", timeout=0.05)
    over.set()
    first.result(BOUND)
    connection.post(b"4")
    connection.close()
    assert [request.body for request in server.requests] == [b"1", b"4"]


def test_a_request_that_a_cassette_does_not_contain_fails_without_the_token(
    server: Server, tmp_path: Path
) -> None:
    connection = Connection(TOKEN, server.url)
    with (
        vcr.use_cassette(str(tmp_path / "none.yaml"), record_mode="none"),
        pytest.raises(Exception, match="cassette") as caught,
    ):
        connection.post(b"{}")
    assert TOKEN not in repr(vars(caught.value))
    assert getattr(caught.value, "failed_request", None) is None
    assert server.requests == []


def test_a_library_that_is_imported_while_a_cassette_records_works_after_it(
    server: Server, tmp_path: Path
) -> None:
    program = (
        "import sys, vcr\n"
        "with vcr.use_cassette(sys.argv[1]) as tape:\n"
        "    import valued\n"
        "    connection = valued.Connection('t0ken-of-tests', sys.argv[2])\n"
        "    connection.post(b'{}')\n"
        "    assert len(tape.requests) == 1\n"
        "from valued._http import pool\n"
        "connection.post(b'{}'); connection.post(b'{}')\n"
        "assert 'vcr' not in str(pool.ForkAwareConnection.__mro__)\n"
        "assert len(tape.requests) == 1\n"
    )
    done = run("-c", program, str(tmp_path / "cassette.yaml"), server.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(server.requests) == 3
    assert len(server.connections()) == 2


# -- the network -----------------------------------------------------------------------------------


def test_a_replaced_socket_is_used_and_no_idle_connection(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoNetworkError(RuntimeError):
        pass

    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise NoNetworkError

    connection = Connection(TOKEN, server.url)
    connection.post(b"1")
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", refuse)
        with pytest.raises(NoNetworkError):
            connection.post(b"2")
    connection.post(b"3")
    connection.close()
    assert [request.body for request in server.requests] == [b"1", b"3"]
    assert len(server.connections()) == 1


def test_a_connection_of_a_replaced_socket_is_not_used_after_it_is_restored(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection(TOKEN, server.url)
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", type("Socket", (socket.socket,), {}))
            for _ in range(2):
                connection.post(b"{}")
    assert len(server.connections()) == 2
    connection.close()
    for _ in range(2):
        connection.post(b"{}")
    assert len(server.connections()) == 3
    connection.close()


@pytest.mark.parametrize("module", ["gevent._socket3", "eventlet.greenio.base", "socks"])
def test_sockets_of_production_are_no_mocks(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replacement = type("socket", (socket.socket,), {"__module__": module})
    monkeypatch.setattr(socket, "socket", replacement)
    assert mocks.what_is_replaced() == mocks.NOTHING


# -- wrappers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (requests.adapters.HTTPAdapter, "send"),
        (requests.Session, "send"),
        (requests.Session, "request"),
        (requests.Session, "post"),
        (requests.Session, "get_adapter"),
    ],
)
@pytest.mark.parametrize("by", ["functools", "wrapt", "partialmethod"])
def test_a_wrapper_of_a_method_sees_each_request(
    owner: Any, name: str, by: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    wrapped = getattr(owner, name)

    @functools.wraps(wrapped)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        return wrapped(*arguments, **options)

    @wrapt.decorator
    def through(method: Callable[..., Any], _self: Any, arguments: Any, options: Any) -> Any:
        calls.append(name)
        return method(*arguments, **options)

    ways = {
        "functools": lambda: wrapper,
        "wrapt": lambda: through(wrapped),
        "partialmethod": lambda: functools.partialmethod(wrapper),
    }
    connection = Connection(TOKEN, server.url)
    connection.post(b"1")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, ways[by]())
        for body in (b"2", b"3"):
            connection.post(body)
        seen = len(calls)
    connection.post(b"4")
    assert seen == len(calls) >= 2
    assert [request.body for request in server.requests] == [b"1", b"2", b"3", b"4"]
    assert len(server.connections()) == 1  # a tracer of production costs no connection each
    connection.close()


def test_a_response_that_a_mock_made_by_hand_is_a_response(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = requests.Response()
    answer.status_code = 204
    monkeypatch.setattr(requests.Session, "post", lambda *_arguments, **_options: answer)
    connection = Connection(TOKEN, server.url)
    connection.post(b"{}")
    answer.status_code = 500
    with pytest.raises(valued.DeliveryError, match="the service answered 500"):
        connection.post(b"{}")
    assert server.requests == []


def test_a_child_does_not_wait_for_a_request_of_its_parent(
    fork: Callable[..., Child],
) -> None:
    has_it, release = threading.Event(), threading.Event()

    def have_it() -> None:
        with mocks.one_at_a_time(BOUND):
            has_it.set()
            release.wait(BOUND)

    def child() -> None:
        with mocks.one_at_a_time(1.0):
            pass

    with ThreadPoolExecutor(1) as threads:
        holder = threads.submit(have_it)
        assert has_it.wait(BOUND)
        assert fork(child).wait() == 0
        release.set()
        holder.result(BOUND)

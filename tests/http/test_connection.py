"""`Connection`: headers, errors, timeouts, proxies, TLS, and that the token shows nowhere."""

from __future__ import annotations

import copy
import gzip
import html
import io
import json
import logging
import os
import pickle
import platform
import re
import reprlib
import signal
import socket
import threading
import time
import traceback
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from rich.console import Console
from rich.traceback import Traceback

import valued
from tests.support.processes import run
from tests.support.proxy import Listener, Proxy, read_request
from tests.support.server import Reply, Server
from tests.support.tls import Authority, TLSServer
from valued import Connection, DeliveryError
from valued._http import endpoint as _endpoint
from valued._http import pool as _pool
from valued._http import recording
from valued._http.connection import _scrub
from valued._http.route import MAX_BODY

TOKEN = "t0ken-that-nobody-may-see"
EVENT = {"category": "action", "key": "report.generated", "user": {"id": 1}}
AGENT = f"valued-client/{valued.__version__} (Python/{platform.python_version()})"
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"

InThread = Callable[..., "Future[Any]"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def tls_server(authority: Authority) -> Iterator[TLSServer]:
    server = TLSServer(authority)
    yield server
    server.close()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as proxy:
        yield proxy


@pytest.fixture
def connection(server: Server) -> Iterator[Connection]:
    connection = Connection(TOKEN, server.url)
    yield connection
    connection.close()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Raising(requests.adapters.BaseAdapter):
    """An adapter of the application that fails."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    def send(self, request: requests.PreparedRequest, **_options: Any) -> requests.Response:
        self._error.request = request  # type: ignore[attr-defined]
        raise self._error

    def close(self) -> None:
        pass


def failure(connection: Connection, **options: Any) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        connection.post(b"{}", **options)
    return caught.value


def everything(error: BaseException) -> str:
    """All that an error tracker could record of it."""
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


# -- one request -----------------------------------------------------------------------------------


def test_an_event_goes_as_one_post_with_the_headers_of_the_service(
    server: Server, connection: Connection
) -> None:
    connection.post(b"{}", "a-1")
    assert connection(EVENT) is None
    (before, request) = server.requests
    assert before.headers["Idempotency-Key"] == "a-1"
    assert (request.method, request.path) == ("POST", "/events")
    assert request.event == EVENT
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"
    assert request.headers["User-Agent"] == AGENT
    assert request.headers["Content-Length"] == str(len(request.body))
    assert "Idempotency-Key" not in request.headers
    assert "Cookie" not in request.headers


def test_the_headers_are_a_fresh_dict(connection: Connection) -> None:
    headers = connection.headers
    assert headers == {
        "Content-Type": "application/json",
        "Authorization": f"Bearer {TOKEN}",
        "User-Agent": AGENT,
    }
    headers.clear()
    assert len(connection.headers) == 3


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_success(server: Server, connection: Connection, status: int) -> None:
    server.script = lambda _request: Reply(status)
    connection(EVENT)


@pytest.mark.parametrize("status", [300, 304, 400, 401, 404, 422, 429, 500, 503])
def test_any_other_status_is_an_error_with_status_and_body(
    server: Server, connection: Connection, status: int
) -> None:
    server.script = lambda _request: Reply(status, body=b"user.id: \xff missing")
    error = failure(connection)
    assert error.status == status
    assert error.body == ("" if status == 304 else "user.id: \N{REPLACEMENT CHARACTER} missing")
    assert error.retry_after is None
    assert error.reason.startswith(f"the service answered {status}")
    assert "redirect" not in error.reason


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("soon", None),
        ("-3", None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Fri, 31 Dec 99999 23:59:59 GMT", None),
        ("9" * 5000, None),
    ],
)
def test_a_valid_retry_after_is_in_the_error(
    server: Server, connection: Connection, header: str, seconds: float | None
) -> None:
    server.script = lambda _request: Reply(503, {"Retry-After": header})
    error = failure(connection)
    assert error.status == 503
    assert error.retry_after == seconds


def test_a_date_in_retry_after_becomes_seconds_from_now(
    server: Server, connection: Connection
) -> None:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    server.script = lambda _request: Reply(429, {"Retry-After": date})
    assert 60 < (failure(connection).retry_after or 0) <= 100


def test_a_redirect_is_not_followed_and_the_error_says_what_to_do(
    server: Server, connection: Connection
) -> None:
    server.script = lambda _request: Reply(307, {"Location": server.url + "/elsewhere"})
    error = failure(connection)
    assert error.status == 307
    assert "set the endpoint" in error.reason
    assert len(server.requests) == 1


def test_only_the_beginning_of_a_huge_answer_is_read() -> None:
    broken_off = threading.Event()

    def pour(client: socket.socket) -> None:
        with client.makefile("rb") as stream:
            read_request(stream)
        client.sendall(b"HTTP/1.1 500 Oops\r\nContent-Length: 1000000000000\r\n\r\n")
        try:
            while True:
                client.sendall(b"x" * MAX_BODY)
        except OSError:
            broken_off.set()

    with Listener(pour) as service:
        error = failure(Connection(TOKEN, service.url))
        assert error.status == 500
        assert error.body == "x" * 500
        assert broken_off.wait(10)  # the rest is refused, and the connection not used again


def test_a_compressed_answer_is_decompressed(server: Server, connection: Connection) -> None:
    packed = gzip.compress(b"too many events")
    server.script = lambda _request: Reply(429, {"Content-Encoding": "gzip"}, packed)
    assert failure(connection).body == "too many events"
    server.script = lambda _request: Reply(429, {"Content-Encoding": "gzip"}, b"no gzip")
    error = failure(connection)
    assert (error.status, error.body) == (429, "")


# -- connections -----------------------------------------------------------------------------------


def test_many_events_go_over_one_connection_whatever_is_answered(
    server: Server, connection: Connection
) -> None:
    replies = iter([Reply(), Reply(200, body=b"thanks"), Reply(503, body=b"x" * 1000)] * 10)
    server.script = lambda _request: next(replies)
    for number in range(30):
        if number % 3 == 2:
            assert failure(connection).status == 503
        else:
            connection(EVENT)
    assert len(server.connections()) == 1


@pytest.mark.parametrize(("kept", "made"), [(10, 10), (9, 12)], ids=["as many", "one too many"])
def test_as_many_connections_as_the_pool_keeps_are_used_again_after_a_burst(
    kept: int, made: int, server: Server, in_thread: InThread, caplog: pytest.LogCaptureFixture
) -> None:
    together = threading.Barrier(10)

    def all_at_once(_request: object) -> Reply:
        together.wait(10)  # so that none is answered before all have a connection of their own
        return Reply()

    server.script = all_at_once
    connection = Connection(TOKEN, server.url, pool_size=kept)
    with caplog.at_level(logging.WARNING):
        for _burst in range(3):
            for future in [in_thread(connection, EVENT) for _ in range(10)]:
                future.result(20)
    assert len(server.requests) == 30
    assert len(server.connections()) == made
    assert caplog.records == []  # urllib3 warns of each connection that it discards
    connection.close()


def test_close_closes_and_the_next_event_connects_again() -> None:
    def serve(client: socket.socket) -> None:
        with client.makefile("rb") as stream:
            while read_request(stream):
                client.sendall(NO_CONTENT)

    with Listener(serve) as service:
        connection = Connection(TOKEN, service.url)
        connection.close()  # nothing to close yet
        for _round in range(2):
            connection(EVENT)
            assert service.accepted.acquire(timeout=10)
            assert not service.ended.acquire(blocking=False)
            connection.close()
            connection.close()
            assert service.ended.acquire(timeout=10)


def test_the_session_is_one_for_all_threads_and_takes_an_adapter(
    connection: Connection, in_thread: InThread
) -> None:
    assert in_thread(lambda: connection.session).result(10) is connection.session
    connection.session.mount("http://", Raising(requests.ConnectionError("mounted")))
    assert "mounted" in failure(connection).reason


def test_an_adapter_that_is_mounted_after_the_first_event_sends_the_next_one(
    server: Server, connection: Connection
) -> None:
    class Adapter(requests.adapters.HTTPAdapter):
        def add_headers(self, request: requests.PreparedRequest, **_options: Any) -> None:
            request.headers["X-Mounted"] = "yes"

    connection(EVENT)
    session = connection.session
    session.mount("http://", Adapter())
    connection.post(b"{}", "a-key")
    session.mount("http://", _pool.Adapter())
    connection(EVENT)
    assert ["X-Mounted" in request.headers for request in server.requests] == [False, True, False]
    assert server.requests[1].headers["Authorization"] == f"Bearer {TOKEN}"
    assert server.requests[1].headers["Idempotency-Key"] == "a-key"
    session.close()


def test_what_is_changed_on_the_session_counts_from_the_next_event(
    server: Server, connection: Connection
) -> None:
    connection(EVENT)
    connection.session.headers["X-Tenant"] = "7"
    connection(EVENT)
    assert [request.headers.get("X-Tenant") for request in server.requests] == [None, "7"]
    assert len(server.connections()) == 1


def test_a_pool_that_was_closed_is_replaced_after_one_failure(
    server: Server, connection: Connection
) -> None:
    connection(EVENT)
    connection._route.get()._prepared[1].close()  # as urllib3 1.26 does when a session is closed
    connection._route.get().session.close()
    assert "closed" in failure(connection).reason.lower()
    connection(EVENT)
    assert len(server.connections()) == 2


def test_a_kept_connection_that_ends_just_as_we_write_goes_unnoticed_behind_tls(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.bundle))
    breaks = [False, True, False]
    service = TLSServer(authority, lambda _request: None if breaks.pop(0) else Reply())
    try:
        connection = Connection(TOKEN, service.url)
        connection(EVENT)
        connection(EVENT)
        assert len(service.requests) == 3
        connection.close()
    finally:
        service.close()


# -- no answer -------------------------------------------------------------------------------------


def test_an_endpoint_at_which_no_server_listens() -> None:
    error = failure(Connection(TOKEN, f"http://127.0.0.1:{closed_port()}/events"))
    assert error.status is None
    assert "NewConnectionError" in error.reason
    assert "refused" in error.reason
    assert isinstance(error.__cause__, urllib3.exceptions.NewConnectionError)


def test_a_host_name_that_does_not_exist() -> None:
    # Too long for a name, so that the resolver asks no server.
    error = failure(Connection(TOKEN, f"http://{'a.' * 150}invalid/events"))
    assert error.status is None
    assert "NameResolutionError" in error.reason


def test_a_host_name_that_cannot_be_one() -> None:
    error = failure(Connection(TOKEN, f"http://{'a' * 64}.example/events"))
    assert "label" in error.reason


def test_connecting_that_takes_too_long_on_a_road_of_the_application_s_sends_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = urllib3.util.connection.create_connection

    def slowly(*args: Any, **options: Any) -> socket.socket:
        time.sleep(0.35)  # more than three quarters of the timeout
        return connect(*args, **options)

    monkeypatch.setattr(urllib3.util.connection, "create_connection", slowly)
    error = failure(Connection(TOKEN, server.url, timeout=0.4))
    assert "took too long" in error.reason
    assert server.events == []


def held(client: socket.socket) -> None:
    client.recv(1)  # nothing is answered
    while client.recv(65536):
        pass


def dribble(before: bytes, drop: bytes) -> Callable[[socket.socket], None]:
    """A server that says *before* at once and then a *drop* now and then, for ever."""

    def serve(client: socket.socket) -> None:
        with client.makefile("rb") as stream:
            read_request(stream)
        client.sendall(before)
        client.settimeout(0.02)  # the pace; it ends when the client has gone
        while True:
            client.sendall(drop)
            try:
                if not client.recv(1):
                    return
            except TimeoutError:
                pass

    return serve


@pytest.mark.parametrize(
    ("serve", "status"),
    [
        pytest.param(held, None, id="held"),
        pytest.param(dribble(b"HTTP/1.1 2", b"0"), None, id="status line"),
        pytest.param(dribble(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), None, id="headers"),
        pytest.param(dribble(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), None, id="continue"),
        pytest.param(
            dribble(b"HTTP/1.1 500 No\r\nContent-Length: 1000\r\n\r\n", b"x"), 500, id="body"
        ),
        pytest.param(dribble(b"HTTP/1.0 500 No\r\n\r\n", b"x"), 500, id="body without an end"),
        pytest.param(
            dribble(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
            500,
            id="chunks",
        ),
        pytest.param(
            dribble(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"x"), 200, id="success"
        ),
    ],
)
def test_the_timeout_is_for_the_request_as_a_whole_behind_tls_too(
    serve: Callable[[socket.socket], None],
    status: int | None,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.bundle))
    with Listener(serve, authority.context()) as service:
        connection = Connection(TOKEN, service.url, timeout=60)
        started = time.monotonic()
        if status == 200:
            connection.post(b"{}", timeout=1.0)
        else:
            error = failure(connection, timeout=1.0)
            assert error.status == status
            assert status is not None or "timed out" in error.reason
        took = time.monotonic() - started
    # A read that starts over with each byte would never end; the rest is for a busy machine.
    assert 0.95 <= took < 4


def test_a_handshake_that_is_never_answered_times_out() -> None:
    with Listener(held) as service:
        url = service.url.replace("http:", "https:")
        started = time.monotonic()
        error = failure(Connection(TOKEN, url, timeout=0.3))
        assert time.monotonic() - started < 2
    assert "timed out" in error.reason


def test_a_timeout_of_one_request_is_not_that_of_the_next(server: Server) -> None:
    answer_now = threading.Event()

    def wait(_request: object) -> Reply:
        answer_now.wait(10)
        return Reply()

    connection = Connection(TOKEN, server.url, timeout=10)
    connection.post(b"{}", timeout=0.3)
    server.script = wait
    timer = threading.Timer(0.5, answer_now.set)
    timer.start()
    connection.post(b"{}")
    timer.join()
    assert len(server.connections()) == 1
    connection.close()


# -- proxies, ~/.netrc -----------------------------------------------------------------------------


@pytest.fixture
def hostile_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / ".netrc"
    hosts = ("127.0.0.1", "localhost")
    netrc.write_text(
        "".join(f"machine {host}\nlogin thief\npassword stolen\n" for host in hosts)
        + "default login thief password stolen\n"
    )
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    # It works: `requests` would take it.
    assert requests.utils.get_netrc_auth("http://127.0.0.1/") == ("thief", "stolen")


@pytest.mark.usefixtures("hostile_home")
@pytest.mark.parametrize("password", ["", "user:word@"])
def test_a_netrc_entry_replaces_nothing_and_a_proxy_variable_counts(
    password: str, server: Server, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    Connection(TOKEN, server.url)(EVENT)
    assert proxy.heads == []
    monkeypatch.setenv("http_proxy", proxy.url.replace("//", f"//{password}"))
    connection = Connection(TOKEN, server.url)
    for _ in range(3):
        connection(EVENT)
    connection.close()
    assert [request.headers["Authorization"] for request in server.requests] == [
        f"Bearer {TOKEN}"
    ] * 4
    assert len(proxy.peers) == 1  # one connection, kept
    assert [head[0] for head in proxy.heads] == [f"POST {server.url} HTTP/1.1"] * 3
    for head in proxy.heads:  # the password goes with each request, and only where there is one
        sent = [line for line in head if line.startswith("Proxy-Authorization")]
        assert sent == (["Proxy-Authorization: Basic dXNlcjp3b3Jk"] if password else [])


@pytest.mark.usefixtures("hostile_home")
def test_https_goes_through_a_tunnel_of_the_proxy_which_never_sees_the_token(
    tls_server: TLSServer,
    proxy: Proxy,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("https_proxy", proxy.url.replace("//", "//user:word@"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.bundle))
    connection = Connection(TOKEN, tls_server.url)
    for _ in range(3):
        connection(EVENT)
    connection.close()
    (head,) = proxy.heads  # one tunnel, kept
    assert head[0].startswith(f"CONNECT 127.0.0.1:{tls_server.port} ")
    assert "Proxy-Authorization: Basic dXNlcjp3b3Jk" in head
    assert TOKEN not in str(proxy.heads)
    assert [request.event for request in tls_server.requests] == [EVENT] * 3
    for request in tls_server.requests:
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"
        assert "Proxy-Authorization" not in request.headers


def test_a_proxy_may_itself_be_behind_tls(
    tls_server: TLSServer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.bundle))
    # TLS inside TLS: `requests` gives the proxy's certificate to the system's authorities.
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))
    with Proxy(authority.context()) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        connection = Connection(TOKEN, tls_server.url)
        for _ in range(3):
            connection(EVENT)
        connection.close()
        assert len(proxy.heads) == 1
    assert [request.event for request in tls_server.requests] == [EVENT] * 3


@pytest.mark.parametrize("variable", ["http_proxy", "all_proxy"])
@pytest.mark.parametrize(
    ("excepted", "is_asked"),
    [
        ("127.0.0.1", False),
        ("localhost,127.0.0.0/8", False),
        ("127.0.0.1:{port}", True),  # as `requests` has it, for addresses
        ("*", False),
        ("127.0.0.1:1", True),
        ("example.org", True),
    ],
)
def test_a_proxy_is_asked_unless_no_proxy_names_the_host(
    variable: str,
    excepted: str,
    is_asked: bool,
    server: Server,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, proxy.url)
    monkeypatch.setenv("no_proxy", excepted.format(port=server.port))
    connection = Connection(TOKEN, server.url)
    connection(EVENT)
    connection.close()
    assert (len(proxy.heads), server.events) == (is_asked, [EVENT])


def test_a_proxy_that_is_not_there_is_named(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
    error = failure(Connection(TOKEN, server.url))
    assert "ProxyError" in error.reason
    assert "refused" in error.reason
    assert server.requests == []


# -- TLS -------------------------------------------------------------------------------------------


def test_a_ca_bundle_named_by_the_environment_is_trusted(
    tls_server: TLSServer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(variable, str(authority.bundle))
        connection = Connection(TOKEN, tls_server.url)
        connection(EVENT)
        connection.close()
        monkeypatch.delenv(variable)
    assert tls_server.events == [EVENT] * 2


def test_a_certificate_of_an_unknown_authority_is_an_error_that_names_it(
    tls_server: TLSServer,
) -> None:
    error = failure(Connection(TOKEN, tls_server.url))
    assert error.status is None
    assert "certificate verify failed" in error.reason
    assert TOKEN not in everything(error)
    assert tls_server.requests == []


def test_a_certificate_for_another_host_is_an_error_that_names_it(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.bundle))
    with Listener(held, authority.context("example.org")) as service:
        error = failure(Connection(TOKEN, service.url))
    assert error.status is None
    assert "certificate is not valid for '127.0.0.1'" in error.reason


def test_a_bundle_that_is_not_there_is_named(
    tls_server: TLSServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "gone.pem"))
    assert "gone.pem" in failure(Connection(TOKEN, tls_server.url)).reason


@pytest.mark.parametrize("status", [None, 500])
def test_garbage_inside_a_tls_connection_is_an_error(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, status: int | None
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.bundle))

    def garble(client: socket.socket) -> None:
        with client.makefile("rb") as stream:
            read_request(stream)
        if status is not None:
            client.sendall(b"HTTP/1.1 500 Oops\r\nContent-Length: 1000\r\n\r\nx")
        with socket.socket(fileno=os.dup(client.fileno())) as below:
            below.sendall(b"this is no record of TLS")
        held(client)

    with Listener(garble, authority.context()) as service:
        error = failure(Connection(TOKEN, service.url))
    assert error.status == status
    assert status is not None or error.reason.startswith("no answer: SSLError: ")


# -- the token -------------------------------------------------------------------------------------


def test_the_token_is_in_no_repr(connection: Connection) -> None:
    client = valued.Client(TOKEN, connection.endpoint)
    session = connection.session
    for shown in (
        connection,
        connection.headers,
        session,
        session.headers,
        session.auth,
        vars(session),
        vars(session.auth),
        vars(connection),
        client,
        valued.Scope(client),
        [connection.headers.items()],
    ):
        assert TOKEN not in repr(shown)
        assert TOKEN not in f"{shown}"
    assert repr(connection) == f"Connection(endpoint={connection.endpoint!r})"
    assert connection.headers["Authorization"] == f"Bearer {TOKEN}"


def answered(reply: Reply | None) -> Callable[[], Any]:
    return lambda: Server(lambda _request: reply)


@pytest.mark.parametrize(
    "service",
    [
        pytest.param(lambda: Listener(lambda client: client.recv(1)), id="reset"),
        pytest.param(lambda: Listener(held), id="held"),
        pytest.param(
            lambda: Listener(dribble(b"HTTP/1.1 500 OK\r\nContent-Length: 99\r\n\r\n", b"x")),
            id="dribble",
        ),
        pytest.param(answered(None), id="broken off"),
        pytest.param(answered(Reply(503, body=b"busy")), id="503"),
        pytest.param(
            answered(Reply(400, body=f"Authorization: Bearer {TOKEN}".encode())), id="echo"
        ),
        pytest.param(answered(Reply(308, {"Location": "/x"})), id="redirect"),
    ],
)
def test_the_token_is_nowhere_in_an_error_nor_in_what_its_frames_hold(
    service: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    running = service()
    connection = Connection(TOKEN, running.url, timeout=0.3)
    error = failure(connection)
    running.close()
    connection.close()
    refused = failure(connection)  # now that no server listens
    text = everything(error) + everything(refused) + repr(error) + repr(vars(error)) + str(error)
    assert "Traceback" in text
    assert TOKEN not in text
    cause = refused.__cause__
    assert isinstance(cause, urllib3.exceptions.HTTPError)
    assert TOKEN not in repr(vars(cause))
    assert caplog.records  # urllib3 says what it does
    assert not any(TOKEN in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("base", [Exception, BaseException])
def test_the_token_is_not_in_what_the_frames_hold_of_what_a_signal_handler_raises(
    base: type[BaseException],
) -> None:
    class SoftTimeLimit(base):  # type: ignore[valid-type, misc]
        pass

    def exceeded(_number: int, _frame: object) -> None:
        raise SoftTimeLimit

    main = threading.get_ident()
    over = threading.Event()

    def serve(client: socket.socket) -> None:
        with client.makefile("rb") as stream:
            read_request(stream)
            client.sendall(NO_CONTENT)
            read_request(stream)
            signal.pthread_kill(main, signal.SIGALRM)  # it waits for an answer, and gets none
            over.wait(10)

    before = signal.signal(signal.SIGALRM, exceeded)
    try:
        with Listener(serve) as service:
            connection = Connection(TOKEN, service.url, timeout=5)
            connection.post(b"{}")
            with pytest.raises(SoftTimeLimit) as caught:
                connection.post(b"{}", "a-key")
            over.set()
            assert len(service.peers) == 1
            text = everything(caught.value)
            connection.close()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert "in post" in text
    assert TOKEN not in text


def locals_of(error: BaseException) -> Iterator[object]:
    """What the frames of ours hold that *error*, and all that it leads to, came through."""
    waiting: list[BaseException | None] = [error]
    known: list[int] = []
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in known:
            continue
        known.append(id(one))
        waiting += (one.__cause__, one.__context__)
        for frame, _line in traceback.walk_tb(one.__traceback__):
            if "/tests/" not in frame.f_code.co_filename:
                yield from frame.f_locals.values()


def both_reprs(thing: object) -> str:
    """Its `repr`, and the one that shows the beginning and the end of what is long."""
    try:
        return repr(thing) + reprlib.repr(thing)
    except AttributeError:  # its constructor raised: error trackers have to handle that
        return repr(vars(thing))


def shown(error: BaseException) -> str:
    """All of *error* that rich, an error tracker, a log or a pickle could show."""
    console = Console(file=io.StringIO(), width=200)
    frames = (type(error), error, error.__traceback__)
    console.print(Traceback.from_exception(*frames, show_locals=True, locals_max_string=20))
    parts = map(both_reprs, locals_of(error))
    chain = [str(one) + repr(one) + repr(vars(one)) for one in (error, error.__cause__) if one]
    request = getattr(error.__cause__, "request", None)
    pickled = pickle.dumps(error).decode("latin-1")
    text = [console.file.getvalue(), *parts, *chain, everything(error), repr(request), pickled]
    return "\n".join(text).replace("/tests/", "")


#: What must not be seen of `TOKEN`, not even in part.
PARTS = [TOKEN[start : start + 6] for start in range(len(TOKEN) - 5)]
SLASHED = "t0ken/that+nobody/may=see"


@pytest.mark.parametrize("when", ["first", "kept", "by a session"])
@pytest.mark.parametrize(
    "form",
    [
        "{}", "Token {} unknown", '{{"token": "{}"}}',
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "escape",
    [
        str,
        lambda token: json.dumps(token).strip('"').replace("/", "\\/"),
        lambda token: urllib.parse.quote(token, safe=""),
        lambda token: html.escape(token).replace("/", "&#x2F;"),
        lambda token: token.replace("/", "&#47;").replace("+", "&plus;"),
    ],
    ids=["plain", "json", "url", "html", "numbers"],
)
def test_an_answer_that_names_the_token_shows_it_nowhere(
    escape: Callable[[str], str], form: str, when: str
) -> None:
    said = form.format(escape(SLASHED))
    good = when != "first"

    def serve(client: socket.socket) -> None:
        nonlocal good
        with client.makefile("rb") as stream:
            while read_request(stream):
                answer = NO_CONTENT
                if not good:
                    head = f"HTTP/1.1 401 {said}\r\nX-Echo: {said}\r\nContent-Length: {len(said)}"
                    answer = f"{head}\r\n\r\n{said}".encode()
                good = False
                client.sendall(answer)

    with Listener(serve) as service:
        connection = Connection(SLASHED, service.url)
        if good:
            connection.post(b"{}")
        if when == "by a session":
            connection.session.hooks["response"].append(lambda answer, **_options: answer)
        error = failure(connection)
        text = shown(error)
        connection.close()
    assert error.status == 401
    assert error.body == form.format("<secret>")
    assert form.format("<secret>") in error.reason
    for part in ("t0ken", "that", "nobody", "see"):
        assert part not in text.replace("test_an_answer_that_names", "").replace(
            "the_token_shows_it_nowhere", ""
        ), part


def test_the_token_is_redacted_before_the_body_is_cut(server: Server) -> None:
    server.script = lambda _request: Reply(500, body=b"x" * 490 + TOKEN.encode() * 50 + b"end")
    connection = Connection(TOKEN, server.url)
    body = failure(connection).body
    connection.close()
    assert body == "x" * 490 + "<secret><s"


@pytest.mark.parametrize("kept", [False, True])
def test_what_is_no_http_response_and_names_the_token_shows_it_nowhere(kept: bool) -> None:
    def serve(client: socket.socket) -> None:
        with client.makefile("rb") as stream:
            if kept:
                read_request(stream)
                client.sendall(NO_CONTENT)
            read_request(stream)
        client.sendall(f"unknown token: {TOKEN}\r\n\r\n".encode())

    with Listener(serve) as service:
        connection = Connection(TOKEN, service.url)
        if kept:
            connection.post(b"{}")
        error = failure(connection)
        connection.close()
    assert "unknown token: <secret>" in error.reason
    assert error.__cause__ is error.__context__ is None
    assert not [part for part in PARTS if part in shown(error)]


class _UnreadableError(Exception):
    def __str__(self) -> str:
        raise LookupError(TOKEN)


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (requests.ConnectionError(f"no {TOKEN}"), "no answer: ConnectionError: no <secret>"),
        (LookupError(f"no {TOKEN}"), "no answer: LookupError: no <secret>"),
        (LookupError({"headers": [TOKEN]}), "no answer: LookupError: {'headers': ['<secret>']}"),
        (_UnreadableError(), "no answer: _UnreadableError"),
    ],
)
def test_an_exception_that_names_the_token_is_dropped_for_what_it_says(
    connection: Connection, raised: Exception, reason: str
) -> None:
    connection.session.mount("http://", Raising(raised))
    error = failure(connection)
    assert error.reason == reason
    assert error.__cause__ is error.__context__ is None
    assert TOKEN not in shown(error)


def test_an_exception_of_a_transport_that_is_no_failure_to_send_stays_what_it_is(
    connection: Connection,
) -> None:
    connection.session.mount("http://", Raising(LookupError("a bug")))
    with pytest.raises(LookupError, match="a bug") as caught:
        connection.post(b"{}")
    assert caught.value.request is None  # type: ignore[attr-defined]
    assert TOKEN not in everything(caught.value)


class _Waiting:
    """An executor that never runs anything."""

    def submit(self, function: Any, *args: Any) -> None:
        pass


def by_connection(url: str, raised: BaseException | None) -> BaseException | None:
    connection = Connection(TOKEN, url, timeout=5)
    if raised is not None:
        connection.session.mount("http://", Raising(raised))
    try:
        connection(EVENT)
    except BaseException as error:
        return error
    return None


def by_client(url: str, raised: BaseException | None) -> None:
    del raised
    executor = valued.ImmediateExecutor()
    valued.Client(TOKEN, url, retries=0, executor=executor).action("a", {"user.id": 1})


def synchronously(url: str, raised: BaseException | None) -> None:
    del raised
    client = valued.Client(
        TOKEN, url, retries=0, executor=_Waiting(), max_queue=1, overflow="caller_runs"
    )
    for _ in range(2):
        client.action("a", {"user.id": 1})
    client.close(0)


@pytest.mark.parametrize(
    ("deliver", "raised"),
    [
        (by_connection, None),
        (by_connection, requests.ConnectionError("no")),
        (by_connection, LookupError(f"no {TOKEN}")),
        (by_connection, LookupError("a bug")),
        (by_connection, KeyboardInterrupt()),
        (by_client, None),
        (synchronously, None),
    ],
)
def test_an_exception_that_the_caller_handles_stays_as_it_is(
    deliver: Callable[[str, BaseException | None], BaseException | None],
    raised: BaseException | None,
) -> None:
    """With its response, its frames, and all that caused it."""
    answer = requests.Response()
    request = requests.Request("GET", "http://application.example/")

    def fail(cause: Exception | None) -> None:
        precious = "local of the application"
        raise requests.HTTPError(precious, response=answer, request=request) from cause

    try:
        try:
            fail(None)
        except requests.HTTPError as first:
            fail(first)
    except requests.HTTPError as handled:
        mine = deliver(f"http://127.0.0.1:{closed_port()}/events", raised)
        cause = handled.__cause__
        assert isinstance(cause, requests.HTTPError)
        for error in (handled, cause):
            assert error.response is answer
            assert error.request is request
            assert "precious = 'local of the application'" in everything(error)
        if mine is not None:
            text = "\n".join([repr(mine), *map(both_reprs, locals_of(mine))])
            assert not [part for part in PARTS if part in text]


def test_where_the_real_service_is_blocked_a_connection_sends_nothing_there(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "blocked", True)
    far = Connection(TOKEN, "http://192.0.2.1/e")
    far.session.mount("http://", Raising(LookupError("it went out")))
    with pytest.raises(valued.testing.RealEndpointError, match=r"192\.0\.2\.1"):
        far(EVENT)
    with pytest.raises(valued.testing.RealEndpointError):
        far.post(b"{}", "key", 1.0)
    Connection(TOKEN, server.url)(EVENT)
    assert server.events == [EVENT]


def test_the_request_that_an_exception_holds_is_taken_from_it() -> None:
    connection = Connection(TOKEN, f"http://127.0.0.1:{closed_port()}/events")
    connection.session.hooks["response"].append(lambda answer, **_options: answer)
    cause = failure(connection).__cause__
    assert isinstance(cause, requests.ConnectionError)
    assert cause.request is cause.response is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: Connection(TOKEN, "ftp://127.0.0.1/"),
        lambda: Connection(TOKEN, 5),  # type: ignore[arg-type]
        lambda: Connection("https://ingest.valued.app/events", TOKEN),
        lambda: Connection("t", TOKEN),
        lambda: Connection("t", TOKEN.encode()),  # type: ignore[arg-type]
        lambda: Connection(TOKEN.encode()),  # type: ignore[arg-type]
        lambda: Connection([TOKEN]),  # type: ignore[arg-type]
        lambda: Connection({"token": TOKEN}),  # type: ignore[arg-type]
        lambda: Connection("t", [TOKEN]),  # type: ignore[arg-type]
        lambda: Connection("t", f"https://{TOKEN}@127.0.0.1/"),
        lambda: Connection("t", f"https://u:{TOKEN}@127.0.0.1:99999/"),
        lambda: Connection(TOKEN + " "),
        lambda: Connection(TOKEN, "http://u:p@127.0.0.1/"),
        lambda: Connection(TOKEN, timeout=-1),
        lambda: Connection(TOKEN, "http://127.0.0.1/", pool_size=0),
        lambda: Connection(endpoint=TOKEN),
        lambda: valued.Client(TOKEN, "ftp://127.0.0.1/"),
        lambda: valued.Client(TOKEN, max_workers=0),
        lambda: valued.Client(TOKEN + " "),
        lambda: valued.Client(TOKEN, no_such_option=1),
        lambda: valued.connect(TOKEN, timeout=0),
        lambda: valued.connect("https://ingest.valued.app/events", TOKEN),
        lambda: valued.Client("t", f"https://{TOKEN}@127.0.0.1/"),
        lambda: pickle.dumps(Connection(TOKEN, "http://127.0.0.1/")),
        lambda: pickle.dumps(valued.Client(TOKEN, "http://127.0.0.1/")),
        lambda: copy.deepcopy(Connection(TOKEN, "http://127.0.0.1/")),
    ],
)
@pytest.mark.parametrize("variable", [False, True])
def test_no_frame_of_a_constructor_that_raises_shows_the_token(
    make: Callable[[], object], variable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv("VALUED_TOKEN", TOKEN + "\n")
    with pytest.raises(valued.ValuedError) as caught:
        make()
    text = "\n".join(map(both_reprs, locals_of(caught.value)))
    text += str(caught.value) + repr(caught.value)
    assert not [part for part in PARTS if part in text]


def test_errors_that_refer_to_each_other_in_a_circle_are_scrubbed_once() -> None:
    def fail() -> None:
        header = bytes(TOKEN, "ascii")
        raise OSError(len(header))

    def leaks(error: BaseException) -> bool:
        return f"header = b'{TOKEN}'" in everything(error)

    with pytest.raises(OSError) as caught:
        fail()
    other = RuntimeError()
    caught.value.__cause__ = other
    other.__context__ = caught.value
    assert leaks(caught.value)
    assert _scrub(caught.value, TOKEN)
    assert not leaks(caught.value)


def test_no_log_line_about_a_success_shows_the_token(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("valued", "urllib3", "requests"):
        caplog.set_level(logging.DEBUG, name)
    with valued.Client(TOKEN, server.url) as client:
        client.action("report.generated", {"user.id": 1})
        assert client.flush(10)
    assert any(record.name.startswith("urllib3") for record in caplog.records)
    assert TOKEN not in caplog.text


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("Bearer t0ken", "leave out 'Bearer'"),
        ("https://ingest.valued.app/t0ken", "it is a URL; the token is the first argument"),
    ],
)
def test_a_token_with_more_than_the_token_is_refused_and_not_shown(
    token: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_TOKEN", token)
    for arguments, name in (((token,), "token"), ((), "VALUED_TOKEN")):
        with pytest.raises(valued.ValidationError, match=f"^{name}: {said}") as caught:
            Connection(*arguments)
        assert "t0ken" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout": 0}, "timeout: expected seconds, more than 0"),
        ({"timeout": "5"}, "timeout: expected seconds"),
        ({"pool_size": 0}, "pool_size: expected a whole number of at least 1"),
    ],
)
def test_invalid_numbers_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(valued.ValidationError, match=said):
        Connection(TOKEN, **options)


@pytest.mark.parametrize(
    ("endpoint", "is_told"),
    [
        ("http://ingest.example.com/events", True),
        ("http://192.0.2.7:4567/events", True),
        ("https://ingest.example.com/events", False),
        ("http://127.0.0.1:4567/events", False),
        ("http://127.8.8.8/events", False),
        ("http://localhost:4567/events", False),
        ("http://dev.localhost/events", False),
        ("http://[::1]:4567/events", False),
    ],
)
def test_an_endpoint_that_gets_the_token_unencrypted_is_warned_of_once(
    endpoint: str,
    is_told: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(_endpoint, "_warned_of", set())
    for _ in range(3):
        Connection(TOKEN, endpoint)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == is_told
    assert all("unencrypted" in line and "https" in line and TOKEN not in line for line in lines)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("localhost:4567/events", "http://localhost:4567/events"),
        ("localhost", "http://localhost/events"),
        ("127.0.0.1:4567", "http://127.0.0.1:4567/events"),
        ("[::1]:4567/events", "http://[::1]:4567/events"),
        ("ingest.valued.app", "https://ingest.valued.app/events"),
        ("ingest.valued.app/events", "https://ingest.valued.app/events"),
        ("//ingest.valued.app/", "https://ingest.valued.app/"),
        ("ingest:4567/events", "https://ingest:4567/events"),
    ],
)
def test_the_error_for_an_endpoint_without_a_scheme_suggests_one_that_works(
    given: str, meant: str
) -> None:
    with pytest.raises(valued.ValidationError) as caught:
        Connection(TOKEN, given)
    hint = re.search("did you mean '(.*)'", str(caught.value))
    assert hint is not None
    assert hint[1] == meant
    assert Connection(TOKEN, hint[1]).endpoint == meant


@pytest.mark.parametrize(
    "given",
    [
        TOKEN, "0123456789abcdef", "eyJhbGciOi.eyJzdWIiOi.SflKxwRJSM", "sk_live_4242",
        "a b.example", "user:s3cret@ingest.valued.app", "ingest.valued.app?token=s3cret",
        "ftp://ingest.valued.app", "localhost:99999", "user:s3cret",
    ],
)  # fmt: skip
def test_what_may_be_a_secret_is_not_in_a_suggestion(given: str) -> None:
    with pytest.raises(valued.ValidationError) as caught:
        Connection("t", given)
    assert "did you mean" not in str(caught.value)
    assert given not in str(caught.value)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(
    ("token", "source"), [(TOKEN, r"was given as token=…"), (None, "came from VALUED_TOKEN")]
)
def test_the_error_for_a_refused_token_names_the_endpoint_and_its_source(
    server: Server, status: int, token: str | None, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_TOKEN", TOKEN)
    server.script = lambda _request: Reply(status)
    connection = Connection(token, f"{server.url}?tenant=7")
    reason = failure(connection).reason
    connection.close()
    assert reason.startswith(f"the service answered {status} ")
    assert f" at {server.url} (" in reason
    assert source in reason
    assert "tenant" not in reason


def test_only_the_beginning_of_a_long_status_line_is_shown() -> None:
    def serve(client: socket.socket) -> None:
        with client.makefile("rb") as stream:
            read_request(stream)
        client.sendall(b"HTTP/1.1 500 " + b"x" * 60_000 + b"\r\nContent-Length: 0\r\n\r\n")

    with Listener(serve) as service:
        connection = Connection(TOKEN, service.url)
        assert len(failure(connection).reason) < 600
        connection.close()


# -- imports ---------------------------------------------------------------------------------------

_FIRST_EVENT_OF_A_CHILD = """
import os, sys
import valued
client = valued.Client('t0ken-of-tests', sys.argv[1], retries=0, timeout=5)
before = set(sys.modules)
child = os.fork()
if not child:
    client.action('first', {'user.id': 1})
    flushed = client.flush(20)
    client.close(1)
    print(flushed, *sorted(set(sys.modules) - before), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.parametrize("way", ["http", "401", "busy", "tls", "bad certificate", "refused", "idn"])
def test_the_first_event_of_a_forked_child_imports_nothing(
    way: str, server: Server, tls_server: TLSServer, authority: Authority
) -> None:
    urls = {
        "tls": tls_server.url,
        "bad certificate": tls_server.url,
        "refused": f"http://127.0.0.1:{closed_port()}/",
        "idn": "http://bücher.invalid/",
    }
    date = {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT", "Content-Encoding": "gzip"}
    replies = {"401": Reply(401), "busy": Reply(429, date, gzip.compress(b"busy"))}
    server.script = lambda _request: replies.get(way, Reply())
    bundle = {"REQUESTS_CA_BUNDLE": str(authority.bundle)} if way == "tls" else {}
    # Without coverage, which has imports of its own.
    environment = {name: os.environ[name] for name in os.environ if "COV" not in name}
    program = _FIRST_EVENT_OF_A_CHILD
    done = run("-c", program, urls.get(way, server.url), env={**environment, **bundle})
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_a_custom_transport_can_use_endpoint_and_headers(server: Server) -> None:
    class Backend:
        def __init__(self, token: str) -> None:
            self.connection = Connection(token, server.url)

        def __call__(self, data: dict[str, Any]) -> None:
            body = json.dumps({**data, "by": "backend"})
            requests.post(
                self.connection.endpoint, body, headers=self.connection.headers, timeout=10
            ).raise_for_status()

    with valued.Client(Backend(TOKEN)) as client:
        client.action("report.generated", {"user.id": 1})
        assert client.flush(10)
    assert server.events[0]["by"] == "backend"
    assert server.requests[0].headers["Authorization"] == f"Bearer {TOKEN}"


def _by_create_connection(monkeypatch: pytest.MonkeyPatch, target: tuple[str, int]) -> None:
    original = urllib3.util.connection.create_connection

    def leads_elsewhere(_address: Any, *arguments: Any, **options: Any) -> socket.socket:
        return original(target, *arguments, **options)

    monkeypatch.setattr("urllib3.util.connection.create_connection", leads_elsewhere)


def _by_new_conn(monkeypatch: pytest.MonkeyPatch, target: tuple[str, int]) -> None:
    monkeypatch.setattr(
        "urllib3.connection.HTTPConnection._new_conn", lambda _: socket.create_connection(target)
    )


def _by_socks(monkeypatch: pytest.MonkeyPatch, target: tuple[str, int]) -> None:
    class Socket(socket.socket):
        """As PySocks has it: it can't connect without waiting."""

        __module__ = "socks"

        def connect(self, _address: Any) -> None:
            super().connect(target)

        def connect_ex(self, _address: Any) -> int:
            raise AssertionError("it would wait without a bound")

    def names(*_arguments: object) -> list[tuple[Any, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", target)]

    monkeypatch.setattr("socket.socket", Socket)
    monkeypatch.setattr("socket.getaddrinfo", names)


@pytest.mark.parametrize("replace", [_by_create_connection, _by_new_conn, _by_socks])
def test_what_an_application_puts_in_place_of_connecting_connects(
    server: Server, monkeypatch: pytest.MonkeyPatch, replace: Callable[..., None]
) -> None:
    replace(monkeypatch, ("127.0.0.1", server.port))
    connection = Connection(TOKEN, "http://elsewhere.invalid/events")
    for key in ("first", "second"):
        connection({**EVENT, "key": key})
    connection.close()
    assert server.keys() == ["first", "second"]
    assert len(server.connections()) == 1


def test_a_connection_is_kept_where_poll_is_removed_meanwhile(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As eventlet does, whenever it patches the standard library.
    connection = Connection(TOKEN, server.url)
    connection({**EVENT, "key": "first"})
    monkeypatch.delattr("select.poll", raising=False)
    connection({**EVENT, "key": "second"})
    connection.close()
    assert server.keys() == ["first", "second"]
    assert len(server.connections()) == 1


def test_the_zone_of_an_address_is_looked_up_as_it_is_meant(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def names(host: object, *_arguments: object) -> list[tuple[Any, ...]]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port))]

    monkeypatch.setattr("socket.getaddrinfo", names)
    connection = Connection(TOKEN, "http://[fe80::1%25eth0]/events")
    connection(EVENT)
    connection.close()
    assert asked == ["fe80::1%eth0"]

"""Which proxy is asked, if any, as `requests` decides; and proxies that can't be used."""

from __future__ import annotations

import base64
import contextlib
import importlib.machinery
import json
import os
import random
import socket
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests.utils

import valued
from tests.support.processes import run, until
from tests.support.proxy import BOUND, Listener, Proxy, pump, read_head
from tests.support.server import Server
from tests.support.tls import Authority, TLSServer
from valued import Connection, DeliveryError

TOKEN = "t0ken-that-nobody-may-see"
USER, PASSWORD = "user", "p@ss:word"
CREDENTIALS = "user:p%40ss%3Aword"


# -- the decision ----------------------------------------------------------------------------


class Witness(Listener):
    """Notes that it was connected to. It answers requests, and breaks off what else comes."""

    def __init__(self, name: str, asked: list[str]) -> None:
        self._name = name
        self._asked = asked
        super().__init__(self._note)

    def _note(self, client: socket.socket) -> None:
        first = client.recv(65536)
        self._asked.append(self._name)
        if first.startswith(b"POST "):
            client.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")


HOSTS = [
    "api.example.com", "example.com", "EXAMPLE.com", "notexample.com", "example.com.", "localhost",
    "internal", "10.1.2.3", "10.1.3.3", "192.168.0.10", "127.0.0.1", "[::1]", "[2001:db8::7]",
    "[fd00::1:2]",
]  # fmt: skip
PORTS = ["", ":80", ":443", ":8080"]
EXCEPTIONS = [
    "*", "example.com", ".example.com", "*.example.com", "EXAMPLE.COM", "api.example.com",
    "com", "example.com:8080", "example.com:443", "api.example.com:80", "internal", "localhost",
    "10.0.0.0/8", "10.1.2.0/24", "10.1.2.3", "10.1.2.3/32", "10.1.2.3:8080", "192.168.0.0/16",
    "192.168.0.0/33", "127.0.0.1", "127.0.0.0/8", "::1", "[::1]", "[::1]:8080", "2001:db8::/32",
    "2001:db8::7", "[2001:db8::7]", "fd00::/8", "", "example.org", "0.0.0.0/0",
]  # fmt: skip


def settings(choice: random.Random, proxies: dict[str, str]) -> dict[str, str]:
    """Variables of an environment. *proxies*: their URLs."""
    found = {}
    for name in ("no_proxy", "NO_PROXY"):
        if choice.random() < 0.6:
            some = choice.sample(EXCEPTIONS, choice.randint(0, 4))
            found[name] = choice.choice([",", ", ", " , "]).join(some)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        for spelling, likely in ((name, 0.5), (name.upper(), 0.3)):
            if choice.random() < likely:
                found[spelling] = choice.choice(["", *[proxies[name.removesuffix("_proxy")]] * 4])
    return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[str], dict[str, str]]]:
    """What was asked, in order, and the URLs of the proxies. All hosts lead to one service."""
    asked: list[str] = []
    with contextlib.ExitStack() as stack:
        direct, *proxies = (
            stack.enter_context(Witness(name, asked)) for name in ("direct", "http", "https", "all")
        )

        real = socket.getaddrinfo

        def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
            name = host.decode() if isinstance(host, bytes) else host
            if (name, port) in [("127.0.0.1", proxy.port) for proxy in proxies]:
                return real(host, port, *args, **kwargs)
            kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
            return [(*kind, ("127.0.0.1", direct.port))]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        urls = [f"http://127.0.0.1:{proxy.port}" for proxy in proxies]
        yield asked, dict(zip(("http", "https", "all"), urls, strict=True))


def _expected(url: str, proxies: dict[str, str]) -> str:
    """Where `requests` would go."""
    chosen = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
    return {proxy: name for name, proxy in proxies.items()}.get(chosen or "", "direct")


@pytest.mark.skipif(
    sys.platform in ("win32", "darwin"), reason="`requests` asks the system there as well"
)
def test_the_environment_decides_as_it_does_for_requests(
    asked: tuple[list[str], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, proxies = asked
    wrong = []
    for seed in range(200):
        choice = random.Random(seed)
        variables = settings(choice, proxies)
        host, port = choice.choice(HOSTS), choice.choice(PORTS)
        url = f"{choice.choice(['http', 'http', 'https'])}://{host}{port}/events"
        with monkeypatch.context() as patch:
            for name in list(os.environ):
                if name.lower().endswith("_proxy"):
                    patch.delenv(name)
            for name, value in variables.items():
                patch.setenv(name, value)
            expected = _expected(url, proxies)
            heard.clear()
            connection = Connection(TOKEN, url, timeout=BOUND)
            with contextlib.suppress(DeliveryError):  # https is broken off: who is asked, counts
                connection.post(b"{}")
            connection.close()
        if set(heard) != {expected}:
            wrong.append(f"seed {seed}: {url} {variables}: {heard}, not {expected}")
    assert not wrong, f"{len(wrong)} of 200:\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("exceptions", "host"),
    [
        ("example.com", "api.example.com"),
        (".example.com", "api.example.com"),
        ("example.com:8080", "example.com:8080"),
        ("*", "example.com"),
        ("10.1.2.3", "10.1.2.3"),
        ("10.0.0.0/8", "10.1.2.3"),
        ("192.168.0.0/16,x", "192.168.7.1:8080"),
    ],
)
@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_an_excepted_host_is_reached_directly(
    asked: tuple[list[str], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    exceptions: str,
    host: str,
) -> None:
    heard, proxies = asked
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", proxies["http"])
    monkeypatch.setenv(name, exceptions)
    url = f"http://{host}/events"
    assert _expected(url, proxies) == "direct"
    connection = Connection(TOKEN, url)
    connection.post(b"{}")
    connection.close()
    assert heard == ["direct"]


# -- what can't be used ----------------------------------------------------------------------

_BAD_SETTING = """
import json, logging, sys
import valued
logging.basicConfig(level=logging.WARNING)
if sys.argv[2] == "without PySocks":
    sys.modules["socks"] = None
told = []
client = valued.Client("token", sys.argv[1], on_error=lambda error, event: told.append(str(error)))
client.action("key", {"user.id": 1})
settled = client.flush(3)
stats = client.stats()
client.close(2 if settled else 0)
print(json.dumps({"settled": settled, "told": told, "stats": stats}))
"""

FIXES = {
    "socks5h://127.0.0.1:1": ["PySocks", "requests[socks]"],
    "socks5://127.0.0.1:1": ["PySocks", "requests[socks]"],
    "ftp://127.0.0.1:1": ["ftp", "proxy"],
    "http://": ["http://", "proxy"],
}


def _say(url: str, kind: str, **variables: str) -> dict[str, Any]:
    found = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and not name.endswith("_CA_BUNDLE")
    }
    done = run("-c", _BAD_SETTING, url, kind, env=found | variables)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("proxy", FIXES)
def test_a_proxy_that_cannot_be_used_fails_at_the_first_attempt_and_says_what_to_do(
    proxy: str, scheme: str
) -> None:
    said = _say(f"{scheme}://service.example/events", "without PySocks", all_proxy=proxy)
    assert said["settled"], said
    assert (said["stats"]["failed"], said["stats"]["retried"]) == (1, 0)
    (message,) = said["told"]
    for word in FIXES[proxy]:
        assert word in message
    assert "all_proxy" in message.lower()


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_certificate_file_that_is_not_there_fails_at_the_first_attempt_and_says_what_to_do(
    tmp_path: Path, name: str
) -> None:
    path = str(tmp_path / "missing.pem")
    said = _say("https://127.0.0.1:9/events", "", **{name: path})
    assert said["settled"], said
    assert (said["stats"]["failed"], said["stats"]["retried"]) == (1, 0)
    (message,) = said["told"]
    assert path in message
    assert name in message


def test_a_proxy_that_is_no_url_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "http://user:s3cret@[::1")
    with pytest.raises(DeliveryError, match="all_proxy: it is not a URL") as caught:
        Connection(TOKEN, "http://service.example/events").post(b"{}")
    assert caught.value.permanent
    assert "s3cret" not in str(caught.value)


def test_with_pysocks_a_socks_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5h://127.0.0.1:1")
    socks = types.ModuleType("socks")
    socks.__spec__ = importlib.machinery.ModuleSpec("socks", None)
    monkeypatch.setitem(sys.modules, "socks", socks)  # that is all that is looked at here
    with pytest.raises(DeliveryError) as caught:
        Connection(TOKEN, "http://service.example/events").post(b"{}")
    assert "PySocks" not in str(caught.value)


def test_a_proxy_that_is_down_is_no_failure_for_good(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    client = valued.Client(TOKEN, server.url)
    client.action("key", {"user.id": 1})
    until(lambda: client.stats()["retried"])
    assert (client.stats()["failed"], client.stats()["pending"]) == (0, 1)
    client.close(0)


# -- proxies that ask who it is, and such behind TLS -----------------------------------------


class Gate(Listener):
    """A proxy that asks for a name and a password. Behind it, a `Proxy`."""

    def __init__(self, inner: Proxy, context: Any = None) -> None:
        self.refused = 0
        self._inner = inner
        plain = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        self._expected = f"Proxy-Authorization: Basic {plain}"
        super().__init__(self._check, context)

    def _check(self, client: socket.socket) -> None:
        with client.makefile("rb", buffering=0) as stream:
            head = read_head(stream)  # type: ignore[arg-type]  # without a buffer, nothing is kept
        if self._expected not in head:
            self.refused += 1
            client.sendall(
                b"HTTP/1.1 407 Proxy Authentication Required\r\n"
                b'Proxy-Authenticate: Basic realm="gate"\r\nContent-Length: 0\r\n\r\n'
            )
            return
        with socket.create_connection(("127.0.0.1", self._inner.port), BOUND) as behind:
            behind.sendall("\r\n".join([*head, "", ""]).encode("latin-1"))
            pump(client, behind)

    def proxy_url(self, credentials: str = CREDENTIALS) -> str:
        scheme = self.url.partition(":")[0]
        return f"{scheme}://{credentials}@127.0.0.1:{self.port}"


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    authority = Authority(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.bundle))
    # `requests` gives the proxy's certificate to the system's authorities.
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))
    return authority


@pytest.fixture
def service(authority: Authority) -> Iterator[Callable[[str], Server]]:
    servers: list[Server] = []

    def make(scheme: str) -> Server:
        servers.append(TLSServer(authority) if scheme == "https" else Server())
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    ("scheme", "behind_tls"),
    [
        ("http", False),
        ("https", False),
        ("https", True),
    ],
)
def test_a_proxy_that_asks_who_it_is_lets_events_through(
    service: Callable[[str], Server],
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    behind_tls: bool,
) -> None:
    server = service(scheme)
    with Proxy() as inner, Gate(inner, authority.context() if behind_tls else None) as gate:
        monkeypatch.setenv(f"{scheme}_proxy", gate.proxy_url())
        connection = Connection(TOKEN, server.url)
        for number in range(3):
            connection.post(b'{"key": "%d"}' % number)
        connection.close()
        assert (server.keys(), gate.refused) == (["0", "1", "2"], 0)
        if scheme == "https":
            assert TOKEN not in str(inner.heads)
    for request in server.requests:
        assert PASSWORD not in str(request.headers)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_refuses_is_named_and_its_password_is_not(
    service: Callable[[str], Server], monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    server = service(scheme)
    with Proxy() as inner, Gate(inner) as gate:
        monkeypatch.setenv(f"{scheme}_proxy", gate.proxy_url("user:wr0ng-word"))
        connection = Connection(TOKEN, server.url)
        with pytest.raises(DeliveryError, match="407") as caught:
            connection.post(b"{}")
        connection.close()
    assert "wr0ng-word" not in str(caught.value)
    assert server.requests == []


# With an http endpoint neither urllib3 nor `requests` checks it, as docs/reference/faults.rst says.
def test_a_proxy_whose_certificate_is_not_trusted_gets_nothing_of_an_https_endpoint(
    service: Callable[[str], Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = service("https")
    (tmp_path / "other").mkdir()
    with Proxy(Authority(tmp_path / "other").context()) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        connection = Connection(TOKEN, server.url)
        with pytest.raises(DeliveryError, match="certificate verify failed"):
            connection.post(b"{}")
        connection.close()
        assert proxy.heads == []
    assert server.requests == []


def test_a_tunnel_that_breaks_is_made_again(
    service: Callable[[str], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = service("https")
    with Proxy() as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        connection = Connection(TOKEN, server.url)
        connection.post(b'{"key": "1"}')
        for broken in list(proxy._open):
            broken.shutdown(socket.SHUT_RDWR)
        connection.post(b'{"key": "2"}')
        connection.close()
        assert len(proxy.heads) == 2
    assert server.keys() == ["1", "2"]

"""Certificates that change, that are wrong, and that clients show: what happens, case by case.

An event that finds a service without a valid certificate waits. It goes out once there is one.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme

import valued
from tests.support.processes import until
from tests.support.server import Server
from valued import Connection, DeliveryError

TOKEN = "t0ken-that-nobody-may-see"
BOUND = 10.0  # seconds; bounds a failure
HOSTS = ("127.0.0.1", "localhost")


class Service(Server):
    """A service behind TLS, whose context can be replaced for connections that come later."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__()
        self.context = context
        self.url = f"https://127.0.0.1:{self.port}/events"
        self._http.get_request = self._accept  # type: ignore[method-assign]
        self._accepted: list[socket.socket] = []

    def _accept(self) -> tuple[socket.socket, Any]:
        accepted, address = self._http.socket.accept()
        # The handshake is left to the thread of the connection, with its first read.
        tls = self.context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
        self._accepted.append(tls)
        return tls, address

    def break_off(self) -> None:
        """End the connections that there are, as a restart does."""
        while self._accepted:
            with contextlib.suppress(OSError):
                self._accepted.pop().shutdown(socket.SHUT_RDWR)


def context_of(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def bundle(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the authority that is trusted."""
    path = tmp_path / "bundle.pem"
    authority.cert_pem.write_to_path(str(path))
    for name in ("CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
    return path


@pytest.fixture
def serve(bundle: Path) -> Iterator[Callable[[ssl.SSLContext], Service]]:
    services: list[Service] = []

    def start(context: ssl.SSLContext) -> Service:
        services.append(Service(context))
        return services[-1]

    yield start
    for service in services:
        service.break_off()
        service.close()


Serve = Callable[[ssl.SSLContext], Service]


def refusal(service: Service) -> str:
    """Why an event doesn't get to *service*."""
    connection = Connection(TOKEN, service.url, timeout=BOUND)
    with pytest.raises(DeliveryError) as caught:
        connection.post(b"{}")
    connection.close()
    assert service.requests == []
    assert caught.value.status is None
    return caught.value.reason


# -- certificates of the service -------------------------------------------------------------


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def expired(authority: trustme.CA) -> ssl.SSLContext:
    day = datetime.timedelta(days=1)
    return context_of(
        authority.issue_cert(*HOSTS, not_before=now() - 30 * day, not_after=now() - day)
    )


def not_yet_valid(authority: trustme.CA) -> ssl.SSLContext:
    day = datetime.timedelta(days=1)
    return context_of(
        authority.issue_cert(*HOSTS, not_before=now() + day, not_after=now() + 2 * day)
    )


def wrong_host(authority: trustme.CA) -> ssl.SSLContext:
    return context_of(authority.issue_cert("other.example"))


def unknown_authority(_authority: trustme.CA) -> ssl.SSLContext:
    return context_of(trustme.CA().issue_cert(*HOSTS))


def self_signed(_authority: trustme.CA) -> ssl.SSLContext:
    itself = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with itself.private_key_pem.tempfile() as key, itself.cert_pem.tempfile() as certificate:
        context.load_cert_chain(certificate, key)
    return context


CASES: dict[str, tuple[Callable[[trustme.CA], ssl.SSLContext], str]] = {
    "expired": (expired, "certificate has expired"),
    "not yet valid": (not_yet_valid, "certificate is not yet valid"),
    "of another host": (wrong_host, "IP address mismatch"),
    "of an unknown authority": (unknown_authority, "unable to get local issuer certificate"),
    "self-signed": (self_signed, "self-signed certificate"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_service_whose_certificate_is_wrong_gets_nothing_and_the_error_says_why(
    authority: trustme.CA, serve: Serve, case: str
) -> None:
    make, reason = CASES[case]
    message = refusal(serve(make(authority)))
    assert "certificate verify failed" in message
    assert reason in message.replace("self signed", "self-signed")  # as older OpenSSLs write it


@pytest.mark.parametrize("case", CASES)
def test_events_wait_for_a_certificate_and_go_out_once_it_is_right(
    authority: trustme.CA, serve: Serve, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr("valued._delivery.retry.FIRST_PAUSE", 0.01)
    service = serve(CASES[case][0](authority))
    client = valued.Client(TOKEN, service.url)
    client.action("key", {"user.id": 1})
    until(lambda: client.stats()["retried"])
    assert (client.stats()["failed"], client.stats()["pending"]) == (0, 1)
    service.context = context_of(authority.issue_cert(*HOSTS))
    assert client.flush(BOUND)
    assert service.keys() == ["key"]
    client.close(1)


def test_a_renewed_certificate_of_the_service_is_noticed_by_none_of_its_clients(
    authority: trustme.CA, serve: Serve
) -> None:
    service = serve(context_of(authority.issue_cert(*HOSTS)))
    connection = Connection(TOKEN, service.url)
    for number in range(3):
        connection.post(b'{"key": "%d"}' % number)
        service.context = context_of(authority.issue_cert(*HOSTS))
        service.break_off()
    connection.close()
    assert service.keys() == ["0", "1", "2"]
    assert len(service.connections()) == 3


@pytest.mark.skipif(not ssl.HAS_TLSv1_1, reason="this OpenSSL has no TLS 1.1")
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
def test_a_service_that_knows_only_tls_1_1_gets_nothing(
    authority: trustme.CA, serve: Serve
) -> None:
    context = context_of(authority.issue_cert(*HOSTS))
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    message = refusal(serve(context)).upper()
    assert "VERSION" in message or "PROTOCOL" in message


def test_a_service_that_speaks_no_tls_gets_nothing(server: Server) -> None:
    connection = Connection(TOKEN, server.url.replace("http://", "https://"), timeout=BOUND)
    with pytest.raises(DeliveryError, match="SSL"):
        connection.post(b"{}")
    connection.close()
    assert server.requests == []


# -- certificates of the authority -----------------------------------------------------------


def test_an_authority_that_is_renewed_on_disk_counts_from_the_next_connection_on(
    authority: trustme.CA, serve: Serve, bundle: Path
) -> None:
    """As where the file of a container's volume changes: no restart is needed."""
    service = serve(context_of(authority.issue_cert(*HOSTS)))
    connection = Connection(TOKEN, service.url)
    connection.post(b'{"key": "1"}')
    renewed = trustme.CA()
    written = bundle.with_suffix(".new")
    renewed.cert_pem.write_to_path(str(written))
    os.replace(written, bundle)
    service.context = context_of(renewed.issue_cert(*HOSTS))
    service.break_off()
    connection.post(b'{"key": "2"}')
    connection.close()
    assert service.keys() == ["1", "2"]


def _is_accepted_by_requests(service: Service) -> bool:
    try:
        return requests.post(service.url, data=b'{"key": "theirs"}', timeout=BOUND).ok
    except requests.exceptions.SSLError:
        return False


@pytest.mark.parametrize(
    ("variables", "accepted"),
    [
        ({"REQUESTS_CA_BUNDLE": "right"}, True),
        ({"CURL_CA_BUNDLE": "right"}, True),
        ({"REQUESTS_CA_BUNDLE": "right", "CURL_CA_BUNDLE": "wrong"}, True),
        ({"REQUESTS_CA_BUNDLE": "wrong", "CURL_CA_BUNDLE": "right"}, False),
        ({"REQUESTS_CA_BUNDLE": "", "CURL_CA_BUNDLE": "right"}, True),
        ({"SSL_CERT_FILE": "right"}, False),  # `requests` brings authorities of its own
        ({"SSL_CERT_FILE": "right", "REQUESTS_CA_BUNDLE": "wrong"}, False),
        ({"SSL_CERT_FILE": "wrong", "REQUESTS_CA_BUNDLE": "right"}, True),
        ({}, False),
    ],
    ids=str,
)
def test_the_variables_for_authorities_count_as_for_requests(
    authority: trustme.CA,
    serve: Serve,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    accepted: bool,
) -> None:
    wrong = tmp_path / "wrong.pem"
    trustme.CA().cert_pem.write_to_path(str(wrong))
    service = serve(context_of(authority.issue_cert(*HOSTS)))
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    for name, value in variables.items():
        monkeypatch.setenv(name, {"right": str(bundle), "wrong": str(wrong)}.get(value, ""))
    assert _is_accepted_by_requests(service) is accepted
    service.requests.clear()
    connection = Connection(TOKEN, service.url, timeout=BOUND)
    if accepted:
        connection.post(b'{"key": "ours"}')
        assert service.keys() == ["ours"]
    else:
        with pytest.raises(DeliveryError, match="certificate verify failed"):
            connection.post(b"{}")
        assert service.requests == []
    connection.close()


def test_a_folder_of_authorities_counts(
    authority: trustme.CA, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "authorities"
    folder.mkdir()
    # The names of the files are hashes of the authorities' names, which only OpenSSL computes.
    path = folder / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl to make such a folder with")
    done = subprocess.run(
        ["openssl", "rehash", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(folder))
    service = serve(context_of(authority.issue_cert(*HOSTS)))
    connection = Connection(TOKEN, service.url)
    connection.post(b'{"key": "1"}')
    connection.close()
    assert service.keys() == ["1"]


# -- certificates of the client --------------------------------------------------------------


def asks_for_certificates(authority: trustme.CA) -> ssl.SSLContext:
    context = context_of(authority.issue_cert(*HOSTS))
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    return context


def show(certificate: trustme.LeafCert, path: Path) -> str:
    """Write *certificate* to *path*, with its key, as a rotation does. Returns the path."""
    written = path.with_suffix(".new")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(written))
    os.replace(written, path)
    return str(path)


def test_a_service_that_asks_for_a_certificate_gets_nothing_without_one(
    authority: trustme.CA, serve: Serve
) -> None:
    refusal(serve(asks_for_certificates(authority)))


def test_a_certificate_of_the_session_is_shown(
    authority: trustme.CA, serve: Serve, tmp_path: Path
) -> None:
    service = serve(asks_for_certificates(authority))
    connection = Connection(TOKEN, service.url)
    connection.session.cert = show(authority.issue_cert("me"), tmp_path / "me.pem")
    for number in range(3):
        connection.post(b'{"key": "%d"}' % number)
    connection.close()
    assert service.keys() == ["0", "1", "2"]
    assert len(service.connections()) == 1


def test_a_certificate_that_the_service_does_not_trust_is_refused(
    authority: trustme.CA, serve: Serve, tmp_path: Path
) -> None:
    service = serve(asks_for_certificates(authority))
    connection = Connection(TOKEN, service.url, timeout=BOUND)
    connection.session.cert = show(trustme.CA().issue_cert("me"), tmp_path / "me.pem")
    with pytest.raises(DeliveryError):
        connection.post(b"{}")
    connection.close()
    assert service.requests == []


def test_a_certificate_of_the_session_that_is_renewed_on_disk_is_shown_by_the_next_connection(
    authority: trustme.CA, serve: Serve, tmp_path: Path
) -> None:
    shown: list[Any] = []
    service = serve(asks_for_certificates(authority))
    connection = Connection(TOKEN, service.url)
    path = tmp_path / "me.pem"
    connection.session.cert = str(path)
    for name in ("first", "renewed"):
        show(authority.issue_cert(name), path)
        connection.post(b'{"key": "%s"}' % name.encode())
        tls = service._accepted[-1]
        assert isinstance(tls, ssl.SSLSocket)
        certificate = tls.getpeercert()
        assert certificate is not None
        shown += [value for kind, value in certificate["subjectAltName"] if kind == "DNS"]
        service.break_off()
    connection.close()
    assert shown == ["first", "renewed"]


def test_a_certificate_of_the_session_that_is_not_there_is_named(
    authority: trustme.CA, serve: Serve, tmp_path: Path
) -> None:
    service = serve(asks_for_certificates(authority))
    connection = Connection(TOKEN, service.url)
    path = str(tmp_path / "missing.pem")
    connection.session.cert = path
    with pytest.raises(DeliveryError, match=r"missing\.pem"):
        connection.post(b"{}")
    connection.close()
    assert service.requests == []

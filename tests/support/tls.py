"""A certificate authority of the tests' own, and a service behind TLS."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import trustme

from tests.support.server import Reply, Request, Server


class Authority:
    """Signs for whomever. *bundle* is its own certificate, as a file."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.bundle = folder / "authority.pem"
        authority.cert_pem.write_to_path(str(self.bundle))
        self._authority = authority

    def context(self, *hosts: str) -> ssl.SSLContext:
        """What a server behind TLS needs; *hosts*: whom it says it is, default the loopback."""
        certificate = self._authority.issue_cert(*(hosts or ("127.0.0.1", "localhost")))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        return context


class TLSServer(Server):
    """A `Server` behind TLS."""

    def __init__(
        self, authority: Authority, script: Callable[[Request], Reply | None] | None = None
    ) -> None:
        super().__init__(script)
        # Nobody has connected yet. The handshake is left to the thread of each connection, or one
        # that is silent would hold up the others.
        self._http.socket = authority.context().wrap_socket(
            self._http.socket, server_side=True, do_handshake_on_connect=False
        )
        self.url = f"https://127.0.0.1:{self.port}/events"

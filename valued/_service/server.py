"""The mock server, for development and tests: a `Listener`.

Other programs of the machine, and the pages that its browser shows, can reach it as well. So its
connections are bounded (`connections`), a request names this machine (`hosts`), and a page of
another site can read only the answers about events that it has sent.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from valued._service.answering import PATIENCE, Server
from valued._service.bodies import MAX_BODY, MAX_DISCARD
from valued._service.connections import Connections
from valued._service.controls import Controls
from valued._service.forwarding import Forwarding
from valued._service.intake import Intake, Received, Request
from valued._service.site import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from valued._service.history import History

__all__ = ["MAX_BODY", "MAX_DISCARD", "Listener", "Received", "Request"]


class Listener:
    """Listens as soon as it is made; `serve` answers, until `stop`; then call `close`.

    *port*: 0 picks a free one. *delay*: seconds before each answer. *failures*: pairs of a status
    and how many valid events are answered with it, before any is received. *report* is called with
    each event that is received, before its answer, on the thread of its connection, several at a
    time; what it raises ends the serving and is kept as ``trouble``. *seen* is called with each
    request that has arrived. *names*: hosts that requests may name, besides *host* and the names of
    this machine. *history*: keeps what is received, for a page and programs, which are answered
    where there is one. *forward_to*: the URL of an endpoint that events are passed on to. Raises
    `OSError` where the address can't be listened on. *connections*: with other bounds, for tests.
    """

    def __init__(
        self,
        report: Callable[[Received], object],
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        delay: float = 0.0,
        failures: Iterable[tuple[int, int]] = (),
        names: Iterable[str] = (),
        history: History | None = None,
        forward_to: str | None = None,
        seen: Callable[[Request], object] | None = None,
        connections: Connections | None = None,
    ) -> None:
        known = {host.lower(), *(name.lower() for name in names)}
        self.connections: Final = Connections() if connections is None else connections
        self.controls: Final = Controls(delay, failures)
        self._history = history
        forwarding = None if forward_to is None else Forwarding(forward_to)
        self._intake = Intake(report, self.controls, history, forwarding)
        self._server = Server(
            host,
            port,
            names=known,
            connections=self.connections,
            controls=self.controls,
            intake=self._intake,
            seen=seen,
        )
        self.is_private: Final = self._server.is_private
        shown = f"[{host}]" if ":" in host else host
        self.page: Final = f"http://{shown}:{self._server.server_port}/"
        self.url: Final = f"{self.page}events"
        if history is not None:
            about = {"endpoint": self.url, "forward_to": forward_to}
            known = known if self.is_private else {*known, socket.gethostname().lower()}
            self._server.site = Site(
                history, self.controls, known, about, literal=not self.is_private
            )

    @property
    def trouble(self) -> Exception | None:
        """What *report* raised."""
        return self._intake.trouble

    def serve(self) -> None:
        """Answer until `stop` is called, or an exception, such as `KeyboardInterrupt`, comes."""
        self._server.serve_forever(poll_interval=0.1)

    def stop(self) -> None:
        """End `serve`. Any thread may call, but the one that serves."""
        self._server.shutdown()

    def close(self) -> None:
        """Let answers in progress be finished, for at most 2 s, and close all connections."""
        self._server.server_close()
        self.controls.close()
        if self._history is not None:
            self._history.close()
        self.connections.end_all(PATIENCE)

    def summary(self) -> str:
        """What was received, in one line."""
        return self._intake.summary(self.connections.count)

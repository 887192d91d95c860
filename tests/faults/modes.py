"""The fault modes, each once: how the server misbehaves, and what is to come of it."""

from __future__ import annotations

import dataclasses
import datetime
import email.utils
import enum
import ssl
import threading
from collections.abc import Callable

from tests.faults._raw import NO_CONTENT, Peer, answer

#: Seconds for one attempt, where the mode is to be slow.
SLOW = 0.1

#: Seconds; a server that is late answers so long after it was asked.
LATE = 2 * SLOW

MEGABYTE = 1024 * 1024


class Outcome(enum.Enum):
    """What the client makes of it."""

    SUCCESS = "delivered at once"
    RETRY = "retried, and failed permanently after `retries`"
    FINAL = "failed permanently at once"


@dataclasses.dataclass(frozen=True)
class Mode:
    """One way in which a server misbehaves.

    *fault* gets a connection whose request was read (or not, where *unread*), and says whether the
    connection goes on.
    """

    fault: Callable[[Peer], bool]
    outcome: Outcome = Outcome.RETRY
    #: Of the answer, None where there is none.
    status: int | None = None
    #: In the reason that is logged and told.
    says: str = ""
    unread: bool = False
    tls: bool = False
    slow: bool = False
    #: How often in a row, where it passes.
    times: int = 1
    #: Whether the pause is at least the longest that the service may ask for.
    waits: bool = False


def _answering(status: str, *headers: str, body: bytes = b"") -> Callable[[Peer], bool]:
    def fault(peer: Peer) -> bool:
        peer.send(answer(status, *headers, body=body))
        return True

    return fault


def _ending(*parts: bytes) -> Callable[[Peer], bool]:
    """Send these parts, and close."""

    def fault(peer: Peer) -> bool:
        for part in parts:
            peer.send(part)
        return False

    return fault


def _reset(peer: Peer) -> bool:
    peer.reset()
    return False


def _late(peer: Peer) -> bool:
    peer.server.over.wait(LATE)
    peer.send(NO_CONTENT)
    return False


def _silent(peer: Peer) -> bool:
    peer.server.over.wait(20)
    return False


def _dribbling(beginning: bytes, rest: bytes) -> Callable[[Peer], bool]:
    def fault(peer: Peer) -> bool:
        peer.send(beginning)
        for number in range(400):
            if peer.server.over.wait(0.05):
                break
            peer.send(rest[number % len(rest) :][:1])
        return False

    return fault


def _cut_in_the_request(peer: Peer) -> bool:
    peer.read_head()
    return False


def _huge(status: str) -> Callable[[Peer], bool]:
    def fault(peer: Peer) -> bool:
        peer.send(f"HTTP/1.1 {status}\r\nContent-Length: {100 * MEGABYTE}\r\n\r\n".encode())
        for _ in range(100):
            peer.send(b"x" * MEGABYTE)
        return False

    return fault


def _date(hours: int) -> str:
    moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=hours)
    return email.utils.format_datetime(moment, usegmt=True)


def _busy(retry_after: Callable[[], str]) -> Callable[[Peer], bool]:
    def fault(peer: Peer) -> bool:
        peer.send(answer("429 Too Many", f"Retry-After: {retry_after()}"))
        return True

    return fault


def _status(status: int, outcome: Outcome = Outcome.RETRY, *headers: str, times: int = 1) -> Mode:
    says = "redirects are not followed" if 300 <= status < 400 else f"answered {status}"
    return Mode(
        _answering(f"{status} No", *headers, body=b"reasons"), outcome, status, says, times=times
    )


_REDIRECT = "Location: http://127.0.0.1:9/elsewhere"

#: By the names of the table in ``docs/reference/faults.rst``.
MODES = {
    "answers late": Mode(_late, says="timed out", slow=True),
    "never answers": Mode(_silent, says="timed out", slow=True),
    "drips its status line": Mode(_dribbling(b"", b"HTTP/1.1 204 "), says="timed out", slow=True),
    "drips the body of a 500": Mode(
        _dribbling(b"HTTP/1.1 500 No\r\nContent-Length: 100000\r\n\r\n", b"body"),
        status=500,
        says="answered 500",
        slow=True,
    ),
    "429": _status(429),
    "429, Retry-After in seconds": Mode(
        _busy(lambda: "3600"), status=429, says="answered 429", waits=True
    ),
    "429, Retry-After as a date": Mode(
        _busy(lambda: _date(1)), status=429, says="answered 429", waits=True
    ),
    "429, Retry-After in the past": Mode(_busy(lambda: _date(-1)), status=429, says="answered 429"),
    "429, Retry-After that makes no sense": Mode(
        _busy(lambda: "soon"), status=429, says="answered 429"
    ),
    "408": _status(408),
    "425": _status(425),
    "500": _status(500, times=3),
    "502": _status(502),
    "503": _status(503, times=3),
    "504": _status(504),
    "400": _status(400, Outcome.FINAL),
    "401": _status(401, Outcome.FINAL),
    "403": _status(403, Outcome.FINAL),
    "404": _status(404, Outcome.FINAL),
    "413": _status(413, Outcome.FINAL),
    "422": _status(422, Outcome.FINAL),
    "301": _status(301, Outcome.FINAL, _REDIRECT),
    "302": _status(302, Outcome.FINAL, _REDIRECT),
    "303": _status(303, Outcome.FINAL, _REDIRECT),
    "307": _status(307, Outcome.FINAL, _REDIRECT),
    "308": _status(308, Outcome.FINAL, _REDIRECT),
    "closes before the request": Mode(_ending(), says="no answer", unread=True),
    "closes within the request": Mode(_cut_in_the_request, says="no answer", unread=True),
    "closes after the request": Mode(_ending(), says="no answer"),
    "closes within its status line": Mode(_ending(b"HTTP/1.1 20"), says="no answer"),
    "closes within the body of a 500": Mode(
        _ending(b"HTTP/1.1 500 No\r\nContent-Length: 100\r\n\r\nhalf"),
        status=500,
        says="answered 500",
    ),
    "closes within the body of a success": Mode(
        _ending(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"), Outcome.SUCCESS
    ),
    "closes while idle": Mode(_ending(NO_CONTENT), Outcome.SUCCESS),
    "resets before the request": Mode(_reset, says="no answer", unread=True),
    "resets after the request": Mode(_reset, says="no answer"),
    "sends 100 MB with a success": Mode(_huge("200 OK"), Outcome.SUCCESS),
    "sends 100 MB with a 400": Mode(_huge("400 No"), Outcome.FINAL, 400, "answered 400"),
    "answers garbage": Mode(_ending(b"SSH-2.0-OpenSSH_9.2\r\n"), says="no answer"),
    "has a certificate of an unknown authority": Mode(
        _ending(), says="certificate verify failed", unread=True, tls=True
    ),
    "has a certificate of another host": Mode(
        _ending(), says="certificate is not valid for '127.0.0.1'", unread=True, tls=True
    ),
}


class Script:
    """A server that misbehaves by *mode* the next *left* times, and then behaves.

    *good* and *bad*: contexts of TLS, where the mode is one of certificates.
    """

    def __init__(
        self, mode: Mode, good: ssl.SSLContext | None = None, bad: ssl.SSLContext | None = None
    ) -> None:
        self._mode = mode
        self.fault = mode.fault
        self._good = good
        self._bad = bad
        self._lock = threading.Lock()
        self.left = 0.0
        #: Attempts that came here, those that could not say their event included.
        self.attempts = 0

    def _misbehaves(self) -> bool:
        with self._lock:
            self.attempts += 1
            if self.left <= 0:
                return False
            self.left -= 1
            return True

    def __call__(self, peer: Peer) -> None:
        """Serve one connection."""
        # Asked once, as the connection comes: one that is kept alive has been read from by then.
        at_once = self._mode.unread and self._misbehaves()
        if self._good is not None and self._bad is not None:
            context = self._bad if at_once else self._good
            peer.sock = context.wrap_socket(peer.sock, server_side=True)
        if at_once:
            self.fault(peer)
            return
        while peer.read_request() is not None:
            if not self._mode.unread and self._misbehaves():
                if not self.fault(peer):
                    return
            else:
                peer.send(NO_CONTENT)

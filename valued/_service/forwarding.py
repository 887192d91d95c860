"""Passes valid events on to another endpoint, with the token of their sender, as they arrived."""

from __future__ import annotations

import secrets
import threading
from typing import TYPE_CHECKING, Any, Final

from valued._service.refusals import Answer, Refusal

if TYPE_CHECKING:
    from email.message import Message

#: Seconds for a connection, and for each part of an answer: less than clients wait.
TIMEOUT: Final = 8.0

#: What is passed on, beside the body.
_PASSED: Final = ("Authorization", "Idempotency-Key", "Content-Type", "User-Agent")

#: What comes back, beside the status and the content.
_RETURNED: Final = ("Content-Type", "Retry-After", "WWW-Authenticate")


class Forwarding:
    """To *url*. Any thread may call; each has a connection of its own."""

    def __init__(self, url: str) -> None:
        self.url: Final = url
        self._via: Final = f"1.1 valued-{secrets.token_hex(8)}"
        self._sessions = threading.local()

    def send(self, headers: Message, body: bytes) -> Answer | None:
        """What the endpoint answers; None: it can't be reached."""
        import requests

        via = headers.get_all("Via", [])
        if self._via in ", ".join(via):
            raise Refusal(508, f"{self.url} leads back to this server")
        passed = {name: headers[name] for name in _PASSED if name in headers}
        passed["Via"] = ", ".join([*via, self._via])
        try:
            answer = self._session().post(
                self.url,
                data=body,
                headers=passed,
                timeout=TIMEOUT,
                allow_redirects=False,
                auth=_unchanged,
            )
        except (requests.RequestException, OSError):
            return None
        found = {name: answer.headers[name] for name in _RETURNED if name in answer.headers}
        return Answer(answer.status_code, found, answer.content)

    def _session(self) -> Any:
        import requests

        if not hasattr(self._sessions, "session"):
            self._sessions.session = requests.Session()
        return self._sessions.session


def _unchanged(request: Any) -> Any:
    """As the sender has it. Without an ``auth``, `requests` would look into a file of passwords."""
    return request

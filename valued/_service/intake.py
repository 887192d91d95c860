"""The answer to ``POST /events``: checks an event, does to it what was asked for, and takes it.

It is reported before the answer, so an event that the sender counts as delivered was seen here.
Everything else is refused as the service would refuse it, with the reasons.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from valued._service import bodies, records
from valued._service.refusals import Answer, Refusal
from valued._service.render import counted

if TYPE_CHECKING:
    from collections.abc import Callable
    from email.message import Message

    from valued._service.controls import Controls
    from valued._service.forwarding import Forwarding
    from valued._service.history import History
    from valued._service.lanes import Sender

_BEARER: Final = re.compile(r"Bearer +[!-~]+", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Received:
    """An event, and who sent it. *connection* is the sender's address."""

    event: dict[str, Any]
    pid: int | None
    process: str | None
    connection: str
    idempotency_key: str | None


@dataclasses.dataclass
class Request:
    """A request as it arrived. ``sender``: looks who has sent it."""

    method: str
    target: str
    headers: Message
    sender: Callable[[], Sender]
    body: bytes = b""

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """What follows the path, without the question mark."""
        return self.target.partition("?")[2]

    @property
    def is_event(self) -> bool:
        """Whether it is meant to record an event."""
        return self.path == "/events" and self.method == "POST"


class Intake:
    """See the module. Any thread may call. *history*: None to keep none."""

    def __init__(
        self,
        report: Callable[[Received], object],
        controls: Controls,
        history: History | None,
        forwarding: Forwarding | None,
    ) -> None:
        self._report = report
        self._controls = controls
        self._history = history
        self._forwarding = forwarding
        self._lock = threading.Lock()  # guards all below; held for short work in memory only
        self._received = 0
        self._refused = 0
        self._simulated = 0
        self._pids: set[int] = set()
        self.trouble: Exception | None = None

    def take(self, request: Request) -> Answer:
        """Take the event, or not: the answer, after it was recorded. Status 0: there is none."""
        at, event, passed = time.time(), None, None
        try:
            if not _BEARER.fullmatch(request.headers.get("Authorization", "").strip()):
                raise Refusal(
                    401,
                    "Authorization: expected 'Bearer TOKEN'",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            event = bodies.decoded(request.body)
            checked = bodies.check(event)
            self._controls.admit()
            passed = self._passed(request)
        except Refusal as refusal:
            self.refused(request, refusal, at, event)
            return refusal.answer()
        if passed is not None and not 200 <= passed.status < 300:
            reason = f"as {self._forwarding.url} answered" if self._forwarding else ""
            self.refused(request, Refusal(passed.status, reason), at, event, passed.status)
            return passed
        self._receive(request, checked)
        answer = Answer(204) if passed is None else passed
        forwarded = None if passed is None else passed.status
        self._keep(request, at, answer.status, event=event, forwarded=forwarded)
        return answer

    def refused(
        self,
        request: Request,
        refusal: Refusal,
        at: float | None = None,
        event: Any = None,
        forwarded: int | None = None,
    ) -> None:
        """A request was refused: count it, and keep it if it was to record an event."""
        with self._lock:
            if refusal.injected:
                self._simulated += 1
            else:
                self._refused += 1
        if request.is_event and self._history is not None:
            if event is None:
                with contextlib.suppress(Refusal):
                    event = bodies.decoded(request.body)
            self._keep(request, at or time.time(), refusal.status, refusal, event, forwarded)

    def summary(self, connections: int) -> str:
        """What was received, in one line."""
        with self._lock:
            errors = f"{counted(self._simulated, 'simulated error')}, " if self._simulated else ""
            return (
                f"{counted(self._received, 'event')} received, {self._refused} refused, {errors}on "
                f"{counted(connections, 'connection')} from "
                f"{counted(len(self._pids), 'process', 'processes')} of this machine"
            )

    def _passed(self, request: Request) -> Answer | None:
        """The answer of the other endpoint; None: there is none to ask."""
        if self._forwarding is None:
            return None
        answer = self._forwarding.send(request.headers, request.body)
        if answer is None:
            raise Refusal(502, f"{self._forwarding.url} can't be reached")
        return answer

    def _receive(self, request: Request, event: dict[str, Any]) -> None:
        sender = request.sender()
        key = request.headers.get("Idempotency-Key")
        try:
            self._report(Received(event, sender.pid, sender.name, sender.connection, key))
        except Exception as error:
            self.trouble = error
            raise
        with self._lock:
            self._received += 1
            if sender.pid is not None:
                self._pids.add(sender.pid)

    def _keep(
        self,
        request: Request,
        at: float,
        status: int,
        refusal: Refusal | None = None,
        event: Any = None,
        forwarded: int | None = None,
    ) -> None:
        if self._history is None:
            return
        record = records.made(
            at,
            status,
            () if refusal is None else refusal.reasons,
            request.sender(),
            request.headers,
            request.body,
            event,
            forwarded=forwarded,
            injected=refusal is not None and refusal.injected,
        )
        self._history.add(record)

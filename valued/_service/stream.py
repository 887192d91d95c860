"""What a page follows: Server-Sent Events of the history and of the controls.

A stream takes from the history what is new when its reader has read what came before, so a slow
reader holds up nothing, and costs no memory. What is kept no more by then is counted as ``lost``.
"""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any, Final

import valued

if TYPE_CHECKING:
    from collections.abc import Iterator

    from valued._service.controls import Controls
    from valued._service.history import History, View

#: The most records of one message, and about how many bytes they have.
MOST_RECORDS: Final = 500
MOST_BYTES: Final = 1024 * 1024

#: Seconds between two messages, so that a page isn't drawn for each event.
PACE: Final = 0.1

#: Seconds between two looks at whether the reader is still there, and which processes have ended.
LOOK: Final = 1.0

#: Seconds without a message after which a comment shows that the stream is alive.
HEARTBEAT: Final = 15.0

#: The browser asks again after so many milliseconds when the stream ended.
_RETRY: Final = b"retry: 1000\n\n"


class Stream:
    """One reader's. *last*: the id of the last message that it has, as the browser tells it."""

    def __init__(
        self,
        history: History,
        controls: Controls,
        about: dict[str, Any],
        last: str = "",
    ) -> None:
        self._history = history
        self._controls = controls
        self._about = about
        self._after = _number(last, history.session)
        self._is_new = True
        self._cleared = 0
        self._seen = 0
        self._control: Any = None
        self._said_at = time.monotonic()

    def messages(self) -> Iterator[bytes]:
        """What to send, until the history is closed; empty bytes: see whether one still reads."""
        yield _RETRY
        more = True
        while True:
            began_at = time.monotonic()
            text, more = self._next()
            yield text
            if more:
                continue
            if not self._history.wait(self._seen, LOOK):
                return
            # After a pause the first event goes at once; those that follow it go together.
            left = began_at + PACE - time.monotonic()
            if left > 0 and not self._history.wait_for_end(left):
                return
            self._history.look_for_ended()

    def _next(self) -> tuple[bytes, bool]:
        view = self._history.view(self._seen, self._after, MOST_RECORDS, MOST_BYTES)
        control = self._controls.now()
        parts = list(self._parts(view, control))
        if parts:
            self._said_at = time.monotonic()
        elif time.monotonic() - self._said_at >= HEARTBEAT:
            self._said_at = time.monotonic()
            parts.append(b":\n\n")
        self._after, self._seen, self._control = view.last, view.version, control
        return b"".join(parts), view.more

    def _parts(self, view: View, control: dict[str, Any]) -> Iterator[bytes]:
        if self._is_new and self._after is None:
            self._cleared = view.cleared
        if self._is_new or view.lost:
            yield _message("hello", self._hello(view, control))
        if view.cleared > self._cleared:
            self._cleared = view.cleared
            yield _message("cleared", {"before": view.cleared})
        if view.records:
            content = b"[%s]" % b",".join(record.json() for record in view.records)
            yield b"event: records\nid: %s-%d\ndata: %s\n\n" % (
                self._history.session.encode(),
                view.last,
                content,
            )
        if view.lanes or self._is_new:
            yield _message("lanes", view.lanes)
        if view.version > self._seen:
            yield _message("totals", view.totals)
        if not self._is_new and _settings(control) != _settings(self._control):
            yield _message("control", control)
        self._is_new = False

    def _hello(self, view: View, control: dict[str, Any]) -> dict[str, Any]:
        return {
            "session": self._history.session,
            "version": valued.__version__,
            **self._about,
            "now": time.time(),
            "kept": self._history.most,
            "control": control,
            "lost": view.lost,
        }


def _message(kind: str, content: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(content)}\n\n".encode()


def _settings(control: dict[str, Any]) -> dict[str, Any]:
    """*control* without the seconds that are left, which a page counts by itself."""
    fail = control["fail"]
    if fail is None or fail["seconds"] is None:
        return control
    return {**control, "fail": {**fail, "seconds": 0}}


def _number(last: str, session: str) -> int | None:
    """The number of the last record that the reader has; None: none of this session."""
    match = re.fullmatch(r"([0-9a-f]{8})-([0-9]{1,15})", last)
    return int(match[2]) if match is not None and match[1] == session else None

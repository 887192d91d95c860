"""What a request is answered if it can't have what it asks for, and what one that has it is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any


class Refusal(Exception):
    """Why a request is refused. Status 0: its connection is closed without an answer.

    *close*: the rest of the connection can't be read. *injected*: someone asked for this error.
    *more*: what else the answer has, beside its reasons.
    """

    def __init__(
        self,
        status: int,
        *reasons: str,
        close: bool = False,
        injected: bool = False,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(status, *reasons)
        self.status = status
        self.reasons = reasons
        self.close = close
        self.injected = injected
        self.headers = headers or {}
        self._more = more or {}

    def answer(self) -> Answer:
        """The refusal as it is sent: an object with the list ``errors``."""
        if not self.reasons or self.status == 304:
            return Answer(self.status, self.headers)
        content = json.dumps({"errors": self.reasons, **self._more}).encode()
        return Answer(self.status, {"Content-Type": "application/json", **self.headers}, content)


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer to a request."""

    status: int
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    content: bytes = b""

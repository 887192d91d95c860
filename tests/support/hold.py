"""A server that lets its clients wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.support.server import Reply, Request, Server

if TYPE_CHECKING:
    from typing_extensions import Self

#: Seconds after which a test that forgot to release fails, and doesn't hang.
BOUND = 60.0


class Hold:
    """While the block lasts, or until `release`, *server* answers no event that is *held*."""

    def __init__(
        self, server: Server, held: Callable[[dict[str, Any]], object] = lambda _event: True
    ) -> None:
        self._held = held
        self._released = threading.Event()
        server.script = self._answer

    def _answer(self, request: Request) -> Reply:
        if self._held(request.event):
            assert self._released.wait(BOUND)
        return Reply()

    def release(self) -> None:
        self._released.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

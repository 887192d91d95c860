"""Visitors: threads that load a server until it ends, and note what came of each request."""

from __future__ import annotations

import http.client
import itertools
import threading
from collections.abc import Callable
from typing import Any

from tests.support.programs import BOUND


class Visitors:
    """Threads that ask, one request after the other, until `leave`, or the server refuses.

    So a server can be stopped under their load. With every tenth request comes a new connection,
    since a connection stays with one process. Nothing is asked twice: what was not answered may
    have been done. What is noted has the request's id for its key: the *name* and a number.
    """

    #: What is raised where a connection breaks.
    BREAKS: tuple[type[Exception], ...] = (OSError, http.client.HTTPException)

    def __init__(self, port: int, name: str = "visit-", count: int = 4) -> None:
        self.port = port
        self._name = name
        self._changed = threading.Condition()  # guards what came of the requests
        self.answered: dict[str, Any] = {}
        self.unanswered: dict[str, Any] = {}
        self.wrong: dict[str, object] = {}
        self._stop = threading.Event()
        self._numbers = itertools.count(1)
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def what(self, number: int) -> Any:
        """What the request of this number asks for."""
        raise NotImplementedError

    def ask(
        self, connection: http.client.HTTPConnection, name: str, what: Any
    ) -> tuple[int, object]:
        """Ask once: the status, and what is noted of the answer."""
        raise NotImplementedError

    def waits_for_a_server(self) -> bool:
        """Whether to go on where the server refuses."""
        return False

    def _run(self) -> None:
        there_is_a_server = True
        while there_is_a_server and not self._stop.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=BOUND)
            for _ in range(10):
                there_is_a_server = self._ask(connection, next(self._numbers))
                if not there_is_a_server or self._stop.is_set():
                    break
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection, number: int) -> bool:
        """Ask once; whether there is still a server."""
        name, what = f"{self._name}{number}", self.what(number)
        try:
            status, found = self.ask(connection, name, what)
        except TimeoutError as error:  # it hangs, which is no way to end
            self._note(self.wrong, name, repr(error))
            return False
        except self.BREAKS as error:
            connection.close()
            self._note(self.unanswered, name, what)
            return not isinstance(error, ConnectionRefusedError) or self.waits_for_a_server()
        if 200 <= status <= 299:
            self._note(self.answered, name, found)
        else:
            self._note(self.wrong, name, (what, status))
        return True

    def _note(self, where: dict[str, Any], name: str, what: object) -> None:
        with self._changed:
            where[name] = what
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        """Until *count* requests are answered."""
        self.wait_until(lambda: len(self.answered) >= count)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until *condition*, of the answers, holds."""
        with self._changed:
            met = self._changed.wait_for(lambda: condition() or self.wrong, BOUND)
        assert not self.wrong, self.wrong
        assert met, f"not in {BOUND} s: {self.answered} {self.unanswered}"

    def leave(self) -> None:
        """Ask no more; returns when the last request is answered, or not."""
        self._stop.set()
        self.join()

    def join(self) -> None:
        """Wait until they have ended, as they do with the server."""
        for thread in self._threads:
            thread.join(BOUND)
            assert not thread.is_alive()

"""Visitors: many users who ask at the same time, some of them unknown, until the server ends."""

from __future__ import annotations

import http.client
import itertools
import random
import threading
import time
from collections.abc import Callable, Sequence

#: Seconds that bound a failure; nothing here lasts so long.
BOUND = 120.0

USERS = [str(number) for number in range(1, 41)]

#: What a request carries for its user.
Who = Callable[[str], dict[str, str]]


def by_cookie_or_header(user: str) -> dict[str, str]:
    return {"Cookie": f"user={user}"} if int(user) % 2 else {"X-User-Id": user}


class Load:
    """Threads that ask, on a new connection each time, until `leave`, or the server has ended.

    A tenth of the requests is of nobody, a tenth is for one of the *streams*. What gets no answer
    is not asked again: it may have been done.
    """

    def __init__(
        self, port: int, pages: Sequence[str], streams: Sequence[str], who: Who, count: int = 8
    ) -> None:
        self._port = port
        self._pages = pages
        self._streams = streams
        self._who = who
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()  # guards what follows
        #: Whom each request is of, by its id.
        self.expected: dict[str, str | None] = {}
        self.answered = 0
        self.unanswered = 0
        self.wrong: list[object] = []
        self._stop = threading.Event()
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._ask(next(self._numbers))
            except ConnectionRefusedError:
                if self._ends.is_set():
                    return
                time.sleep(0.01)  # until somebody listens; whoever waits for answers has a bound
            except TimeoutError:  # it hangs
                with self._changed:
                    self.wrong.append("no answer")
                return
            except (OSError, http.client.HTTPException):
                with self._changed:
                    self.unanswered += 1

    def _ask(self, number: int) -> None:
        chance = random.Random(number)
        user = None if chance.random() < 0.1 else chance.choice(USERS)
        path = chance.choice(self._streams if chance.random() < 0.1 else self._pages)
        id = f"request{number}"
        headers = {"X-Id": id, "Connection": "close"}
        if user is not None:
            headers |= {"X-Expected": user, **self._who(user)}
        with self._changed:
            self.expected[id] = user
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request("GET", f"/{path}", headers=headers)
            answer = connection.getresponse()
            answer.read()
        finally:
            connection.close()
        with self._changed:
            if answer.status == 200:
                self.answered += 1
            else:
                self.wrong.append((id, path, answer.status))
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        """Until *count* requests are answered."""
        with self._changed:
            met = self._changed.wait_for(lambda: self.answered >= count or self.wrong, BOUND)
        assert met, f"not in {BOUND} s: {self.answered} answered, {self.unanswered} not"
        assert not self.wrong, self.wrong[:10]

    def server_ends(self) -> None:
        """It has been told, or will be at once: who is refused from now on leaves."""
        self._ends.set()

    def join(self) -> None:
        """Wait until they have left."""
        for thread in self._threads:
            thread.join(BOUND)
            assert not thread.is_alive()
        assert not self.wrong, self.wrong[:10]

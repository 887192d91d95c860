"""Visitors: many users who ask at the same time, some of them unknown, until the server ends."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections.abc import Callable, Sequence

from tests.support.visitors import Visitors

USERS = [str(number) for number in range(1, 41)]

#: What a request carries for its user.
Who = Callable[[str], dict[str, str]]


def by_cookie_or_header(user: str) -> dict[str, str]:
    return {"Cookie": f"user={user}"} if int(user) % 2 else {"X-User-Id": user}


class Load(Visitors):
    """Visitors who ask on a new connection each time, also while no server listens.

    A tenth of the requests is of no user, a tenth is for one of the *streams*.
    """

    def __init__(
        self, port: int, pages: Sequence[str], streams: Sequence[str], who: Who, count: int = 8
    ) -> None:
        self._pages = pages
        self._streams = streams
        self._who = who
        #: Whom each request is of, by its id.
        self.expected: dict[str, str | None] = {}
        self._ends = threading.Event()
        super().__init__(port, "request", count)

    def what(self, number: int) -> tuple[str | None, str]:
        chance = random.Random(number)
        user = None if chance.random() < 0.1 else chance.choice(USERS)
        return user, chance.choice(self._streams if chance.random() < 0.1 else self._pages)

    def ask(
        self, connection: http.client.HTTPConnection, name: str, what: tuple[str | None, str]
    ) -> tuple[int, object]:
        user, path = what
        self.expected[name] = user
        headers = {"X-Id": name, "Connection": "close"}
        if user is not None:
            headers |= {"X-Expected": user, **self._who(user)}
        connection.request("GET", f"/{path}", headers=headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status, path

    def waits_for_a_server(self) -> bool:
        time.sleep(0.01)  # until one listens; what waits for answers has a bound
        return not self._ends.is_set()

    def server_ends(self) -> None:
        """It has been told, or will be at once: who is refused from now on leaves."""
        self._ends.set()

    def join(self) -> None:
        super().join()
        assert not self.wrong, self.wrong

"""The Django site of the tests: made, served by real servers, and visited by several users."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import http.client
import json
import os
import random
import re
import signal
import socket
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from tests.support.processes import run
from tests.support.programs import BOUND, ROOT, Program

MODULE = "tests.programs.django_site"

#: How many events each view records.
STEPS = {
    "sync/page": 1,
    "async/page": 2,
    "sync/stream": 3,
    "async/stream": 3,
    "sync/login": 1,
    "async/login": 1,
    "sync/quiet": 0,
    "async/quiet": 0,
}


@dataclasses.dataclass(frozen=True)
class Site:
    """A database, and by the ids of its users, their sessions and their tokens."""

    database: Path
    sessions: dict[int, str]
    tokens: dict[int, str]

    @classmethod
    def make(cls, folder: Path) -> Site:
        database = folder / "database.sqlite"
        environment = {**os.environ, "DJANGO_DATABASE": str(database)}
        done = run("-m", f"{MODULE}.make", cwd=ROOT, env={**environment, "VALUED_TOKEN": "any"})
        assert (done.returncode, done.stderr) == (0, "")
        users = {int(key): value for key, value in json.loads(done.stdout).items()}
        return cls(
            database,
            {key: value["session"] for key, value in users.items()},
            {key: value["token"] for key, value in users.items()},
        )

    def environment(self, **valued: Any) -> dict[str, str]:
        """For a process that serves it, with *valued* in its settings."""
        return {
            **os.environ,
            "DJANGO_DATABASE": str(self.database),
            "DJANGO_SETTINGS_MODULE": f"{MODULE}.settings",
            "DJANGO_VALUED": json.dumps(valued),
            "PYTHONWARNINGS": "ignore:This process",
        }


class Served(Program):
    """A server that listens on *port*, or on the one that its log names."""

    def __init__(
        self, folder: Path, environment: dict[str, str], *command: str, port: int = 0
    ) -> None:
        self.port = port
        super().__init__(folder / "server.log", *command, env=environment)
        with self._starting():
            self.wait_until(self._listens)

    def _listens(self) -> bool:
        if not self.port:
            named = re.search(r"http://127\.0\.0\.1:(\d+)", self.said())
            if named is None:
                return False
            self.port = int(named[1])
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def end(self, number: int = signal.SIGTERM, *, of: str = "server") -> int:
        """End it by a signal to the server, to its child, or as a terminal does to the group."""
        if of == "group":
            os.killpg(self.pid, number)
        elif of == "child":
            [child] = self.children()
            child.send_signal(number)
        else:
            self.process.send_signal(number)
        return self.process.wait(BOUND)


@dataclasses.dataclass(frozen=True)
class Visit:
    id: str
    view: str
    user: int | None


class Visitors:
    """Several users, and somebody unknown, who ask in any order, on connections that are kept."""

    def __init__(self, site: Site, port: int, views: Iterable[str]) -> None:
        self._site = site
        self._port = port
        self._views = [*views]
        self.answered: list[Visit] = []
        self.failed: list[tuple[Visit, Any]] = []

    def visit(self, each: int, count: int = 4) -> None:
        """Ask from *count* threads at the same time, *each* so often."""
        threads = [
            threading.Thread(target=self._run, args=(number, each), daemon=True)
            for number in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(BOUND)
            assert not thread.is_alive()
        assert self.failed == []

    def _run(self, thread: int, each: int) -> None:
        chance = random.Random(thread)
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=BOUND)
        with contextlib.closing(connection):
            for number in range(each):
                view = self._views[(number + thread) % len(self._views)]
                users = [*self._site.sessions, *([] if "login" in view else [None])]
                visit = Visit(f"{thread}-{number}", view, chance.choice(users))
                try:
                    status = self.ask(connection, visit)
                except Exception as error:
                    self.failed.append((visit, repr(error)))
                else:
                    if status == 200:
                        self.answered.append(visit)
                    else:
                        self.failed.append((visit, status))

    def ask(self, connection: http.client.HTTPConnection, visit: Visit) -> int:
        headers = {"X-Id": visit.id}
        if visit.user is not None:
            headers["X-Expected"] = str(visit.user)
            if "login" not in visit.view:
                headers["Cookie"] = f"sessionid={self._site.sessions[visit.user]}"
        connection.request("GET", f"/{visit.view}", headers=headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status

    def assert_each_is_recorded_once_for_its_user(
        self, events: Iterable[dict[str, Any]], page_views: Iterable[str] = ()
    ) -> None:
        """Compare the answers with *events*; *page_views*: the views that have one."""
        found = collections.Counter(
            (
                event["attributes"].get("id"),
                event["attributes"].get("step"),
                event["attributes"].get("expected"),
                event.get("user", {}).get("id"),
            )
            for event in events
            if event["category"] == "action"
        )
        expected = collections.Counter(
            (visit.id, step, None if visit.user is None else str(visit.user), visit.user)
            for visit in self.answered
            for step in range(STEPS[visit.view])
        )
        wrong = {
            "lost": expected - found,
            "twice, or another user's": found - expected,
        }
        assert not any(wrong.values()), wrong
        assert expected
        views = collections.Counter(
            (event["user"]["id"], event["attributes"]["source"]["url"].split("/", 3)[3])
            for event in events
            if event["category"] == "pageview"
        )
        assert views == collections.Counter(
            (visit.user, visit.view)
            for visit in self.answered
            if visit.user is not None and visit.view in page_views
        )

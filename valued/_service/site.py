"""The page, its stream, and what programs ask for: all but ``POST /events`` and its preflight.

It shows what others have sent, and changes what they are answered. So a request names this machine,
and comes from no page of another site.
"""

from __future__ import annotations

import json
import time
import urllib.parse
from typing import TYPE_CHECKING, Any, Final

from valued._service import bodies, hosts, queries
from valued._service.history import MOST_BYTES
from valued._service.page import HEADERS, page
from valued._service.refusals import Answer, Refusal
from valued._service.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from valued._service.controls import Controls
    from valued._service.history import History
    from valued._service.intake import Request
    from valued._service.queries import Query
    from valued._service.records import Record

#: The methods for each path; those of ``/events`` that are not ours are the intake's.
_METHODS: Final = {
    "/": ("GET", "HEAD"),
    "/stream": ("GET",),
    "/events": ("GET", "HEAD", "DELETE"),
    "/wait": ("GET",),
    "/control": ("GET", "HEAD", "POST"),
    "/lanes": ("GET", "HEAD"),
}

#: Seconds between two looks at whether the program that waits is still there.
_LOOK: Final = 1.0


class Site:
    """Answers for *history* and *controls*. *names*: hosts that requests may name.

    *literal*: requests may name any IP address, where others than this machine may come. *about*:
    what a page is told first. Any thread may call.
    """

    def __init__(
        self,
        history: History,
        controls: Controls,
        names: set[str],
        about: dict[str, Any],
        *,
        literal: bool,
    ) -> None:
        self._history = history
        self._controls = controls
        self._names = names
        self._about = about
        self._literal = literal

    def has(self, request: Request) -> bool:
        """Whether *request* is for a page or a program."""
        if request.path == "/events":
            return request.method in _METHODS["/events"]
        return request.path in _METHODS

    def check(self, request: Request) -> None:
        """Raise the refusal of a request that a page of another site may have made."""
        named = ", ".join(request.headers.get_all("Host", []))
        if not hosts.is_this_machine(named, self._names, literal=self._literal):
            raise Refusal(
                403,
                f"Host: expected localhost or an address of this machine, got {named[:100]!r}; if "
                "that is this machine, start `valued listen` with --allow-host",
            )
        if not hosts.is_same_site(request.headers):
            raise Refusal(
                403, "Origin: pages of other sites may not ask; type the address in the browser"
            )
        allowed = _METHODS[request.path]
        if request.method not in allowed:
            reason = f"{request.path} is asked by {allowed[0]}; send events to /events by POST"
            raise Refusal(405, reason, headers={"Allow": ", ".join(allowed)})

    def answer(self, request: Request, is_gone: Callable[[], bool]) -> Answer:
        """The answer to all but ``/stream``; raises the refusal.

        *is_gone*: whether the one who asked has closed the connection.
        """
        path, method = request.path, request.method
        if path == "/":
            return page()
        if path == "/lanes":
            return _json(self._history.lanes())
        if path == "/control":
            return self._control(request)
        if path == "/wait":
            return self._wait(request, is_gone)
        if method == "DELETE":
            self._history.clear()
            return Answer(204, HEADERS)
        return self._events(queries.parsed(request.query, (*queries.FILTERS, "limit")))

    def stream(self, request: Request) -> Stream:
        """The stream that *request* is for."""
        asked = urllib.parse.parse_qs(request.query).get("last", [""])[-1]
        last = request.headers.get("Last-Event-ID") or asked
        return Stream(self._history, self._controls, self._about, last)

    def _control(self, request: Request) -> Answer:
        if request.method != "POST":
            return _json(self._controls.now())
        # A page of another site can send only a few other types without being asked for leave.
        if request.headers.get_content_type() != "application/json":
            raise Refusal(415, "Content-Type: expected application/json")
        controls = self._controls.change(bodies.decoded(request.body))
        self._history.touch()
        return _json(controls)

    def _events(self, query: Query) -> Answer:
        # Asked for first: what comes meanwhile is found, and not again after the last one of it.
        last = self._history.last()
        found = query.matching(self._history.records(query.after))
        last = max(last, found[-1].id if found else 0)
        if query.limit is not None and len(found) > query.limit:
            found = found[: query.limit]
            last = found[-1].id
        return _answer(200, b'"events": %s, "last": %d' % (_list(found), last))

    def _wait(self, request: Request, is_gone: Callable[[], bool]) -> Answer:
        query = queries.parsed(request.query, (*queries.FILTERS, "n", "timeout"))
        deadline = time.monotonic() + query.timeout
        found: list[Record] = []
        after = query.after
        while True:
            # Up to there all were seen, or are kept no more, such as after a DELETE.
            last = self._history.last()
            fresh = self._history.records(after)
            found += query.matching(fresh)
            if len(found) >= query.n:
                return _answer(200, b'"events": %s' % _list(found))
            if sum(record.weight for record in found) > MOST_BYTES:
                raise Refusal(507, f"{len(found)} of {query.n} events are more than can be kept")
            after = max(after, last, fresh[-1].id if fresh else 0)
            left = deadline - time.monotonic()
            if left <= 0 or is_gone():
                reason = f"{len(found)} of {query.n} came in {query.timeout:g} s"
                return _late(504, reason, found)
            if not self._history.wait_for_record(after, min(left, _LOOK)):
                return _late(503, "valued listen is ending", found)


def _list(records: Iterable[Record]) -> bytes:
    return b"[%s]" % b", ".join(record.json() for record in records)


def _late(status: int, reason: str, found: list[Record]) -> Answer:
    errors = json.dumps([reason]).encode()
    return _answer(status, b'"errors": %s, "events": %s' % (errors, _list(found)))


def _json(content: Any) -> Answer:
    return Answer(200, _TYPE, json.dumps(content).encode())


def _answer(status: int, parts: bytes) -> Answer:
    return Answer(status, _TYPE, b"{%s}" % parts)


_TYPE: Final = {"Content-Type": "application/json", **HEADERS}

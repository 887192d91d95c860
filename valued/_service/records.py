"""A record: one request to ``POST /events``, what it was answered, and what is looked for in it.

It has the body as it arrived, which is JSON already: it is decoded for no one, and its size is
known. The token is not in it.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from email.message import Message

    from valued._service.lanes import Sender

#: What stands for the token.
HIDDEN: Final = "•••"

#: How many characters of a body are kept that is no JSON.
MOST_RAW: Final = 4096

#: A shorter token, such as "any", is part of common words: it is hidden in its own header only.
_LONG: Final = 8

#: An event of so many levels is kept as text. Valid ones have half of them at most.
_DEEP: Final = 200

#: How many headers of a connection are kept for its next requests.
_KNOWN: Final = 50

#: Longer headers are kept with each request, so that they go with it.
_SHORT: Final = 500

_SECRET: Final = {"authorization", "proxy-authorization", "cookie"}
_SCHEMES: Final = {"basic", "bearer", "digest", "token"}

#: As there may be in JSON between its parts; in a stream, a line is what it says it is.
_BREAKS: Final = re.compile(rb"[\r\n]")


@dataclasses.dataclass(eq=False, slots=True)
class Record:
    """See the module. ``id``, ``attempt`` and ``first`` are given by the history."""

    at: float
    status: int
    reasons: tuple[str, ...]
    sender: Sender
    headers: tuple[tuple[str, str], ...]
    body: bytes  # JSON, an object; empty if it was none
    raw: str | None
    size: int
    key: str | None
    forwarded: int | None
    injected: bool  # the error is simulated: someone asked for it
    names: tuple[str | None, ...]  # category, key, user, customer
    id: int = 0
    attempt: int = 1
    first: int | None = None
    weight: int = 0  # about how many bytes it keeps

    @property
    def accepted(self) -> bool:
        """Whether the event was taken."""
        return 200 <= self.status < 300

    def json(self) -> bytes:
        """It as JSON, on one line."""
        sender = self.sender
        fields = {
            "id": self.id,
            "at": self.at,
            "status": self.status,
            "reasons": self.reasons,
            "raw": self.raw,
            "bytes": self.size,
            "pid": sender.pid,
            "process": sender.name,
            "connection": sender.connection,
            "lane": sender.lane,
            "key": self.key,
            "attempt": self.attempt,
            "first": self.first,
            "headers": dict(self.headers),
            "forwarded": self.forwarded,
        }
        return b'%s, "event": %s}' % (json.dumps(fields)[:-1].encode(), self.body or b"null")


def made(
    at: float,
    status: int,
    reasons: tuple[str, ...],
    sender: Sender,
    headers: Message,
    body: bytes,
    event: object,
    *,
    forwarded: int | None = None,
    injected: bool = False,
) -> Record:
    """The record of a request; *event*: what *body* is, None if that is no JSON."""
    shown, key, weight = _without_token(headers, sender)
    is_object = isinstance(event, dict) and (200 <= status < 300 or not _is_deep(event))
    names = _names(event) if isinstance(event, dict) else (None,) * 4
    return Record(
        at=at,
        status=status,
        reasons=reasons,
        sender=sender,
        headers=shown,
        body=(_BREAKS.sub(b" ", body) if b"\n" in body or b"\r" in body else body)
        if is_object
        else b"",
        raw=None if is_object else body[: 4 * MOST_RAW].decode("utf-8", "replace")[:MOST_RAW],
        size=len(body),
        key=key,
        forwarded=forwarded,
        injected=injected,
        names=names,
        weight=weight + len(body) + sum(map(len, reasons)) + sum(map(sys.getsizeof, names)),
    )


def _without_token(
    headers: Message, sender: Sender
) -> tuple[tuple[tuple[str, str], ...], str | None, int]:
    """*headers* without what proves who sent them, the token first of all; and the event's key.

    The last of the three is how many characters are new: most headers are those of the request
    before it, and are kept once for a connection.
    """
    token = headers.get("Authorization", "").strip().rpartition(" ")[2]
    known = sender.shown
    if token != sender.token:
        sender.token = token
        known.clear()
    shown, key, weight = [], None, 0
    for header in headers.raw_items():
        pair = known.get(header)
        if pair is None:
            name, value = header
            pair = name, _hidden(name.lower(), value, token)
            weight += len(name) + len(pair[1])
            if name.lower() == "idempotency-key":
                key = pair[1] if key is None else key
            elif len(known) < _KNOWN and len(value) <= _SHORT:
                known[header] = pair
        shown.append(pair)
    return tuple(shown), key, weight


def _hidden(name: str, value: str, token: str) -> str:
    """*value* as it is kept; of a header that is secret: its scheme, if it has one."""
    if name not in _SECRET:
        return value.replace(token, HIDDEN) if len(token) >= _LONG else value
    scheme, _, secret = value.strip().partition(" ")
    if scheme.lower() in _SCHEMES:
        return f"{scheme} {HIDDEN}" if secret else scheme
    return HIDDEN if scheme else ""


def _names(event: dict[str, Any]) -> tuple[str | None, ...]:
    return (
        _text(event.get("category")),
        _text(event.get("key")),
        _id(event.get("user")),
        _id(event.get("customer")),
    )


def _id(person: object) -> str | None:
    return _text(person.get("id")) if isinstance(person, dict) else None


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    # Most ids are whole numbers, of which JSON is the same, and takes longer. No flag is one.
    if type(value) is int:
        return str(value)
    # Not of a list, which may be nested so deeply that it can't be encoded.
    return json.dumps(value) if isinstance(value, (bool, float)) else None


def _is_deep(event: dict[str, Any]) -> bool:
    """Whether it is nested more deeply than every reader of JSON can read it."""
    level: list[Any] = [event]
    for _ in range(_DEEP):
        level = [
            inner
            for value in level
            if isinstance(value, (dict, list))
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    return bool(level)

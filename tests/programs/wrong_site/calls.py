"""What a site does wrong: calls, each in some way, what is counted by each, and functions of its.

Whatever is an event's own is, or holds, `SECRET`, so that it can be looked for in a log.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import valued

SECRET = "secret-value"
USER = {"user.id": SECRET}


class Unknown:
    """An object that nobody can send."""

    def __repr__(self) -> str:
        return SECRET


@dataclasses.dataclass
class Account:
    id: str = SECRET
    password: str = SECRET


class Unspeakable(Exception):
    """Can't even be shown."""

    def __str__(self) -> str:
        raise RuntimeError(SECRET)

    __repr__ = __str__


class Raising:
    """Fails as it is converted."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def to_valued_data(self) -> object:
        raise self._error


class BadKey:
    """A key that can't be looked at twice."""

    _looked_at = False

    def __hash__(self) -> int:
        if self._looked_at:
            raise RuntimeError(SECRET)
        self._looked_at = True
        return 1

    def __str__(self) -> str:
        raise RuntimeError(SECRET)


def raising() -> object:
    raise LookupError(SECRET)


def looped() -> list[Any]:
    found: list[Any] = [SECRET]
    found.append(found)
    return found


def attribute(value: object) -> None:
    valued.action("report.generated", USER, attributes={"value": value, "other": SECRET})


def set_and_record(name: str, value: object) -> None:
    setattr(valued.scope, name, value)
    valued.action("report.generated")


def apply_and_record(data: Any) -> None:
    valued.scope.user = {"id": SECRET}
    valued.scope.apply(data)
    valued.action("report.generated", customer={"id": SECRET})


def nested(data: Any, **more: Any) -> None:
    with valued.nested(data, **more):
        valued.action("report.generated")


def isolated(*data: Any, **more: Any) -> None:
    with valued.isolated(*data, **more):
        valued.action("report.generated")
        valued.page_view("/reports")


def write(name: str, value: object) -> None:
    valued.scope[name] = value
    valued.action("report.generated", USER)


def scope_attribute() -> None:
    valued.scope.attributes["ratio"] = math.nan
    valued.scope.attributes["name"] = Unknown()
    valued.action("report.generated", USER)


def last_look(key: str) -> None:
    valued.action(key, USER)


def before_send(event: dict[str, Any]) -> Any:
    """Wrong by the key of the event."""
    match event.get("key"):
        case "look.raises":
            raise LookupError(event)
        case "look.can not be shown":
            raise Unspeakable
        case "look.refuses":
            return None
        case "look.text":
            return SECRET
        case "look.empty":
            return {}
        case "look.unknown":
            return Unknown()
        case "look.nobody":
            return {**event, "user": None}
        case "look.nan":
            return {**event, "attributes": {"ratio": math.nan}}
        case "look.records":
            valued.action("another", USER)
            return event
    return event


Call = Callable[[], object]

#: A call, and what the figures are to show of it: each event once, and each value that is left out.
WRONG: dict[str, tuple[Call, dict[str, int]]] = {
    # nobody's
    "no id": (lambda: valued.action("report.generated"), {"anonymous": 1}),
    "no user": (
        lambda: valued.page_view("/reports", customer={"id": SECRET}),
        {"anonymous": 1},
    ),
    "user without id": (
        lambda: valued.action("report.generated", user={"name": SECRET}),
        {"anonymous": 1},
    ),
    "user None": (lambda: valued.action("report.generated", user=None), {"anonymous": 1}),
    # values
    "nan": (lambda: attribute(math.nan), {"invalid": 1}),
    "unknown class": (lambda: attribute(Unknown()), {"invalid": 1}),
    "class": (lambda: attribute(Unknown), {"invalid": 1}),
    "raising converter": (lambda: attribute(Raising(LookupError(SECRET))), {"invalid": 1}),
    "unspeakable converter": (lambda: attribute(Raising(Unspeakable())), {"invalid": 1}),
    "bad key": (lambda: attribute({BadKey(): SECRET}), {"invalid": 1}),
    "looped": (lambda: attribute(looped()), {"invalid": 1}),
    "bytes": (lambda: attribute(SECRET.encode()), {"invalid": 1}),
    # what stands on top
    "key": (lambda: valued.action(Unknown(), USER), {"invalid": 1}),  # type: ignore[arg-type]
    "no key": (lambda: valued.action("", USER), {"invalid": 1}),
    "data is text": (lambda: valued.action("report.generated", SECRET), {"invalid": 1}),  # type: ignore[arg-type]
    "data is a number": (lambda: valued.action("report.generated", 5), {"invalid": 1}),  # type: ignore[arg-type]
    "swapped": (lambda: valued.action(USER, "report.generated"), {"invalid": 1}),  # type: ignore[arg-type]
    "user is text": (lambda: valued.action("report.generated", user=SECRET), {"invalid": 1}),
    "user is an object": (
        lambda: valued.action("report.generated", user=Unknown()),
        {"invalid": 1},
    ),
    "user is a dataclass": (
        lambda: valued.action("report.generated", user=Account()),
        {"invalid": 1},
    ),
    "user is nan": (
        lambda: valued.action("report.generated", {"user.id": math.nan}),
        {"invalid": 1},
    ),
    "user is true": (lambda: valued.action("report.generated", {"user.id": True}), {"invalid": 1}),
    "user_id": (lambda: valued.action("report.generated", user_id=SECRET), {"invalid": 1}),
    "properties": (
        lambda: valued.action("report.generated", USER, properties={"value": SECRET}),
        {"invalid": 1},
    ),
    "attributes": (
        lambda: valued.action("report.generated", USER, attributes=[SECRET]),
        {"invalid": 1},
    ),
    "time": (lambda: valued.action("report.generated", USER, occured_at=SECRET), {"invalid": 1}),
    "path": (lambda: valued.action("report.generated", {"user..id": SECRET}), {"invalid": 1}),
    "url": (lambda: valued.page_view(f"example.com/{SECRET}", USER), {"invalid": 1}),
    "no url": (lambda: valued.page_view(None, USER), {"invalid": 1}),  # type: ignore[arg-type]
    "sync of nobody": (lambda: valued.sync_user(name=SECRET), {"invalid": 1}),
    "sync of an object": (lambda: valued.sync_user(Unknown()), {"invalid": 1}),  # type: ignore[arg-type]
    "sync of a dataclass": (lambda: valued.sync_user(Account()), {"invalid": 1}),  # type: ignore[arg-type]
    "sync of both": (
        lambda: valued.client().sync(user={"id": SECRET}, customer={"id": SECRET}),
        {"invalid": 1},
    ),
    "config": (lambda: valued.config(goals=[SECRET]), {"invalid": 1}),
    "config of others": (lambda: valued.config(goal=SECRET), {"invalid": 1}),
    # the scope: what is left out, and the event of nobody behind it
    "scope.user": (lambda: set_and_record("user", Unknown()), {"invalid": 1, "anonymous": 1}),
    "scope.user dataclass": (
        lambda: set_and_record("user", Account()),
        {"invalid": 1, "anonymous": 1},
    ),
    "scope.user text": (lambda: set_and_record("user", SECRET), {"invalid": 1, "anonymous": 1}),
    "scope.user_id": (lambda: set_and_record("user_id", Unknown()), {"invalid": 1, "anonymous": 1}),
    "scope.customer": (
        lambda: set_and_record("customer", Raising(LookupError(SECRET))),
        {"invalid": 1, "anonymous": 1},
    ),
    "apply text": (lambda: apply_and_record(SECRET), {"invalid": 1, "accepted": 1}),
    "apply object": (lambda: apply_and_record(Unknown()), {"invalid": 1, "accepted": 1}),
    "apply user": (lambda: apply_and_record({"user": Unknown()}), {"invalid": 1, "accepted": 1}),
    "item": (lambda: write("attributes.ratio", math.nan), {"invalid": 1, "accepted": 1}),
    "item path": (lambda: write("a..b", SECRET), {"invalid": 1, "accepted": 1}),
    "attributes item": (scope_attribute, {"invalid": 2, "accepted": 1}),
    "nested": (
        lambda: nested({"user": Unknown(), "attributes": {"ratio": math.nan}}),
        {"invalid": 2, "anonymous": 1},
    ),
    "nested text": (lambda: nested(SECRET), {"invalid": 1, "anonymous": 1}),
    "nested field": (lambda: nested(None, user=SECRET), {"invalid": 1, "anonymous": 1}),
    "isolated": (lambda: isolated(user=Unknown()), {"invalid": 1, "anonymous": 2}),
    "isolated text": (lambda: isolated(SECRET), {"invalid": 1, "anonymous": 2}),
    "lazy raises": (lambda: isolated(lazy={"user": raising}), {"invalid": 2}),
    "lazy object": (lambda: isolated(lazy={"user": Unknown}), {"invalid": 1, "anonymous": 2}),
    "lazy nan": (
        lambda: isolated(lazy={"user": lambda: {"id": math.nan}}),
        {"invalid": 1, "anonymous": 2},
    ),
    # the last look
    "look raises": (lambda: last_look("look.raises"), {"refused": 1}),
    "look can not be shown": (lambda: last_look("look.can not be shown"), {"refused": 1}),
    "look refuses": (lambda: last_look("look.refuses"), {"refused": 1}),
    "look text": (lambda: last_look("look.text"), {"invalid": 1}),
    "look empty": (lambda: last_look("look.empty"), {"invalid": 1}),
    "look unknown": (lambda: last_look("look.unknown"), {"invalid": 1}),
    "look nobody": (lambda: last_look("look.nobody"), {"invalid": 1}),
    "look nan": (lambda: last_look("look.nan"), {"invalid": 1}),
    "look records": (lambda: last_look("look.records"), {"refused": 1, "accepted": 1}),
}


#: The figures of which each call is in one.
FIGURES = ("accepted", "invalid", "anonymous", "refused", "disabled")


def called(name: str) -> dict[str, int]:
    """Make a call; what the figures show of it."""
    before: dict[str, Any] = {**valued.client().stats()}
    WRONG[name][0]()
    after: dict[str, Any] = {**valued.client().stats()}
    return {it: after[it] - before[it] for it in FIGURES if after[it] != before[it]}


def who(kind: str | None) -> Any:
    """The user, as a function of the site's has it."""
    match kind:
        case "raises":
            raise LookupError(SECRET)
        case "can not be shown":
            raise Unspeakable
        case "object":
            return Unknown()
        case "dataclass":
            return Account()
        case "text":
            return SECRET
        case "nan":
            return {"id": math.nan, "name": SECRET}
        case "fine":
            return {"id": SECRET}
    return None


def choose(kind: str | None) -> Any:
    """Whether to record a page view, likewise."""
    match kind:
        case "raises":
            raise LookupError(SECRET)
        case "can not be shown":
            raise Unspeakable
        case "object":
            return Unknown()
        case "text":
            return f"example.com/{SECRET}"
        case "number":
            return 5
    return True

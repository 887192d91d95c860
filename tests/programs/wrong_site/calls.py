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

INVALID = {"invalid": 1}
ANONYMOUS = {"anonymous": 1}
LEFT_OUT = {**INVALID, **ANONYMOUS}  # the user, and so the event is of nobody
ACCEPTED_WITHOUT = {**INVALID, "accepted": 1}
REFUSED = {"refused": 1}

#: A call, and what the figures are to show of it: each event once, and each value that is left out.
WRONG: dict[str, tuple[Call, dict[str, int]]] = {
    # nobody's
    "no id": (lambda: valued.action("report.generated"), ANONYMOUS),
    "no user": (lambda: valued.page_view("/reports", customer={"id": SECRET}), ANONYMOUS),
    "user without id": (
        lambda: valued.action("report.generated", user={"name": SECRET}),
        ANONYMOUS,
    ),
    "user None": (lambda: valued.action("report.generated", user=None), ANONYMOUS),
    # values
    "nan": (lambda: attribute(math.nan), INVALID),
    "unknown class": (lambda: attribute(Unknown()), INVALID),
    "class": (lambda: attribute(Unknown), INVALID),
    "raising converter": (lambda: attribute(Raising(LookupError(SECRET))), INVALID),
    "unspeakable converter": (lambda: attribute(Raising(Unspeakable())), INVALID),
    "bad key": (lambda: attribute({BadKey(): SECRET}), INVALID),
    "looped": (lambda: attribute(looped()), INVALID),
    "bytes": (lambda: attribute(SECRET.encode()), INVALID),
    # what stands on top
    "key": (lambda: valued.action(Unknown(), USER), INVALID),  # type: ignore[arg-type]
    "no key": (lambda: valued.action("", USER), INVALID),
    "data is text": (lambda: valued.action("report.generated", SECRET), INVALID),  # type: ignore[arg-type]
    "data is a number": (lambda: valued.action("report.generated", 5), INVALID),  # type: ignore[arg-type]
    "swapped": (lambda: valued.action(USER, "report.generated"), INVALID),  # type: ignore[arg-type]
    "user is text": (lambda: valued.action("report.generated", user=SECRET), INVALID),
    "user is an object": (lambda: valued.action("report.generated", user=Unknown()), INVALID),
    "user is a dataclass": (lambda: valued.action("report.generated", user=Account()), INVALID),
    "user is nan": (lambda: valued.action("report.generated", {"user.id": math.nan}), INVALID),
    "user is true": (lambda: valued.action("report.generated", {"user.id": True}), INVALID),
    "user_id": (lambda: valued.action("report.generated", user_id=SECRET), INVALID),
    "properties": (
        lambda: valued.action("report.generated", USER, properties={"value": SECRET}),
        INVALID,
    ),
    "attributes": (lambda: valued.action("report.generated", USER, attributes=[SECRET]), INVALID),
    "time": (lambda: valued.action("report.generated", USER, occured_at=SECRET), INVALID),
    "path": (lambda: valued.action("report.generated", {"user..id": SECRET}), INVALID),
    "url": (lambda: valued.page_view(f"example.com/{SECRET}", USER), INVALID),
    "no url": (lambda: valued.page_view(None, USER), INVALID),  # type: ignore[arg-type]
    "sync of nobody": (lambda: valued.sync_user(name=SECRET), INVALID),
    "sync of an object": (lambda: valued.sync_user(Unknown()), INVALID),  # type: ignore[arg-type]
    "sync of a dataclass": (lambda: valued.sync_user(Account()), INVALID),  # type: ignore[arg-type]
    "sync of both": (
        lambda: valued.client().sync(user={"id": SECRET}, customer={"id": SECRET}),
        INVALID,
    ),
    "config": (lambda: valued.config(goals=[SECRET]), INVALID),
    "config of others": (lambda: valued.config(goal=SECRET), INVALID),
    # the scope: what is left out, and the event of nobody behind it
    "scope.user": (lambda: set_and_record("user", Unknown()), LEFT_OUT),
    "scope.user dataclass": (lambda: set_and_record("user", Account()), LEFT_OUT),
    "scope.user text": (lambda: set_and_record("user", SECRET), LEFT_OUT),
    "scope.user_id": (lambda: set_and_record("user_id", Unknown()), LEFT_OUT),
    "scope.customer": (lambda: set_and_record("customer", Raising(LookupError(SECRET))), LEFT_OUT),
    "apply text": (lambda: apply_and_record(SECRET), ACCEPTED_WITHOUT),
    "apply object": (lambda: apply_and_record(Unknown()), ACCEPTED_WITHOUT),
    "apply user": (lambda: apply_and_record({"user": Unknown()}), ACCEPTED_WITHOUT),
    "item": (lambda: write("attributes.ratio", math.nan), ACCEPTED_WITHOUT),
    "item path": (lambda: write("a..b", SECRET), ACCEPTED_WITHOUT),
    "attributes item": (scope_attribute, {"invalid": 2, "accepted": 1}),
    "nested": (
        lambda: nested({"user": Unknown(), "attributes": {"ratio": math.nan}}),
        {"invalid": 2, "anonymous": 1},
    ),
    "nested text": (lambda: nested(SECRET), LEFT_OUT),
    "nested field": (lambda: nested(None, user=SECRET), LEFT_OUT),
    "isolated": (lambda: isolated(user=Unknown()), {"invalid": 1, "anonymous": 2}),
    "isolated text": (lambda: isolated(SECRET), {"invalid": 1, "anonymous": 2}),
    "lazy raises": (lambda: isolated(lazy={"user": raising}), {"invalid": 2}),
    "lazy object": (lambda: isolated(lazy={"user": Unknown}), {"invalid": 1, "anonymous": 2}),
    "lazy nan": (
        lambda: isolated(lazy={"user": lambda: {"id": math.nan}}),
        {"invalid": 1, "anonymous": 2},
    ),
    # the last look
    "look raises": (lambda: last_look("look.raises"), REFUSED),
    "look can not be shown": (lambda: last_look("look.can not be shown"), REFUSED),
    "look refuses": (lambda: last_look("look.refuses"), REFUSED),
    "look text": (lambda: last_look("look.text"), INVALID),
    "look empty": (lambda: last_look("look.empty"), INVALID),
    "look unknown": (lambda: last_look("look.unknown"), INVALID),
    "look nobody": (lambda: last_look("look.nobody"), INVALID),
    "look nan": (lambda: last_look("look.nan"), INVALID),
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

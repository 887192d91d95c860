"""The categories: what each call sends, and what it requires.

Each function takes normalized data, changes none of it, and returns a new event. The same checks
serve the calls, ``valued.validate``, and whoever receives events.
"""

from __future__ import annotations

import copy
import datetime
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from valued._errors import ValidationError
from valued._serializer import merge, normalize
from valued._typing import JSONObject

_MISSING_USER: Final = "Missing user.id: a page view is somebody's; give {'user.id': …}"
_MISSING_ID: Final = "Missing user.id or customer.id: give one of them, as in {'user.id': 1}"
_MISTAKEN: Final = (
    ("user_id", "what is meant is {'user.id': …}"),
    ("customer_id", "what is meant is {'customer.id': …}"),
    ("data", "the mapping is given without a name"),
)
_BOTH: Final = "Cannot include both user and customer in one sync: send two"


def gather(data: object, fields: Mapping[str, Any], name: str = "data") -> JSONObject:
    """The normalized data of one call: a mapping, or what converts to one, and fields over it."""
    if data is None:
        return mapping(fields, name) if fields else {}
    plain = mapping(data, name)
    return merge(plain, mapping(fields, name)) if fields else plain


def mapping(data: object, name: str) -> JSONObject:
    """*data*, normalized. Raises `ValidationError` where it is no mapping."""
    plain = normalize(data)
    if isinstance(plain, dict):
        return plain
    raise ValidationError(
        f"{name}: expected a mapping, such as {{'user.id': 1}}, got {type(data).__name__}"
    )


def action(key: object, data: JSONObject) -> JSONObject:
    """The event of an action. Raises `ValidationError`."""
    return _finished({"category": "action", "key": _plain_text(key)}, data)


def page_view(url: object, data: JSONObject) -> JSONObject:
    """The event of a page view. Raises `ValidationError`."""
    url = _plain_text(url)
    if not isinstance(url, str) or not url:
        raise ValidationError(_no_text("url", url, "'https://example.com/reports'"))
    attributes = data.get("attributes")
    source = attributes.get("source") if isinstance(attributes, dict) else None
    for name, value in (("attributes", attributes), ("attributes.source", source)):
        # A page view writes below both; what stands there would be lost without a word.
        if value is not None and not isinstance(value, dict):
            raise ValidationError(
                f"{name}: expected a mapping, got {type(value).__name__}; "
                f"name the value, as in {{'{name}.name': …}}"
            )
    data = merge(data, {"attributes": {"source": {"url": url}}})
    return _finished({"category": "pageview"}, data)


def sync(data: JSONObject) -> JSONObject:
    """The event of a sync. Raises `ValidationError`."""
    return _finished({"category": "sync"}, data)


def sync_party(name: str, party: JSONObject) -> JSONObject:
    """The event of a sync of *party*: the user or the customer, by *name*. Raises the same."""
    if party.get("id") is None:
        raise ValidationError(
            f"Missing user.id or customer.id: give the {name}'s id, as in sync_{name}({{'id': 1}})"
        )
    return sync({name: party})


def config(data: JSONObject) -> JSONObject:
    """The event of goals and signals. Raises `ValidationError`."""
    unknown = sorted(data.keys() - {"goals", "signals", "occured_at"})
    if unknown:
        raise ValidationError(f"{unknown[0]}: a config has goals or signals, nothing else")
    content = {name: [] if data.get(name) is None else data[name] for name in ("goals", "signals")}
    return _finished({"category": "config", "data": content}, _only(data, "occured_at"))


def validate(event: object) -> None:
    """Raise what a call that sends *event* would raise.

    *event*: an event as on the wire, a mapping with its ``category``; dotted keys are fine.
    Raises `ValidationError`, with all of its problems, or `SerializationError`. ``occured_at``
    may be missing: a call fills it in.
    """
    problems = _problems(mapping(event, "event"))
    if problems:
        raise ValidationError(*problems)


def _finished(fixed: JSONObject, data: JSONObject) -> JSONObject:
    # Twice: once for the place that it has in the table of the API, once to overrule the data.
    event = {**fixed, **data, **fixed}
    problems = _problems(event)
    if problems:
        raise ValidationError(*problems)
    given = event.get("occured_at")
    event["occured_at"] = now() if given is None else _with_offset(given)
    return event


def _plain_text(value: object) -> object:
    # A subclass of `str`, or a proxy of one, would get to the encoder else.
    return normalize(value) if isinstance(value, str) else value


def _only(data: JSONObject, *names: str) -> JSONObject:
    return {name: data[name] for name in names if name in data}


def _problems(event: JSONObject) -> list[str]:
    category = event.get("category")
    required = _REQUIRED.get(category) if isinstance(category, str) else None
    if required is None:
        return [f"category: expected one of {', '.join(_REQUIRED)}, got {_shown(category)}"]
    problems = required(event)
    if "occurred_at" in event:
        problems.append(
            "occurred_at: the service spells it occured_at; as it is, it would be no time at all"
        )
    given = event.get("occured_at")
    if given is not None:
        try:
            _with_offset(given)
        except ValidationError as error:
            problems += error.problems
    return problems


def _required_by_action(event: JSONObject) -> list[str]:
    key = event.get("key")
    problems = _somebody(event)
    if not isinstance(key, str) or not key:
        problems.insert(0, _no_text("key", key, "'report.generated'"))
    return problems


def _required_by_page_view(event: JSONObject) -> list[str]:
    problems = _party(event, "user")
    if not problems and not _is_given(event, "user"):
        problems.append(_MISSING_USER + _mistaken(event))
    problems += _party(event, "customer")
    source = event.get("attributes")
    source = source.get("source") if isinstance(source, dict) else None
    url = source.get("url") if isinstance(source, dict) else None
    if not isinstance(url, str) or not url:
        problems.append(_no_text("attributes.source.url", url, "'https://example.com/reports'"))
    return problems


def _required_by_sync(event: JSONObject) -> list[str]:
    problems = _somebody(event)
    if event.get("user") is not None and event.get("customer") is not None:
        problems.append(_BOTH)
    return problems


def _required_by_config(event: JSONObject) -> list[str]:
    return list(_of_config(event))


def _of_config(event: JSONObject) -> Iterator[str]:
    data = event.get("data")
    if not isinstance(data, dict) or not (data.get("goals") or data.get("signals")):
        yield "config: give goals or signals, such as goals=[{'name': …, 'action_key': …}]"
        return
    for name in ("goals", "signals"):
        entries = data.get(name)
        if entries is None:
            continue
        if not isinstance(entries, list):
            yield f"{name}: expected a list of mappings, got {type(entries).__name__}"
            continue
        for number, entry in enumerate(entries):
            place = f"{name}[{number}]"
            if not isinstance(entry, dict):
                yield f"{place}: expected a mapping, got {type(entry).__name__}"
                continue
            for field in ("name", "action_key"):
                if not isinstance(entry.get(field), str) or not entry[field]:
                    yield _no_text(f"{place}.{field}", entry.get(field), "'report.generated'")


_REQUIRED: Final[dict[str, Callable[[JSONObject], list[str]]]] = {
    "action": _required_by_action,
    "pageview": _required_by_page_view,
    "sync": _required_by_sync,
    "config": _required_by_config,
}


def _somebody(event: JSONObject) -> list[str]:
    """The problems of an event that needs a user or a customer."""
    problems = _party(event, "user") + _party(event, "customer")
    if not problems and not _is_given(event, "user") and not _is_given(event, "customer"):
        problems.append(_MISSING_ID + _mistaken(event))
    return problems


def _mistaken(event: JSONObject) -> str:
    """A hint for who gave the id, or all of the data, by another name."""
    found = [f"; {name} is a field of its own, {hint}" for name, hint in _MISTAKEN if name in event]
    return "".join(found)


def _is_given(event: JSONObject, name: str) -> bool:
    party = event.get(name)
    return isinstance(party, dict) and party.get("id") is not None


def _party(event: JSONObject, name: str) -> list[str]:
    """The problems of the user, or the customer, that stands in *event*."""
    party = event.get(name)
    if party is None:
        return []
    if not isinstance(party, dict):
        return [f"{name}: expected a mapping with an id, got {type(party).__name__}"]
    identity = party.get("id")
    # A bool is an int to Python; as an id it is a mistake.
    if identity is None or (isinstance(identity, int) and not isinstance(identity, bool)):
        return []
    if isinstance(identity, str) and identity:
        return []
    return [f"{name}.id: expected an int or a text that is not empty, got {_shown(identity)}"]


def _no_text(name: str, value: object, example: str) -> str:
    return f"{name}: expected a text that is not empty, such as {example}, got {_shown(value)}"


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    return "an empty text" if value == "" and isinstance(value, str) else type(value).__name__


# Date and time of ISO 8601, as `datetime.isoformat` and JavaScript's `toISOString` write them.
# Not `datetime.fromisoformat`: up to 3.10, it knows no "Z" and but two lengths of a fraction; from
# 3.14 on, an hour 24.
_TIME: Final = re.compile(
    r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)"
    r"[T ](?P<hour>\d\d):(?P<minute>\d\d)(:(?P<second>\d\d)([.,](?P<fraction>\d+))?)?"
    r"(?P<offset>Z|[+-]([01]\d|2[0-3])(:?[0-5]\d(:?[0-5]\d)?)?)?",
    re.ASCII,
)


def _with_offset(given: object) -> str:
    """*given* as it is; where it has no offset it is local time, as for ``datetime.astimezone``.

    Raises `ValidationError` where it is no time.
    """
    match = _TIME.fullmatch(given) if isinstance(given, str) else None
    if match is None:
        raise ValidationError(
            "occured_at: expected a time in ISO 8601, such as '2026-11-23T10:00:00+01:00', or a "
            f"datetime, got {_shown(given)}"
        )
    try:
        year, month, day, hour, minute = map(
            int, match.group("year", "month", "day", "hour", "minute")
        )
        second, microsecond = int(match["second"] or 0), int(f"{match['fraction'] or '':0<6.6}")
        moment = datetime.datetime(year, month, day, hour, minute, second, microsecond)
        return match[0] if match["offset"] else moment.astimezone().isoformat()
    except (ValueError, OverflowError) as error:  # the 31st of February; local time in the year 1
        raise ValidationError(
            f"occured_at: there is no such time ({error}); give one such as "
            "'2026-11-23T10:00:00+01:00', or a datetime"
        ) from None


_latest: tuple[int, str] = (-1, "")  # the last second that was asked for, and its text


def now() -> str:
    """The time, local, to the second, with its UTC offset: ``2026-11-23T10:00:00+01:00``."""
    global _latest  # one tuple, read and replaced whole: threads need no lock for it
    second = int(time.time())
    latest = _latest
    if latest[0] != second:
        # Not `datetime`: Python 3.13.0 crashes in it where it finalizes objects at its end.
        local = time.localtime(second)
        sign, offset = "-" if local.tm_gmtoff < 0 else "+", abs(local.tm_gmtoff)
        text = time.strftime("%Y-%m-%dT%H:%M:%S", local)
        text = f"{text}{sign}{offset // 3600:02}:{offset // 60 % 60:02}"
        _latest = latest = (second, text)
    return latest[1]


class Config:
    """Goals and signals, built step by step, for ``client.config(config)``.

    >>> import valued
    >>> config = valued.Config()
    >>> config.add_goal("First expense", action_key="Portal.Expense.Created", min_count=5)
    Config(goals=1, signals=0)

    For one thread at a time.
    """

    def __init__(self) -> None:
        self._goals: list[JSONObject] = []
        self._signals: list[JSONObject] = []

    def add_goal(self, name: str, /, **fields: Any) -> Config:
        """Add a goal (``action_key``, ``min_count`` …); returns the config, so calls can follow."""
        return self._add("goals", self._goals, name, fields)

    def add_signal(self, name: str, /, **fields: Any) -> Config:
        """Add a signal (``action_key``, ``period`` …); returns the config, so calls can follow."""
        return self._add("signals", self._signals, name, fields)

    def _add(
        self, kind: str, entries: list[JSONObject], name: str, fields: dict[str, Any]
    ) -> Config:
        entry = merge(mapping(fields, f"{kind}[{len(entries)}]"), {"name": _plain_text(name)})
        # Checked here, where the traceback points at the step that is wrong.
        problems = _required_by_config({"data": {kind: [*entries, entry]}})
        if problems:
            raise ValidationError(*problems)
        entries.append(entry)
        return self

    def to_valued_data(self) -> JSONObject:
        """What ``client.config`` takes, a copy."""
        return {"goals": copy.deepcopy(self._goals), "signals": copy.deepcopy(self._signals)}

    def __repr__(self) -> str:
        return f"Config(goals={len(self._goals)}, signals={len(self._signals)})"

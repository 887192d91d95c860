"""The categories: what each call sends, and what it requires.

Each function takes normalized data, changes none of it, and returns a new event. The same checks
serve the calls, ``valued.validate``, and servers that receive events.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from valued._errors import ValidationError, expected, shown
from valued._events.bad_values import is_a
from valued._events.serializer import Snapshot, merge, normalize
from valued._events.values import now, with_offset
from valued._typing import JSONObject, ScopeLike

_MISSING_USER: Final = "Missing user.id: a page view needs a user; give {'user.id': 1}"
_MISSING_ID: Final = "Missing user.id or customer.id: give one of them, as in {'user.id': 1}"
_MISSING_IN_SYNC: Final = "Missing user.id or customer.id: a sync needs one, as in {'user.id': 1}"

#: The top-level fields that the service knows.
_KNOWN: Final = frozenset({"category", "key", "user", "customer", "attributes", "occured_at"})

_USER_ID: Final = "{'user.id': 1}"
_CUSTOMER_ID: Final = "{'customer.id': 1}"
_ATTRIBUTES: Final = "{'attributes': {'format': 'pdf'}}"
_KEY_EXAMPLE: Final = "'report.generated'"
_URL_EXAMPLE: Final = "'https://example.com/reports'"
_OCCURED_AT: Final = "{'occured_at': '2026-11-23T10:00:00+01:00'}"

#: Near misses of those, and what other clients call them, each with what to write instead. Any
#: other unknown field is sent.
_MISTAKEN: Final = {
    **dict.fromkeys(("user_id", "userId", "userid", "uid", "distinct_id"), _USER_ID),
    **dict.fromkeys(("usr", "users"), "{'user': {'id': 1}}"),
    **dict.fromkeys(("customer_id", "customerId", "customerid"), _CUSTOMER_ID),
    **dict.fromkeys(("costumer", "customers"), "{'customer': {'id': 1}}"),
    **dict.fromkeys(("attribute", "attrs", "properties", "props"), _ATTRIBUTES),
    **dict.fromkeys(("timestamp", "occurred_at", "occurredAt", "occuredAt"), _OCCURED_AT),
    "data": "the mapping without a name, as in action('report.generated', {'user.id': 1})",
}

#: What fields of all categories, and of scopes, are.
_A_PARTY: Final = "a mapping with an id, such as {'id': 1}"
_FORMS: Final = {
    "user": _A_PARTY,
    "customer": _A_PARTY,
    "attributes": "a mapping, such as {'format': 'pdf'}",
}

_ID_CLASSES: Final = (str, type(None))

#: How many names of unknown fields are warned of, at most.
_MOST_NAMES: Final = 100
_warned_of: Final[set[str]] = set()


def normalize_call(data: object, fields: Mapping[str, Any], name: str = "data") -> JSONObject:
    """The data of one call, normalized: *data*, and *fields*, which take precedence."""
    if data is None:
        return mapping(fields, name) if fields else {}
    plain = mapping(data, name)
    return merge(plain, mapping(fields, name)) if fields else plain


def mapping(data: object, name: str) -> JSONObject:
    """*data*, normalized. Raises `ValidationError` if it isn't a mapping."""
    plain = normalize(data)
    if isinstance(plain, dict):
        return plain
    hint = "; the key, or the URL, is the first argument" if isinstance(data, str) else ""
    raise ValidationError(expected(name, "a mapping, such as {'user.id': 1}", data) + hint)


def data_of_scope(data: object, fields: Mapping[str, Any], name: str = "data") -> JSONObject:
    """`normalize_call` for a scope. Raises `ValidationError` for what no event could have."""
    plain = normalize_call(data, fields, name)
    problems = wrong_forms(plain)
    if problems:
        raise ValidationError(*problems.values())
    return plain


def wrong_forms(data: JSONObject) -> dict[str, str]:
    """What is wrong with the user, the customer and the attributes, whatever the category."""
    problems = {}
    for name in _FORMS:  # this runs for each event
        if name not in data:
            continue
        value = data[name]
        if not isinstance(value, dict):
            if value is not None:
                problems[name] = expected(name, _FORMS[name], value)
        elif name != "attributes":
            identity = value.get("id")
            # By the class itself: a bool is an int to Python; as an id it is a mistake.
            if type(identity) is not int and (type(identity) not in _ID_CLASSES or identity == ""):
                what = "an int or a string that is not empty"
                problems[name] = expected(f"{name}.id", what, identity)
    return problems


def action(key: object, data: JSONObject) -> JSONObject:
    """The event of an action. Raises `ValidationError`."""
    return _finished({"category": "action", "key": _plain_text(key)}, data)


def page_view(url: object, data: JSONObject) -> JSONObject:
    """The event of a page view. Raises `ValidationError`."""
    url = _plain_text(url)
    if type(url) is not str or not url:
        raise ValidationError(_not_a_string("url", url, _URL_EXAMPLE))
    attributes = data.get("attributes")
    source = attributes.get("source") if isinstance(attributes, dict) else None
    for name, value in (("attributes", attributes), ("attributes.source", source)):
        # A page view writes below both, and would replace what is there.
        if value is not None and not isinstance(value, dict):
            raise ValidationError(
                expected(name, "a mapping", value)
                + f"; name the value, as in {{'{name}.plan': 'pro'}}"
            )
    data = merge(data, {"attributes": {"source": {"url": url}}})
    return _finished({"category": "pageview"}, data)


def sync(data: JSONObject) -> JSONObject:
    """The event of a sync. Raises `ValidationError`."""
    return _finished({"category": "sync"}, data)


def data_of_party(name: str, data: object) -> object:
    """What a sync of one party is given: a scope's party, or data. Raises `SerializationError`."""
    if is_a(data, ScopeLike):
        data = data.to_dict().get(name)  # type: ignore[attr-defined]
    if data is None or type(data) is dict or type(data) is Snapshot:
        return data
    plain = normalize({name: data})[name]
    if isinstance(plain, dict):
        return plain
    raise ValidationError(expected(name, _A_PARTY, data))


def sync_party(name: str, party: JSONObject) -> JSONObject:
    """The event of a sync of *party*: the user or the customer, by *name*. Raises the same."""
    for field in (name, f"{name}_id"):
        if field in party:
            raise ValidationError(
                f"{field}: sync_{name} takes the {name} itself, as in sync_{name}({{'id': 1}})"
            )
    if party.get("id") is None:
        raise ValidationError(
            f"Missing user.id or customer.id: give the {name}'s id, as in sync_{name}({{'id': 1}})"
        )
    return sync({name: party})


def config(data: JSONObject) -> JSONObject:
    """The event of goals and signals. Raises `ValidationError`."""
    unknown = sorted(data.keys() - {"goals", "signals", "occured_at"})
    if unknown:
        raise ValidationError(f"{shown(unknown[0])}: a config has goals or signals, nothing else")
    content = {name: [] if data.get(name) is None else data[name] for name in ("goals", "signals")}
    time = {"occured_at": data["occured_at"]} if "occured_at" in data else {}
    return _finished({"category": "config", "data": content}, time)


def validate(event: object) -> None:
    """Raise what a call that sends *event* would raise: `ValidationError`, `SerializationError`.

    *event*: a mapping as it goes over the wire, with its ``category``; dotted keys are fine.
    ``occured_at`` may be missing, since a call fills it in.
    """
    checked(event)


def checked(event: object) -> JSONObject:
    """*event*, a whole one, normalized. Raises what `validate` raises."""
    plain = mapping(event, "event")
    problems = _problems(plain)
    if problems:
        raise ValidationError(*problems)
    given = plain.get("occured_at")
    return {**plain, "occured_at": now() if given is None else with_offset(given)}


def is_anonymous(error: Exception) -> bool:
    """Whether all that an action, or a page view, lacks is an id."""
    return isinstance(error, ValidationError) and error.problems in _ANONYMOUS


_ANONYMOUS: Final = ((_MISSING_USER,), (_MISSING_ID,))


def _finished(fixed: JSONObject, data: JSONObject) -> JSONObject:
    # Twice: first for their position, as in the table of the API; then to take precedence.
    event = {**fixed, **data, **fixed}
    problems = _problems(event)
    if problems:
        raise ValidationError(*problems)
    if not _KNOWN.issuperset(event):
        _warn_of_unknown(event)
    given = event.get("occured_at")
    event["occured_at"] = now() if given is None else with_offset(given)
    return event


def _warn_of_unknown(event: JSONObject) -> None:
    from valued._process.reporting import log  # making a client has imported it

    for name in event.keys() - _KNOWN - _warned_of:
        if event["category"] != "config" and len(_warned_of) < _MOST_NAMES:
            _warned_of.add(name)
            log.warning(
                "%s is not a field of an event that this library knows; it is sent as it is: did "
                "you mean attributes.%s? This is logged once.",
                *[shown(name, 100)] * 2,
            )


def _plain_text(value: object) -> object:
    if type(value) is str or not is_a(value, str):
        return value
    return normalize(value)  # a subclass of `str`, or a proxy of one, which the encoder can't take


def _problems(event: JSONObject) -> list[str]:
    """What keeps *event* from being sent."""
    category = event.get("category")
    required = _REQUIRED.get(category) if isinstance(category, str) else None
    if required is None:
        return [expected("category", f"one of {', '.join(_REQUIRED)}", category)]
    problems = required(event)
    if category != "config":  # which has neither a user nor attributes
        problems += wrong_forms(event).values()
    if category != "config" and not _KNOWN.issuperset(event):
        mistaken = _mistaken(event)
        if mistaken:  # that may be why an id is missing
            problems = mistaken + [it for it in problems if not it.startswith("Missing")]
    given = event.get("occured_at")
    if given is not None:
        try:
            with_offset(given)
        except ValidationError as error:
            problems += error.problems
    return problems


def _mistaken(event: JSONObject) -> list[str]:
    return [
        f"{name}: an event has no such field; write {_MISTAKEN[name]}"
        for name in event
        if name in _MISTAKEN
    ]


def check_names(data: JSONObject) -> None:
    """Raise `ValidationError` if *data* has near misses of an event's top-level fields."""
    problems = _mistaken(data)
    if problems:
        raise ValidationError(*problems)


def _required_by_action(event: JSONObject) -> list[str]:
    key = event.get("key")
    problems = [] if type(key) is str and key else [_not_a_string("key", key, _KEY_EXAMPLE)]
    if _has_no_id(event.get("user")) and _has_no_id(event.get("customer")):
        problems.append(_MISSING_ID)
    return problems


def _required_by_page_view(event: JSONObject) -> list[str]:
    problems = [_MISSING_USER] if _has_no_id(event.get("user")) else []
    source = event.get("attributes")
    source = source.get("source") if isinstance(source, dict) else None
    url = source.get("url") if isinstance(source, dict) else None
    if type(url) is not str or not url:
        problems.append(_not_a_string("attributes.source.url", url, _URL_EXAMPLE))
    elif not _URL.match(url):
        problems.append(
            "url: expected one with a scheme, such as 'https://example.com/reports', or a path "
            "that begins with a slash, such as '/reports'"
        )
    return problems


_URL: Final = re.compile(r"/|[A-Za-z][A-Za-z0-9+.-]*:")


def _required_by_sync(event: JSONObject) -> list[str]:
    user, customer = event.get("user"), event.get("customer")
    problems = [_MISSING_IN_SYNC] if _has_no_id(user) and _has_no_id(customer) else []
    if user is not None and customer is not None:
        problems.append("Cannot include both user and customer in one sync: send two")
    return problems


def _required_by_config(event: JSONObject) -> Iterator[str]:
    data = event.get("data")
    if not isinstance(data, dict) or not (data.get("goals") or data.get("signals")):
        yield (
            "config: give goals or signals, such as "
            "goals=[{'name': 'First report', 'action_key': 'report.generated'}]"
        )
        return
    for name in ("goals", "signals"):
        entries = data.get(name)
        if entries is None:
            continue
        if not isinstance(entries, list):
            yield expected(name, "a list of mappings", entries)
            continue
        for number, entry in enumerate(entries):
            path = f"{name}[{number}]"
            if not isinstance(entry, dict):
                yield expected(path, "a mapping", entry)
                continue
            for field in ("name", "action_key"):
                if not isinstance(entry.get(field), str) or not entry[field]:
                    yield _not_a_string(f"{path}.{field}", entry.get(field), _KEY_EXAMPLE)


_REQUIRED: Final[dict[str, Callable[[JSONObject], list[str]]]] = {
    "action": _required_by_action,
    "pageview": _required_by_page_view,
    "sync": _required_by_sync,
    "config": lambda event: [*_required_by_config(event)],
}


def _has_no_id(party: object) -> bool:
    return party is None or (isinstance(party, dict) and party.get("id") is None)


def _not_a_string(name: str, value: object, example: str) -> str:
    return expected(name, f"a string that is not empty, such as {example}", value)


class Config:
    """Goals and signals, built step by step, for `valued.config`.

    >>> config = valued.Config()
    >>> config.add_goal("First expense", action_key="Portal.Expense.Created", min_count=5)
    Config(goals=1, signals=0)
    >>> valued.config(config)

    For one thread at a time. Its methods raise `ValidationError`.
    """

    def __init__(self) -> None:
        self._goals: list[JSONObject] = []
        self._signals: list[JSONObject] = []

    def add_goal(self, name: str, /, **fields: Any) -> Config:
        """Add a goal (``action_key``, ``min_count`` …), checked at once; returns the config."""
        return self._add("goals", self._goals, name, fields)

    def add_signal(self, name: str, /, **fields: Any) -> Config:
        """Add a signal (``action_key``, ``period`` …), checked at once; returns the config."""
        return self._add("signals", self._signals, name, fields)

    def _add(
        self, kind: str, entries: list[JSONObject], name: str, fields: dict[str, Any]
    ) -> Config:
        entry = merge(mapping(fields, f"{kind}[{len(entries)}]"), {"name": _plain_text(name)})
        # Checked here, so that the traceback points at the wrong step.
        problems = [*_required_by_config({"data": {kind: [*entries, entry]}})]
        if problems:
            raise ValidationError(*problems)
        entries.append(entry)
        return self

    def to_valued_data(self) -> JSONObject:
        """What `valued.config` gets of it: a dict, a copy."""
        return {"goals": copy.deepcopy(self._goals), "signals": copy.deepcopy(self._signals)}

    def __repr__(self) -> str:
        return f"Config(goals={len(self._goals)}, signals={len(self._signals)})"

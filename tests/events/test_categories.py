"""The categories: what each call sends, what it requires, and what it says of bad input."""

from __future__ import annotations

import datetime
import enum
import json
import re
import time
from typing import Any

import pytest

import valued
from tests.support.processes import run

URL = "https://example.com/reports"


def problems(call: Any, *args: Any, **fields: Any) -> tuple[str, ...]:
    with pytest.raises(valued.ValidationError) as caught:
        call(*args, **fields)
    assert str(caught.value) == "; ".join(caught.value.problems)
    return caught.value.problems


class Silent:
    """Its text must be in no error: it may be a token, or a person's name."""

    def __repr__(self) -> str:
        return "s3cret"

    __str__ = __repr__

    def to_valued_data(self) -> str:
        return "s3cret"


@pytest.fixture(autouse=True)
def _nothing_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """No error of these tests shows a value."""
    made = valued.ValidationError.__init__

    def checked(self: valued.ValidationError, *sentences: str) -> None:
        assert "s3cret" not in "".join(sentences)
        made(self, *sentences)

    monkeypatch.setattr(valued.ValidationError, "__init__", checked)


# -- actions and page views ------------------------------------------------------------------------


class Key(str, enum.Enum):
    UPDATED = "profile.updated"


class Text(str):
    __slots__ = ()


class Lazy:
    """As a lazily translated text: no `str`, but it says that it is one."""

    __class__ = str  # type: ignore[assignment]

    def __init__(self, text: str = "lazy.text") -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("k", "k"),
        (" ", " "),
        (Key.UPDATED, "profile.updated"),
        (Text("text"), "text"),
        pytest.param(Lazy(), "lazy.text", id="lazy"),
    ],
)
def test_text_of_any_kind_is_a_key(
    recorder: valued.Client, sent: list[dict[str, Any]], key: Any, expected: str
) -> None:
    recorder.action(key, {"user.id": 1})
    assert sent[0]["key"] == expected


@pytest.mark.parametrize(
    "url", ["/lazy", Text("/lazy"), Lazy("/lazy")], ids=["str", "Text", "Lazy"]
)
def test_text_of_any_kind_is_a_url(
    recorder: valued.Client, sent: list[dict[str, Any]], url: Any
) -> None:
    recorder.page_view(url, {"user.id": 1})
    assert sent[0]["attributes"]["source"]["url"] == "/lazy"


@pytest.mark.parametrize(
    ("bad", "got"),
    [
        (None, "nothing"),
        ("", "an empty string"),
        (Text(""), "an empty string"),
        (7, "int"),
        (True, "bool"),
        (b"s3cret", "bytes"),
        (["s3cret"], "list"),
        ({"s3cret": 1}, "dict"),
        (Silent(), "Silent"),
    ],
)
def test_action_key_and_url_must_be_a_text_that_is_not_empty(
    recorder: valued.Client, bad: Any, got: str
) -> None:
    assert problems(recorder.action, bad, {"user.id": 1}) == (
        f"key: expected a string that is not empty, such as 'report.generated', got {got}",
    )
    assert problems(recorder.page_view, bad, {"user.id": 1}) == (
        (
            "url: expected a string that is not empty, such as 'https://example.com/reports', "
            f"got {got}"
        ),
    )
    assert recorder.stats()["accepted"] == 0


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (5, "int"),
        ("s3cret", "str"),
        (b"", None),
        ([("user.id", 1)], "list"),
        ({1, 2}, "set"),
        (False, "bool"),
        (Silent(), "Silent"),
    ],
)
@pytest.mark.parametrize("name", ["action", "page_view", "sync", "sync_user", "config"])
def test_data_that_is_no_mapping_is_refused_by_its_type(
    recorder: valued.Client, name: str, data: Any, got: str | None
) -> None:
    first = ("k",) if name in ("action", "page_view") else ()
    call = getattr(recorder, name)
    if name == "sync_user" and got is not None:
        assert problems(call, data) == (
            f"user: expected a mapping with an id, such as {{'id': 1}}, got {got}",
        )
        return
    hint = "; the key, or the URL, is the first argument" if got == "str" else ""
    if got is None:
        with pytest.raises(valued.SerializationError, match="bytes is not a string"):
            call(*first, data)
    else:
        assert problems(call, *first, data) == (
            f"data: expected a mapping, such as {{'user.id': 1}}, got {got}{hint}",
        )


@pytest.mark.parametrize(
    "data", [None, {}, {"user": None}, {"user.id": None}, {"user.name": "Ada"}, {"user": {}}]
)
def test_action_and_sync_without_a_user_or_customer_are_refused(
    recorder: valued.Client, data: Any
) -> None:
    sentence = "Missing user.id or customer.id: give one of them, as in {'user.id': 1}"
    assert problems(recorder.action, "k", data) == (sentence,)
    assert problems(recorder.sync, data) == (
        "Missing user.id or customer.id: a sync needs one, as in {'user.id': 1}",
    )
    assert problems(recorder.page_view, URL, data) == (
        "Missing user.id: a page view needs a user; give {'user.id': 1}",
    )


@pytest.mark.parametrize("identity", [0, -1, 2**64, "x", " ", "0"])
@pytest.mark.parametrize("name", ["user", "customer"])
def test_id_is_an_int_or_a_text_that_is_not_empty(
    recorder: valued.Client, sent: list[dict[str, Any]], name: str, identity: Any
) -> None:
    recorder.action("k", {f"{name}.id": identity})
    assert sent[0][name] == {"id": identity}


@pytest.mark.parametrize(
    ("identity", "got"),
    [
        ("", "an empty string"),
        (True, "bool"),
        (1.5, "float"),
        (["s3cret"], "list"),
        ({"s3cret": 1}, "dict"),
    ],
)
@pytest.mark.parametrize("name", ["user", "customer"])
def test_id_of_another_type_is_refused_in_every_call(
    recorder: valued.Client, name: str, identity: Any, got: str
) -> None:
    sentence = f"{name}.id: expected an int or a string that is not empty, got {got}"
    data = {name: {"id": identity, "name": "s3cret"}}
    assert problems(recorder.action, "k", data) == (sentence,)
    assert problems(recorder.sync, data) == (sentence,)
    assert sentence in problems(recorder.page_view, URL, data)
    assert problems(getattr(recorder, f"sync_{name}"), id=identity) == (sentence,)


@pytest.mark.parametrize("party", [5, "s3cret", ["s3cret"], True])
@pytest.mark.parametrize("name", ["user", "customer"])
def test_user_and_customer_must_be_mappings(recorder: valued.Client, name: str, party: Any) -> None:
    kind = type(party).__name__
    sentence = f"{name}: expected a mapping with an id, such as {{'id': 1}}, got {kind}"
    assert problems(recorder.action, "k", {name: party}) == (sentence,)
    assert sentence in problems(recorder.page_view, URL, {name: party})
    other = {"user": "customer", "customer": "user"}[name]
    assert problems(recorder.action, "k", {name: party, f"{other}.id": 1}) == (sentence,)


def test_every_problem_of_an_event_is_named_at_once(recorder: valued.Client) -> None:
    bad = {"user.id": "", "customer": 5, "occured_at": 0}
    names = [sentence.split(":")[0] for sentence in problems(recorder.action, "", bad)]
    assert names == ["key", "user.id", "customer", "occured_at"]


@pytest.mark.parametrize(
    ("data", "name"),
    [({"attributes": "s3cret"}, "attributes"), ({"attributes.source": [1]}, "attributes.source")],
)
def test_page_view_does_not_overwrite_what_is_no_mapping(
    recorder: valued.Client, data: dict[str, Any], name: str
) -> None:
    (sentence,) = problems(recorder.page_view, URL, {"user.id": 1, **data})
    assert sentence.startswith(f"{name}: expected a mapping, got ")
    assert sentence.endswith(f"; name the value, as in {{'{name}.plan': 'pro'}}")


def test_page_view_fills_in_attributes_that_are_none(
    recorder: valued.Client, sent: list[dict[str, Any]]
) -> None:
    recorder.page_view(URL, {"user.id": 1, "attributes": None})
    recorder.page_view(URL, {"user.id": 1, "attributes": {"source": None}})
    assert [event["attributes"] for event in sent] == [{"source": {"url": URL}}] * 2


def test_sync_takes_one_party_at_a_time(recorder: valued.Client) -> None:
    sentence = "Cannot include both user and customer in one sync: send two"
    assert problems(recorder.sync, {"user.id": 1, "customer.id": 2}) == (sentence,)
    assert problems(recorder.sync, {"user.id": 1, "customer": {}}) == (sentence,)
    assert problems(recorder.sync_user, {"id": 1}, id=True)[0].startswith("user.id")


def test_event_has_its_fixed_fields_first_and_its_time_last(
    recorder: valued.Client, sent: list[dict[str, Any]]
) -> None:
    recorder.action("k", {"user.id": 1, "category": "sync", "key": "other", "b": 1})
    assert list(sent[0]) == ["category", "key", "user", "b", "occured_at"]
    assert (sent[0]["category"], sent[0]["key"]) == ("action", "k")


# -- config ----------------------------------------------------------------------------------------

GOAL = {"name": "First expense", "action_key": "Portal.Expense.Created", "min_count": 5}


def test_config_goes_as_mapping_as_fields_and_step_by_step(
    recorder: valued.Client, sent: list[dict[str, Any]]
) -> None:
    recorder.config({"goals": [GOAL]})
    recorder.config(goals=(GOAL,), signals=None)
    recorder.config(
        valued.Config().add_goal("First expense", action_key="Portal.Expense.Created", min_count=5)
    )
    assert [event["data"] for event in sent] == [{"goals": [GOAL], "signals": []}] * 3


def test_config_keeps_a_time_that_is_given(
    recorder: valued.Client, sent: list[dict[str, Any]]
) -> None:
    recorder.config(signals=[GOAL], occured_at="2024-01-01T00:00:00Z")
    assert sent[0] == {
        "category": "config",
        "data": {"goals": [], "signals": [GOAL]},
        "occured_at": "2024-01-01T00:00:00Z",
    }


@pytest.mark.parametrize("data", [None, {}, {"goals": []}, {"goals": None, "signals": []}])
def test_config_without_content_is_refused(recorder: valued.Client, data: Any) -> None:
    assert problems(recorder.config, data) == (
        (
            "config: give goals or signals, such as "
            "goals=[{'name': 'First report', 'action_key': 'report.generated'}]"
        ),
    )


@pytest.mark.parametrize("bad", [0, False, {}, 5, "s3cret", {"name": "s3cret"}])
@pytest.mark.parametrize("name", ["goals", "signals"])
def test_config_takes_lists_only(recorder: valued.Client, name: str, bad: Any) -> None:
    other = {"goals": "signals", "signals": "goals"}[name]
    assert problems(recorder.config, {name: bad, other: [GOAL]}) == (
        f"{name}: expected a list of mappings, got {type(bad).__name__}",
    )


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("s3cret", ["signals[1]: expected a mapping, got str"]),
        (None, ["signals[1]: expected a mapping, got nothing"]),
        ({}, ["signals[1].name: ", "signals[1].action_key: "]),
        ({"name": "", "action_key": "k"}, ["signals[1].name: "]),
        ({"name": "s3cret", "action_key": 5}, ["signals[1].action_key: "]),
    ],
)
def test_config_names_the_entry_and_the_field(
    recorder: valued.Client, entry: Any, expected: list[str]
) -> None:
    found = problems(recorder.config, signals=[GOAL, entry])
    assert len(found) == len(expected)
    assert all(map(str.startswith, found, expected))


def test_config_refuses_what_else_it_is_given(recorder: valued.Client) -> None:
    assert problems(recorder.config, {"goals": [GOAL], "user.id": 1}) == (
        "user: a config has goals or signals, nothing else",
    )


def test_builder_chains_and_sends_what_was_added(
    recorder: valued.Client, sent: list[dict[str, Any]]
) -> None:
    config = (
        valued.Config()
        .add_goal("First expense", action_key="Portal.Expense.Created", min_count=5)
        .add_signal(Text("Weekly"), action_key=Key.UPDATED, period="week")
        .add_goal("Second", action_key="k", name="the first argument is the name")
    )
    assert repr(config) == "Config(goals=2, signals=1)"
    recorder.config(config)
    assert sent[0]["data"] == {
        "goals": [GOAL, {"name": "Second", "action_key": "k"}],
        "signals": [{"name": "Weekly", "action_key": "profile.updated", "period": "week"}],
    }
    assert valued.normalize(config) == sent[0]["data"]


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("", {"action_key": "k"}, "name"),
        (None, {"action_key": "k"}, "name"),
        ("Named", {}, "action_key"),
        ("Named", {"action_key": ""}, "action_key"),
        ("Named", {"action_key": 5}, "action_key"),
    ],
)
@pytest.mark.parametrize("kind", ["goal", "signal"])
def test_builder_refuses_a_bad_step_at_that_step_and_keeps_the_others(
    kind: str, name: Any, fields: dict[str, Any], expected: str
) -> None:
    config = valued.Config().add_goal("G", action_key="k").add_signal("S", action_key="k")
    before = config.to_valued_data()
    add = getattr(config, f"add_{kind}")
    (sentence,) = problems(add, name, **fields)
    assert sentence.startswith(f"{kind}s[1].{expected}: expected a string that is not empty")
    with pytest.raises(valued.SerializationError, match="min_count"):
        add("Named", action_key="k", min_count=object())
    assert config.to_valued_data() == before


def test_builder_gives_a_copy() -> None:
    config = valued.Config().add_goal("G", action_key="k")
    config.to_valued_data()["goals"][0]["name"] = "changed"
    config.to_valued_data()["goals"].append({})
    assert config.to_valued_data()["goals"] == [{"name": "G", "action_key": "k"}]


# -- validate --------------------------------------------------------------------------------------

EVENTS: list[dict[str, Any]] = [
    {"category": "action", "key": "k", "user.id": 1},
    {"category": "pageview", "attributes.source.url": URL, "user": {"id": 1}},
    {"category": "sync", "customer": {"id": "c"}, "occured_at": "2026-11-23T10:00:00+01:00"},
    {"category": "config", "data": {"goals": [GOAL]}, "occured_at": datetime.datetime(2026, 1, 1)},
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event["category"])
def test_validate_accepts_what_a_call_would_send(event: dict[str, Any]) -> None:
    assert valued.validate(event) is None


@pytest.mark.parametrize("category", [None, "", "page_view", "s3cret", 5, ["action"], {"a": 1}])
def test_validate_names_the_categories(category: Any) -> None:
    (sentence,) = problems(valued.validate, {"category": category, "user.id": 1})
    assert sentence.startswith("category: expected one of action, pageview, sync, config, got ")


@pytest.mark.parametrize(
    ("event", "names"),
    [
        ({"category": "action"}, ["key", "Missing user.id or customer.id"]),
        ({"category": "pageview"}, ["Missing user.id", "attributes.source.url"]),
        (
            {"category": "pageview", "user.id": 1, "attributes": {"source": "s3cret"}},
            ["attributes.source.url"],
        ),
        (
            {"category": "pageview", "user.id": 1, "attributes": 5},
            ["attributes.source.url", "attributes"],
        ),
        ({"category": "sync", "user.id": 1, "customer.id": 1}, ["Cannot include both"]),
        ({"category": "config", "data": "s3cret"}, ["config"]),
        ({"category": "config", "data": {"goals": {"a": 1}}}, ["goals"]),
        ({"category": "sync", "user.id": 1, "occured_at": "yesterday"}, ["occured_at"]),
    ],
)
def test_validate_raises_what_a_call_would_raise(event: dict[str, Any], names: list[str]) -> None:
    found = problems(valued.validate, event)
    assert len(found) == len(names)
    assert all(map(str.startswith, found, names))


def test_validate_refuses_what_is_no_event() -> None:
    assert problems(valued.validate, ["s3cret"])[0].startswith("event: expected a mapping")
    with pytest.raises(valued.SerializationError, match=r"^user\.id: "):
        valued.validate({"category": "action", "key": "k", "user.id": float("nan")})


# -- times -----------------------------------------------------------------------------------------

ZONE = datetime.timezone(datetime.timedelta(hours=-3, minutes=-30))


def sent_time(given: object) -> str:
    sent: list[dict[str, Any]] = []
    client = valued.Client(sent.append, executor=valued.ImmediateExecutor())
    client.action("k", {"user.id": 1, "occured_at": given})
    time: str = sent[0]["occured_at"]
    return time


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-23T10:00:00+01:00",
        "2026-11-23T10:00:00.123456789Z",
        "2026-11-23T10:00:00,5-0330",
        "2026-11-23 10:00Z",
        "2024-02-29T23:59:59+12:45",
        "2026-11-23T10:00:00+01",
        "2026-11-23T10:00:00+01:00:30",
        "0001-01-01T00:00:00Z",
    ],
)
def test_time_with_an_offset_goes_as_it_was_given(text: str) -> None:
    assert sent_time(text) == text


def test_aware_datetime_goes_with_its_offset() -> None:
    moment = datetime.datetime(2026, 11, 23, 10, 0, 0, 5, ZONE)
    assert sent_time(moment) == "2026-11-23T10:00:00.000005-03:30"


@pytest.mark.parametrize(
    "given",
    [
        "2026-11-23T10:00:00.5",
        "2026-11-23 10:00:00,500",
        "2026-11-23T10:00:00.5000000001",
        datetime.datetime(2026, 11, 23, 10, 0, 0, 500_000),
    ],
)
def test_time_without_an_offset_is_local_time(given: Any) -> None:
    local = datetime.datetime(2026, 11, 23, 10, 0, 0, 500_000).astimezone()
    text = sent_time(given)
    assert text == local.isoformat()
    assert datetime.datetime.fromisoformat(text) == local
    assert sent_time("2026-11-23T10:00") == local.replace(microsecond=0).isoformat()


@pytest.mark.parametrize("given", [None, ...])
def test_time_that_is_not_given_is_the_time_of_the_call(
    recorder: valued.Client, sent: list[dict[str, Any]], given: Any
) -> None:
    before = int(time.time())
    recorder.action("k", {"user.id": 1} if given is ... else {"user.id": 1, "occured_at": None})
    moment = datetime.datetime.fromisoformat(sent[0]["occured_at"])
    assert before <= moment.timestamp() <= time.time()
    assert moment.utcoffset() == datetime.datetime.now().astimezone().utcoffset()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", sent[0]["occured_at"])


@pytest.mark.parametrize(
    "given",
    [
        "yesterday",
        "",
        "2026-11-23",
        "10:00:00Z",
        "2026-11-23T10:00:00 +01:00",
        "2026-11-23T10:00:00Z\n",
        "２０２６-11-23T10:00:00Z",
        "2026-11-23T10:00:00+24:00",
        "2026-11-23T10:00:00+01:60",
        datetime.date(2026, 11, 23),
        1_700_000_000,
        True,
        ["2026-11-23T10:00:00Z"],
    ],
)
def test_what_is_no_time_is_refused_with_an_example(recorder: valued.Client, given: Any) -> None:
    (sentence,) = problems(recorder.action, "k", {"user.id": 1, "occured_at": given})
    assert sentence.startswith(
        "occured_at: expected a time in ISO 8601, such as '2026-11-23T10:00:00+01:00', or a "
        "datetime, got "
    )
    assert problems(valued.validate, {**EVENTS[0], "occured_at": given}) == (sentence,)


@pytest.mark.parametrize(
    "given",
    [
        "2026-02-31T00:00:00Z",
        "2025-02-29T00:00:00",
        "2026-13-01T00:00:00Z",
        "2026-11-23T24:00:00Z",
        "2026-11-23T10:60:00Z",
        "2026-11-23T10:00:60+01:00",
        "0000-01-01T00:00:00Z",
    ],
)
def test_time_that_never_was_is_refused(recorder: valued.Client, given: str) -> None:
    (sentence,) = problems(recorder.action, "k", {"user.id": 1, "occured_at": given})
    assert sentence.startswith("occured_at: there is no such time; ")
    assert sentence.endswith(" give one such as '2026-11-23T10:00:00+01:00', or a datetime")
    assert problems(valued.validate, {**EVENTS[0], "occured_at": given}) == (sentence,)


IN_BERLIN = """
import json, os, time
os.environ["TZ"] = "CET-1CEST,M3.5.0,M10.5.0/3"  # central European time, as a POSIX rule
time.tzset()
import valued
from valued._events import values as _values

def now(moment):
    _values.time.time = lambda: moment + 0.9
    return _values.now()

# The clocks go forward on 2026-03-29 at 01:00 UTC, and back on 2026-10-25 at 01:00 UTC.
print(json.dumps({
    "before": now(1774745999), "after": now(1774746000),
    "summer": now(1792889999), "winter": now(1792890000),
    "twice": [now(1792890000 - 1800), now(1792890000 + 1800)],
    "naive": _values.with_offset("2026-07-01T12:00:00"),
    "elsewhere": (os.environ.update(TZ="NST3:30"), time.tzset(), now(1774745998))[-1],
    "same second": (now(1774745998), now(1774745998)),
}))
try:
    os.environ["TZ"] = "EAST-5"
    time.tzset()
    _values.with_offset("0001-01-01T00:00:00")
except valued.ValidationError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone of a process is fixed here")
def test_time_is_local_to_the_second_with_its_offset_across_changes_of_the_clocks() -> None:
    result = run("-c", IN_BERLIN)
    assert result.stderr == ""
    times, refusal = result.stdout.splitlines()
    assert json.loads(times) == {
        "before": "2026-03-29T01:59:59+01:00",
        "after": "2026-03-29T03:00:00+02:00",
        "summer": "2026-10-25T02:59:59+02:00",
        "winter": "2026-10-25T02:00:00+01:00",
        "twice": ["2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00"],
        "naive": "2026-07-01T12:00:00+02:00",
        "elsewhere": "2026-03-28T21:29:58-03:30",
        "same second": ["2026-03-28T21:29:58-03:30"] * 2,
    }
    assert refusal.startswith("occured_at: there is no such time; ")


@pytest.mark.parametrize("name", ["user", "customer"])
def test_a_sync_of_one_party_without_its_id_says_where_it_goes(
    recorder: valued.Client, name: str
) -> None:
    for data in (None, {"name": "x"}, {f"{name}.id": 1}, {}, {"id": None}):
        with pytest.raises(valued.ValidationError, match=rf"as in sync_{name}\(\{{'id': 1\}}\)"):
            getattr(recorder, f"sync_{name}")(data)

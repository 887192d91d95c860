"""Any input → plain JSON data: what comes out, what is refused and where, what is shared."""

from __future__ import annotations

import collections
import copy
import enum
import json
import math
import sys
import threading
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import valued
from tests.support.refusals import refusal
from valued._events import serializer as _serializer
from valued._events.serializer import MAX_DEPTH, Snapshot, encode, merge, parts_of


def deep(levels: int, leaf: object = 1) -> Any:
    """*leaf* within so many mappings."""
    for _ in range(levels):
        leaf = {"a": leaf}
    return leaf


# -- keys ------------------------------------------------------------------------------------------


class Field(enum.Enum):
    USER = "user.id"


class Name(str, enum.Enum):
    USER = "user.id"


class Place(enum.IntEnum):
    FIRST = 1


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "printed otherwise"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("user", {"user": 1}),
        ("user.id", {"user": {"id": 1}}),
        (("user", "id"), {"user": {"id": 1}}),
        (("user.location", "country"), {"user": {"location": {"country": 1}}}),
        (("user", ("location", "country")), {"user": {"location": {"country": 1}}}),
        (("user", 5), {"user": {"5": 1}}),
        (7, {"7": 1}),
        (Field.USER, {"user": {"id": 1}}),
        (Name.USER, {"user": {"id": 1}}),
        (Place.FIRST, {"1": 1}),
        ((Place.FIRST, Name.USER), {"1": {"user": {"id": 1}}}),
        (Text("user.id"), {"user": {"id": 1}}),
        ("first name", {"first name": 1}),
        ("größe", {"größe": 1}),
    ],
)
def test_key_stands_for_a_path(key: Any, expected: dict[str, Any]) -> None:
    plain = valued.normalize({key: 1})
    assert plain == expected
    while isinstance(plain, dict):
        assert [type(part) for part in plain] == [str]
        (plain,) = plain.values()


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (None, "NoneType"),
        (True, "bool"),
        (1.5, "float"),
        (b"user", "bytes"),
        (frozenset({"user"}), "frozenset"),
        (("user", None), "NoneType"),
    ],
)
def test_key_of_another_type_is_refused_by_the_name_of_the_type(key: Any, kind: str) -> None:
    error = refusal({"user": {key: 1}})
    assert error.path == f"user.<{type(key).__name__}>"
    assert error.reason == (
        f"a key of type {kind}: keys are strings, such as 'user.id', or sequences of strings"
    )


@pytest.mark.parametrize(
    "key", ["user.", ".user", "user..id", "a..b.c", "a.b.", ".a.b", ".", "..", ("user", ""), "", ()]
)
def test_key_with_an_empty_part_is_refused(key: Any) -> None:
    error = refusal({"a": {key: 1}})
    assert error.path.startswith("a.")
    assert "empty" in error.reason
    assert error.reason.endswith("name a field")


def test_list_is_a_key_where_it_can_be_one() -> None:
    assert parts_of(["user", "location.country"]) == ["user", "location", "country"]
    with pytest.raises(valued.SerializationError, match="an empty key"):
        parts_of([])


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ({"user": 5, "user.id": 1}, "user is both int and a mapping"),
        ({"user.id": 1, "user": 5}, "user is both int and a mapping"),
        ({"user": None, "user.id": 1}, "user is both NoneType and a mapping"),
        ({"a.b.c": 1, "a": {"b": [1]}}, "a.b is both list and a mapping"),
        ({"a": 5, "a.b.c": 1}, "a is both int and a mapping"),
        ({"a.b": 5, "a.b.c": 1}, "a.b is both int and a mapping"),
        ({"a.b.c": {}, "a.b": 5}, "a.b is both int and a mapping"),
    ],
)
def test_two_keys_that_disagree_are_refused(data: dict[str, Any], names: str) -> None:
    error = refusal(data)
    assert error.path == list(data)[1]
    assert error.reason == f"two keys disagree: {names}"
    assert refusal({"x": [0, data]}).path == f"x[1].{error.path}"


def test_of_two_keys_for_one_leaf_the_later_counts() -> None:
    assert valued.normalize({"a.b": 1, ("a", "b"): 2}) == {"a": {"b": 2}}
    assert valued.normalize({"a": {"b": 2}, "a.b": [1]}) == {"a": {"b": [1]}}
    assert valued.normalize({1: "int", "1": "text"}) == {"1": "text"}


def test_dotted_siblings_meet_at_every_depth() -> None:
    data = {"u": {"l.c": "NZ", "l": {"r": "Otago"}}, "u.id": 1, "u.l.t": "Dunedin"}
    expected = {"u": {"l": {"c": "NZ", "r": "Otago", "t": "Dunedin"}, "id": 1}}
    assert valued.normalize(data) == expected


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_number_without_a_form_in_json_is_refused_with_its_place(value: float) -> None:
    error = refusal({"attributes": {"items": [{"price": value}]}})
    assert error.path == "attributes.items[0].price"
    assert error.reason == "JSON has no NaN and no infinity: send None instead"
    assert refusal(value).path == ""


class Unknown:
    """No converter covers it."""


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (Unknown(), ""),
        ({"a": Unknown()}, "a"),
        ({"attributes.format": Unknown()}, "attributes.format"),
        ({"attributes": {"items": [{"price": Unknown()}]}}, "attributes.items[0].price"),
        ({("a", 5): (1, [Unknown()])}, "a.5[1][0]"),
        ({5: {Name.USER: Unknown()}}, "5.user.id"),
        ({Field.USER: Unknown()}, "user.id"),
        ({Text("a.b"): Unknown()}, "a.b"),
        ([{"a": 1}, {"b": Unknown()}], "[1].b"),
        ({"a": collections.OrderedDict(b=Unknown())}, "a.b"),
    ],
)
def test_error_names_the_path_the_type_and_how_to_register(data: object, path: str) -> None:
    error = refusal(data)
    assert error.path == path
    assert error.reason == (
        f"no converter for {__name__}.Unknown: give the class a to_valued_data() method, "
        f"or write: from {__name__} import Unknown; "
        "valued.register(Unknown, lambda it: type(it).__name__)"
    )
    assert str(error) == (f"{path}: {error.reason}" if path else error.reason)
    assert error.__cause__ is None


def test_lone_surrogate_goes_as_its_escape() -> None:
    plain = valued.normalize({"a": "\ud800", "\udfff": 1})
    assert encode(plain) == b'{"a":"\\ud800","\\udfff":1}'
    assert json.loads(encode(plain)) == plain


def test_int_of_any_length_that_python_prints_goes_as_it_is() -> None:
    plain = valued.normalize({"big": 2**64, "bigger": 10**4_000, "negative": -(10**4_000)})
    assert json.loads(encode(plain)) == plain


def test_int_too_long_to_be_written_is_refused_with_its_place() -> None:
    for value in (10**4_300, -(10**4_300)):
        error = refusal({"a": [value]})
        assert error.path == "a[0]"
        assert error.reason == "an integer is too long for JSON: send it as a string"
        assert "too long" in refusal({"a": {value: 1}}).reason


def test_int_is_refused_by_the_limit_that_the_application_sets() -> None:
    before = sys.get_int_max_str_digits()
    try:
        sys.set_int_max_str_digits(640)
        assert refusal({"a": 10**640}).path == "a"
        assert json.loads(encode(valued.normalize({"a": 10**639}))) == {"a": 10**639}
    finally:
        sys.set_int_max_str_digits(before)


def test_encode_refuses_what_is_not_normalized() -> None:
    circular: dict[str, Any] = {}
    circular["a"] = circular
    for data in ({"a": math.nan}, {"a": Unknown()}, circular):
        with pytest.raises(valued.SerializationError, match=r"valued\.normalize") as caught:
            encode(data)
        assert caught.value.__cause__ is not None


# -- depth -----------------------------------------------------------------------------------------


def test_nesting_of_exactly_100_passes_and_of_101_does_not() -> None:
    assert MAX_DEPTH == 100
    assert valued.normalize(deep(100)) == deep(100)
    error = refusal(deep(101))
    assert error.path == "a.a.a.a…"
    assert error.reason == "nesting deeper than 100"


def test_dotted_keys_and_lists_count_for_the_depth() -> None:
    assert valued.normalize({".".join("a" * 100): 1}) == deep(100)
    assert refusal({".".join("a" * 101): 1}).reason == "nesting deeper than 100"
    assert refusal({"a.a": deep(99)}).reason == "nesting deeper than 100"
    lists: Any = 1
    for _ in range(100):
        lists = [lists]
    assert valued.normalize(lists) == lists
    assert refusal([lists]).path == "[0][0][0][0]…"


def test_circle_is_named_where_it_closes() -> None:
    mapping: dict[str, Any] = {}
    mapping["x"] = [mapping]
    error = refusal({"a": mapping})
    assert error.path == "a.x[0]"
    assert error.reason == "circular: this dict contains itself; send its id instead"
    items: list[Any] = []
    items.append(items)
    assert refusal(items).path == "[0]"
    assert refusal(items).reason.startswith("circular: this list contains itself")


class Member:
    def __init__(self) -> None:
        self.team: Any = None

    def to_valued_data(self) -> object:
        return {"team": self.team}


def test_circle_through_converters_is_named_by_its_class() -> None:
    member = Member()
    member.team = {"members": [member]}
    error = refusal({"user": member})
    assert error.path == "user.team.members[0]"
    assert error.reason == "circular: this Member contains itself; send its id instead"


def test_same_object_twice_is_no_circle() -> None:
    place = {"country": "NZ"}
    plain = valued.normalize({"a": place, "b": [place, place]})
    assert plain == {"a": place, "b": [place, place]}
    assert plain["a"] is not plain["b"][0]


# -- snapshots -------------------------------------------------------------------------------------


def test_what_the_caller_changes_afterwards_does_not_reach_the_event() -> None:
    delivered: list[dict[str, Any]] = []
    recorded = threading.Event()

    def transport(event: dict[str, Any]) -> None:
        recorded.wait(10)  # the caller has changed its data by now
        delivered.append(event)

    client = valued.Client(transport)
    data: dict[str, Any] = {"user": {"id": 1}, "attributes": {"tags": ["a"], "set": {1}}}
    client.action("k", data)
    data["user"]["id"] = 2
    data["attributes"]["tags"].append("b")
    data["attributes"]["set"].add(2)
    recorded.set()
    assert client.close(10)
    (event,) = delivered
    assert event["user"] == {"id": 1}
    assert event["attributes"] == {"tags": ["a"], "set": [1]}


def test_transport_that_changes_its_event_changes_nothing_else(
    recorder: valued.Client, sent: list[dict[str, Any]]
) -> None:
    scope = valued.Scope(recorder, {"user": {"id": 1, "tags": ["a"]}})
    scope.action("k")
    sent[0]["user"]["tags"].append("b")
    scope.action("k")
    assert sent[1]["user"] == {"id": 1, "tags": ["a"]}


def test_what_normalize_returned_is_the_callers(recorder: valued.Client) -> None:
    scope = valued.Scope(recorder, {"user": {"id": 1}})
    data = valued.normalize({"attributes": {"a": [1]}})
    scope.apply(data)
    data["attributes"]["a"].append(2)
    data["attributes"]["b"] = 1
    assert scope.to_dict() == {"user": {"id": 1}, "attributes": {"a": [1]}}
    copied = valued.normalize(scope)
    copied["user"]["id"] = 2
    assert scope.user_id == 1


def test_copy_of_a_snapshot_is_plain_data_that_is_normalized_again() -> None:
    snapshot = merge(Snapshot(user={"id": 1}), {"user": {"name": "Ada"}})
    copied = copy.deepcopy(snapshot)
    assert [type(copied), type(copied["user"])] == [dict, dict]
    copied["user"]["location.country"] = "NZ"
    assert valued.normalize(copied)["user"]["location"] == {"country": "NZ"}
    assert "location.country" not in snapshot["user"]


def test_snapshot_inside_other_data_is_copied() -> None:
    snapshot = Snapshot(user=Snapshot(id=1))
    assert valued.normalize(snapshot) is snapshot
    outer = valued.normalize({"a": snapshot})
    assert outer == {"a": {"user": {"id": 1}}}
    assert outer["a"] is not snapshot
    assert outer["a"]["user"] is not snapshot["user"]


# -- changed meanwhile -----------------------------------------------------------------------------


class Changing:
    """Its converter changes what is being read."""

    def __init__(self, change: Any) -> None:
        self._change = change

    def to_valued_data(self) -> object:
        self._change()
        return "converted"


def test_what_a_converter_changes_while_it_is_read_is_read_as_it_was() -> None:
    data: dict[str, Any] = {"a": 1}
    data["b"] = Changing(lambda: data.update({str(number): 0 for number in range(1_000)}))
    data["c"] = 3
    assert valued.normalize(data) == {"a": 1, "b": "converted", "c": 3}
    items: list[Any] = []
    items += [Changing(lambda: items.append(1)), 2, Changing(items.clear), 3]
    assert valued.normalize(items) == ["converted", 2, "converted", 3]


def test_mapping_that_another_thread_adds_to_is_read_as_it_was(in_thread: Any) -> None:
    inside, leave = threading.Event(), threading.Event()
    data: dict[str, Any] = {"a": Changing(lambda: (inside.set(), leave.wait(10))), "b": 2}
    plain = in_thread(valued.normalize, data)
    assert inside.wait(10)
    data["c"] = 3
    del data["b"]
    leave.set()
    assert plain.result(10) == {"a": "converted", "b": 2}


class Broken(Mapping[str, int]):
    """A mapping of the user's own that changes under its iterator, as a dict does."""

    def __getitem__(self, key: str) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("changed size during iteration")

    def __len__(self) -> int:
        return 1


def test_mapping_that_fails_while_it_is_read_is_reported_with_its_cause() -> None:
    error = refusal({"a": Broken()})
    assert error.path == "a"
    assert isinstance(error.__cause__, RuntimeError)


# -- properties ------------------------------------------------------------------------------------

bounded = settings(max_examples=60, deadline=None, derandomize=True)

names = st.text("abö ", min_size=1, max_size=2)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
)
plain_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=12,
)
plain_objects = st.dictionaries(names, plain_values, max_size=4)
loose_values = st.recursive(
    scalars | st.dates() | st.uuids() | st.frozensets(st.integers(), max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(names, inner, max_size=3)
        | st.dictionaries(names, inner, max_size=3).map(MappingProxyType)
    ),
    max_leaves=12,
)


def containers(value: Any) -> Iterator[int]:
    """The identity of each container that could be changed."""
    if isinstance(value, (dict, list)):
        yield id(value)
        for inner in value.values() if isinstance(value, dict) else value:
            yield from containers(inner)
    elif isinstance(value, (tuple, MappingProxyType)):
        for inner in value.values() if isinstance(value, MappingProxyType) else value:
            yield from containers(inner)


def flattened(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            flat.update(flattened(inner, f"{prefix}{name}."))
        else:
            flat[prefix + name] = inner
    return flat


@bounded
@given(loose_values)
def test_normalize_is_idempotent_and_shares_nothing_with_its_input(value: Any) -> None:
    plain = valued.normalize(value)
    again = valued.normalize(plain)
    assert again == plain
    assert not set(containers(plain)) & set(containers(value))
    assert not set(containers(again)) & set(containers(plain))


@bounded
@given(plain_objects)
def test_plain_data_is_normalized_already_and_survives_the_wire(data: dict[str, Any]) -> None:
    plain = valued.normalize(data)
    assert plain == data
    assert json.loads(encode(plain)) == plain


@bounded
@given(plain_objects)
def test_dotted_and_nested_forms_give_the_same(data: dict[str, Any]) -> None:
    flat = flattened(data)
    assert valued.normalize(flat) == data
    assert valued.normalize({tuple(key.split(".")): flat[key] for key in flat}) == data
    backwards = dict(reversed(list(flat.items())))
    assert valued.normalize(backwards) == data


@bounded
@given(plain_objects, plain_objects, plain_objects)
def test_merge_is_deep_and_associative(a: Any, b: Any, c: Any) -> None:
    before = copy.deepcopy((a, b, c))
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, {}) == a == merge({}, a) == merge(a, a)
    merged = merge(a, b)
    assert list(merged) == [*a, *(key for key in b if key not in a)]
    for key, value in merged.items():
        if isinstance(a.get(key), dict) and isinstance(b.get(key), dict):
            assert value == merge(a[key], b[key])
        else:
            assert value == (b[key] if key in b else a[key])
    assert (a, b, c) == before


@pytest.mark.parametrize("other", [None, lambda *_: lambda _value, _depth: ["elsewise"]])
def test_without_the_encoder_in_c_json_itself_encodes(
    other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(json.encoder, "c_make_encoder", other)
        encode = _serializer._made_once()
    event = {"a": [1, 2.5, None, True, "\u00e9"], "b": {"c": "\ud800"}}
    assert encode(event) == _serializer._encode(event)

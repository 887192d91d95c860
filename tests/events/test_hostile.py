"""Objects that raise, lie or never end: our calls raise errors of ours, in time, or none."""

from __future__ import annotations

import abc
import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded

import valued
from tests.support.hostile import (
    KEYS,
    SLOW,
    VALUES,
    Meta,
    Nasty,
    Unhashable,
    check,
    made,
    of,
    raising,
    seed,
    values,
)
from tests.support.refusals import refusal
from valued._events.bad_values import is_a
from valued._events.serializer import encode, parts_of

#: What is strange, and yet has a form in JSON.
ACCEPTED = {
    "text", "surrogate", "enum of a text", "set without order", "dict of lies", "class is a lie",
    "set of what raises", "metaclass lies", "moment of a twisted text",
}  # fmt: skip
QUICK = sorted(VALUES.keys() - SLOW)


@pytest.mark.parametrize("name", VALUES)
def test_hostile_value_is_an_error_with_its_place_or_plain_data(name: str) -> None:
    outcomes = {check(VALUES[name]()), check({"a": [0, VALUES[name]()]})}
    assert outcomes == {"accepted" if name in ACCEPTED else "refused"}
    if name not in ACCEPTED:
        assert refusal({"a": [0, VALUES[name]()]}).path.startswith("a[1]")


@pytest.mark.parametrize("name", [*QUICK, "list is endless", "many of tuples"])
def test_hostile_value_raises_at_most_an_error_of_ours_from_a_call(
    name: str, recorder: valued.Client, sent: list[dict[str, Any]]
) -> None:
    tolerant = valued.Scope(valued.Client(sent.append, invalid="log"))
    for call in (
        lambda: recorder.action("k", {"user.id": 1, "attributes": {"a": VALUES[name]()}}),
        lambda: recorder.action("k", user=VALUES[name]()),
        lambda: recorder.sync_user(VALUES[name]()),
        lambda: recorder.action("k", VALUES[name]()),
        lambda: tolerant.apply({"a": VALUES[name](), "user": {"b": VALUES[name]()}}),
    ):
        with contextlib.suppress(valued.ValuedError):
            call()
    assert json.loads(json.dumps(sent, allow_nan=False)) == sent


@pytest.mark.parametrize("name", KEYS)
def test_hostile_key_is_an_error_with_its_place_or_a_field(name: str) -> None:
    check({"a": {KEYS[name](): 1}})
    check({"a": {KEYS[name](): {"b": [1]}}})
    check({(KEYS[name](), "b"): 1})
    with contextlib.suppress(valued.SerializationError):
        parts_of(KEYS[name]())


@pytest.mark.parametrize("name", ["a million parts", "a million elements", "endless", "in itself"])
def test_key_of_very_many_parts_is_refused_in_milliseconds(name: str) -> None:
    data = {"a": {KEYS[name](): 1}}
    took = []
    for _ in range(3):  # the machine may be busy
        started = time.perf_counter()
        error = refusal(data)
        took.append(time.perf_counter() - started)
    assert min(took) < 0.1
    assert error.path.startswith("a.")
    assert len(error.path) < 500
    assert error.reason == "nesting deeper than 100"


def test_long_key_is_shown_in_part() -> None:
    error = refusal({"k" * 1_000_000: object()})
    assert error.path == "k" * 200 + "…"
    deep: Any = object()
    for _ in range(50):
        deep = {"k" * 100: deep}
    assert len(refusal(deep).path) == 1_001


def test_key_with_lines_and_control_characters_is_shown_on_one_line() -> None:
    error = refusal({"a\nb": {"\x1b[0m\ud800ü": float("nan")}})
    assert error.path == "a\\nb.\\x1b[0m\\ud800ü"
    assert len(error.summary.splitlines()) == 1
    error.summary.encode()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_the_program_goes_through(error: type[BaseException]) -> None:
    def convert() -> object:
        raise error

    with pytest.raises(error):
        valued.normalize({"a": [of(convert)]})
    with pytest.raises(error):
        valued.Scope(valued.Client(print, invalid="log")).apply({"a": [of(convert)]})


def test_caller_near_the_recursion_limit_gets_an_error_of_ours() -> None:
    data = {"a": [{"b": [{"c": [1]}]}]}

    def deeper(found: list[Exception]) -> None:
        try:
            valued.normalize(data)
        except Exception as error:
            found.append(error)
            return
        deeper(found)

    found: list[Exception] = []
    deeper(found)
    assert [type(error) for error in found] == [valued.SerializationError]
    assert isinstance(found[0].__cause__, RecursionError)
    assert sys.getrecursionlimit() >= 1_000


def test_unending_iterator_is_refused_at_a_quarter_of_a_million_values() -> None:
    reason = "more than 250,000 values in one event: send fewer, or their sum"
    for name in ("list is endless", "items are endless", "set is endless", "many of lists"):
        error = refusal({"a": {"b": VALUES[name]()}})
        assert error.reason == reason
        assert error.path.startswith("a.b")


def test_a_quarter_of_a_million_values_pass_and_one_more_does_not() -> None:
    assert len(valued.normalize({"a": [0] * 249_999})["a"]) == 249_999
    assert refusal({"a": [0] * 250_000}).path == "a"


def test_exception_whose_text_raises_is_named_by_its_type() -> None:
    error = refusal({"a": of(raising)})
    assert str(error) == "a: the converter for Hostile raised Nasty: its message can't be read"
    assert error.summary == "a: the converter for Hostile raised Nasty"
    assert isinstance(error.__cause__, Nasty)


def test_summary_has_no_word_of_another_and_no_value() -> None:
    def convert() -> object:
        raise LookupError("secret")

    error = refusal({"user": {"name": of(convert)}})
    assert str(error) == "user.name: the converter for Hostile raised LookupError: secret"
    assert error.summary == "user.name: the converter for Hostile raised LookupError"
    with pytest.raises(valued.SerializationError, match="pass it to") as caught:
        encode({"a": made(__repr__=lambda _: "secret")()})
    assert caught.value.summary == "not plain JSON data: pass it to valued.normalize first"


@pytest.mark.parametrize("name", QUICK)
def test_hostile_value_in_an_event_that_was_not_normalized_is_an_error_of_ours(name: str) -> None:
    with contextlib.suppress(valued.SerializationError):
        encode({"a": VALUES[name]()})


def test_two_keys_that_disagree_are_shown_in_part() -> None:
    error = refusal({"k" * 1_000: 1, ("k" * 1_000, "b"): 2})
    assert len(str(error)) < 700


class Asked(abc.ABC):  # noqa: B024 - asked by `functools`, never made
    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        if other.__name__ == "Hostile":
            raise RuntimeError("secret")
        return False


def test_class_that_raises_when_asked_for_its_subclasses_is_an_error_of_ours() -> None:
    valued.register(Asked, lambda _: 1)
    error = refusal({"a": made()()})
    assert error.summary == "a: the converter for Hostile raised RuntimeError"
    assert valued.normalize({"a": {1}}) == {"a": [1]}


@pytest.mark.parametrize(
    "cls",
    [
        Meta("Hostile", (), {}),
        Unhashable("Hostile", (), {}),
        abc.ABCMeta("Hostile", (), {"__subclasshook__": classmethod(raising)}),
    ],
    ids=lambda cls: type(cls).__name__,
)
def test_class_that_raises_when_asked_is_not_registered(cls: type) -> None:
    with pytest.raises(valued.ValidationError, match=r"cls: Hostile can't say .* \(Nasty\)"):
        valued.register(cls, str)
    assert valued.normalize({"a": {1}}) == {"a": [1]}


@pytest.mark.parametrize("name", ["class raises", "metaclass raises", "getattr raises"])
def test_register_refuses_what_can_not_be_asked(name: str) -> None:
    with pytest.raises(valued.ValidationError, match="cls: expected a class, got Hostile"):
        valued.register(VALUES[name](), str)


@pytest.mark.parametrize("name", VALUES)
def test_any_object_can_be_asked_whether_it_is_of_a_class(name: str) -> None:
    assert is_a(VALUES[name](), (str, abc.ABC)) in (True, False)
    assert is_a("text", str)


# -- left out --------------------------------------------------------------------------------------


def left(value: dict[Any, Any], caplog: pytest.LogCaptureFixture) -> tuple[Any, list[str]]:
    """What is left of *value* in a scope that leaves out what can't be sent; its paths."""
    caplog.clear()
    scope = valued.Scope(valued.Client(print, invalid="log"))
    scope.apply(value)
    lines = [record.getMessage().partition("not sent: ")[2] for record in caplog.records]
    return scope.to_dict(), [line.partition(": ")[0] for line in lines]


def test_smallest_field_that_is_wrong_is_left_out_and_the_rest_is_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = {
        "user": {"id": 1, "name": object(), "location": {"country": "NZ", "area": float("nan")}},
        "user.mail": b"bytes",
        ("user", "age"): 5,
        "tags": ["a", object()],
        "custom": of(lambda: {"a": 1, "b": object()}),
        None: 1,
        "a..b": 2,
        "when": of(raising),
        "all": {"wrong": object()},
    }
    assert left(data, caplog) == (
        {"user": {"id": 1, "location": {"country": "NZ"}, "age": 5}, "all": {}, "customer": None},
        [
            "user.name", "user.location.area", "user.mail", "tags[1]", "custom.b", "<NoneType>",
            "a..b", "when", "all.wrong",
        ],
    )  # fmt: skip


def test_dataclass_as_the_user_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    valued.register(Nasty, lambda _: {"id": 1})
    plain, paths = left({"user": VALUES["dataclass raises"](), "customer": Nasty()}, caplog)
    assert plain == {"customer": {"id": 1}, "user": None}
    assert paths == ["user"]


def test_circle_is_left_out_where_it_closes(caplog: pytest.LogCaptureFixture) -> None:
    data: dict[str, Any] = {"id": 1}
    data["inner"] = {"outer": data, "b": 2}
    plain, paths = left({"a": data}, caplog)
    assert plain == {"a": {"id": 1, "inner": {"b": 2}}}
    assert len(paths) == 1
    assert paths[0].startswith("a.inner.outer")
    assert "circular: this dict contains itself" in caplog.text


def test_what_is_too_deep_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    deep: Any = 1
    for _ in range(99):
        deep = {"a": deep}
    plain, paths = left({"b": deep, "c": {"d": deep}, "e": {"f": {"g": object()}}}, caplog)
    assert plain["b"] == deep
    assert plain["e"] == {"f": {}}
    assert len(paths) == 2
    plain, paths = left({"a": {"b": {".".join("c" * 99): 1, "d": 2}}}, caplog)
    assert plain == {"a": {"b": {"d": 2}}}
    assert len(paths) == 1


def test_too_many_values_are_left_out_together(caplog: pytest.LogCaptureFixture) -> None:
    many = VALUES["many of dicts"]()
    plain, paths = left({"user": {"id": 1}, "a": {"b": many}, "c": many}, caplog)
    assert plain == {"user": {"id": 1}}
    assert len(paths) == 2


# -- generated -------------------------------------------------------------------------------------

COUNT = 500


def test_generated_objects_raise_errors_of_ours_or_are_plain_data() -> None:
    outcomes = generated(QUICK, COUNT)
    assert set(outcomes) == {"accepted", "refused"}


def generated(names: list[str], count: int) -> list[str]:
    """What became of so many values; the seed is printed."""
    outcomes: list[str] = []

    @seeded(seed())
    @settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(values(names))
    def run(make: Callable[[], Any]) -> None:
        outcomes.append(check(make()))

    run()
    return outcomes

"""The errors: what they are, what they say, and that they survive a pickle."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

import valued
from valued import _errors

ERRORS: list[valued.ValuedError] = [
    valued.ValidationError("a: one", "b: another"),
    valued.SerializationError("attributes.items[0].price", "raised KeyError: 5", "raised KeyError"),
    valued.NotConnectedError("call valued.connect(token) first"),
    valued.DeliveryError("the service answered 503", 503, 9, 12.345, "busy", 30.0),
    _errors.PicklingError("the client can't be pickled"),
    valued.ValuedError("anything"),
]


@pytest.mark.parametrize(
    ("error", "built_in"),
    [
        (valued.ValidationError, ValueError),
        (valued.SerializationError, TypeError),
        (valued.NotConnectedError, RuntimeError),
        (valued.DeliveryError, Exception),
        (_errors.PicklingError, TypeError),
    ],
)
def test_error_is_a_valued_error_and_what_python_would_raise(error: type, built_in: type) -> None:
    assert issubclass(error, valued.ValuedError)
    assert issubclass(error, built_in)


def test_every_error_of_ours_is_covered_here() -> None:
    ours = {cls for cls in vars(_errors).values() if isinstance(cls, type)}
    assert ours == {type(error) for error in ERRORS}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_pickle_keeps_the_class_the_attributes_and_the_sentence(
    error: valued.ValuedError, protocol: int
) -> None:
    error.request = "added by the application"  # type: ignore[attr-defined]
    try:
        again = pickle.loads(pickle.dumps(error, protocol))
    finally:
        del error.request  # type: ignore[attr-defined]
    assert type(again) is type(error)
    assert vars(again) == {**vars(error), "request": "added by the application"}
    assert again.args == error.args
    assert str(again) == str(error)


def _refused() -> object:
    return valued.normalize({"attributes": [object()]})


def test_error_of_a_task_comes_back_from_its_process() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        result = pool.submit(_refused)
        with pytest.raises(valued.SerializationError) as caught:
            result.result(30)
    assert caught.value.path == "attributes[0]"
    assert caught.value.reason.startswith("no converter for builtins.object")


def test_traceback_names_what_the_user_typed() -> None:
    assert [type(error).__module__ for error in ERRORS] == ["valued"] * len(ERRORS)


def test_validation_error_holds_a_sentence_for_each_problem() -> None:
    error = valued.ValidationError("a: one", "b: another")
    assert error.problems == ("a: one", "b: another")
    assert str(error) == "a: one; b: another"


def test_serialization_error_says_where_and_why() -> None:
    error = valued.SerializationError("a.b", "wrong")
    assert (error.path, error.reason, str(error)) == ("a.b", "wrong", "a.b: wrong")
    assert str(valued.SerializationError("", "wrong")) == "wrong"


def test_serialization_error_has_a_summary_that_may_be_logged() -> None:
    assert valued.SerializationError("a.b", "secret", "wrong").summary == "a.b: wrong"
    assert valued.SerializationError("", "secret", "wrong").summary == "wrong"
    assert valued.SerializationError("a.b", "secret").summary == "a.b: a value that can't be sent"


@pytest.mark.parametrize(
    ("details", "sentence"),
    [
        ({}, "no answer (1 attempt in 0.0 s)"),
        ({"attempts": 9, "age": 12.345}, "no answer (9 attempts in 12.3 s)"),
        (
            {"status": 400, "body": '{"a"', "attempts": 2, "age": 1.0, "retry_after": 30.0},
            "no answer (2 attempts in 1.0 s); the answer began: '{\"a\"'",
        ),
    ],
)
def test_delivery_error_says_what_was_tried(details: dict[str, Any], sentence: str) -> None:
    error = valued.DeliveryError("no answer", **details)
    assert str(error) == sentence
    assert error.reason == "no answer"
    for name, default in (
        ("status", None),
        ("attempts", 1),
        ("age", 0.0),
        ("body", ""),
        ("retry_after", None),
    ):
        assert getattr(error, name) == details.get(name, default)

"""Live views of a scope's user, customer and attributes, and names that a scope doesn't have."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

import valued


@pytest.fixture
def scope(recorder: valued.Client) -> valued.Scope:
    return valued.Scope(recorder, {"user": {"id": 1, "address": {"city": "Berlin"}, "tags": [1]}})


@pytest.mark.parametrize("name", ["user", "customer", "attributes"])
def test_view_writes_through(
    name: str, recorder: valued.Client, sent: list[dict[str, Any]]
) -> None:
    scope = valued.Scope(recorder, {"user.id": 1, "customer.id": 2})
    view = getattr(scope, name)
    view["plan"] = "pro"
    view.update({"seats.used": 3, "old": 1})
    del view["old"]
    view["seats"]["free"] = 2
    scope.action("k")
    assert sent[0][name].items() >= {"plan": "pro", "seats": {"used": 3, "free": 2}}.items()
    assert view.pop("plan") == "pro"
    assert "plan" not in scope.to_dict()[name]


def test_view_is_live(scope: valued.Scope) -> None:
    view, address = scope.user, scope.user["address"]
    scope["user.name"] = "Ada"
    scope["user.address.city"] = "Bonn"
    assert view["name"] == "Ada"
    assert view["address.city"] == address["city"] == "Bonn"
    assert (list(view), len(view)) == (["id", "address", "tags", "name"], 4)
    del view["address"]
    assert (dict(address), "address" in view) == ({}, False)
    view["id"] = 2
    scope["user.name"] = "Bob"
    assert (view["name"], scope.user_id) == ("Bob", 2)


def test_view_stays_with_its_user(scope: valued.Scope, sent: list[dict[str, Any]]) -> None:
    before = scope.to_dict()["user"]
    ada = scope.user
    scope.user = {"id": 2, "name": "Bob"}
    assert ada == before
    assert ada["address"] == {"city": "Berlin"}
    for write in (lambda: ada.update(name="Ada"), lambda: ada.pop("tags")):
        with pytest.raises(valued.ValidationError, match=r"^user: the scope holds another user"):
            write()
    scope.action("k")
    scope.user = ada  # back again
    scope.action("k")
    assert [event["user"] for event in sent] == [{"id": 2, "name": "Bob"}, before]
    assert ada["id"] == scope.user_id == 1


def test_write_to_the_view_of_another_user_is_tolerated_where_invalid_input_is(
    sent: list[dict[str, Any]],
) -> None:
    client = valued.Client(sent.append, executor=valued.ImmediateExecutor(), invalid="log")
    scope = valued.Scope(client, {"user.id": 1})
    view = scope.user
    scope.user_id = 2
    view["name"] = "Ada"
    assert scope.user == {"id": 2}
    assert client.stats()["invalid"] == 1


def test_view_reads_as_the_mapping_that_it_is_of(scope: valued.Scope) -> None:
    plain = {"id": 1, "address": {"city": "Berlin"}, "tags": [1]}
    view = scope.user
    assert view == plain
    assert plain == view
    assert repr(view) == repr(plain)
    assert view.get("missing") is None
    with pytest.raises(KeyError):
        view["missing"]
    with pytest.raises(KeyError):
        del view["missing"]
    with pytest.raises(valued.SerializationError):
        view[object()]  # type: ignore[index]
    for copied in (copy.copy(view), copy.deepcopy(view), pickle.loads(pickle.dumps(view))):
        assert type(copied) is dict
        assert copied == plain
    assert json.loads(json.dumps(dict(view), default=dict)) == plain
    view["tags"].append(2)  # a list is a copy
    assert scope["user.tags"] == [1]


def test_view_of_attributes_is_there_before_there_are_any(
    scope: valued.Scope, sent: list[dict[str, Any]]
) -> None:
    assert scope.attributes == {}
    scope.attributes["plan"] = "pro"
    scope.action("k")
    scope.attributes = {"other": 1}
    scope.action("k")
    assert [event["attributes"] for event in sent] == [{"plan": "pro"}, {"other": 1}]


def test_view_can_be_given_as_data(
    scope: valued.Scope, recorder: valued.Client, sent: list[dict[str, Any]]
) -> None:
    recorder.action("k", user=scope.user)
    recorder.sync_user(scope.user)
    assert sent[0]["user"] == sent[1]["user"] == scope.to_dict()["user"]


def test_view_of_one_context_shows_no_other_user_in_another(
    scope: valued.Scope, in_thread: Callable[..., Future[Any]]
) -> None:
    view = scope.user
    with scope.nested({"user.id": 2, "attributes.a": 1}):
        nested = scope.user
        assert (view["id"], nested["id"]) == (1, 2)
        assert in_thread(lambda: (view["id"], nested["id"])).result(10) == (1, 2)
        assert scope.attributes == {"a": 1}
    assert nested["id"] == 2
    with scope.isolated({"user.name": "Ada"}):
        assert view["name"] == "Ada"
    assert "name" not in view
    assert scope.attributes == {}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("userid", "user_id"),
        ("user_Id", "user_id"),
        ("usr", "user"),
        ("customerid", "customer_id"),
        ("attribute", "attributes"),
    ],
)
def test_unknown_attribute_is_refused_with_what_is_meant(
    name: str, meant: str, scope: valued.Scope
) -> None:
    hint = rf"did you mean scope\.{meant}\?"
    with pytest.raises(AttributeError, match=hint):
        setattr(scope, name, 1)
    with pytest.raises(AttributeError, match=hint):
        getattr(scope, name)
    valued.connect(print)
    with pytest.raises(AttributeError, match=hint):
        setattr(valued.scope, name, 1)


def test_attribute_that_is_like_none_is_refused_with_what_works(scope: valued.Scope) -> None:
    with pytest.raises(AttributeError, match=r"is scope\.attributes\['team'\]$"):
        scope.team = 5  # type: ignore[attr-defined]
    scope.attributes["team"] = 5
    assert scope["attributes.team"] == 5
    assert not hasattr(scope, "team")
    assert not hasattr(scope, "_team")
    with pytest.raises(AttributeError):
        scope.to_dict = dict  # type: ignore[method-assign,assignment]

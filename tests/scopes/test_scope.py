"""A scope: what it holds, for whom, and what goes along with an event."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import pickle
import threading
import weakref
from typing import Any

import pytest

import valued
from valued._scopes import context as _context

URL = "https://example.com/reports"


@pytest.fixture
def scope(recorder: valued.Client) -> valued.Scope:
    return valued.Scope(recorder, {"user.id": 1})


# -- made with -------------------------------------------------------------------------------------


def test_scope_is_made_with_a_client_or_what_a_client_is_made_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setenv("VALUED_ENV", "test")
    valued.Scope(sent.append, {"user.id": 1}).action("k")
    assert [event["key"] for event in sent] == ["k"]
    assert repr(valued.Scope("s3cret")) == (
        "Scope(Client(endpoint='https://ingest.valued.app/events'))"
    )
    monkeypatch.setenv("VALUED_TOKEN", "s3cret")
    assert "s3cret" not in repr(valued.Scope())
    with pytest.raises(valued.ValidationError, match=r"^token: expected a string, got int"):
        valued.Scope(5)  # type: ignore[arg-type]


def test_defaults_come_as_mapping_as_fields_or_both(recorder: valued.Client) -> None:
    scope = valued.Scope(recorder, {"user": {"id": 1, "name": "Ada"}}, user={"id": 2}, team="a")
    assert scope.to_dict() == {"user": {"id": 2, "name": "Ada"}, "team": "a"}
    assert valued.Scope(recorder).to_dict() == {}
    assert valued.Scope(recorder, scope).to_dict() == scope.to_dict()


def test_repr_shows_no_data_and_no_token(recorder: valued.Client) -> None:
    scope = valued.Scope(recorder, {"user.name": "s3cret"})
    assert "s3cret" not in repr(scope)
    assert repr(scope) == f"Scope({recorder!r})"


# -- keys ------------------------------------------------------------------------------------------


def test_key_is_dotted_or_a_sequence(scope: valued.Scope) -> None:
    scope["user.name"] = "Ada"
    scope["user", "location", "country"] = "NZ"
    scope["user", "location.region"] = "Otago"
    assert scope["user"] == {
        "id": 1,
        "name": "Ada",
        "location": {"country": "NZ", "region": "Otago"},
    }
    assert scope["user.location.country"] == scope["user", "location", "country"] == "NZ"
    assert scope[["user", "id"]] == 1  # type: ignore[index]


def test_missing_key_is_a_key_error_with_the_key(scope: valued.Scope) -> None:
    for key in ("customer", "user.name", "user.id.x", ("user", "name")):
        assert key not in scope
        assert scope.get(key) is None
        assert scope.get(key, 5) == 5
        for access in (scope.__getitem__, scope.__delitem__):
            with pytest.raises(KeyError) as caught:
                access(key)
            assert caught.value.args == (key,)
    assert scope.to_dict() == {"user": {"id": 1}}


def test_key_that_holds_none_is_there(scope: valued.Scope) -> None:
    scope["user.name"] = None
    assert "user.name" in scope
    assert scope.get("user.name", 5) is None


@pytest.mark.parametrize("key", ["", "user.", None, 1.5, ()])
def test_key_that_can_be_none_is_refused(scope: valued.Scope, key: Any) -> None:
    for access in (scope.__getitem__, scope.__delitem__, scope.get, scope.__contains__):
        with pytest.raises(valued.SerializationError, match="key"):
            access(key)
    with pytest.raises(valued.SerializationError, match="key"):
        scope[key] = 1
    assert scope.to_dict() == {"user": {"id": 1}}


def test_setting_replaces_what_is_there(scope: valued.Scope) -> None:
    scope["user.location"] = {"country": "NZ", "region": "Otago"}
    scope["user.location"] = {"country": "FR"}
    assert scope["user.location"] == {"country": "FR"}
    scope["user.location.country.code"] = 33
    assert scope["user.location"] == {"country": {"code": 33}}
    scope["user"] = {"id": 5}
    assert scope.to_dict() == {"user": {"id": 5}}


def test_value_is_normalized_and_its_place_named_where_it_can_not_be(scope: valued.Scope) -> None:
    scope["attributes"] = {"plan.name": "pro", "tags": {"b", "a"}}
    assert scope["attributes"] == {"plan": {"name": "pro"}, "tags": ["a", "b"]}
    before = scope.to_dict()
    with pytest.raises(valued.SerializationError) as caught:
        scope["attributes", "items"] = [{"price": object()}]
    assert caught.value.path == "attributes.items[0].price"
    assert scope.to_dict() == before


def test_deleting_removes_one_value_and_keeps_the_rest(scope: valued.Scope) -> None:
    scope.apply({"user.name": "Ada", "attributes.plan": "pro"})
    del scope["user.name"]
    assert scope.to_dict() == {"user": {"id": 1}, "attributes": {"plan": "pro"}}
    del scope["attributes"]
    del scope["user", "id"]
    assert scope.to_dict() == {"user": {}}


def test_properties_read_and_write_user_and_customer(scope: valued.Scope) -> None:
    assert (scope.user, scope.user_id, scope.customer, scope.customer_id) == (
        {"id": 1},
        1,
        None,
        None,
    )
    scope.user = {"id": 2, "name": "Ada"}
    scope.user_id = 3
    scope.customer_id = 12
    assert scope.user == {"id": 3, "name": "Ada"}
    assert scope.customer == {"id": 12}
    scope.customer = {"id": 13}
    scope.user = None
    assert scope.to_dict() == {"user": None, "customer": {"id": 13}}
    assert scope.user_id is None


class User:
    def __init__(self, identity: int) -> None:
        self.identity = identity

    def to_valued_data(self) -> object:
        return {"id": self.identity}


def test_object_with_a_converter_is_converted_when_it_is_assigned(scope: valued.Scope) -> None:
    user = User(5)
    scope.user = user
    user.identity = 6
    assert scope.user_id == 5


# -- copies ----------------------------------------------------------------------------------------


def test_what_the_scope_gives_is_a_copy_and_what_it_took_is_too(scope: valued.Scope) -> None:
    given = {"tags": ["a"], "plan": {"name": "pro"}}
    scope.apply(attributes=given)
    scope.apply({"attributes.plan.price": 5})
    given["tags"].append("b")  # type: ignore[attr-defined]
    for read in (
        lambda: scope.to_dict()["attributes"],
        lambda: scope["attributes"],
        lambda: scope.get("attributes"),
        lambda: scope.to_valued_data()["attributes"],
        lambda: valued.normalize(scope)["attributes"],
    ):
        data = read()
        assert data == {"tags": ["a"], "plan": {"name": "pro", "price": 5}}
        data["tags"].append("c")
        data["plan"]["name"] = "max"
        data["more"] = 1
    assert scope["attributes"] == {"tags": ["a"], "plan": {"name": "pro", "price": 5}}


def test_data_that_was_read_from_a_scope_is_normalized_like_any_other(
    scope: valued.Scope, recorder: valued.Client, sent: list[dict[str, Any]]
) -> None:
    scope.apply({"user.name": "Ada"})
    user = scope.user
    user["plan.name"] = "pro"
    user["groups"] = {2, 1}
    recorder.sync_user(user)
    assert sent[0]["user"] == {"id": 1, "name": "Ada", "plan": {"name": "pro"}, "groups": [1, 2]}
    scope.user = user
    user["groups"].clear()
    assert scope.user == sent[0]["user"]


# -- apply, reset, nested --------------------------------------------------------------------------


def test_apply_merges_and_reset_falls_back_to_the_defaults(scope: valued.Scope) -> None:
    scope.apply({"user.name": "Ada"}, attributes={"plan": "pro"})
    scope.apply()
    assert scope.to_dict() == {"user": {"id": 1, "name": "Ada"}, "attributes": {"plan": "pro"}}
    scope.reset()
    scope.reset()
    assert scope.to_dict() == {"user": {"id": 1}}


def test_nested_ends_with_its_block_exceptions_included(scope: valued.Scope) -> None:
    scope["attributes.a"] = 1
    before = scope.to_dict()

    def block() -> None:
        with scope.nested({"customer.id": 12}, attributes={"b": 2}) as inner:
            assert inner is scope
            assert scope.to_dict() == {
                "user": {"id": 1},
                "attributes": {"a": 1, "b": 2},
                "customer": {"id": 12},
            }
            del scope["user"]
            with scope.nested():
                scope.reset()
                assert scope.to_dict() == {"user": {"id": 1}}
            assert "user" not in scope
            raise LookupError

    with pytest.raises(LookupError):
        block()
    assert scope.to_dict() == before


@pytest.mark.parametrize("data", [5, {"": 1}, {"a": object()}])
def test_nested_with_bad_data_leaves_the_scope_as_it_was(scope: valued.Scope, data: Any) -> None:
    with pytest.raises(valued.ValuedError), scope.nested(data):
        raise AssertionError("the block ran")
    with pytest.raises(valued.ValuedError):
        scope.apply(data)
    assert scope.to_dict() == {"user": {"id": 1}}


def test_nested_keeps_what_its_block_did_to_another_scope(
    scope: valued.Scope, recorder: valued.Client
) -> None:
    other = valued.Scope(recorder)
    with scope.nested({"customer.id": 12}):
        other["user.id"] = 2
    assert other.to_dict() == {"user": {"id": 2}}
    assert scope.to_dict() == {"user": {"id": 1}}


# -- events ----------------------------------------------------------------------------------------


def test_data_of_a_call_counts_for_that_call(
    scope: valued.Scope, sent: list[dict[str, Any]]
) -> None:
    scope.action("k", {"user.name": "Ada"}, attributes={"a": 1})
    scope.page_view(URL, {"attributes.b": 2})
    scope.pageview(URL)
    assert sent[0]["user"] == {"id": 1, "name": "Ada"}
    assert sent[0]["attributes"] == {"a": 1}
    assert sent[1]["attributes"] == {"source": {"url": URL}, "b": 2}
    assert sent[2]["attributes"] == {"source": {"url": URL}}
    assert scope.to_dict() == {"user": {"id": 1}}


def test_scope_is_data_of_a_client_and_of_another_scope(
    scope: valued.Scope, recorder: valued.Client, sent: list[dict[str, Any]]
) -> None:
    scope.apply({"user.name": "Ada", "attributes.plan": "pro"})
    other = valued.Scope(recorder, {"user.id": 2})
    recorder.action("k", scope, team="a")
    recorder.page_view(URL, scope)
    recorder.sync(scope)
    recorder.sync_user(scope)
    other.action("k", scope)
    other.sync_user(scope, more=1)
    user = {"id": 1, "name": "Ada"}
    assert [event["user"] for event in sent] == [*[user] * 5, {**user, "more": 1}]
    assert sent[0]["team"] == "a"
    assert sent[3].keys() == {"category", "user", "occured_at"}
    with pytest.raises(valued.ValidationError, match=r"Missing user\.id or customer\.id"):
        recorder.sync_customer(scope)
    assert len(sent) == 6


def test_sync_sends_each_party_of_which_more_is_known_than_an_id(
    scope: valued.Scope, sent: list[dict[str, Any]]
) -> None:
    scope.sync()
    assert sent == []
    scope.apply({"user.name": "Ada", "attributes.plan": "pro"})
    scope.sync()
    assert [event["user"] for event in sent] == [{"id": 1, "name": "Ada"}]
    scope.sync({"customer": {"id": 12, "name": "BBC"}}, occured_at="2026-01-01T00:00:00Z")
    assert [event.keys() - {"category", "occured_at"} for event in sent[1:]] == [
        {"user"},
        {"customer"},
    ]
    assert {event["occured_at"] for event in sent[1:]} == {"2026-01-01T00:00:00Z"}
    scope.sync({"user": None})
    scope["user"] = {}
    scope.sync()
    assert len(sent) == 3
    assert "customer" not in scope


@pytest.mark.parametrize(
    "customer",
    [{"name": "no id"}, {"id": "", "name": "BBC"}, 5, {"id": 1, "big": 10**5_000}],
    ids=["no id", "empty id", "no mapping", "no JSON"],
)
def test_sync_of_which_one_half_is_refused_sends_neither(
    scope: valued.Scope, sent: list[dict[str, Any]], customer: Any
) -> None:
    scope["user.name"] = "Ada"
    before = scope.to_dict()
    with pytest.raises(valued.ValuedError):
        scope.sync(customer=customer)
    assert sent == []
    assert scope.to_dict() == before


def test_party_syncs_add_to_what_is_known(scope: valued.Scope, sent: list[dict[str, Any]]) -> None:
    scope["user.name"] = "Ada"
    scope.sync_user({"plan": "pro"}, name="Ada L.")
    scope.sync_user()
    scope.sync_customer(id=12)
    assert [event.get("user") or event["customer"] for event in sent] == [
        {"id": 1, "name": "Ada L.", "plan": "pro"},
        {"id": 1, "name": "Ada"},
        {"id": 12},
    ]
    assert scope.customer is None
    with pytest.raises(valued.ValidationError, match=r"Missing user\.id or customer\.id"):
        scope.sync_customer()


def test_refused_event_leaves_the_scope_and_the_other_events_as_they_were(
    scope: valued.Scope, recorder: valued.Client, sent: list[dict[str, Any]]
) -> None:
    scope.action("first")
    before = scope.to_dict()
    for refused in (
        lambda: scope.action(""),
        lambda: scope.action("k", 5),
        lambda: scope.action("k", {"user": 5}),
        lambda: scope.action("k", {"a": object()}),
        lambda: scope.page_view("", {"b": 1}),
        lambda: scope.sync_user({"id": True}),
        lambda: scope.sync_customer(5),
    ):
        with pytest.raises(valued.ValuedError):
            refused()
    assert scope.to_dict() == before
    scope.action("second")
    assert [event["key"] for event in sent] == ["first", "second"]
    assert recorder.stats()["accepted"] == 2


# -- who sees what ---------------------------------------------------------------------------------


def test_two_threads_never_see_each_others_data(
    scope: valued.Scope, sent: list[dict[str, Any]], in_thread: Any
) -> None:
    scope["attributes.main"] = True
    together = threading.Barrier(2)

    def work(number: int) -> list[Any]:
        seen = [scope.to_dict()]
        scope.user_id = number
        together.wait(10)  # both have set
        seen.append(scope.user_id)
        together.wait(10)  # both have read
        with scope.nested({"customer.id": number}):
            together.wait(10)
            seen.append(scope.to_dict())
            scope.action(f"thread {number}")
            together.wait(10)
        seen.append(scope.to_dict())
        return seen

    results = {number: in_thread(work, number) for number in (2, 3)}
    for number, result in results.items():
        user = {"id": number}
        assert result.result(10) == [
            {"user": {"id": 1}},  # the defaults, not what another thread had set
            number,
            {"user": user, "customer": {"id": number}},
            {"user": user},
        ]
    assert {event["key"]: event["customer"]["id"] for event in sent} == {
        "thread 2": 2,
        "thread 3": 3,
    }
    assert scope.to_dict() == {"user": {"id": 1}, "attributes": {"main": True}}


def test_two_tasks_never_see_each_others_data_and_start_from_a_copy(scope: valued.Scope) -> None:
    async def work(number: int, mine: asyncio.Event, other: asyncio.Event) -> list[Any]:
        seen = [scope.to_dict()]
        scope.user_id = number
        with scope.nested({"customer.id": number}):
            mine.set()
            await other.wait()  # the other one stands in its block, too
            seen.append(scope.to_dict())
        seen.append(scope.to_dict())
        return seen

    async def main() -> None:
        scope["attributes.main"] = True
        events = asyncio.Event(), asyncio.Event()
        tasks = [
            asyncio.create_task(work(2, *events)),
            asyncio.create_task(work(3, *events[::-1])),
        ]
        scope["attributes.main"] = "changed after the tasks were made"
        inherited = {"main": True}
        results = await asyncio.wait_for(asyncio.gather(*tasks), 10)
        for number, seen in zip((2, 3), results, strict=True):
            assert seen == [
                {"user": {"id": 1}, "attributes": inherited},
                {"user": {"id": number}, "attributes": inherited, "customer": {"id": number}},
                {"user": {"id": number}, "attributes": inherited},
            ]
        assert scope.user_id == 1

    asyncio.run(main())
    assert scope.to_dict() == {"user": {"id": 1}}


def test_function_that_a_task_runs_in_a_thread_sees_the_data_of_the_task(
    scope: valued.Scope,
) -> None:
    def work() -> object:
        seen = scope.user_id
        scope.user_id = 3
        return seen

    async def main() -> tuple[object, object]:
        scope.user_id = 2
        return await asyncio.to_thread(work), scope.user_id

    assert asyncio.run(main()) == (2, 2)


def test_two_scopes_never_see_each_others_data(
    recorder: valued.Client, sent: list[dict[str, Any]]
) -> None:
    one, two = valued.Scope(recorder, {"user.id": 1}), valued.Scope(recorder, {"user.id": 2})
    one["attributes.a"] = 1
    with two.nested({"customer.id": 2}):
        one["attributes.b"] = 1
        two.action("two")
        one.action("one")
    assert sent[0].keys() == {"category", "key", "user", "customer", "occured_at"}
    assert sent[1]["attributes"] == {"a": 1, "b": 1}
    assert "customer" not in sent[1]
    two.reset()
    assert one["attributes"] == {"a": 1, "b": 1}


def test_child_has_the_data_of_its_parent_and_shares_no_change(
    scope: valued.Scope, fork: Any
) -> None:
    scope["attributes.a"] = 1

    def child() -> None:
        assert scope.to_dict() == {"user": {"id": 1}, "attributes": {"a": 1}}
        scope.reset()

    with scope.nested({"customer.id": 12}):
        del scope["customer"]
        assert fork(child).wait() == 0
    assert scope.to_dict() == {"user": {"id": 1}, "attributes": {"a": 1}}


def test_scopes_that_are_gone_leave_nothing_in_the_context(recorder: valued.Client) -> None:
    def held() -> int:
        return len(_context._current.get({}))

    def work() -> None:
        kept = valued.Scope(recorder)
        kept["user.id"] = 1
        gone = []
        for number in range(100):
            scope = valued.Scope(recorder)
            with scope.nested({"user.id": number}):
                scope["attributes.a"] = number
            gone.append(weakref.ref(scope))
        del scope
        gc.collect()
        assert [reference() for reference in gone] == [None] * 100
        kept["user.id"] = 2  # what is gone goes with the next change
        assert held() == 1
        assert kept.user_id == 2

    contextvars.copy_context().run(work)


# -- pickles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [lambda scope: pickle.loads(pickle.dumps(scope)), copy.deepcopy])
def test_scope_goes_into_a_pickle_with_its_defaults_and_what_it_holds_here(
    monkeypatch: pytest.MonkeyPatch, again: Any
) -> None:
    monkeypatch.setenv("VALUED_TOKEN", "s3cret")
    scope = valued.Scope(valued.Client(), {"user.id": 1})
    untouched = again(scope)
    assert untouched.to_dict() == {"user": {"id": 1}}
    scope["user.name"] = "Ada"
    restored = again(scope)
    assert repr(restored) == repr(scope)
    assert restored.to_dict() == {"user": {"id": 1, "name": "Ada"}}
    restored["user.name"] = "Grace"
    assert scope["user.name"] == "Ada"
    restored.reset()
    assert restored.to_dict() == untouched.to_dict() == {"user": {"id": 1}}
    assert b"s3cret" not in pickle.dumps(scope)


def test_scope_whose_client_can_not_be_pickled_is_refused() -> None:
    other = valued.Scope(valued.Client(lambda _: None))
    with pytest.raises(valued.PicklingError, match="transport: "):
        pickle.dumps(other)
    with pytest.raises(valued.PicklingError):
        pickle.dumps(valued.Scope("s3cret"))


# -- a task of Celery's ----------------------------------------------------------------------------


def test_a_task_starts_with_the_defaults_and_gives_back_what_was_held(
    recorder: valued.Client,
) -> None:
    isolated, kept = (
        valued.Scope(recorder, {"team": "a"}),
        valued.Scope(valued.Client(print, isolate_tasks=False)),
    )

    def work() -> None:
        isolated.user_id = kept.user_id = 1
        end = _context.begin_task()
        assert (isolated.to_dict(), kept.user_id) == ({"team": "a"}, 1)
        isolated.user_id = kept.user_id = 2
        end()
        assert (isolated.user_id, kept.user_id) == (1, 2)
        end = _context.begin_task()
        with kept.isolated(user={"id": 3}):
            pass
        kept.reset()
        end()
        assert (isolated.user_id, kept.user) == (1, None)

    contextvars.copy_context().run(work)

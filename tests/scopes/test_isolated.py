"""`Scope.isolated`: a unit of work has data of its own, wherever it is entered, and leaves none."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import os
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

import valued
from tests.support.processes import Child

Event = dict[str, Any]
InThread = Callable[..., "Future[Any]"]


@pytest.fixture
def scope(recorder: valued.Client) -> valued.Scope:
    return valued.Scope(recorder, {"attributes.app": "test"})


def users(sent: list[Event]) -> list[Any]:
    return [event["user"]["id"] for event in sent]


# -- what it starts with, and what it leaves -------------------------------------------------------


def test_a_unit_starts_with_the_defaults_and_never_with_what_the_thread_held(
    scope: valued.Scope,
) -> None:
    scope.user = {"id": 1}
    with scope.isolated({"customer.id": 2}, team="a") as inside:
        assert inside is scope
        assert scope.to_dict() == {
            "attributes": {"app": "test"},
            "customer": {"id": 2},
            "team": "a",
        }
        scope.user_id = 5
    assert scope.to_dict() == {"attributes": {"app": "test"}, "user": {"id": 1}}


def test_defaults_of_the_client_are_what_every_scope_starts_with(sent: list[Event]) -> None:
    client = valued.Client(
        sent.append,
        executor=valued.ImmediateExecutor(),
        defaults={"attributes.env": "prod", "customer.id": 1},
    )
    scope = valued.Scope(client, {"customer.id": 2})
    assert scope.to_dict() == {"attributes": {"env": "prod"}, "customer": {"id": 2}}
    valued.connect(client)
    valued.scope.apply({"attributes.more": 1})
    with valued.isolated(user={"id": 3}):
        valued.action("k")
    valued.scope.reset()
    assert valued.scope.to_dict() == {"attributes": {"env": "prod"}, "customer": {"id": 1}}
    assert sent[0]["attributes"] == {"env": "prod"}
    restored = pickle.loads(pickle.dumps(valued.Scope(valued.Client(print, defaults={"a": 1}))))
    assert restored.to_dict() == {"a": 1}


def test_a_unit_ends_with_an_exception_and_with_blocks_that_were_left_open(
    scope: valued.Scope,
) -> None:
    scope.user_id = 1

    def left_open() -> None:
        with scope.isolated(user={"id": 2}):
            scope.nested({"user.id": 3}).__enter__()
            raise LookupError

    with pytest.raises(LookupError):
        left_open()
    assert scope.user_id == 1


def test_units_may_be_within_each_other_and_entered_again(scope: valued.Scope) -> None:
    outer, inner = scope.isolated(user={"id": 1}), scope.isolated(user={"id": 2})
    with outer, inner:
        assert scope.user_id == 2
        with outer.entered(), outer:
            assert scope.user_id == 1
            scope.customer_id = 7
        assert scope.to_dict()["user"] == {"id": 2}
        assert scope.customer is None
    with outer:
        assert scope.customer_id == 7
    assert scope.user is None


def test_other_scopes_keep_what_they_hold(scope: valued.Scope, recorder: valued.Client) -> None:
    other = valued.Scope(recorder)
    other.user_id = 1
    with scope.isolated():
        assert other.user_id == 1
        other.user_id = 2
    assert other.user_id == 2


def test_leaving_in_another_context_changes_nothing_there(scope: valued.Scope) -> None:
    unit = scope.isolated(user={"id": 1})
    for block in (unit, unit.entered()):
        scope.user_id = 9
        contextvars.copy_context().run(block.__enter__)
        block.__exit__(None, None, None)
        assert scope.user_id == 9
        # A copy in which the unit is entered once more, by another block.
        with unit:
            contextvars.copy_context().run(unit.entered().__enter__)
            inner = unit.entered()
            contextvars.copy_context().run(inner.__enter__)
            inner.__exit__(None, None, None)
            assert scope.user_id == 1


def test_a_unit_shows_no_data_and_stays_in_its_process(scope: valued.Scope) -> None:
    unit = scope.isolated(user={"id": 1, "name": "s3cret"})
    assert repr(unit) == f"Isolated({scope!r})"
    with pytest.raises(valued.PicklingError, match=r"valued\.isolated\(data\)"):
        pickle.dumps(unit.run)


def test_reset_within_a_unit_falls_back_to_the_defaults(scope: valued.Scope) -> None:
    with scope.isolated(user={"id": 1}):
        with scope.nested({"customer.id": 2}):
            scope.reset()
            assert scope.to_dict() == {"attributes": {"app": "test"}}
            scope["customer", "name"] = "BBC"
            assert scope.to_dict()["customer"] == {"name": "BBC"}
        assert scope.user_id == 1
        scope.reset()
        assert scope.to_dict() == {"attributes": {"app": "test"}}


# -- threads, tasks, generators --------------------------------------------------------------------


def test_what_a_thread_of_the_unit_sets_is_seen_in_all_of_it(
    scope: valued.Scope, in_thread: InThread
) -> None:
    unit = scope.isolated()
    with unit:
        in_thread(unit.run, setattr, scope, "user_id", 5).result(10)
        assert scope.user_id == 5
        del scope["user"]
        assert in_thread(unit.run, lambda: scope.user).result(10) is None
    assert in_thread(lambda: scope.user).result(10) is None
    with pytest.raises(KeyError):
        unit.run(scope.__getitem__, "user")


def test_threads_that_write_to_one_unit_lose_nothing(scope: valued.Scope) -> None:
    unit = scope.isolated()
    started = threading.Barrier(4)

    def write(number: int) -> None:
        started.wait(10)
        for step in range(200):
            scope[f"attributes.t{number}.s{step}"] = step

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(functools.partial(unit.run, write), range(4)))
    with unit:
        written = scope["attributes"]
    assert [len(written[f"t{number}"]) for number in range(4)] == [200] * 4


def test_a_nested_block_lies_over_the_live_data_of_its_unit(
    scope: valued.Scope, in_thread: InThread
) -> None:
    unit = scope.isolated(user={"id": 1})
    with unit, scope.nested({"user.id": 1, "customer": {"id": 2, "name": "BBC"}}):
        with scope.nested({"attributes.inner": 1}):
            in_thread(unit.run, scope.apply, {"user": {"id": 8, "name": "Ada"}, "team": "a"})
            in_thread(unit.run, scope.apply, {"customer.plan": "pro"}).result(10)
            # The block set the id, to what it was; the rest is the unit's.
            assert scope.user == {"id": 1, "name": "Ada"}
            assert scope.customer == {"id": 2, "name": "BBC", "plan": "pro"}
            assert scope["team"] == "a"
            scope["team"] = "b"
            del scope["customer", "name"]
            scope.user = {"name": "Grace"}
            scope["user.id"] = 4
            assert in_thread(unit.run, scope.to_dict).result(10)["team"] == "a"
            assert (scope.user, scope.customer) == (
                {"name": "Grace", "id": 4},
                {"id": 2, "plan": "pro"},
            )
        assert scope.user == {"id": 1, "name": "Ada"}
        assert scope["team"] == "a"
        assert scope["attributes"] == {"app": "test"}


def test_two_streams_that_take_turns_in_one_thread_keep_their_users(
    scope: valued.Scope, sent: list[Event]
) -> None:
    def stream(unit: valued.Isolated) -> Iterator[None]:
        while True:
            with unit.entered():
                scope.action("chunk")
            yield

    streams = [stream(scope.isolated(user={"id": number})) for number in (1, 2)]
    for one in streams * 2:
        next(one)
    assert users(sent) == [1, 2, 1, 2]
    assert scope.user is None


@pytest.mark.parametrize("within", [True, False])
def test_a_block_of_a_generator_that_is_dropped_changes_nothing_for_who_is_served_then(
    within: bool, scope: valued.Scope, sent: list[Event]
) -> None:
    def stream() -> Iterator[None]:
        with scope.nested({"user.id": 1}), scope.isolated(user={"id": 1}):
            yield

    def serve() -> None:
        scope.user_id = 9
        dropped = [stream()]
        dropped.append(dropped)  # type: ignore[arg-type]  # for the garbage collector
        if within:
            unit.run(next, dropped[0])
        else:
            next(dropped[0])

    unit = scope.isolated(user={"id": 8})
    contextvars.copy_context().run(serve)
    with scope.nested(user={"id": 2}):
        gc.collect()
        scope.action("k")
        with scope.isolated(user={"id": 3}):
            scope.action("k")
    assert users(sent) == [2, 3]
    assert scope.user is None


def test_a_user_that_a_copy_of_the_context_sets_is_seen_by_its_unit(
    scope: valued.Scope, sent: list[Event]
) -> None:
    async def request(number: int) -> None:
        with scope.isolated():
            await asyncio.to_thread(setattr, scope, "user_id", number)
            await asyncio.gather(*(asyncio.create_task(child(number)) for _ in range(2)))
            scope.action("k", {"attributes.expected": number})

    async def child(number: int) -> None:
        with scope.nested({"customer.id": number}):
            await asyncio.sleep(0)
            scope.action("k", {"attributes.expected": number})

    async def main() -> None:
        await asyncio.gather(*map(request, range(1, 20)))

    asyncio.run(main())
    assert users(sent) == [event["attributes"]["expected"] for event in sent]
    assert len(sent) == 19 * 3


def test_a_task_that_goes_on_after_its_unit_keeps_the_data(
    scope: valued.Scope, sent: list[Event]
) -> None:
    async def main() -> None:
        over = asyncio.Event()

        async def later() -> None:
            await over.wait()
            scope.action("k")

        with scope.isolated(user={"id": 1}):
            task = asyncio.create_task(later())
            await asyncio.sleep(0)
        with scope.isolated(user={"id": 2}):
            over.set()
            await task

    asyncio.run(main())
    assert users(sent) == [1]


def test_a_unit_around_an_async_generator_leaves_nothing_behind(scope: valued.Scope) -> None:
    @contextlib.asynccontextmanager
    async def dependency() -> AsyncIterator[None]:
        with scope.isolated(user={"id": 1}):
            yield

    async def main() -> None:
        block = dependency()
        await asyncio.create_task(block.__aenter__())  # type: ignore[arg-type]
        await asyncio.create_task(block.__aexit__(None, None, None))  # type: ignore[arg-type]
        assert scope.user is None

    asyncio.run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_copies_the_unit_whatever_thread_is_writing_to_it(
    fork: Callable[..., Child], scope: valued.Scope, in_thread: InThread
) -> None:
    from valued._scopes import context as _context

    unit = scope.isolated(user={"id": 1})
    inside, release = threading.Event(), threading.Event()

    def hold_the_lock() -> None:
        with _context._lock.get():
            inside.set()
            assert release.wait(30)

    def child() -> None:
        with unit:
            scope["user.name"] = "Ada"  # takes the lock that a thread held at the fork
            assert scope.user == {"id": 1, "name": "Ada"}

    holder = in_thread(hold_the_lock)
    assert inside.wait(10)
    with unit:
        forked = fork(child)
    assert forked.wait() == 0
    release.set()
    holder.result(10)
    assert unit.run(lambda: scope.user) == {"id": 1}


# -- lazy ------------------------------------------------------------------------------------------


class Asked:
    """A function for `lazy`: gives what it is told to, one after the other, and counts."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.count = 0

    def __call__(self) -> Any:
        self.count += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_lazy_field_is_asked_for_at_the_first_event_that_lacks_it(
    scope: valued.Scope, sent: list[Event]
) -> None:
    user = Asked({"id": 1})
    with scope.isolated(lazy={"user": user}):
        scope["team"] = "a"
        scope.action("k", {"user": {"id": 5}})
        scope.action("k", user=None, customer={"id": 1})
        assert scope["team"] == "a"
        assert user.count == 0
        scope.action("k")
        scope.action("k", {"user.name": "Ada"})
    assert user.count == 1
    assert [event["user"] for event in sent] == [
        {"id": 5}, None, {"id": 1}, {"id": 1, "name": "Ada"},
    ]  # fmt: skip


def test_a_unit_without_an_event_asks_for_nothing(scope: valued.Scope) -> None:
    with scope.isolated(lazy={"user": Asked()}), scope.nested({"user.name": "Ada"}):
        scope.customer = {"id": 1}


def test_none_is_not_kept_and_asked_for_once_for_each_event(
    scope: valued.Scope, sent: list[Event]
) -> None:
    user = Asked(None, {"id": 1})
    with scope.isolated(lazy={"user": user}):
        with pytest.raises(valued.ValidationError, match=r"^Missing user\.id"):
            scope.page_view("https://example.com/login")
        assert user.count == 1
        scope.action("signed.in")
        scope.sync_user(name="Ada")
        scope.sync_user({"id": 1})
    assert user.count == 2
    assert users(sent) == [1, 1, 1]


@pytest.mark.parametrize(
    "read",
    [
        lambda scope: scope.user, lambda scope: scope.to_dict()["user"],
        lambda scope: scope["user"], lambda scope: {"id": scope.get("user.id")},
        lambda scope: {"id": scope.user_id}, lambda scope: valued.normalize(scope)["user"],
    ],
)  # fmt: skip
def test_reading_asks_too(scope: valued.Scope, read: Callable[[valued.Scope], Any]) -> None:
    customer = Asked({"id": 2})
    with scope.isolated(lazy={"user": Asked({"id": 1}), "customer": customer}):
        assert read(scope) == {"id": 1}
        assert scope.customer_id == 2
    assert customer.count == 1


@pytest.mark.parametrize("given", [None, {"id": 4}, {"name": "Guest"}])
def test_an_assignment_ends_it(scope: valued.Scope, given: Any) -> None:
    with scope.isolated(lazy={"user": Asked()}):
        scope.user = given
        assert scope.user == given
        scope.action("k", {"customer.id": 1})
        with scope.nested(user=given):
            scope.action("k", {"customer.id": 1})


def test_an_id_that_is_assigned_ends_it_and_more_of_a_user_adds_to_it(scope: valued.Scope) -> None:
    with scope.isolated(lazy={"user": Asked()}):
        scope.user_id = 5
        assert scope.user == {"id": 5}
    with scope.isolated(lazy={"user": Asked({"id": 1})}):
        scope.apply({"user.name": "Ada"})
        assert scope.user == {"id": 1, "name": "Ada"}
    with scope.isolated(lazy={"user": Asked({"id": 1})}):
        scope["user", "name"] = "Ada"
        assert scope.user == {"id": 1, "name": "Ada"}


def test_a_part_of_a_user_that_is_set_before_the_login_leaves_room_for_it(
    scope: valued.Scope, sent: list[Event]
) -> None:
    for unit in (
        scope.isolated(lazy={"user": Asked(None, {"id": 7})}),
        scope.isolated(functools.partial(Asked(None, {"user.id": 7}))),
    ):
        with unit:
            assert scope.user is None
            scope["user.locale"] = "de"
            scope.action("k")
            scope.action("k")
    assert [event["user"] for event in sent] == [{"id": 7, "locale": "de"}] * 4
    with scope.isolated(lazy={"user": Asked({"id": 8})}):
        scope.user = {"name": "Guest"}
        del scope["user"]
        assert scope.user_id == 8


def test_a_field_that_has_no_id_by_nature_is_asked_for_once(scope: valued.Scope) -> None:
    with scope.isolated(lazy={"session": Asked({"plan": "pro"})}):
        for _ in range(2):
            assert scope["session.plan"] == "pro"


def test_a_coroutine_runs_within_its_unit(scope: valued.Scope, sent: list[Event]) -> None:
    async def work(number: int) -> int:
        scope.user_id = number
        await asyncio.sleep(0)
        scope.action("k")
        return number

    async def main() -> None:
        with scope.isolated(user={"id": 9}):
            units = [scope.isolated() for _ in range(3)]
            done = [unit.run(work, number) for number, unit in enumerate(units)]
            assert await asyncio.gather(*done) == [0, 1, 2]
            assert scope.user_id == 9

    asyncio.run(main())
    assert sorted(users(sent)) == [0, 1, 2]


def test_what_a_nested_block_takes_away_or_sets_is_not_asked_for(
    scope: valued.Scope, sent: list[Event]
) -> None:
    with scope.isolated(lazy={"user": Asked({"id": 1})}):
        with scope.nested({"user.id": 5}):
            scope.action("k")
        with scope.nested({"user.name": "Ada"}):
            scope.action("k")
    assert [event["user"] for event in sent] == [{"id": 5}, {"id": 1, "name": "Ada"}]


def test_what_was_set_while_it_was_asked_for_counts(scope: valued.Scope) -> None:
    def user() -> Any:
        scope.user = {"id": 2}
        return {"id": 1, "name": "Ada"}

    with scope.isolated(lazy={"user": user}):
        assert scope.user == {"id": 2}


def test_a_function_that_records_and_reads_itself_is_not_called_again(
    scope: valued.Scope, sent: list[Event]
) -> None:
    def user() -> Any:
        scope.action("asked", {"customer.id": 1})
        assert scope.user is None
        return {"id": 1}

    with scope.isolated(lazy={"user": user}):
        scope.action("k")
    assert [event.get("user") for event in sent] == [None, {"id": 1}]


def test_what_it_raises_or_can_not_be_sent_the_call_raises(scope: valued.Scope) -> None:
    with scope.isolated(lazy={"user": Asked(LookupError("no session"), object(), {"id": 1})}):
        with pytest.raises(LookupError, match="no session"):
            scope.action("k")
        with pytest.raises(valued.SerializationError, match=r"^user: "):
            scope.action("k")
        scope.action("k")


def test_another_thread_asks_while_one_is_being_answered(
    scope: valued.Scope, in_thread: InThread
) -> None:
    both = threading.Barrier(2)

    def user() -> Any:
        both.wait(10)
        return {"id": 1}

    unit = scope.isolated(lazy={"user": user})
    found = [in_thread(unit.run, lambda: scope.user_id) for _ in range(2)]
    assert [one.result(10) for one in found] == [1, 1]


def test_reset_begins_once_more(scope: valued.Scope) -> None:
    with scope.isolated(lazy={"user": Asked({"id": 1}, {"id": 2})}):
        assert scope.user_id == 1
        scope.reset()
        assert scope.user_id == 2
    with scope.isolated(functools.partial(Asked({"user.id": 1}, {"user.id": 2}))):
        assert scope.user_id == 1
        scope.reset()
        assert scope.user_id == 2


def test_a_function_may_give_the_data_as_a_whole(scope: valued.Scope, sent: list[Event]) -> None:
    asked = Asked(None, {"user": {"id": 1, "name": "Ada"}, "customer.id": 3, "attributes.a": 1})
    with scope.isolated(lambda: asked(), team="x"):
        scope.customer = {"id": 4}
        assert asked.count == 0
        assert scope.user is None
        scope.action("k")
        scope.action("k")
        assert scope.get("nothing") is None
    assert asked.count == 2
    assert sent[0] == {
        **sent[0],
        "user": {"id": 1, "name": "Ada"},
        "customer": {"id": 4},
        "attributes": {"a": 1, "app": "test"},
        "team": "x",
    }
    with (
        scope.isolated(lambda: 5),
        pytest.raises(valued.ValidationError, match=r"^data: expected a mapping"),
    ):
        scope.action("k")


@pytest.mark.parametrize(
    ("lazy", "message"),
    [
        (5, r"^lazy: expected a mapping of fields to functions, .* got int"),
        ({5: print}, r"^lazy: expected the name of a field, such as 'user', got int"),
        ({"": print}, "got ''"),
        ({"user.id": print}, r"got 'user\.id'"),
        ({"user": {"id": 1}}, r"^lazy: expected a function for 'user', .* got dict"),
    ],
)
def test_lazy_must_be_functions_by_the_name_of_a_field(
    scope: valued.Scope, lazy: Any, message: str
) -> None:
    with pytest.raises(valued.ValidationError, match=message):
        scope.isolated(lazy=lazy)


# -- the shared scope ------------------------------------------------------------------------------


def test_before_connect_a_unit_passes_through(recorder: valued.Client, sent: list[Event]) -> None:
    unit = valued.isolated(user={"id": 1})
    with unit as inside, unit.entered():
        assert inside is valued.scope
        with pytest.raises(valued.NotConnectedError):
            valued.scope.user_id  # noqa: B018
        valued.connect(recorder)
        valued.scope.user_id = 2
        valued.action("k")
    valued.action("k")
    with valued.isolated(user={"id": 3}):
        valued.action("k")
    assert unit.run(lambda: valued.scope.user_id) == 2
    assert users(sent) == [2, 2, 3]


def test_connecting_again_within_a_unit_counts_from_the_next_one_on(
    recorder: valued.Client,
) -> None:
    valued.connect(recorder)
    with valued.isolated(user={"id": 1}):
        valued.connect(recorder)
        assert valued.scope.user is None
    with valued.isolated(user={"id": 2}):
        assert valued.scope.user_id == 2
    assert valued.scope.user is None

"""What a team decides before it deploys: off switch, bad input, anonymous visitors, a last look."""

from __future__ import annotations

import functools
import logging
import math
import os
import pickle
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from types import MappingProxyType
from typing import Any

import pytest

import valued
from tests.support.processes import Child, run

Make = Callable[..., valued.Client]
JSONObject = dict[str, Any]


def refuse(_event: JSONObject) -> None:
    """A ``before_send`` that lets nothing through."""


async def later(event: JSONObject) -> JSONObject:
    return event


class Later:
    """An object whose calls make a coroutine."""

    async def __call__(self, event: JSONObject) -> JSONObject:
        return event


def immediate(sent: list[JSONObject], **options: Any) -> valued.Client:
    return valued.Client(sent.append, executor=valued.ImmediateExecutor(), **options)


class Unknown:
    """An object that can not be sent."""


class Refusing(type):
    """A class of classes that can be asked nothing."""

    def __eq__(cls, other: object) -> bool:
        raise LookupError("ada@example.com")

    __hash__ = type.__hash__

    def __getattribute__(cls, name: str) -> Any:
        raise LookupError("ada@example.com")


class Hostile(metaclass=Refusing):
    """An object of such a class."""


class Raising:
    """Raises what holds a value."""

    def to_valued_data(self) -> object:
        raise ValueError("ada@example.com")


def fail() -> object:
    raise LookupError("ada@example.com")


class Account:
    """A user of which a detail can't be sent."""

    def __init__(self, number: int) -> None:
        self.id = number

    def to_valued_data(self) -> object:
        return {"id": self.id, "score": math.nan}


class Login:
    """Data of a whole event, of which the attributes can't be sent."""

    def __init__(self, number: int) -> None:
        self.id = number

    def to_valued_data(self) -> object:
        return {"user": {"id": self.id}, "attributes": {"score": math.nan}}


# -- each option, by each way ----------------------------------------------------------------------

#: What has an effect: an option, its value, its variable and what that says; the count that tells.
WAYS = [
    ("enabled", False, "VALUED_DISABLED", "1", "disabled"),
    ("invalid", "log", "VALUED_INVALID", "log", "invalid"),
    ("anonymous", "drop", "VALUED_ANONYMOUS", "drop", "anonymous"),
    ("before_send", refuse, None, None, "refused"),
]


def use(client: valued.Client) -> JSONObject:
    """One event of each kind; the figures."""
    client.action("fine", {"user.id": 1})
    for bad in ({"user.id": 1, "attributes.ratio": math.nan}, {}):
        try:
            client.action("bad", bad)
        except valued.ValuedError:
            continue
    return dict(client.stats())


@pytest.mark.parametrize(("option", "value", "variable", "said", "counted"), WAYS)
def test_each_option_works_by_client_connect_and_variable(
    monkeypatch: pytest.MonkeyPatch,
    sent: list[JSONObject],
    option: str,
    value: object,
    variable: str | None,
    said: str | None,
    counted: str,
) -> None:
    executor = valued.ImmediateExecutor()
    for make in (valued.Client, valued.connect):
        sent.clear()
        plain = use(make(sent.append, executor=executor))
        assert (plain[counted], len(sent)) == (0, 1)
        figures = use(make(sent.append, executor=executor, **{option: value}))
        assert figures[counted] >= 1
        if variable is None or said is None:
            continue
        monkeypatch.setenv(variable, said)
        assert use(make(sent.append, executor=executor))[counted] == figures[counted]
        opposite = {"enabled": True}.get(option, "raise")  # an argument wins
        assert use(make(sent.append, executor=executor, **{option: opposite}))[counted] == 0
        monkeypatch.delenv(variable)


@pytest.mark.parametrize(("option", "value", "variable", "said", "counted"), WAYS)
def test_each_option_works_in_the_settings_of_django(
    option: str, value: object, variable: str | None, said: str | None, counted: str
) -> None:
    pytest.importorskip("django")
    program = (
        "import sys, valued, django, tests.events.test_refusals as it\n"
        "from django.conf import settings\n"
        "VALUED = {'TOKEN': 'any', 'ENDPOINT': 'http://127.0.0.1:9/', 'SHUTDOWN_TIMEOUT': 0}\n"
        "VALUED.update(GIVEN)\n"
        "settings.configure(INSTALLED_APPS=['valued.integrations.django'], VALUED=VALUED)\n"
        "django.setup()\n"
        "print(it.use(valued.client())[sys.argv[1]])\n"
    )
    shown = "it.refuse" if value is refuse else repr(value)
    by_setting = program.replace("GIVEN", f"{{{option.upper()!r}: {shown}}}")
    ended = run("-c", by_setting, counted)
    assert int(ended.stdout) >= 1, ended.stderr
    if variable is not None and said is not None:
        environment = {**os.environ, variable: said}
        ended = run("-c", program.replace("GIVEN", "{}"), counted, env=environment)
        assert int(ended.stdout) >= 1, ended.stderr


@pytest.mark.parametrize("transport", [later, Later(), functools.partial(later)])
def test_transport_that_would_never_run_is_refused(transport: Any) -> None:
    with pytest.raises(valued.ValidationError, match=r"^token: expected a transport without async"):
        valued.Client(transport)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("api_key", r"valued\.Client\('TOKEN'\)"),
        ("host", r"valued\.Client\('TOKEN', 'http://127\.0\.0\.1:4567/events'\)"),
        ("debug", r"logging\.getLogger\('valued'\)\.setLevel\('DEBUG'\)"),
        ("disabled", "enabled=False"),
        ("enable", r"did you mean enabled\?"),
    ],
)
def test_option_of_another_client_is_refused_with_what_is_meant(
    name: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(valued.ValidationError, match=f"^{name}: no such option; .*{hint}") as it:
        valued.Client("token", **{name: "x"})
    said = str(it.value)
    if "as in " in said:  # what is pasted works
        assert isinstance(eval(said.rpartition("as in ")[2]), valued.Client)
    elif "write " in said and "(" in said:
        monkeypatch.setattr(logging.getLogger("valued"), "level", logging.NOTSET)
        exec(said.rpartition("write ")[2])
        assert logging.getLogger("valued").level == logging.DEBUG


# -- the off switch --------------------------------------------------------------------------------


def test_disabled_client_needs_no_token_and_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VALUED_DISABLED", "1")
    client = valued.connect()
    valued.action("fine", {"user.id": 1})
    with pytest.raises(valued.ValidationError, match=r"Missing user\.id"):
        valued.action("without an id")
    assert client.stats()["disabled"] == 1
    assert client.stats()["accepted"] == 0
    assert (client.flush(0), client.park(0), client.close(0), client.adopt()) == (True,) * 3 + (0,)
    assert repr(client) == "Client(enabled=False)"
    assert pickle.loads(pickle.dumps(client)).stats()["disabled"] == 0


def test_disabled_client_imports_and_makes_nothing(tmp_path: Any) -> None:
    program = (
        "import sys, threading, valued\n"
        f"client = valued.Client(enabled=False, outbox={str(tmp_path / 'outbox')!r})\n"
        "client.action('fine', {'user.id': 1})\n"
        "print(sorted({'requests', 'urllib3', 'psutil', 'ssl'} & sys.modules.keys()))\n"
        "print(threading.active_count())\n"
    )
    assert run("-c", program).stdout == "[]\n1\n"
    assert not (tmp_path / "outbox").exists()


def test_figures_of_a_forked_child_begin_with_zero(fork: Callable[..., Child]) -> None:
    client = valued.Client(enabled=False)
    client.action("parent's", {"user.id": 1})

    def child() -> None:
        assert client.stats()["disabled"] == 0
        client.action("child's", {"user.id": 1})
        assert client.stats()["disabled"] == 1

    assert fork(child).wait() == 0
    assert client.stats()["disabled"] == 1


def test_child_counts_though_a_thread_held_the_lock_at_the_fork(
    fork: Callable[..., Child], in_thread: Callable[..., Future[Any]]
) -> None:
    client = valued.Client(enabled=False)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with client._refusals._counts.get().lock:
            held.set()
            release.wait(30)

    holder = in_thread(hold)
    assert held.wait(10)

    def child() -> None:
        client.action("child's", {"user.id": 1})
        assert client.stats()["disabled"] == 1

    assert fork(child).wait() == 0
    release.set()
    holder.result(10)


def test_options_outlive_a_pickle(sent: list[JSONObject]) -> None:
    made = valued.Client(print, invalid="log", anonymous="drop", before_send=refuse)
    client = pickle.loads(pickle.dumps(made))
    figures = use(client)
    assert [figures[name] for name in ("invalid", "anonymous", "refused")] == [1, 1, 1]


# -- input that can't be sent ----------------------------------------------------------------------

WRONG: dict[str, Callable[[Any], object]] = {
    "no key": lambda it: it.action("", {"user.id": 1}),
    "NaN": lambda it: it.action("k", {"user.id": 1, "attributes.a": math.nan}),
    "unknown class": lambda it: it.action("k", {"user.id": 1, "attributes.a": Unknown()}),
    "raising converter": lambda it: it.action("k", {"user.id": 1, "attributes.a": Raising()}),
    "no mapping": lambda it: it.action("k", "ada@example.com"),
    "near miss": lambda it: it.action("k", {"user.id": 1, "properties": {}}),
    "no url": lambda it: it.page_view("example.com", {"user.id": 1}),
    "sync without an id": lambda it: it.sync_user({"name": "ada@example.com"}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_invalid_event_is_counted_and_logged_without_its_values_and_the_call_returns(
    wrong: str, sent: list[JSONObject], caplog: pytest.LogCaptureFixture
) -> None:
    client = immediate(sent, invalid="log")
    for it in (client, valued.Scope(client)):
        WRONG[wrong](it)
        WRONG[wrong](it)
    assert (client.stats()["invalid"], client.stats()["accepted"], sent) == (4, 0, [])
    assert 1 <= len(caplog.records) <= 2  # a line a minute for each kind
    assert "ada@example.com" not in caplog.text


@pytest.mark.parametrize("wrong", WRONG)
def test_invalid_event_is_raised_and_not_counted_where_nothing_is_said(
    wrong: str, recorder: valued.Client
) -> None:
    with pytest.raises(valued.ValuedError):
        WRONG[wrong](recorder)
    assert recorder.stats()["invalid"] == 0


def test_log_names_field_and_place(
    sent: list[JSONObject], caplog: pytest.LogCaptureFixture
) -> None:
    client = immediate(sent, invalid="log")
    client.action("k", {"user.id": 1, "attributes": {"items": [1, {"price": math.nan}]}})
    client.action("k", {"user": "ada@example.com"})
    client.action("k", {"user.id": 1, "attributes.who": Raising()})
    first, second, third = (record.getMessage() for record in caplog.records)
    assert "attributes.items[1].price" in first
    assert "user: expected a mapping" in second
    assert "attributes.who" in third
    assert "ValueError" in third
    assert "ada@example.com" not in caplog.text


def test_kinds_of_log_lines_are_bounded(
    sent: list[JSONObject], caplog: pytest.LogCaptureFixture
) -> None:
    client = immediate(sent, invalid="log")
    for number in range(300):
        client.action("k", {"user.id": 1, f"attributes.field{number}": math.nan})
    assert client.stats()["invalid"] == 300
    assert len(caplog.records) == 101


def test_place_in_a_list_makes_no_kind_of_its_own_and_neither_does_another_client(
    sent: list[JSONObject], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        client = immediate(sent, invalid="log")
        for place in range(3):
            prices = [0.0] * place + [math.nan]
            client.action("k", {"user.id": 1, "attributes.prices": prices})
        assert client.stats()["invalid"] == 3
    assert len(caplog.records) == 1


def test_words_of_the_application_s_own_errors_are_not_logged(
    sent: list[JSONObject], caplog: pytest.LogCaptureFixture
) -> None:
    def refused() -> object:
        raise valued.ValidationError("no user for ada@example.com")

    scope = valued.Scope(immediate(sent, invalid="log"))
    with scope.isolated(lazy={"user": refused}):
        scope.action("k")
    assert "ada@example.com" not in caplog.text
    assert "ValidationError at tests.events.test_refusals:" in caplog.text


def test_name_can_not_forge_a_log_line(
    sent: list[JSONObject], caplog: pytest.LogCaptureFixture
) -> None:
    client = immediate(sent, invalid="log")
    evil = "x\nCRITICAL root: \x1b[31m\u202efaked"
    client.action("k", {"user.id": 1, evil: 1})
    client.config({evil: 1})
    client.action("k", {"user.id": 1, "attributes": {evil: math.nan}})
    kind = type(evil, (Exception,), {})
    client = immediate(sent, before_send=lambda _event: (_ for _ in ()).throw(kind()))
    client.action("k", {"user.id": 1})
    assert len(caplog.records) == 4
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_mistakes_of_keys_are_tolerated_too(sent: list[JSONObject]) -> None:
    client = immediate(sent, invalid="log")
    scope = valued.Scope(client, {"user": {"id": 1, "ratio": math.nan}})
    for key in ("a..b", object(), "", Hostile()):
        assert scope.get(key, "default") == "default"  # type: ignore[arg-type]
        assert key not in scope
        with pytest.raises(KeyError):
            del scope[key]  # type: ignore[arg-type]
        assert scope.attributes.get(key) is None  # type: ignore[call-overload]
    scope["a..b"] = 1
    scope.action("k")
    scope[Hostile()] = 1  # type: ignore[index]
    scope.action("k", {"customer.id": 1})
    assert [event["user"] for event in sent] == [{"id": 1}, None]


@pytest.mark.parametrize(
    "lazy",
    [Hostile(), {"user": Hostile()}, 5, {"user": 5}, {5: fail}, {"user.id": fail}, Raising()],
)
def test_lazy_functions_that_are_none_follow_invalid(
    lazy: Any, sent: list[JSONObject], recorder: valued.Client
) -> None:
    with pytest.raises(valued.ValidationError, match=r"^lazy: "):
        valued.Scope(recorder).isolated(lazy=lazy)
    client = immediate(sent, invalid="log")
    with valued.Scope(client).isolated({"user.id": 1}, lazy=lazy) as scope:
        scope.action("k")
    assert (client.stats()["invalid"], len(sent)) == (1, 1)


def test_lazy_functions_that_can_not_be_read_are_refused(recorder: valued.Client) -> None:
    class Functions(Mapping[str, Any]):
        __getitem__ = __iter__ = __len__ = lambda *_: fail()  # type: ignore[assignment]

    with pytest.raises(valued.ValidationError, match=r"^lazy: it can't be read"):
        valued.Scope(recorder).isolated(lazy=Functions())


@pytest.mark.parametrize(
    ("found", "recorded"),
    [
        (None, 0),
        ({}, 0),
        ({"id": None, "name": "x"}, 0),
        ({"user.id": 1}, None),
        ({"user": {"id": 1}}, None),
        ({"name": "Ada"}, None),
    ],
)
def test_function_that_gives_a_user_without_an_id_is_a_mistake(
    found: Any, recorded: int | None, sent: list[JSONObject]
) -> None:
    scope = valued.Scope(immediate(sent, anonymous="drop"))
    with scope.isolated(lazy={"user": lambda: found}):
        if recorded is None:
            with pytest.raises(
                valued.ValidationError, match=r"^user: a function returned a mapping"
            ):
                scope.action("k")
        else:
            scope.action("k")
    assert sent == []


# -- scopes, where input is left out ---------------------------------------------------------------


def test_value_that_a_scope_can_not_hold_is_left_out_and_the_block_runs(
    sent: list[JSONObject], caplog: pytest.LogCaptureFixture
) -> None:
    client = immediate(sent, invalid="log")
    scope = valued.Scope(client, {"user.id": 1})
    scope.apply({"attributes": {"plan": "pro", "bad": Unknown()}})
    scope["attributes.ratio"] = math.nan
    scope["a..b"] = 1
    with scope.nested({"attributes": {"step": 2, "worse": Raising()}}):
        scope.action("nested")
    with scope.isolated(attributes={"job": 3, "worse": math.inf}):
        scope.action("isolated")
    with scope.nested("ada@example.com"):
        pass
    assert [event["attributes"] for event in sent] == [{"plan": "pro", "step": 2}, {"job": 3}]
    assert client.stats()["invalid"] == 6
    assert "ada@example.com" not in caplog.text


def test_too_many_values_for_a_scope_are_left_out_and_the_rest_is_kept(
    sent: list[JSONObject],
) -> None:
    client = immediate(sent, invalid="log")
    scope = valued.Scope(client, {"user.id": 1})
    many = [0] * 250_001
    scope.apply({"attributes": {"many": many}, "user": {"name": "Ada", "many": many}, "team": "a"})
    assert scope.to_dict() == {"user": {"id": 1, "name": "Ada"}, "team": "a"}
    assert client.stats()["invalid"] == 2


@pytest.mark.parametrize(
    "bad",
    [
        lambda scope: setattr(scope, "user", 7),
        lambda scope: setattr(scope, "user", Unknown()),
        lambda scope: setattr(scope, "user_id", Unknown()),
        lambda scope: scope.apply(user=Unknown()),
        lambda scope: scope.apply({"user": {"id": math.nan, "name": "Bob"}}),
        lambda scope: scope.apply({"user": {"id": {"a": math.nan}}}),
        lambda scope: scope.apply(Unknown()),
        lambda scope: scope.apply(Raising()),
        lambda scope: setattr(scope, "user", OrderedDict(id=2, score=math.nan)),
        lambda scope: setattr(scope, "user", Account(2)),
        lambda scope: scope.apply(user=MappingProxyType({"id": 2, "score": math.nan})),
        lambda scope: scope.apply(OrderedDict({"user.id": 2, "attributes.score": math.nan})),
        lambda scope: scope.apply(Login(2)),
        lambda scope: scope.apply({"user": {b"id": 2, "name": "Bob"}}),
        lambda scope: scope.apply({"user.": {"id": 2}}),
        lambda scope: scope.apply({b"user": {"id": 2}}),
        lambda scope: scope.__setitem__("user..id", 2),
        lambda scope: scope.__setitem__(("user", b"id"), 2),
        lambda scope: scope.__setitem__(b"user", {"id": 2}),
    ],
)
def test_user_that_can_not_be_sent_leaves_no_user_in_place_of_the_one_before(
    bad: Callable[[valued.Scope], object], sent: list[JSONObject]
) -> None:
    client = immediate(sent, invalid="log", anonymous="drop")
    scope = valued.Scope(client, {"user": {"id": 1, "name": "Ada"}})
    bad(scope)
    assert scope.user_id is None
    scope.action("whose")
    scope.page_view("/page")
    assert sent == []
    assert (client.stats()["invalid"], client.stats()["anonymous"]) == (1, 2)


#: What no event could have: what is set, and the beginning of the error.
WRONG_FORMS: list[tuple[JSONObject, str]] = [
    ({"user": 7}, "user: expected a mapping with an id, such as {'id': 1}, got int"),
    ({"customer": "c"}, "customer: expected a mapping with an id, such as {'id': 1}, got str"),
    ({"user": {"id": True}}, "user.id: expected an int or a string that is not empty, got bool"),
    ({"customer.id": [1]}, "customer.id: expected an int or a string that is not empty, got list"),
    ({"attributes": [1]}, "attributes: expected a mapping, such as {'format': 'pdf'}, got list"),
]


@pytest.mark.parametrize(("given", "problem"), WRONG_FORMS)
def test_what_no_event_could_have_is_refused_where_it_is_set(
    given: JSONObject, problem: str, recorder: valued.Client
) -> None:
    scope = valued.Scope(recorder, {"user.id": 1})
    [(key, value)] = given.items()
    for set_it in (
        lambda: scope.__setitem__(key, value),
        lambda: scope.apply(given),
        lambda: scope.nested(given).__enter__(),
        lambda: scope.isolated(given),
        lambda: valued.Scope(recorder, given),
        lambda: valued.Client("token", defaults=given),
    ):
        with pytest.raises(valued.ValidationError) as caught:
            set_it()
        assert caught.value.problems == (problem,)
    assert scope.to_dict() == {"user": {"id": 1}}
    for field, bad in (("user", 7), ("user_id", 1.5), ("customer", "c"), ("attributes", 5)):
        with pytest.raises(valued.ValidationError, match="expected"):
            setattr(scope, field, bad)


@pytest.mark.parametrize(("given", "problem"), WRONG_FORMS)
def test_what_no_event_could_have_is_left_out_and_counted(
    given: JSONObject, problem: str, sent: list[JSONObject], caplog: pytest.LogCaptureFixture
) -> None:
    client = immediate(sent, invalid="log")
    scope = valued.Scope(client, {"user.id": 1, "customer.id": 2, "attributes.a": 1})
    scope.apply(given)
    assert client.stats()["invalid"] == 1
    assert problem in caplog.text
    party = next(iter(given)).split(".")[0]
    assert scope.get(party) == ({"a": 1} if party == "attributes" else None)


def test_two_keys_that_disagree_within_other_data_are_counted_and_the_first_is_kept(
    sent: list[JSONObject],
) -> None:
    client = immediate(sent, invalid="log")
    scope = valued.Scope(client)
    scope.apply({"attributes": {"a.x": 1, "a": {"x": {"y": 1}, "z": 2}, "b": 1, "b.c": 2}})
    assert scope.to_dict() == {"attributes": {"a": {"x": 1, "z": 2}, "b": 1}}
    assert client.stats()["invalid"] == 2


def test_user_whose_id_is_given_beside_what_can_not_be_read_is_kept(
    sent: list[JSONObject],
) -> None:
    scope = valued.Scope(immediate(sent, invalid="log"), {"user.id": 1})
    scope.apply({b"name": "Bob", "user.id": 2})
    scope.action("k")
    assert sent[0]["user"] == {"id": 2}


def test_syncs_that_can_not_be_sent_are_tolerated(sent: list[JSONObject]) -> None:
    client = immediate(sent, invalid="log")
    scope = valued.Scope(client, {"user": {"id": 1, "name": "Ada"}, "customer.id": 2})
    scope.sync(properties={})
    scope.page_view("/page", "ada@example.com")
    for it in (client, scope):
        it.sync_user(Unknown())
        it.sync_customer(Unknown())
    assert (client.stats()["invalid"], sent) == (6, [])


def test_rest_of_a_user_is_kept_where_only_a_detail_can_not_be_sent(
    sent: list[JSONObject],
) -> None:
    scope = valued.Scope(immediate(sent, invalid="log"), {"user.id": 1})
    scope.apply({"user": {"id": 2, "joined": math.nan}})
    scope.action("k")
    assert sent[0]["user"] == {"id": 2}


def test_lazy_function_that_fails_follows_invalid(
    sent: list[JSONObject], caplog: pytest.LogCaptureFixture
) -> None:
    scope = valued.Scope(immediate(sent))
    with scope.isolated(lazy={"user": fail}), pytest.raises(LookupError):
        scope.action("k", {"customer.id": 1})
    client = immediate(sent, invalid="log", anonymous="drop")
    scope = valued.Scope(client)
    with scope.isolated(attributes={"a": 1}, lazy={"user": fail}):
        scope.action("k", {"customer.id": 1})
        assert scope.user is None
        assert scope.to_dict() == {"attributes": {"a": 1}}
    with scope.isolated(lazy={"user": Unknown}):
        scope.action("k")
    with scope.isolated(fail):
        scope.sync()
        scope.sync_user({"id": 1})
    assert sent == []
    assert (client.stats()["invalid"], client.stats()["anonymous"]) == (6, 1)
    assert "ada@example.com" not in caplog.text
    assert "LookupError" in caplog.text


# -- anonymous visitors ----------------------------------------------------------------------------


def test_anonymous_event_is_dropped_counted_and_not_logged(
    sent: list[JSONObject], caplog: pytest.LogCaptureFixture
) -> None:
    client = immediate(sent, anonymous="drop")
    scope = valued.Scope(client)
    for it in (client, scope):
        it.action("k")
        it.action("k", {"user": None})
        it.page_view("/page")
        it.page_view("/page", {"customer.id": 1})
    client.action("k", {"customer.id": 1})
    assert client.stats()["anonymous"] == 8
    assert len(sent) == 1
    assert caplog.records == []


@pytest.mark.parametrize("wrong", ["near miss", "sync without an id"])
def test_mistake_is_no_anonymous_visitor(wrong: str, sent: list[JSONObject]) -> None:
    with pytest.raises(valued.ValidationError):
        WRONG[wrong](immediate(sent, anonymous="drop"))
    with pytest.raises(valued.ValidationError, match="user_id: an event has no such field"):
        immediate(sent, anonymous="drop").action("k", user_id=1)


# -- the last look ---------------------------------------------------------------------------------


def test_before_send_gets_a_dict_of_its_own_and_its_result_is_sent(
    sent: list[JSONObject],
) -> None:
    def mask(event: JSONObject) -> JSONObject:
        event["user"]["name"] = "…"
        event["attributes.checked"] = True
        del event["occured_at"]
        return event

    scope = valued.Scope(immediate(sent, before_send=mask), {"user": {"id": 1, "name": "Ada"}})
    scope.action("k")
    assert sent[0]["user"] == {"id": 1, "name": "…"}
    assert sent[0]["attributes"] == {"checked": True}
    assert sent[0]["occured_at"]
    assert scope.user == {"id": 1, "name": "Ada"}


@pytest.mark.parametrize(
    "result",
    [
        {},
        "ada@example.com",
        {"category": "action", "key": "k"},
        {"category": "action", "key": "k", "user": {"id": math.nan}},
        {"category": "action", "key": "k", "user": {"id": 1, "a": Unknown()}},
    ],
)
@pytest.mark.parametrize("invalid", ["raise", "log"])
def test_bad_result_of_before_send_counts_as_invalid_and_is_never_raised(
    result: object, invalid: Any, sent: list[JSONObject], caplog: pytest.LogCaptureFixture
) -> None:
    client = immediate(sent, invalid=invalid, anonymous="drop", before_send=lambda _event: result)
    client.action("k", {"user.id": 1})
    assert (client.stats()["invalid"], sent) == (1, [])
    assert "what before_send returned" in caplog.text
    assert "ada@example.com" not in caplog.text


def test_before_send_that_raises_drops_the_event(
    sent: list[JSONObject], caplog: pytest.LogCaptureFixture
) -> None:
    client = immediate(sent, before_send=lambda _event: fail())  # type: ignore[arg-type,return-value]
    client.action("k", {"user.id": 1})
    client.action("k", {"user.id": 1})
    assert (client.stats()["refused"], sent) == (2, [])
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "LookupError" in caplog.text
    assert "ada@example.com" not in caplog.text


def test_event_that_before_send_records_is_dropped(sent: list[JSONObject]) -> None:
    def record(event: JSONObject) -> JSONObject:
        client.action("another", {"user.id": 2})
        return event

    client = immediate(sent, before_send=record)
    client.action("k", {"user.id": 1})
    assert [event["key"] for event in sent] == ["k"]
    assert client.stats()["refused"] == 1


def test_interrupt_in_before_send_is_the_callers(sent: list[JSONObject]) -> None:
    def interrupt(_event: JSONObject) -> JSONObject:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        immediate(sent, before_send=interrupt).action("k", {"user.id": 1})


def test_every_figure_adds_up(sent: list[JSONObject]) -> None:
    client = immediate(
        sent,
        invalid="log",
        anonymous="drop",
        before_send=lambda event: None if event["key"] == "secret" else event,
    )
    for key in ("a", "secret", "b", ""):
        client.action(key, {"user.id": 1})
    client.action("c")
    stats = client.stats()
    assert stats["accepted"] == stats["delivered"] == len(sent) == 2
    assert [stats[it] for it in ("disabled", "invalid", "anonymous", "refused")] == [0, 1, 1, 1]  # type: ignore[literal-required]


# -- what stands on top ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("usr", "{'user': {'id': 1}}"),
        ("user_id", "{'user.id': 1}"),
        ("customer_id", "{'customer.id': 1}"),
        ("attribute", "{'attributes': {'format': 'pdf'}}"),
        ("properties", "{'attributes': {'format': 'pdf'}}"),
        ("timestamp", "{'occured_at': '2026-11-23T10:00:00+01:00'}"),
    ],
)
def test_near_miss_is_refused_with_what_is_meant(
    name: str, meant: str, recorder: valued.Client, sent: list[JSONObject]
) -> None:
    for call in (
        lambda **more: recorder.action("k", {"user.id": 1}, **more),
        lambda **more: recorder.page_view("/page", {"user.id": 1}, **more),
        lambda **more: recorder.sync({"user.id": 1}, **more),
        lambda **more: valued.validate({"category": "action", "key": "k", "user.id": 1, **more}),
    ):
        with pytest.raises(valued.ValidationError, match=f"^{name}: ") as raised:
            call(**{name: {}})
        assert str(raised.value).endswith(meant)
    assert sent == []
    recorder.action("k", {"user.id": 1, **eval(meant)})
    assert len(sent) == 1


def test_other_unknown_field_is_sent_with_one_warning(
    recorder: valued.Client, sent: list[JSONObject], caplog: pytest.LogCaptureFixture
) -> None:
    recorder.action("k", {"user.id": 1}, layout="pdf")
    recorder.action("k", {"user.id": 1}, layout="csv")
    assert [event["layout"] for event in sent] == ["pdf", "csv"]
    (record,) = caplog.records
    assert "did you mean attributes.layout?" in record.getMessage()


def test_names_that_are_warned_of_are_bounded() -> None:
    program = (
        "import valued\n"
        "client = valued.Client(print, executor=valued.ImmediateExecutor())\n"
        "for number in range(300):\n"
        "    client.action('k', {'user.id': 1, f'name{number}': 1})\n"
    )
    assert run("-c", program).stderr.count("did you mean") == 100


def test_sync_of_a_scope_refuses_near_misses(scope_of: valued.Scope) -> None:
    for name in ("usr", "user_id", "properties"):
        with pytest.raises(valued.ValidationError, match=f"^{name}: an event has no such field"):
            scope_of.sync({name: {"id": 1, "name": "x"}})


@pytest.fixture
def scope_of(recorder: valued.Client) -> valued.Scope:
    return valued.Scope(recorder, {"user": {"id": 1, "name": "Ada"}})


@pytest.mark.parametrize("url", ["example.com", "reports/12", "?page=2", " /page", "://x"])
def test_page_view_has_a_scheme_or_begins_with_a_slash(url: str, recorder: valued.Client) -> None:
    with pytest.raises(valued.ValidationError, match=r"^url: expected one with a scheme"):
        recorder.page_view(url, {"user.id": 1})


@pytest.mark.parametrize("url", ["/", "//cdn.example.com/x", "app:settings", "HTTPS://example.com"])
def test_page_view_of_any_scheme_is_sent(
    url: str, recorder: valued.Client, sent: list[JSONObject]
) -> None:
    recorder.page_view(url, {"user.id": 1})
    assert sent[0]["attributes"]["source"]["url"] == url


# -- messages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["user", "customer"])
@pytest.mark.parametrize("data", [{"%s": {"id": 1}}, {"%s_id": 1}, {"%s.id": 1}])
def test_sync_that_names_its_party_once_more_gets_a_hint_that_works(
    name: str, data: JSONObject, recorder: valued.Client, sent: list[JSONObject]
) -> None:
    given = {key % name: value for key, value in data.items()}
    with pytest.raises(valued.ValidationError, match=f"sync_{name} takes the {name} itself") as it:
        getattr(recorder, f"sync_{name}")(given)
    hint = str(it.value).rpartition("as in ")[2]
    eval(f"client.{hint}", {"client": recorder})
    assert sent[0][name] == {"id": 1}


def test_bare_program_prints_lines_that_say_whose_they_are() -> None:
    program = "import valued; valued.Client(print, invalid='log').action('')"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stderr.startswith("valued: 1 time not sent: key: expected a string")
    assert ended.stderr.endswith(" [__main__:1]\n")

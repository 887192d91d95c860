"""The shared client: what it is before, during and after a connection."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import valued
from valued import _shared

URL = "https://example.com/reports"


@pytest.fixture
def shared(recorder: valued.Client) -> valued.Client:
    """The recorder, connected."""
    return valued.connect(recorder)


# -- not connected ---------------------------------------------------------------------------------


def _set() -> None:
    valued.scope["user.id"] = 1


def _delete() -> None:
    del valued.scope["user.id"]


CALLS: dict[str, Callable[[], object]] = {
    "action": lambda: valued.action("k", {"user.id": 1}),
    "page_view": lambda: valued.page_view(URL, {"user.id": 1}),
    "pageview": lambda: valued.pageview(URL, {"user.id": 1}),
    "sync": lambda: valued.sync({"user": {"id": 1, "name": "Ada"}}),
    "sync of nothing": valued.sync,
    "sync_user": lambda: valued.sync_user(id=1),
    "sync_customer": lambda: valued.sync_customer(id=1),
    "config": lambda: valued.config(goals=[{"name": "G", "action_key": "k"}]),
    "flush": valued.flush,
    "client": valued.client,
    "nested": valued.nested,
    "scope get": lambda: valued.scope["user.id"],
    "scope set": _set,
    "scope del": _delete,
    "scope in": lambda: "user.id" in valued.scope,
    "scope.get": lambda: valued.scope.get("user.id"),
    "scope.user": lambda: valued.scope.user,
    "scope.user_id": lambda: valued.scope.user_id,
    "scope.customer": lambda: valued.scope.customer,
    "scope.customer_id": lambda: valued.scope.customer_id,
    "scope.apply": lambda: valued.scope.apply({"user.id": 1}),
    "scope.reset": valued.scope.reset,
    "scope.to_dict": valued.scope.to_dict,
    "scope.to_valued_data": valued.scope.to_valued_data,
    "scope.nested": lambda: valued.scope.nested().__enter__(),
    "scope.action": lambda: valued.scope.action("k", {"user.id": 1}),
    "scope.page_view": lambda: valued.scope.page_view(URL, {"user.id": 1}),
    "scope.sync": valued.scope.sync,
    "scope.sync_user": lambda: valued.scope.sync_user(id=1),
    "scope.sync_customer": lambda: valued.scope.sync_customer(id=1),
}


@pytest.mark.parametrize("name", CALLS)
def test_use_before_connect_and_after_disconnect_raises(name: str, recorder: valued.Client) -> None:
    def refused() -> None:
        with pytest.raises(valued.NotConnectedError) as caught:
            CALLS[name]()
        assert str(caught.value) == (
            "the shared client is not connected: call valued.connect(token) first, "
            "for example where your application starts"
        )
        assert isinstance(caught.value, RuntimeError)

    refused()
    valued.connect(recorder)
    valued.disconnect()
    refused()
    assert recorder.stats()["accepted"] == 0


#: What has something to do, or to say, where nothing is connected.
WORKS_BEFORE = {"connect", "connected", "disconnect", "scope", "isolated", "flush_all"}


def test_every_public_function_of_the_module_is_covered_here() -> None:
    functions = {
        name
        for name in vars(_shared)
        if name in valued.__all__ and not name.startswith("_") and name.islower()
    }
    assert functions - WORKS_BEFORE <= CALLS.keys()


def test_what_only_asks_or_ends_works_without_a_connection() -> None:
    assert valued.connected() is False
    assert valued.disconnect() is valued.disconnect() is True
    assert repr(valued.scope) == "<shared scope, not connected>"


# -- connect ---------------------------------------------------------------------------------------


def test_connect_returns_the_client_that_it_was_given(recorder: valued.Client) -> None:
    assert valued.connect(recorder) is recorder is valued.client()
    assert valued.connected() is True
    assert repr(valued.scope) == f"<shared scope of {recorder!r}>"


def test_connect_makes_a_client_of_a_token(server: Any) -> None:
    client = valued.connect("s3cret", server.url, max_workers=1)
    assert valued.client() is client
    assert "s3cret" not in repr(valued.scope)
    valued.action("k", {"user.id": 1})
    assert valued.flush(10)
    assert server.keys() == ["k"]
    assert valued.disconnect(10) is True


def test_connect_takes_a_transport() -> None:
    sent: list[dict[str, Any]] = []
    valued.connect(sent.append, executor=valued.ImmediateExecutor())
    valued.action("k", {"user.id": 1})
    assert [event["key"] for event in sent] == ["k"]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((), {}),
        ((5,), {}),
        (("",), {}),
        (("t", "no URL"), {}),
        (("t",), {"retries": -1}),
        (("t",), {"colour": "red"}),
        ((print, "http://127.0.0.1:9/"), {}),
        ((valued.Client("t"), "http://127.0.0.1:9/"), {}),
        ((valued.Client("t"),), {"retries": 1}),
    ],
    ids=str,
)
def test_connect_with_bad_input_leaves_what_was_connected(
    shared: valued.Client, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    valued.scope["user.id"] = 1
    with pytest.raises(valued.ValidationError):
        valued.connect(*arguments, **options)
    assert valued.client() is shared
    assert valued.scope.user_id == 1


def test_client_with_options_is_refused_with_the_fix(recorder: valued.Client) -> None:
    with pytest.raises(valued.ValidationError) as caught:
        valued.connect(recorder, retries=1)
    assert str(caught.value) == (
        "connect: a client has its endpoint and options already; give them to Client(…)"
    )
    assert not valued.connected()


def test_connecting_again_begins_with_an_empty_scope(
    shared: valued.Client, recorder: valued.Client
) -> None:
    valued.scope.apply({"user.id": 1})
    valued.connect(valued.Client(print))
    assert valued.scope.to_dict() == {}
    valued.connect(recorder)  # the same as at first
    assert valued.scope.to_dict() == {}
    valued.scope.apply({"user.id": 1})
    valued.connect(recorder)  # the same once more
    assert valued.scope.to_dict() == {}


def _send(event: dict[str, Any]) -> None:
    """A transport."""


#: Arguments of a second `connect`, after `valued.connect("token", URL, retries=5)`, and what its
#: warning names.
SECOND: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    (("token", URL), {"retries": 5}, ""),
    (("another", URL), {"retries": 5}, "token"),
    (("token", f"{URL}/v2"), {"retries": 5}, "endpoint"),
    (("token", URL), {"overflow": "block"}, "overflow, retries"),
    ((_send,), {"retries": 5}, "transport"),
]


@pytest.mark.parametrize(
    ("arguments", "options", "names"), SECOND, ids=[names or "nothing" for *_, names in SECOND]
)
def test_connecting_again_logs_once_what_is_different(
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    names: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_shared, "_logged", set())  # what this process has logged before
    for _ in range(2):
        valued.connect("token", URL, retries=5)
        valued.connect(*arguments, **options)
        valued.disconnect()
    lines = [record.getMessage() for record in caplog.records if "again" in record.getMessage()]
    assert [f"the new one has another {names}. " in line for line in lines] == [True] * bool(names)
    assert {record.levelname for record in caplog.records} <= {"WARNING"}
    assert not any(secret in caplog.text for secret in ("token'", "another'", "v2"))


def test_connecting_the_same_client_again_or_after_a_disconnect_logs_nothing(
    recorder: valued.Client, caplog: pytest.LogCaptureFixture
) -> None:
    valued.connect(recorder)
    valued.connect(recorder)
    valued.disconnect()
    valued.connect("token", URL)
    assert caplog.records == []


def test_previous_client_still_delivers_what_it_accepted(server: Any) -> None:
    first = valued.connect("t", server.url)
    valued.action("first", {"user.id": 1})
    second = valued.connect("t", server.url)
    valued.action("second", {"user.id": 1})
    assert first.flush(10)
    assert second.flush(10)
    assert sorted(server.keys()) == ["first", "second"]
    first.close(10)


# -- disconnect ------------------------------------------------------------------------------------


class Waiting:
    """A transport that delivers when it is told to."""

    def __init__(self) -> None:
        self.asked, self.told = threading.Event(), threading.Event()

    def __call__(self, _: dict[str, Any]) -> None:
        self.asked.set()
        self.told.wait(10)


@pytest.mark.parametrize("given", [True, False], ids=["given", "made by connect"])
def test_disconnect_closes_a_client_that_connect_made_and_only_flushes_one_that_was_given(
    given: bool,
) -> None:
    transport = Waiting()
    client = (
        valued.connect(valued.Client(transport, max_workers=1))
        if given
        else valued.connect(transport, max_workers=1)
    )
    valued.action("under way", {"user.id": 1})
    assert transport.asked.wait(10)
    valued.action("waiting", {"user.id": 1})
    assert valued.disconnect(0) is False
    assert not valued.connected()
    stats = client.stats()
    transport.told.set()
    # A close drops the event that waits, a flush keeps it.
    assert (stats["pending"] == 2) is given
    assert (stats["dropped_by_reason"]["closed"] >= 1) is not given
    assert client.close(10)


@pytest.mark.parametrize("bad", [-1, "5", True])
def test_disconnect_with_a_bad_timeout_leaves_what_was_connected(
    shared: valued.Client, bad: Any
) -> None:
    with pytest.raises(valued.ValidationError, match="timeout: expected seconds"):
        valued.disconnect(bad)
    assert valued.client() is shared


# -- calls -----------------------------------------------------------------------------------------


def test_functions_of_the_module_send_through_the_scope(
    shared: valued.Client, sent: list[dict[str, Any]]
) -> None:
    assert shared.stats()["accepted"] == 0
    with valued.nested():
        valued.scope["user.id"] = 123
        with valued.nested({"customer.id": 12}, attributes={"plan": "pro"}) as scope:
            assert scope is valued.scope
            valued.page_view("https://big.company.com/reports/12")
            valued.action("report.generated")
            valued.pageview("https://big.company.com/reports/13", {"attributes.a": 1})
        valued.scope["user.name"] = "Ada"
        valued.sync()
        valued.sync_user(plan="pro")
        valued.sync_customer({"id": 12})
        valued.config(goals=[{"name": "G", "action_key": "k"}])
    assert valued.scope.to_dict() == {}
    assert valued.flush(0) is True
    summary = [
        (event["category"], event.get("user"), event.get("customer"), event.get("attributes"))
        for event in sent
    ]
    user, customer = {"id": 123}, {"id": 12}
    known = {**user, "name": "Ada"}
    first = {"source": {"url": "https://big.company.com/reports/12"}, "plan": "pro"}
    third = {"source": {"url": "https://big.company.com/reports/13"}, "plan": "pro", "a": 1}
    assert summary == [
        ("pageview", user, customer, first),
        ("action", user, customer, {"plan": "pro"}),
        ("pageview", user, customer, third),
        ("sync", known, None, None),
        ("sync", {**known, "plan": "pro"}, None, None),
        ("sync", None, customer, None),
        ("config", None, None, None),
    ]


def test_shared_scope_is_data_of_a_call(shared: valued.Client, sent: list[dict[str, Any]]) -> None:
    valued.scope.user = {"id": 1, "name": "Ada"}
    shared.action("k", valued.scope)
    shared.sync_user(valued.scope)
    assert [event["user"] for event in sent] == [{"id": 1, "name": "Ada"}] * 2


def test_nested_raises_at_the_call_and_bad_data_at_the_block(shared: valued.Client) -> None:
    with pytest.raises(valued.ValidationError), valued.nested(5):
        raise AssertionError("the block ran")
    assert valued.scope.to_dict() == {}
    valued.disconnect()
    with pytest.raises(valued.NotConnectedError):
        valued.nested()


def test_connection_that_ends_inside_a_block_lets_the_block_end(
    shared: valued.Client, recorder: valued.Client
) -> None:
    valued.scope["user.id"] = 1
    with valued.nested({"customer.id": 2}):
        valued.disconnect()
    assert not valued.connected()
    valued.connect(recorder)
    assert valued.scope.to_dict() == {}


def test_connection_that_is_replaced_inside_a_block_begins_empty_and_stays_so(
    shared: valued.Client, recorder: valued.Client
) -> None:
    valued.scope["user.id"] = 1
    with valued.nested({"customer.id": 2}):
        valued.connect(recorder)
        assert valued.scope.to_dict() == {}
        valued.scope["attributes.a"] = 1
    assert valued.scope.to_dict() == {"attributes": {"a": 1}}


def test_child_is_connected_as_its_parent_was(server: Any, fork: Any) -> None:
    client = valued.connect("test-token", server.url)
    valued.scope["user.id"] = 1

    def child() -> None:
        assert valued.client() is client
        assert valued.scope.to_dict() == {"user": {"id": 1}}
        valued.action("child")
        assert valued.flush(10)
        assert valued.disconnect(10)
        assert not valued.connected()

    assert fork(child).wait() == 0
    assert valued.connected()
    valued.action("parent")
    assert valued.flush(10)
    assert [request.event["user"] for request in server.requests] == [{"id": 1}] * 2
    assert server.keys() == ["child", "parent"]


def test_child_of_a_parent_that_is_not_connected_is_not_either(fork: Any) -> None:
    def child() -> None:
        assert not valued.connected()
        with pytest.raises(valued.NotConnectedError):
            valued.action("k", {"user.id": 1})
        valued.connect(print)

    assert fork(child).wait() == 0
    assert not valued.connected()

"""What may be pickled, when, and with what in it."""

from __future__ import annotations

import copy
import json
import multiprocessing
import multiprocessing.context
import multiprocessing.reduction
import os
import pickle
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

import valued
from tests.support.processes import run, run_program
from tests.support.server import Server

TOKEN = "t0ken-that-nobody-may-see"
URL = "http://127.0.0.1:1/events"

InThread = Callable[..., "Future[Any]"]
Maker = Callable[..., Any]


def scope(*args: Any, **options: Any) -> valued.Scope:
    return valued.Scope(valued.Client(*args, **options), {"user.id": 1})


MAKERS = [valued.Client, valued.Connection, scope]


class Silent:
    """A transport of a module."""

    def __call__(self, event: dict[str, Any]) -> None:
        pass


def ignore(error: valued.DeliveryError, event: dict[str, Any]) -> None:
    """An `on_error` of a module."""


# -- a token that was given ------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_was_given_a_token_is_not_pickled_and_the_fix_is_said(
    make: Maker, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_TOKEN", TOKEN)  # that of the environment doesn't make it another's
    with pytest.raises(valued.PicklingError, match="set VALUED_TOKEN and give no token") as caught:
        pickle.dumps(make(TOKEN, URL), protocol)
    assert TOKEN not in str(caught.value)
    assert isinstance(caught.value, TypeError)


def test_what_holds_one_of_them_is_refused_for_the_same_reason() -> None:
    class_of_users = {"clients": [valued.Client(TOKEN, URL)], "scope": scope(TOKEN, URL)}
    with pytest.raises(valued.PicklingError, match="set VALUED_TOKEN"):
        pickle.dumps(class_of_users)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forkserver here")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("what", ["client", "scope", "connection", "transport"])
def test_a_child_that_multiprocessing_starts_gets_it_whole(
    server: Server, method: str, what: str
) -> None:
    result = run_program("spawn.py", method, what, server.url)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert found["status"] == 0
    assert not found["shown"]
    assert found["same options"]
    assert "set VALUED_TOKEN" in found["refused"]  # once the child has been started
    assert TOKEN not in result.stdout
    sent = {event["key"]: event for event in server.events}
    assert server.keys() == ["child", "parent"]
    assert sent["parent"]["attributes"]["pid"] == found["parent"]
    assert sent["child"]["attributes"]["pid"] == found["pid"] != found["parent"]
    if what == "scope":
        assert sent["child"]["user"] == {"id": 1}
        assert sent["child"]["customer"] == {"id": 12}
        assert sent["child"]["attributes"] == {"default": True, "pid": found["pid"]}
    authorizations = {request.headers["Authorization"] for request in server.requests}
    assert authorizations == {f"Bearer {TOKEN}"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forkserver here")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_pool_gets_it_with_its_workers_and_not_with_a_task(server: Server, method: str) -> None:
    result = run_program("spawn.py", method, "pool", server.url)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert "set VALUED_TOKEN" in found["refused"]
    assert TOKEN not in found["refused"]
    assert server.keys() == [f"task-{number}" for number in range(6)]
    pids = {event["key"]: event["attributes"]["pid"] for event in server.events}
    assert [pids[f"task-{number}"] for number in range(6)] == found["pids"]


class Spawning:
    """As multiprocessing marks a thread while it pickles for the child that it starts."""

    def __enter__(self) -> None:
        multiprocessing.context.set_spawning_popen(self)

    def __exit__(self, *_raised: object) -> None:
        multiprocessing.context.set_spawning_popen(None)


def spawned(subject: object) -> bytes:
    with Spawning():
        return bytes(multiprocessing.reduction.ForkingPickler.dumps(subject))


@pytest.mark.parametrize("make", MAKERS)
def test_another_thread_pickles_nothing_meanwhile(make: Maker, in_thread: InThread) -> None:
    with Spawning():
        assert TOKEN.encode() in pickle.dumps(make(TOKEN, URL))
        refused = in_thread(pickle.dumps, make(TOKEN, URL)).exception(10)
    assert isinstance(refused, valued.PicklingError)


@pytest.mark.parametrize("make", MAKERS)
def test_what_multiprocessing_was_given_shows_no_token_where_it_arrives(make: Maker) -> None:
    arrived = pickle.loads(spawned(make(TOKEN, URL)))
    assert TOKEN not in repr(arrived)
    with pytest.raises(valued.PicklingError):  # it is given, there too
        pickle.dumps(arrived)


# -- a token of the environment --------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dumps", [pickle.dumps, spawned], ids=["anywhere", "spawning"])
def test_a_token_of_the_environment_is_left_out_and_read_again(
    make: Maker, dumps: Callable[[object], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_TOKEN", TOKEN)
    pickled = dumps(make(None, URL))
    assert TOKEN.encode() not in pickled
    monkeypatch.setenv("VALUED_TOKEN", "another")
    connection = connection_of(pickle.loads(pickled))
    assert connection.headers["Authorization"] == "Bearer another"
    assert connection.endpoint == URL
    assert TOKEN.encode() not in pickle.dumps(connection)  # it was not given, here neither
    monkeypatch.delenv("VALUED_TOKEN")
    with pytest.raises(valued.ValidationError, match="set VALUED_TOKEN"):
        pickle.loads(pickled)


def connection_of(subject: Any) -> valued.Connection:
    if isinstance(subject, valued.Scope):
        subject = subject._own.client
    found = getattr(subject, "_transport", subject)
    assert isinstance(found, valued.Connection)
    return found


def test_a_program_without_the_variable_is_told_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VALUED_TOKEN", TOKEN)
    pickled = pickle.dumps(valued.Client(None, URL))
    monkeypatch.delenv("VALUED_TOKEN")
    code = f"import pickle; pickle.loads({pickled!r})"
    result = run("-c", code)
    assert result.returncode == 1
    assert "ValidationError: token: none was given; pass one, or set VALUED_TOKEN" in result.stderr


def test_options_of_client_and_connection_survive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VALUED_TOKEN", TOKEN)
    options: dict[str, Any] = {
        "executor": ThreadPoolExecutor,
        "max_workers": 3,
        "max_queue": 77,
        "overflow": "block",
        "timeout": 1.5,
        "retries": 2,
        "shutdown_timeout": 0.5,
        "idle_time": 9.0,
        "on_error": ignore,
    }
    before = valued.Client(None, URL, **options)
    client = pickle.loads(pickle.dumps(before))
    assert {name: getattr(client._options, name) for name in options} == options
    made, connection = connection_of(before), connection_of(client)
    assert connection._timeout == made._timeout == 1.5
    assert connection._pool_size == made._pool_size >= 3
    own = pickle.loads(pickle.dumps(valued.Connection(None, URL, timeout=2.5, pool_size=4)))
    assert (own._timeout, own._pool_size) == (2.5, 4)


class OwnClient(valued.Client):
    """A user's own."""


def test_a_users_own_class_stays_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VALUED_TOKEN", TOKEN)
    assert type(pickle.loads(pickle.dumps(OwnClient(None, URL)))) is OwnClient


def test_a_client_that_has_sent_pickles_its_configuration_and_none_of_its_state(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_TOKEN", TOKEN)
    with valued.Client(None, server.url) as client:
        client.action("a", {"user.id": 1})
        assert client.flush(10)
        with pickle.loads(pickle.dumps(client)) as other:
            assert other.stats()["accepted"] == 0
            other.action("b", {"user.id": 1})
            assert other.flush(10)
        assert client.stats()["accepted"] == 1
    assert server.keys() == ["a", "b"]


# -- parts that can't be pickled -------------------------------------------------------------------


@pytest.mark.parametrize("dumps", [pickle.dumps, spawned], ids=["anywhere", "spawning"])
@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("transport", "function"),
        ("executor", "function"),
        ("executor", "ThreadPoolExecutor"),
        ("on_error", "function"),
    ],
)
def test_a_part_that_cannot_be_pickled_is_named(
    part: str, kind: str, dumps: Callable[[object], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUED_TOKEN", TOKEN)
    with ThreadPoolExecutor(1) as pool:
        value: Any = pool if kind == "ThreadPoolExecutor" else lambda *_args: pool
        client = valued.Client(value) if part == "transport" else valued.Client(**{part: value})
        for subject in (client, valued.Scope(client)):
            with pytest.raises(valued.PicklingError, match=rf"^{part}: a {kind} can't") as caught:
                dumps(subject)
            assert "in the child" in str(caught.value)
            assert caught.value.__cause__ is not None
            assert TOKEN not in str(caught.value)


def test_multiprocessing_says_it_too_and_starts_nothing() -> None:
    client = valued.Client(TOKEN, URL, on_error=lambda _error, _event: None)
    process = multiprocessing.get_context("spawn").Process(target=print, args=(client,))
    with pytest.raises(valued.PicklingError, match=r"^on_error: a function can't be pickled"):
        process.start()
    # What it had started already finds its end of the pipe closed, and ends.
    if process._popen is not None:
        process.join(10)


def test_a_transport_of_a_module_is_pickled_with_its_client() -> None:
    client = pickle.loads(pickle.dumps(valued.Client(Silent(), on_error=ignore)))
    assert isinstance(client._transport, Silent)
    client.action("a", {"user.id": 1})
    assert client.close(10)
    assert client.stats()["delivered"] == 1


# -- scopes ----------------------------------------------------------------------------------------


def test_the_shared_scope_is_that_of_the_process_where_it_arrives(server: Server) -> None:
    assert pickle.loads(pickle.dumps(valued.scope)) is valued.scope
    valued.connect(TOKEN, server.url)
    valued.scope["user.id"] = 1
    pickled = pickle.dumps(valued.scope)
    assert TOKEN.encode() not in pickled
    assert pickle.loads(pickled) is valued.scope
    assert spawned(valued.scope) == pickled
    result = run("-c", f"import pickle; print(pickle.loads({pickled!r}))")
    assert result.stdout == "<shared scope, not connected>\n"


# -- copies ----------------------------------------------------------------------------------------


def test_a_copy_of_a_client_is_the_client() -> None:
    client = valued.Client(TOKEN, URL)
    assert copy.copy(client) is client
    assert copy.deepcopy(client) is client
    copied = copy.deepcopy({"client": client, "list": [client]})
    assert copied["client"] is copied["list"][0] is client


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_of_a_scope_shares_the_client_and_nothing_else(copied: Callable[[Any], Any]) -> None:
    before = scope(TOKEN, URL)
    after = copied(before)
    assert after._own.client is before._own.client
    after["user.id"] = 2
    assert (before["user.id"], after["user.id"]) == (1, 2)

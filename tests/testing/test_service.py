"""`valued.testing.service`: a server to send to, and how it can be told to misbehave."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

import valued
from tests.support.processes import Child, run
from tests.testing.support import assert_passed, pytest_in, write
from valued.testing import Service, recorded, service

TOKEN = "a-secret-token"


@pytest.fixture
def listening() -> Iterator[Service]:
    with service() as listening:
        yield listening


@pytest.fixture
def client(listening: Service) -> Iterator[valued.Client]:
    client = valued.Client()
    yield client
    client.close(10)


def _report(client: valued.Client, user: int = 1) -> None:
    client.action("report.generated", {"user.id": user})


def test_events_arrive_over_the_wire(listening: Service, client: valued.Client) -> None:
    _report(client, 7)
    assert listening.wait(1).one("report.generated", user={"id": 7})["category"] == "action"
    assert listening.events.actions == ["report.generated"]
    assert listening.events.pids == {os.getpid()}
    [request] = listening.requests
    assert (request.method, request.path) == ("POST", "/events")
    assert request.event == listening.events[0]
    assert request.headers["Content-Type"] == "application/json"
    assert repr(listening) == f"<Service {listening.url}, 1 event>"


def test_the_token_is_sent_and_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VALUED_TOKEN", TOKEN)
    with service() as listening, valued.Client() as client:
        _report(client)
        listening.wait(1)
    assert listening.requests[0].headers["Authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in repr(listening.requests) + repr(listening) + repr(vars(listening))


def test_it_fails_as_often_as_it_is_told(listening: Service, client: valued.Client) -> None:
    listening.fail(503, times=2)
    _report(client)
    listening.wait(1, timeout=20)
    assert len(listening.requests) == 3
    assert {request.headers["Idempotency-Key"] for request in listening.requests} == {
        listening.requests[0].headers["Idempotency-Key"]
    }
    assert client.flush(5)
    assert client.stats()["retried"] == 2


def test_it_fails_until_it_is_told_that_all_is_well(listening: Service) -> None:
    body = b'{"category":"action","key":"a","user":{"id":1}}'

    def send() -> int:
        headers = {"Authorization": "Bearer any"}
        return requests.post(listening.url, body, headers=headers, timeout=10).status_code

    listening.fail()
    assert [send() for _ in range(5)] == [503] * 5
    listening.fail(429, times=1)
    assert [send() for _ in range(2)] == [429, 204]
    listening.fail(500)
    assert send() == 500
    listening.fail(times=0)
    assert send() == 204
    assert (len(listening.events), len(listening.requests)) == (2, 9)


def test_it_answers_late(listening: Service, client: valued.Client) -> None:
    listening.delay(1.0)
    started = time.monotonic()
    _report(client)
    assert time.monotonic() - started < 1.0
    assert client.flush(10)
    assert time.monotonic() - started >= 1.0


def test_it_refuses_what_the_service_would(listening: Service) -> None:
    answer = requests.post(
        listening.url, b"{}", headers={"Authorization": "Bearer any"}, timeout=10
    )
    assert answer.status_code == 400
    assert requests.post(listening.url, b"{}", timeout=10).status_code == 401
    assert len(listening.requests) == 2
    assert listening.events == []


def test_it_can_be_cleared(listening: Service, client: valued.Client) -> None:
    _report(client)
    listening.wait(1).clear()
    assert (len(listening.events), len(listening.requests)) == (0, 1)
    _report(client)
    listening.wait(1)
    listening.clear()
    assert (len(listening.events), len(listening.requests)) == (0, 0)


def test_wait_says_what_came(listening: Service) -> None:
    with pytest.raises(AssertionError, match=r"0 events in 0\.05 s, expected 1"):
        listening.wait(1, timeout=0.05)


def _failures(listening: Service) -> Iterator[str]:
    for ask in (lambda: listening.events.one("a"), lambda: listening.wait(1, timeout=0.02)):
        with pytest.raises(AssertionError) as failed:
            ask()
        yield str(failed.value).splitlines()[-1]


def test_a_failure_says_that_a_recording_takes_the_events(
    listening: Service, client: valued.Client
) -> None:
    with recorded():
        _report(client)
        said = {*_failures(listening)}
    assert said == {"nothing arrived; a recording is on and takes the events"}


def test_a_failure_says_that_a_client_made_before_sends_elsewhere() -> None:
    elsewhere: list[Any] = []
    client = valued.Client(elsewhere.append, executor=valued.ImmediateExecutor())
    with service() as listening:
        _report(client)
        [said] = {*_failures(listening)}
    assert len(elsewhere) == 1
    assert said.startswith("nothing arrived; ")
    assert said.endswith("make the client after the fixture, for example by valued.connect()")


def test_a_failure_says_that_what_came_was_not_taken(
    listening: Service, client: valued.Client
) -> None:
    listening.fail(400)
    _report(client)
    client.flush(10)
    with recorded():
        assert {*_failures(listening)} == {"nothing was taken of what arrived (1 request)"}


def test_the_environment_leads_to_it_and_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VALUED_DISABLED", "1")
    monkeypatch.setenv("VALUED_ENDPOINT", "https://events.example.com/events")
    before = dict(os.environ)
    with contextlib.suppress(ZeroDivisionError), service() as listening:
        assert os.environ["VALUED_ENDPOINT"] == listening.url
        assert os.environ["VALUED_TOKEN"] == "test-token"
        assert "VALUED_DISABLED" not in os.environ
        raise ZeroDivisionError
    assert dict(os.environ) == before
    with pytest.raises(requests.ConnectionError):
        requests.post(listening.url, timeout=10)


def test_neither_a_proxy_nor_an_outbox_comes_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("VALUED_OUTBOX", str(tmp_path / "outbox"))
    for given in (None, "example.com", "*"):
        if given is not None:
            monkeypatch.setenv("NO_PROXY", given)
        with service() as listening:
            with valued.Client() as client:
                _report(client)
                listening.wait(1)
            hosts = os.environ["no_proxy"].split(",")
        assert hosts == {None: ["127.0.0.1"], "*": ["*"]}.get(given, [given, "127.0.0.1"])
        assert "no_proxy" not in os.environ
    assert not (tmp_path / "outbox").exists()


def test_it_may_be_closed_twice_and_used_without_the_environment() -> None:
    with Service() as listening:
        assert "VALUED_ENDPOINT" not in os.environ
        with valued.Client("token", listening.url) as client:
            _report(client)
    listening.close()
    assert len(listening.events) == 1


def test_children_and_programs_send_to_it(
    listening: Service, client: valued.Client, fork: Callable[..., Child]
) -> None:
    def report() -> None:
        _report(client, 2)
        assert client.flush(10)

    child = fork(report)
    assert child.wait() == 0
    done = run("-c", "import valued; valued.Client().action('told', {'user.id': 3})")
    assert (done.returncode, done.stderr) == (0, "")
    users: list[Any] = [event["user"]["id"] for event in listening.wait(2)]
    assert sorted(users) == [2, 3]


_TEST = """
import valued

def test_it(valued_service):
    with valued.Client() as client:
        valued_service.fail(503, times=1)
        client.action("worked", {"user.id": 1})
        client.flush(10)
    assert valued_service.events.actions == ["worked"]
    assert len(valued_service.requests) == 2
"""


@pytest.mark.parametrize("ini", ["valued_block = true", "valued_disabled = true"])
def test_the_fixture_is_the_same(tmp_path: Path, ini: str) -> None:
    write(tmp_path, ini=ini, test_it=_TEST)
    assert_passed(pytest_in(tmp_path, "-q"), 1)

"""What programs ask `valued listen` for: events, a wait for some, and the lanes."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import valued
from tests.support.cli import listening
from tests.support.listener import EVENT, TOKEN, Site
from tests.support.processes import run, until
from valued._service import site as site_of_programs

SENT: list[dict[str, Any]] = [
    {"category": "action", "key": "a", "user": {"id": 1}},
    {"category": "action", "key": "b", "user": {"id": "x y"}, "customer": {"id": 5}},
    {"category": "pageview", "user": {"id": 1}, "attributes": {"source": {"url": "/p"}}},
    {"category": "sync", "customer": {"id": 5}},
]


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("", [1, 2, 3, 4]),
        ("key=a", [1]),
        ("key=none", []),
        ("user=1", [1, 3]),
        ("user=x+y", [2]),
        ("user=x%20y&key=b", [2]),
        ("user=1&key=b", []),
        ("customer=5", [2, 4]),
        ("category=pageview", [3]),
        ("process={pid}", [1, 2, 3, 4]),
        ("process={name}", [1, 2, 3, 4]),
        ("process=other", []),
        ("after=2", [3, 4]),
        ("after=99", []),
        ("limit=2", [1, 2]),
        ("after=1&limit=1", [2]),
        ("all=1", [1, 2, 3, 4, 5]),
        ("all=0", [1, 2, 3, 4]),
        ("key=&user=&after=", [1, 2, 3, 4]),  # what is empty is not asked for
    ],
)
def test_events_are_asked_for_by_what_they_have(query: str, ids: list[int], site: Site) -> None:
    for event in SENT:
        assert site.post(event) == 204
    assert site.post({**EVENT, "user": 7}) == 400
    record = site.events()[0]
    answer = site.ask(f"/events?{query.format(pid=record['pid'], name=record['process'])}")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    found = answer.json()
    assert [record["id"] for record in found["events"]] == ids
    assert found["last"] == (ids[-1] if "limit" in query else 5)


def test_reading_goes_on_from_the_last_id(site: Site) -> None:
    seen, last = [], 0
    for event in SENT:
        site.post(event)
        answer = site.ask(f"/events?after={last}").json()
        last = answer["last"]
        seen += answer["events"]
    assert [record["event"] for record in seen] == SENT


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/events?kye=a", "kye: unknown; there are category, key, "),
        ("/events?n=1", "n: unknown"),
        ("/events?after=x", "after: expected a whole number, 0 or more"),
        ("/events?after=-1", "after: expected"),
        ("/events?limit=0", "limit: expected a whole number, 1 or more"),
        ("/wait?limit=1", "limit: unknown"),
        ("/wait?n=0", "n: expected"),
        ("/wait?timeout=x", "timeout: expected seconds, 0 to 300"),
        ("/wait?timeout=301", "timeout: expected"),
        ("/wait?timeout=nan", "timeout: expected"),
    ],
)
def test_question_that_is_not_understood_is_400(path: str, reason: str, site: Site) -> None:
    answer = site.ask(path)
    assert answer.status_code == 400
    assert answer.json()["errors"][0].startswith(reason)


def test_wait_returns_as_soon_as_there_are_enough(site: Site) -> None:
    answers: list[tuple[float, Any]] = []

    def wait() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", site.port, 30)
        connection.request("GET", "/wait?key=a.b&n=3&timeout=30")
        answer = json.loads(connection.getresponse().read())
        answers.append((time.monotonic(), answer))
        connection.close()

    waiting = threading.Thread(target=wait)
    waiting.start()
    until(lambda: site.history._changed._waiters)  # type: ignore[attr-defined]
    for key in ("1", "1", "2"):  # a repeat is no other event
        site.post(key=key)
    site.post({**EVENT, "key": "other"})
    assert not answers
    site.post(key="3")
    sent_at = time.monotonic()
    waiting.join(10)
    [(came_at, answer)] = answers
    assert came_at - sent_at < 1
    assert [record["key"] for record in answer["events"]] == ["1", "2", "3"]


def test_wait_finds_what_came_before_it_unless_after_is_given(site: Site) -> None:
    site.post()
    answer = site.ask("/wait?timeout=0")
    assert (answer.status_code, len(answer.json()["events"])) == (200, 1)
    assert site.ask("/wait?timeout=0&after=1").status_code == 504


def test_wait_is_504_with_what_came_when_its_time_is_over(site: Site) -> None:
    site.post()
    began_at = time.monotonic()
    answer = site.ask("/wait?n=2&timeout=0.3")
    assert 0.3 <= time.monotonic() - began_at < 2
    assert answer.status_code == 504
    assert answer.json()["errors"] == ["1 of 2 came in 0.3 s"]
    assert [record["event"] for record in answer.json()["events"]] == [EVENT]


def test_wait_for_refused_requests(site: Site) -> None:
    site.post(b"{}")
    [record] = site.ask("/wait?all=1&timeout=0").json()["events"]
    assert record["status"] == 400


def test_program_that_leaves_is_waited_for_no_longer(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_of_programs, "_LOOK", 0.05)
    connection = http.client.HTTPConnection("127.0.0.1", site.port, 30)
    connection.request("GET", "/wait?timeout=300")
    until(lambda: site.history._changed._waiters)  # type: ignore[attr-defined]
    connection.close()
    until(lambda: not len(site.listener.connections))


@pytest.mark.parametrize(
    ("path", "method", "allowed"),
    [
        ("/", "POST", "GET, HEAD"),
        ("/stream", "HEAD", "GET"),
        ("/wait", "POST", "GET"),
        ("/control", "DELETE", "GET, HEAD, POST"),
        ("/lanes", "OPTIONS", "GET, HEAD"),
    ],
)
def test_other_methods_are_405(path: str, method: str, allowed: str, site: Site) -> None:
    answer = site.ask(path, method, data=b"")
    assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert site.post() == 204  # the connection is in step


def test_head_has_what_get_has_without_the_content(site: Site) -> None:
    for path in ("/", "/events", "/control", "/lanes"):
        head, get = site.ask(path, "HEAD"), site.ask(path)
        assert head.content == b""
        assert head.headers["Content-Length"] == str(len(get.content))
        assert head.headers["Content-Type"] == get.headers["Content-Type"]


def test_without_the_page_only_events_are_answered() -> None:
    with listening("--no-ui") as listener:
        home = listener.url.removesuffix("events")
        program = (
            "import sys, requests\n"
            "for path in ('', 'stream', 'wait', 'control', 'lanes', 'events'):\n"
            "    print(requests.get(sys.argv[1] + path, timeout=10).status_code)\n"
        )
        said = run("-c", program, home).stdout.split()
        assert said == ["404"] * 5 + ["405"]
        with valued.Client(TOKEN, listener.url) as client:
            client.action("a.b", {"user.id": 1})
            assert client.flush(10)
        assert len(listener.end()) == 1
    assert "Page" not in listener.summary


def test_process_answers_programs_while_it_prints(in_thread: Callable[..., Any]) -> None:
    import requests

    with listening() as listener:
        waiting = in_thread(requests.get, f"{listener.page}wait?user=7&timeout=20", timeout=30)
        with valued.Client(TOKEN, listener.url) as client:
            client.action("a.b", {"user.id": 7})
            client.action("a.b", {"user.id": 8})
        answer = waiting.result(30)
        assert [record["event"]["user"]["id"] for record in answer.json()["events"]] == [7]
        assert TOKEN not in answer.text
        lines = listener.end()
    # Those who read are no senders.
    connections = len({line["connection"] for line in lines})
    assert listener.summary.startswith(f"2 events received, 0 refused, on {connections} connection")

"""What `valued listen` keeps of what it received: records, lanes, totals, and their bounds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

import valued
from tests.support.listener import EVENT, TOKEN, Site
from tests.support.processes import Child, until
from valued._service import history as history_of_requests
from valued._service import lanes
from valued._service.history import History


def test_record_has_what_came_and_who_sent_it(site: Site) -> None:
    began_at = time.time()
    assert site.post(key="k-1", X_Other="7") == 204
    [record] = site.events()
    assert (record["id"], record["status"], record["reasons"]) == (1, 204, [])
    assert (record["event"], record["raw"], record["bytes"]) == (
        EVENT, None, len(json.dumps(EVENT)),
    )  # fmt: skip
    assert began_at <= record["at"] <= time.time()
    me = psutil.Process()
    assert (record["pid"], record["process"]) == (me.pid, me.name())
    assert record["lane"] == f"{me.pid}-{int(me.create_time())}"
    assert record["connection"].startswith("127.0.0.1:")
    assert (record["key"], record["attempt"], record["first"]) == ("k-1", 1, None)
    assert record["headers"]["X-Other"] == "7"
    assert record["forwarded"] is None


@pytest.mark.parametrize("layout", [None, 2])
def test_event_is_as_it_was_sent_on_one_line_or_many(layout: int | None, site: Site) -> None:
    event = {**EVENT, "attributes": {"x": "a\r\nb\u2028\ud800 <script>", "n": 1e99}}
    follower = site.follow()
    assert site.post(json.dumps(event, indent=layout).replace("\n", "\r\n").encode()) == 204
    [record] = follower.until(1)
    assert record["event"] == event == site.events()[0]["event"]


@pytest.mark.parametrize(
    ("body", "status", "reason", "event", "raw"),
    [
        (b'{"category": "action"}', 400, "key: ", {"category": "action"}, None),
        (b"[1]", 400, "event: ", None, "[1]"),
        (b"{\xff", 400, "the body: ", None, "{\ufffd"),
        (b"{" + b"\xc3\xa9" * 5000, 400, "the body: ", None, "{" + "é" * 4095),
        (b" " * 1_100_000, 413, "an event may have", None, ""),
    ],
)
def test_refused_request_is_kept_with_its_reasons(
    body: bytes, status: int, reason: str, event: Any, raw: str | None, site: Site
) -> None:
    assert site.post(body) == status
    assert site.events() == []
    [record] = site.events("all=1")
    assert record["status"] == status
    assert record["reasons"][0].startswith(reason)
    assert (record["event"], record["raw"]) == (event, raw)
    assert record["pid"] == os.getpid()


def test_request_without_a_token_is_kept_with_its_event(site: Site) -> None:
    assert site.post(Authorization="t") == 401
    [record] = site.events("all=1")
    assert record["reasons"] == ["Authorization: expected 'Bearer TOKEN'"]
    assert record["event"] == EVENT


def test_repeats_of_a_key_say_which_one_was_accepted_first(site: Site) -> None:
    site.control(fail={"status": 503, "events": 2})
    assert [site.post(key="k") for _ in range(5)] == [503, 503, 204, 204, 204]
    assert site.post(key="another") == 204
    records = site.events("all=1")
    assert [(record["attempt"], record["first"]) for record in records] == [
        (1, None), (2, None), (3, None), (4, 3), (5, 3), (1, None),
    ]  # fmt: skip
    assert [record["id"] for record in site.events()] == [3, 6]


def test_long_keys_are_told_apart(site: Site) -> None:
    for key in ("x" * 5000, "x" * 5000, "x" * 4999 + "y"):
        site.post(key=key)
    assert [record["first"] for record in site.events("all=1")] == [None, 1, None]


def test_keys_are_forgotten_last_of_all(
    run_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_of_requests, "MOST_KEYS", 3)
    site = run_site(history=History(most=2))
    for key in ("a", "b", "c", "a", "d", "a"):
        site.post(key=key)
    assert [record["first"] for record in site.events("all=1")] == [None, None]
    site.post(key="d")
    assert site.events("all=1")[-1]["first"] == 5


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (f"Bearer {TOKEN}", "Bearer •••"),
        (f"bearer   {TOKEN}", "bearer •••"),
        (TOKEN, "•••"),
        (f"Bearer{TOKEN}", "•••"),
        ("Basic dTpwYXNzd29yZA==", "Basic •••"),
        (f"Tocken {TOKEN}", "•••"),
        ("Bearer", "Bearer"),
        ("", ""),
    ],
)
def test_token_is_in_no_record(given: str, shown: str, site: Site) -> None:
    assert site.post(Authorization=given, Cookie="session=1") in (204, 401)
    follower = site.follow()
    headers = follower.until(1)[0]["headers"]
    assert (headers["Authorization"], headers["Cookie"]) == (shown, "•••")
    [record] = site.history.records()
    for said in (site.ask("/events?all=1").text, repr(record), repr(follower.records)):
        assert TOKEN not in said
        assert "dTpw" not in said


def test_token_that_another_header_repeats_is_in_no_record(site: Site) -> None:
    site.post(key=f"of {TOKEN}", X_Copy=f"-{TOKEN}-")
    [record] = site.events()
    assert (record["key"], record["headers"]["X-Copy"]) == ("of •••", "-•••-")
    assert TOKEN not in repr(site.history.records())


def test_the_last_records_are_kept_up_to_a_number(run_site: Callable[..., Site]) -> None:
    site = run_site(history=History(most=5))
    for _ in range(12):
        site.post()
    assert [record["id"] for record in site.events()] == [8, 9, 10, 11, 12]
    assert site.follow().next("totals")["requests"] == 12


def test_ten_thousand_are_kept(site: Site) -> None:
    assert site.follow().next("hello")["kept"] == 10_000
    site.post()
    [record] = site.history.records()
    for _ in range(10_000):
        site.history.add(_copy(record))
    kept = site.history.records()
    assert (len(kept), kept[0].id, kept[-1].id) == (10_000, 2, 10_001)


def _copy(record: Any) -> Any:
    import copy

    return copy.copy(record)


def test_the_last_records_are_kept_up_to_a_number_of_bytes(run_site: Callable[..., Site]) -> None:
    site = run_site(history=History(most_bytes=250_000))
    for number in range(20):
        site.post({**EVENT, "attributes": {"x": "x" * 50_000, "n": number}})
    numbers = [record["event"]["attributes"]["n"] for record in site.events()]
    assert numbers == [16, 17, 18, 19]
    site.post({**EVENT, "attributes": {"x": "x" * 500_000}})  # the last one stays
    assert len(site.events()) == 1


def test_cleared_history_is_empty_and_its_numbers_go_on(site: Site) -> None:
    for _ in range(3):
        site.post(key="k")
    assert site.ask("/events", "DELETE").status_code == 204
    assert (site.events("all=1"), site.ask("/lanes").json()) == ([], [])
    site.post(key="k")
    [record] = site.events()
    assert (record["id"], record["attempt"], record["first"]) == (4, 1, None)
    [lane] = site.ask("/lanes").json()
    assert (lane["requests"], lane["connections"]) == (1, 1)


# -- lanes -----------------------------------------------------------------------------------------


def test_lane_counts_what_its_process_sent(site: Site) -> None:
    site.control(fail={"status": 503, "events": 1})
    for key in ("a", "b", "b", "c"):
        site.post(key=key)
    site.post(b"{}")
    site.session.close()  # the next one is on a new connection
    site.post()
    [lane] = site.ask("/lanes").json()
    parent = psutil.Process().parent()
    assert parent is not None
    assert lane.pop("appeared") <= time.time()
    me = psutil.Process()
    assert lane == {
        "lane": f"{me.pid}-{int(me.create_time())}", "pid": me.pid, "name": me.name(),
        "parent": parent.pid, "parent_name": parent.name(), "parent_lane": None, "ended": None,
        "requests": 6, "events": 3, "repeats": 1, "refused": 1, "simulated": 1, "connections": 2,
    }  # fmt: skip


def test_forked_child_is_a_lane_of_its_own_below_its_parent(
    site: Site, fork: Callable[..., Child]
) -> None:
    client = valued.Client(TOKEN, site.listener.url)

    def report() -> None:
        client.action("a.b", {"user.id": 2})
        assert client.flush(10)

    child = fork(report)
    assert child.wait() == 0
    before = {lane["pid"]: lane for lane in site.ask("/lanes").json()}
    assert before[child.pid]["parent"] == os.getpid()
    assert before[child.pid]["parent_lane"] is None
    report()
    client.close(10)
    after = {lane["pid"]: lane for lane in site.ask("/lanes").json()}
    assert after[child.pid]["parent_lane"] == after[os.getpid()]["lane"]


_PROGRAM = """
import sys, valued
with valued.Client("t", sys.argv[1]) as client:
    client.action("a.b", {"user.id": 1})
    assert client.flush(10)
    print(flush=True)
    sys.stdin.read()
"""


def test_end_of_a_process_is_noticed_by_those_who_watch(site: Site) -> None:
    follower = site.follow()
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, site.listener.url],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    until(lambda: [lane["ended"] for lane in follower.next("lanes")] == [None])
    process.stdin.close()  # it is not waited for yet: a zombie has ended
    [lane] = follower.next("lanes")
    assert lane["pid"] == process.pid
    assert lane["ended"] <= time.time()
    assert process.wait(10) == 0
    process.stdout.close()


def test_sender_of_which_no_process_is_known_has_the_lane_of_its_address(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "net_connections", lambda _kind: [])
    site.post()
    [lane] = site.ask("/lanes").json()
    assert (lane["lane"], lane["pid"], lane["name"], lane["ended"]) == (
        "127.0.0.1", None, None, None,
    )  # fmt: skip
    assert site.events()[0]["lane"] == "127.0.0.1"


@pytest.mark.parametrize("error", [psutil.AccessDenied(1), psutil.NoSuchProcess(1)])
def test_process_that_says_nothing_of_itself_is_told_by_its_number(
    error: Exception, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_process: psutil.Process) -> str:
        raise error

    monkeypatch.setattr(lanes, "_key", refuse)
    site.post()
    monkeypatch.undo()
    assert site.events()[0]["lane"] == str(os.getpid())


def test_process_without_a_parent_is_a_lane(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil.Process, "parent", lambda _process: None)
    site.post()
    [lane] = site.ask("/lanes").json()
    assert (lane["pid"], lane["parent"], lane["parent_lane"]) == (os.getpid(), None, None)


@pytest.mark.parametrize(
    ("error", "ended"), [(psutil.AccessDenied(1), False), (psutil.NoSuchProcess(1), True)]
)
def test_process_of_which_the_state_is_not_known_has_not_ended(
    error: Exception, ended: bool, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_process: psutil.Process) -> str:
        raise error

    site.post()
    monkeypatch.setattr(psutil.Process, "status", refuse)
    [lane] = site.ask("/lanes").json()
    assert (lane["ended"] is not None) == ended


def test_lanes_of_processes_that_ended_are_bounded(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "MOST_ENDED", 3)
    monkeypatch.setattr(lanes, "MANY", 5)  # no one watches
    monkeypatch.setattr(history_of_requests, "_LOOK", 0.0)
    pids = []
    for _ in range(9):
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, site.listener.url],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        assert process.wait(20) == 0
        pids.append(process.pid)
    assert len(site.history._lanes) <= 6
    assert [lane["pid"] for lane in site.ask("/lanes").json()] == pids[-3:]


def test_totals_count_each_kind_of_event_up_to_a_number(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_of_requests, "MOST_KINDS", 2)
    follower = site.follow()
    for key in ("a", "b", "a", "c"):
        site.post({**EVENT, "key": key})
    follower.until(4)
    totals = site.follow().next("totals")
    assert (totals["requests"], totals["events"]) == (4, 4)
    assert {name: kind["count"] for name, kind in totals["keys"].items()} == {
        "action a": 2, "action b": 1,
    }  # fmt: skip
    assert totals["keys"]["action a"]["first"] < totals["keys"]["action a"]["last"]


def test_process_that_ended_unseen_ended_with_its_last_request(site: Site) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, site.listener.url],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.wait(20) == 0
    [lane] = site.ask("/lanes").json()
    assert lane["ended"] == site.events()[-1]["at"]

"""The controls: what they do to valid events, and that a client gets all of them through."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

import valued
from tests.support.listener import EVENT, TOKEN, Site
from tests.support.processes import until
from valued._service import controls

PLAIN = {"fail": None, "delay": 0.0, "drop": 0, "paused": False}


def test_controls_are_shown_as_they_are(run_site: Callable[..., Site]) -> None:
    assert run_site().ask("/control").json() == PLAIN
    site = run_site(failures=[(503, 2), (429, 1)], delay=0.01)
    shown = [(site.ask("/control").json()["fail"], site.post())[0] for _ in range(4)]
    assert shown == [
        {"status": 503, "events": 2, "seconds": None},
        {"status": 503, "events": 1, "seconds": None},
        {"status": 429, "events": 1, "seconds": None},
        None,
    ]
    assert site.events("all=1")[0]["reasons"] == ["as requested by --fail"]
    assert site.ask("/control").json()["delay"] == 0.01


def test_only_what_is_named_changes(site: Site) -> None:
    assert site.control() == PLAIN
    assert site.control(delay=0.5) == {**PLAIN, "delay": 0.5}
    assert site.control(drop=2) == {**PLAIN, "delay": 0.5, "drop": 2}
    assert site.control(delay=0, paused=True) == {**PLAIN, "drop": 2, "paused": True}
    assert site.control(drop=0, paused=False) == PLAIN


@pytest.mark.parametrize(
    ("wanted", "reasons"),
    [
        ([], ['expected an object, such as {"fail": {"status": 503}}']),
        ({"dely": 1}, ["dely: unknown; there are fail, delay, drop, paused"]),
        ({"delay": -1}, ["delay: expected seconds, 0 to 86400"]),
        ({"delay": True}, ["delay: expected seconds, 0 to 86400"]),
        ({"delay": 10**400}, ["delay: expected seconds, 0 to 86400"]),
        ({"drop": 1.5}, ["drop: expected a whole number, 0 to 1000000000"]),
        ({"drop": True}, ["drop: expected a whole number, 0 to 1000000000"]),
        ({"paused": 1}, ["paused: expected true or false"]),
        ({"fail": 503}, ['fail: expected null or an object, such as {"status": 503, "events": 3}']),
        ({"fail": {"status": 200}}, ["fail.status: expected a status, 300 to 599"]),
        (
            {"fail": {"count": 3, "seconds": "x"}, "paused": None},
            [
                "fail.count: unknown; there are status, events, seconds",
                "fail.seconds: expected seconds, 0 to 86400",
                "paused: expected true or false",
            ],
        ),
    ],
)
def test_wrong_wish_is_400_with_the_reasons_and_changes_nothing(
    wanted: Any, reasons: list[str], site: Site
) -> None:
    if isinstance(wanted, dict) and "drop" not in wanted:
        wanted["drop"] = 3
    answer = site.ask("/control", "POST", json=wanted)
    assert (answer.status_code, answer.json()) == (400, {"errors": reasons})
    assert site.ask("/control").json() == PLAIN


def test_wish_that_is_no_json_is_400(site: Site) -> None:
    answer = site.ask(
        "/control", "POST", data=b"{", headers={"Content-Type": "application/json; charset=utf-8"}
    )
    assert answer.status_code == 400
    assert answer.json()["errors"][0].startswith("the body: not JSON")


def test_fails_as_long_as_it_is_told(site: Site) -> None:
    site.control(fail={"status": 429, "events": 2})
    assert [site.post() for _ in range(3)] == [429, 429, 204]
    site.control(fail={"status": 503, "seconds": 0.3})
    assert 0 < site.ask("/control").json()["fail"]["seconds"] <= 0.3
    assert [site.post() for _ in range(3)] == [503] * 3
    until(lambda: site.ask("/control").json()["fail"] is None)
    assert site.post() == 204
    site.control(fail={})  # 503, to all, until further notice
    assert [site.post() for _ in range(3)] == [503] * 3
    site.control(fail=None)
    assert site.post() == 204
    refused = [record for record in site.events("all=1") if record["status"] != 204]
    assert {reason for record in refused for reason in record["reasons"]} == {
        "as requested by the page"
    }
    [lane] = site.ask("/lanes").json()
    assert (lane["simulated"], lane["refused"], lane["events"]) == (8, 0, 3)


def test_invalid_events_are_refused_for_what_they_are(site: Site) -> None:
    site.control(fail={"status": 503, "events": 1}, drop=1)
    assert site.post(b"{}") == 400
    assert site.ask("/control").json()["drop"] == 1


def test_dropped_event_has_no_answer_and_is_kept(site: Site) -> None:
    site.control(drop=1)
    assert [site.post(), site.post()] == [0, 204]
    [dropped, _] = site.events("all=1")
    assert (dropped["status"], dropped["reasons"]) == (0, ["as requested by the page"])
    assert dropped["event"] == EVENT
    assert len(site.received) == 1


def test_paused_events_wait_until_the_pause_ends(
    site: Site, in_thread: Callable[..., Future[int]]
) -> None:
    site.control(paused=True)
    waiting = in_thread(site.post)
    until(lambda: site.listener.controls._changed._waiters)  # type: ignore[attr-defined]
    assert (site.events("all=1"), waiting.done()) == ([], False)
    site.control(paused=False)
    assert waiting.result(10) == 204


def test_paused_event_is_503_after_its_longest_time(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controls, "LONGEST_PAUSE", 0.1)
    site.control(paused=True)
    assert site.post() == 503
    assert site.events("all=1")[0]["reasons"] == ["as requested by the page"]


def test_paused_events_are_refused_when_the_listener_ends(
    run_site: Callable[..., Site], in_thread: Callable[..., Future[int]]
) -> None:
    site = run_site()
    site.control(paused=True)
    waiting = in_thread(site.post)
    until(lambda: site.listener.controls._changed._waiters)  # type: ignore[attr-defined]
    site.listener.stop()
    site.listener.close()
    assert waiting.result(10) == 503
    assert site.received == []


@pytest.mark.parametrize(
    "change",
    [
        {"fail": {"status": 503, "events": 3}},
        {"fail": {"status": 429, "seconds": 0.5}},
        {"drop": 3},
        {"paused": True},
        {"paused": True, "drop": 2, "fail": {"status": 500, "events": 2}},
    ],
)
def test_client_delivers_each_event_once_whatever_is_turned(
    change: dict[str, Any], site: Site
) -> None:
    site.control(**change)
    with valued.Client(TOKEN, site.listener.url) as client:
        for number in range(10):
            client.action("a.b", {"user.id": number})
        if "paused" in change:
            controlled = site.listener.controls._changed
            until(lambda: controlled._waiters)  # type: ignore[attr-defined]
            site.control(paused=False)
        assert client.flush(30)
        retried = client.stats()["retried"]
    records = site.events("all=1")
    accepted = [record for record in records if record["status"] == 204]
    assert sorted(record["event"]["user"]["id"] for record in accepted) == list(range(10))
    assert [record["first"] for record in accepted] == [None] * 10
    assert len(records) - len(accepted) == retried
    assert (retried > 0) == (change != {"paused": True})


def test_delay_holds_up_events_and_neither_the_page_nor_programs(site: Site) -> None:
    site.control(delay=20)
    threading.Thread(target=site.post, daemon=True).start()
    began_at = time.monotonic()
    assert site.ask("/events").json()["events"] == []
    site.follow().next("totals")
    assert time.monotonic() - began_at < 5

"""The stream of the page: nothing that is kept is lost, and no reader holds up anything."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable

import pytest

import valued
from tests.support.cli import listening
from tests.support.listener import EVENT, TOKEN, Follower, Site
from tests.support.processes import until
from valued._service import connections, stream
from valued._service.connections import Connections
from valued._service.history import History


def test_stream_begins_with_who_speaks_and_all_that_is_kept(site: Site) -> None:
    for _ in range(3):
        site.post()
    began_at = time.time()
    follower = site.follow()
    messages = follower.messages()
    kinds = [next(messages)[0] for _ in range(4)]
    assert kinds == ["hello", "records", "lanes", "totals"]
    hello = follower.hello
    assert began_at <= hello.pop("now") <= time.time()
    assert hello == {
        "session": site.history.session, "version": valued.__version__,
        "endpoint": site.listener.url, "kept": 10_000, "forward_to": None, "lost": 0,
        "control": {"fail": None, "delay": 0.0, "drop": 0, "paused": False},
    }  # fmt: skip
    assert [record["id"] for record in follower.records] == [1, 2, 3]
    assert follower.last == f"{site.history.session}-3"
    headers = follower.answer.headers
    assert headers["Content-Type"] == "text/event-stream"
    assert headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in headers


def test_event_is_on_the_stream_at_once(site: Site) -> None:
    follower = site.follow()
    follower.next("totals")
    for number in range(1, 6):
        site.post()
        sent_at = time.monotonic()
        assert len(follower.until(number)) == number
        assert time.monotonic() - sent_at < 3


@pytest.mark.parametrize("by", ["header", "query"])
def test_reader_who_comes_again_misses_nothing_and_gets_nothing_twice(by: str, site: Site) -> None:
    first = site.follow()
    for _ in range(4):
        site.post()
    first.until(4)
    first.close()
    for _ in range(1200):  # more than one message has
        site.history.add(_copy(site))
    second = site.follow(first.last) if by == "header" else site.follow("", f"?last={first.last}")
    ids = [record["id"] for record in second.until(1200)]
    assert ids == list(range(5, 1205))
    assert second.hello["lost"] == 0


def _copy(site: Site) -> object:
    import copy

    return copy.copy(site.history.records()[-1])


def test_reader_who_comes_too_late_is_told_how_many_are_lost(
    run_site: Callable[..., Site],
) -> None:
    site = run_site(history=History(most=10))
    first = site.follow()
    site.post()
    first.until(1)
    first.close()
    for _ in range(15):
        site.post()
    second = site.follow(first.last)
    assert [record["id"] for record in second.until(10)] == list(range(7, 17))
    assert second.hello["lost"] == 5  # 2 to 6


@pytest.mark.parametrize("last", ["00000000-2", "nonsense", "{session}-99", "{session}-x"])
def test_reader_with_an_id_of_another_session_gets_all(last: str, site: Site) -> None:
    for _ in range(3):
        site.post()
    follower = site.follow(last.format(session=site.history.session))
    assert [record["id"] for record in follower.until(3)] == [1, 2, 3]
    assert follower.hello["lost"] == 0


def test_messages_are_bounded(site: Site) -> None:
    wide = {**EVENT, "attributes": {"x": "x" * 300_000}}
    for _ in range(8):
        site.post(wide)
    for _ in range(1200):
        site.post() if site.history.last() == 8 else site.history.add(_copy(site))
    follower = site.follow()
    sizes = []
    for kind, content in follower.messages():
        sizes += [len(content)] if kind == "records" else []
        if len(follower.records) == 1208:
            break
    assert max(sizes) <= stream.MOST_RECORDS
    assert sizes[0] == 3  # a fourth one would be above the bytes


def test_clearing_is_told_with_the_last_id_that_is_gone(site: Site) -> None:
    follower = site.follow()
    site.post()
    site.post()
    follower.until(2)
    site.ask("/events", "DELETE")
    assert follower.next("cleared") == {"before": 2}
    assert follower.next("totals")["requests"] == 0
    site.post()
    assert follower.until(3)[-1]["id"] == 3
    # One that was away meanwhile is told, one that is new is not.
    again, new = site.follow(f"{site.history.session}-1"), site.follow()
    assert [next(again.messages())[0], again.next("cleared")] == ["hello", {"before": 2}]
    assert [kind for kind, _ in zip_kinds(new, 4)] == ["hello", "records", "lanes", "totals"]


def zip_kinds(follower: Follower, count: int) -> list[tuple[str, object]]:
    messages = follower.messages()
    return [next(messages) for _ in range(count)]


def test_changes_of_the_controls_are_told(site: Site) -> None:
    follower = site.follow()
    follower.next("totals")
    site.control(fail={"status": 429, "events": 2}, delay=0.01)
    control = follower.next("control")
    assert control["fail"] == {"status": 429, "events": 2, "seconds": None}
    assert control["delay"] == 0.01
    assert site.post() == 429
    assert follower.next("control")["fail"]["events"] == 1
    site.control(fail={"status": 503, "seconds": 0.3})
    assert follower.next("control")["fail"]["seconds"] <= 0.3
    assert follower.next("control")["fail"] is None  # its time is over


def test_totals_have_what_changed(site: Site) -> None:
    follower = site.follow()
    site.post()
    follower.until(1)
    assert [*follower.next("totals")["keys"]] == ["action a.b"]
    site.post({**EVENT, "key": "c"})
    follower.until(2)
    totals = follower.next("totals")
    assert [*totals.pop("keys")] == ["action c"]
    assert totals == {"requests": 2, "events": 2, "repeats": 0, "refused": 0, "simulated": 0}


def test_comment_shows_that_a_quiet_stream_is_alive(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "LOOK", 0.05)
    monkeypatch.setattr(stream, "HEARTBEAT", 0.1)
    follower = site.follow()
    follower.next("totals")
    assert [follower.answer.readline() for _ in range(3)] == [b"\n", b":\n", b"\n"]


def test_slow_reader_holds_up_nothing_and_is_told_what_it_lost(
    run_site: Callable[..., Site],
) -> None:
    site = run_site(history=History(most_bytes=2_000_000))
    slow = site.follow()
    slow.next("totals")
    wide = {**EVENT, "attributes": {"x": "x" * 100_000}}
    for _ in range(300):  # 30 MB, far more than what the sockets hold
        assert site.post(wide) == 204
    other = site.follow()
    assert other.until(1)  # another reader is served
    lost, last = 0, 0
    for kind, content in slow.messages():
        if kind == "hello":
            lost += content["lost"]
        last = slow.records[-1]["id"] if slow.records else 0
        if last == 300:
            break
    assert lost > 0
    assert len(slow.records) + lost == 300
    ids = [record["id"] for record in slow.records]
    assert ids == sorted(set(ids))


def test_reader_who_never_reads_is_let_go(run_site: Callable[..., Site]) -> None:
    site = run_site(connections=Connections(timeout=0.3))
    slow = site.follow()
    slow.next("totals")
    for _ in range(300):
        site.post({**EVENT, "attributes": {"x": "x" * 100_000}})
    until(lambda: not site.listener.connections._streams)


def test_streams_have_a_bound_and_a_closed_one_makes_room(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_STREAMS", 2)
    monkeypatch.setattr(stream, "LOOK", 0.05)
    kept, left = site.follow(), site.follow()
    kept.next("totals"), left.next("totals")
    refused = site.ask("/stream")
    assert (refused.status_code, refused.json()) == (
        503, {"errors": ["there are too many streams"]},
    )  # fmt: skip
    left.close()
    until(lambda: len(site.listener.connections._streams) == 1)
    site.follow().next("totals")
    site.post()
    assert len(kept.until(1)) == 1


def test_streams_are_no_connections_of_those_that_are_bounded(
    run_site: Callable[..., Site],
) -> None:
    site = run_site(connections=Connections(most=2))
    followers = [site.follow() for _ in range(5)]
    for follower in followers:
        follower.next("totals")
    assert [site.post() for _ in range(3)] == [204] * 3
    with socket.create_connection(("127.0.0.1", site.port), 10):
        assert site.post() == 204
    for follower in followers:  # none was ended for them
        assert len(follower.until(4)) == 4


def test_close_ends_streams_and_those_who_wait_at_once(run_site: Callable[..., Site]) -> None:
    site = run_site()
    idle, stuck = site.follow(), site.follow()
    idle.next("totals"), stuck.next("totals")
    for _ in range(200):
        site.post({**EVENT, "attributes": {"x": "x" * 100_000}})
    waiting = http.client.HTTPConnection("127.0.0.1", site.port, 20)
    waiting.request("GET", "/wait?key=none&timeout=300")
    until(lambda: len(site.listener.connections) == 4)
    idle.until(200)
    began_at = time.monotonic()
    site.listener.stop()
    site.listener.close()
    assert time.monotonic() - began_at < 5
    with pytest.raises((AssertionError, http.client.HTTPException, ConnectionError)):
        idle.next("never")
    answer = waiting.getresponse()
    assert (answer.status, json.loads(answer.read())["errors"]) == (
        503, ["valued listen is ending"],
    )  # fmt: skip
    waiting.close()


def test_process_with_a_reader_ends_at_once() -> None:
    with listening() as listener:
        port = int(listener.page.rstrip("/").rpartition(":")[2])
        follower = Follower(port)
        follower.next("totals")
        began_at = time.monotonic()
        listener.end()
        assert time.monotonic() - began_at < 2
        follower.close()


def test_many_events_of_a_client_are_on_the_stream_each_once(site: Site) -> None:
    follower = site.follow()

    def record() -> None:
        with valued.Client(TOKEN, site.listener.url, overflow="block") as client:
            for number in range(1500):
                client.action("a.b", {"user.id": number})
            assert client.close(30)

    sender = threading.Thread(target=record)
    sender.start()
    records = follower.until(1500)
    sender.join(30)
    assert sorted(record["event"]["user"]["id"] for record in records) == list(range(1500))
    assert [record["id"] for record in records] == list(range(1, 1501))

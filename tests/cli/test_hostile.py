"""Whatever is sent costs a bounded time and memory, and is answered."""

from __future__ import annotations

import dataclasses
import gc
import json
import socket
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.listener import EVENT, Site
from tests.support.processes import until
from valued._service.history import History

MEGABYTE = 1024 * 1024


def test_body_of_many_keys_is_refused_at_once_if_the_last_one_occurs_twice(site: Site) -> None:
    names = [f'"k{number}":0' for number in range(60_000)]
    began_at = time.monotonic()
    assert site.post("{{{},{}}}".format(",".join(names), names[-1]).encode()) == 400
    assert time.monotonic() - began_at < 5
    [record] = site.events("all=1")
    assert record["reasons"] == ['the body: the key "k59999" occurs twice in one object']


@pytest.mark.parametrize("template", ['{"key": %s}', '{"user": {"id": %s}}', "%s"])
@pytest.mark.parametrize("ends", ["[]", ('{"a":', "}")], ids=["lists", "objects"])
def test_event_nested_as_deeply_as_python_reads_it_is_answered(
    template: str, ends: str, site: Site
) -> None:
    for depth in (*range(900, 1001), 3_000, 9_000, 100_000):
        body = template % (ends[0] * depth + "1" + ends[1] * depth)
        assert site.post(body.encode()) == 400, depth
    records = site.events("all=1")
    assert len(records) == 104
    assert all(record["event"] is None and record["raw"] for record in records)


def test_event_of_as_many_levels_as_are_valid_is_kept_as_one(site: Site) -> None:
    deep: object = 1
    for _ in range(90):
        deep = [deep]
    assert site.post({**EVENT, "attributes": {"deep": deep}}) == 204
    assert site.events()[0]["event"]["attributes"] == {"deep": deep}


def test_waiting_after_a_clear_takes_no_time_of_the_processor(site: Site) -> None:
    site.post()
    site.ask("/events", "DELETE")
    began = time.process_time()
    assert site.ask("/wait?timeout=2").status_code == 504
    assert time.process_time() - began < 0.5
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(site.ask, "/wait?timeout=20")
        site.post()
        assert waits.result(20).json()["events"][0]["id"] == 2


def test_wait_holds_no_more_than_is_kept(site: Site) -> None:
    assert site.ask("/wait?n=10001").status_code == 400
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(site.ask, "/wait?n=10000&timeout=100")
        event = json.dumps({**EVENT, "attributes": {"long": "x" * 1_000_000}}).encode()
        while not waits.done():
            assert site.post(event) == 204
        assert waits.result().status_code == 507
    assert 64 <= len(site.received) < 100


def test_polling_after_the_last_one_gets_each_event_once(site: Site) -> None:
    site.post()
    [one] = site.history.records()

    def send() -> None:
        for _ in range(300):
            site.history.add(dataclasses.replace(one))

    senders = [threading.Thread(target=send) for _ in range(2)]
    for sender in senders:
        sender.start()
    ids: list[int] = []
    after = 0
    while len(ids) < 601:
        answer = site.ask(f"/events?after={after}").json()
        ids += [record["id"] for record in answer["events"]]
        after = answer["last"]
    for sender in senders:
        sender.join()
    assert ids == list(range(1, 602))


def test_delay_ends_when_it_is_taken_back(run_site: Callable[..., Site]) -> None:
    arrived = threading.Event()
    site = run_site(seen=lambda request: arrived.set())
    site.control(delay=60)
    with ThreadPoolExecutor(1) as threads:
        sent = threads.submit(site.post)
        assert arrived.wait(10)
        began_at = time.monotonic()
        site.control(delay=0)
        assert sent.result(100) == 204
    assert time.monotonic() - began_at < 10


def test_delay_ends_with_its_sender(site: Site) -> None:
    site.control(delay=3_600)
    before = len(site.listener.connections)
    body = json.dumps(EVENT).encode()
    head = b"POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", site.port), 10) as connection:
            connection.sendall(head + body)
    until(lambda: len(site.events("all=1")) == 5)
    until(lambda: len(site.listener.connections) <= before)


def test_long_keys_of_events_are_counted_by_their_beginning(site: Site) -> None:
    for number in range(3):
        assert site.post({**EVENT, "key": "k" * 500_000 + str(number)}) == 204
    [(name, counted)] = site.follow().next("totals")["keys"].items()
    assert name == f"action {'k' * 200}…"
    assert counted["count"] == 3


def test_strings_that_python_keeps_in_four_bytes_count_as_much(
    run_site: Callable[..., Site],
) -> None:
    site = run_site(history=History(most_bytes=MEGABYTE))
    wide = "\U0001f600" + "x" * 100_000
    body = json.dumps({"category": "action", "user": {"id": wide}}, ensure_ascii=False).encode()
    for _ in range(8):
        assert site.post(body) == 400
    assert 0 < len(site.events("all=1")) * (sys.getsizeof(wide) + len(body)) <= MEGABYTE


def test_long_headers_are_forgotten_with_their_request(site: Site) -> None:
    headers = {f"X_{number}": "x" * 60_000 for number in range(40)}
    site.post()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        assert site.post(**headers) == 204
        assert len(site.events()[-1]["headers"]["X-39"]) == 60_000
        site.ask("/events", "DELETE")
        site.post()
        del headers
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < MEGABYTE
    finally:
        tracemalloc.stop()

"""An outbox as an application uses it: `valued.Client` with *outbox*."""

from __future__ import annotations

import gc
import os
import resource
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.outbox.conftest import Fork, files
from tests.support.left import Never, Sink, adopt_all, die_with, leave, record_all
from tests.support.processes import until
from tests.support.server import Reply, Server
from valued._options import Options


@pytest.fixture
def sink(tmp_path: Path) -> Sink:
    return Sink(tmp_path / "arrived")


def test_more_events_than_memory_has_room_for_arrive_once_and_a_flush_waits_for_all(
    place: Path, sink: Sink
) -> None:
    sink.go_down()
    client = valued.Client(sink, outbox=place, max_queue=10)
    record_all(client, range(100))
    stats = client.stats()
    assert (stats["accepted"], stats["pending"], stats["dropped"]) == (100, 100, 0)
    assert not client.flush(0.1)
    sink.come_up()
    record_all(client, range(100, 150))
    assert client.flush(30)
    assert sink.all() == [*range(150)]
    assert client.close(10)
    assert files(place) == []


def test_events_that_memory_has_no_room_for_outlive_their_process(place: Path, sink: Sink) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            client = valued.Client(sink, outbox=place, max_queue=10, executor=Never())
            record_all(client, range(100))
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    client = valued.Client(sink, outbox=place, max_queue=10)
    adopt_all(client, place)
    assert client.close(10)
    assert sink.all() == [*range(100)]


def test_flush_does_not_wait_for_events_of_other_processes_that_a_worker_took_over(
    place: Path,
) -> None:
    die_with(place, range(5))
    go_on = threading.Event()

    def deliver(event: dict[str, Any]) -> None:
        assert event["key"] == "own" or go_on.wait(30)

    client = valued.Client(deliver, outbox=place, max_workers=8)
    try:
        client.action("own", {"user.id": 1})
        until(lambda: client.stats()["adopted"] == 5)
        client.action("own", {"user.id": 1})
        assert client.flush(10)
        assert client.stats()["pending"] == 5
    finally:
        go_on.set()
    until(lambda: client.stats()["pending"] == 0)
    assert client.close(10)


def test_event_under_way_as_a_client_is_closed_is_left_to_others_when_it_fails(
    place: Path,
) -> None:
    under_way, closed = threading.Event(), threading.Event()

    def transport(_event: object) -> None:
        under_way.set()
        assert closed.wait(10)
        raise ConnectionError

    client = valued.Client(transport, outbox=place)
    client.action("late", {"user.id": 1})
    assert under_way.wait(10)
    assert not client.close(0)
    closed.set()
    until(lambda: client.stats()["handed_over"] == 1)
    assert client.stats()["dropped"] == 0
    assert client.close(10)
    assert [event["key"] for event in valued.Outbox(place).events()] == ["late"]


def test_full_disk_costs_no_event_and_no_exception(place: Path, sink: Sink, fork: Fork) -> None:
    def child() -> None:
        sink.go_down()
        client = valued.Client(sink, outbox=place)
        record_all(client, [0])
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
        record_all(client, range(1, 100))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert 0 < client.stats()["unsaved"] < 99
        sink.come_up()
        assert client.close(20)

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    assert fork(child).wait(30) == 0
    assert sink.all() == [*range(100)]


def test_event_is_tried_for_longer_than_its_retries(place: Path, server: Server) -> None:
    answers = iter([Reply(503)] * 2)
    server.script = lambda _request: next(answers, Reply())
    client = valued.Client("t", server.url, outbox=place, retries=0)
    client.action("a", {"user.id": 1})
    assert client.flush(30)
    assert client.stats()["delivered"] == 1
    assert client.close(10)


def test_no_file_has_the_token(place: Path, server: Server) -> None:
    server.script = lambda _request: Reply(422, body=b"not with s3cret-token")
    client = valued.Client("s3cret-token", server.url, outbox=place)
    client.action("a", {"user.id": 1})
    assert client.flush(10)
    assert client.stats()["failed"] == 1
    server.script = lambda _request: Reply(503)
    client.action("b", {"user.id": 1})
    server.wait_for(2)
    contents = [path.read_bytes() for path in place.rglob("*") if path.is_file()]
    assert len(contents) >= 3
    assert not [content for content in contents if b"s3cret" in content]
    client.close(0)


def test_client_that_is_dropped_leaves_its_events_to_the_next(place: Path, sink: Sink) -> None:
    client = valued.Client(sink, outbox=place, executor=Never())
    record_all(client, [1])
    del client
    gc.collect()
    following = valued.Client(sink, outbox=place)
    record_all(following, [2])
    until(lambda: sink.numbers() == [1, 2])
    assert following.close(10)
    assert [*place.glob("v1/owners/*"), *place.glob("v1/events/*")] == []


# -- options ---------------------------------------------------------------------------------------


def test_client_reads_the_variable(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VALUED_OUTBOX", "outbox")
    monkeypatch.chdir(tmp_path)
    client = valued.Client(lambda _event: None)
    monkeypatch.chdir("/")  # changes nothing: the path was made absolute
    client.action("a", {"user.id": 1})
    assert place.is_dir()
    assert client.close(10)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"outbox": 5}, "outbox: expected the path of a directory, got int"),
        ({"outbox": b"x"}, "outbox: expected the path of a directory, got bytes"),
        ({"outbox": ""}, "outbox: it is empty; give the path of a directory, or None"),
        (
            {"outbox": "/tmp/a\0b"},
            r"outbox: '/tmp/a\x00b' has characters that no path can have; leave them out",
        ),
        (
            {"outbox": "/tmp/\ud800"},
            r"outbox: '/tmp/\ud800' has characters that no path can have; leave them out",
        ),
        ({"durability": "disk"}, "durability: expected 'process' or 'power', got str"),
        ({"outbox_max_age": 0}, "outbox_max_age: expected seconds, more than 0, got 0"),
        ({"outbox_max_size": 5},
         "outbox_max_size: expected a whole number of at least 8388608, got 5"),
    ],
    ids=str,
)  # fmt: skip
def test_options_that_can_not_be_used_are_refused(options: Any, problem: str) -> None:
    with pytest.raises(valued.ValidationError) as caught:
        valued.Client("t", **options)
    assert caught.value.problems == (problem,)


def test_windows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        with pytest.raises(valued.ValidationError, match=r"^outbox: it needs Linux or macOS"):
            Options.of({"outbox": "x"}, ())


def test_end_waits_for_a_second_by_default(place: Path) -> None:
    assert Options(outbox=str(place)).seconds_at_end() == 1.0
    assert Options(outbox=str(place), shutdown_timeout=3.0).seconds_at_end() == 3.0


def test_client_without_an_outbox_takes_nothing_over(place: Path, client: valued.Client) -> None:
    leave(place, 1)
    assert client.adopt() == 0
    assert client.stats()["adopted"] == 0

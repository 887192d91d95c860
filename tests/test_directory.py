"""The directory of an outbox, looked at from outside; and one that an earlier version wrote."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.support.processes import until
from tests.support.server import Reply, Server
from valued._errors import DeliveryError
from valued._outbox.durable import DurableOutbox
from valued._outbox.store import Store

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no outbox on Windows")

DATA = Path(__file__).parent / "data"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "outbox"


@pytest.fixture
def writer(place: Path) -> Any:
    outbox = DurableOutbox(Store(str(place), sync=False), 1e6, 2**30)
    yield outbox
    outbox.rest()


def put(outbox: DurableOutbox, *numbers: int) -> None:
    for number in numbers:
        outbox.put(b'{"n":%d}' % number)


def test_owners_and_their_events_are_told(writer: DurableOutbox, place: Path) -> None:
    put(writer, 1, 2, 3)
    writer.delivered(writer.take())  # type: ignore[arg-type]
    writer._files.tidy(idle=True)
    [owned] = valued.Outbox(place).owners()
    assert (owned.state, owned.pid, owned.events) == ("alive", os.getpid(), 2)
    assert owned.host == os.uname().nodename
    assert owned.bytes == sum(path.stat().st_size for path in place.glob("v1/events/*/*"))
    assert owned.oldest == pytest.approx(os.stat(place).st_mtime, abs=60)
    assert [event["n"] for event in valued.Outbox(place).events()] == [2, 3]


def test_what_was_let_go_of_is_nobodys(writer: DurableOutbox, place: Path) -> None:
    put(writer, 1)
    writer.rest()
    [owned] = valued.Outbox(place).owners()
    assert owned[:5] == ("unclaimed", "dead", None, None, 1)


def test_a_mark_alone_is_an_owner_of_nothing(writer: DurableOutbox, place: Path) -> None:
    writer._files.begin()
    shutil.rmtree(place / "v1" / "events")
    [owned] = valued.Outbox(place).owners()
    assert (owned.events, owned.bytes, owned.oldest) == (0, 0, None)


def test_an_empty_directory_holds_nothing(place: Path) -> None:
    place.mkdir(0o700)
    outbox = valued.Outbox(place)
    assert (outbox.owners(), list(outbox.events()), list(outbox.rejected())) == ([], [], [])
    outbox.forget_rejected()
    assert repr(outbox) == f"Outbox({str(place)!r})"


def test_rejected_events_come_with_their_answers_until_they_are_forgotten(
    writer: DurableOutbox, place: Path
) -> None:
    put(writer, 1)
    item = writer.take()
    assert item is not None
    writer.failed(item, DeliveryError("the service answered 422", 422, 1, 0.0, "why"))
    outbox = valued.Outbox(place)
    [rejected] = outbox.rejected()
    assert rejected[1:] == (422, "the service answered 422", "why", item.idempotency_key, {"n": 1})
    [path] = (place / "v1" / "rejected").iterdir()
    path.write_bytes(b"damaged" + path.read_bytes())
    assert len(list(outbox.rejected())) == 1
    outbox.forget_rejected()
    assert list(outbox.rejected()) == []


def test_what_can_not_be_looked_at_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(valued.ValidationError, match="there is no such directory"):
        valued.Outbox(place)
    with pytest.raises(valued.ValidationError, match="none was given; pass a path, or set VALUED"):
        valued.Outbox()
    place.mkdir(0o755)
    monkeypatch.setenv("VALUED_OUTBOX", str(place))
    with pytest.raises(valued.ValidationError, match="open to others"):
        valued.Outbox()


def installed(name: str, place: Path) -> None:
    """A directory from the data, as it was before git kept it."""
    shutil.copytree(DATA / name, place)
    for folder, _folders, files in os.walk(place):
        os.chmod(folder, 0o700)
        for file in files:
            os.chmod(os.path.join(folder, file), 0o600)
            os.utime(os.path.join(folder, file), (1795518000, 1795518000))
    (place / "v1" / "rejected").mkdir(0o700, exist_ok=True)


def test_a_directory_of_version_1_is_read_and_delivered(place: Path, server: Server) -> None:
    installed("outbox-v1", place)
    outbox = valued.Outbox(place)
    [owned] = outbox.owners()
    assert (owned.state, owned.pid, owned.host, owned.events) == ("expired", 4711, "web-1", 3)
    assert [rejected.event["user"]["id"] for rejected in outbox.rejected()] == [3]
    # Ids 1 and 2 are settled, 3 was rejected, 5 is damaged, 8 was cut.
    assert [event["user"]["id"] for event in outbox.events()] == [4, 6, 7]
    client = valued.Client("t", server.url, outbox=place, outbox_max_age=1_000_000)
    assert client.adopt() == 1
    server.wait_for(3)
    until(lambda: client.stats()["delivered"] == 3)
    assert client.close(10)
    keys = {request.headers["Idempotency-Key"].partition("-")[2]: request.event["user"]["id"]
            for request in server.requests}  # fmt: skip
    assert keys == {"4": 4, "6": 6, "7": 7}
    assert list((place / "v1").glob("events/*")) == list((place / "v1").glob("owners/*")) == []


# -- the client ------------------------------------------------------------------------------------


def test_no_file_and_no_repr_holds_the_token(place: Path, server: Server) -> None:
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


def test_a_client_refuses_a_directory_that_it_can_not_use(place: Path) -> None:
    place.mkdir(0o755)
    with pytest.raises(valued.ValidationError, match="open to others"):
        valued.Client("t", outbox=place)


def test_a_client_reads_the_variable(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VALUED_OUTBOX", "outbox")
    monkeypatch.chdir(tmp_path)
    client = valued.Client(lambda _event: None)
    monkeypatch.chdir("/")  # which changes nothing: it was made absolute
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
    from valued._options import Options

    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        problems = Options(outbox="x").problems()
    [problem] = problems
    assert problem.startswith("outbox: it needs Linux or macOS; leave it")


def test_power_is_an_option(place: Path, server: Server) -> None:
    client = valued.Client("t", server.url, outbox=place, durability="power")
    client.action("a", {"user.id": 1})
    assert client.close(10)
    assert len(server.events) == 1


def test_the_end_waits_for_a_second_unless_it_is_told_otherwise(place: Path) -> None:
    from valued._options import Options

    assert Options(outbox=str(place)).seconds_at_end() == 1.0
    assert Options(outbox=str(place), shutdown_timeout=3.0).seconds_at_end() == 3.0


def test_an_event_is_tried_for_longer_than_its_retries(place: Path, server: Server) -> None:
    answers = iter([Reply(503)] * 2)
    server.script = lambda _request: next(answers, Reply())
    client = valued.Client("t", server.url, outbox=place, retries=0)
    client.action("a", {"user.id": 1})
    assert client.flush(30)
    assert client.stats()["delivered"] == 1
    assert client.close(10)


def test_a_client_without_an_outbox_takes_nothing_over(client: valued.Client) -> None:
    assert client.adopt() == 0
    assert json.dumps(client.stats()["adopted"]) == "0"


def test_what_is_under_way_as_a_client_is_closed_is_left_to_others_when_it_fails(
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

"""`valued.Outbox`: the directory of an outbox as people see it, which changes nothing in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import valued
from tests.outbox.conftest import Make, files
from tests.support.left import Never, die_with, leave, record_all
from tests.support.processes import until
from tests.support.server import Server
from valued._outbox import records

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture
def client(place: Path) -> Iterator[valued.Client]:
    """A client that keeps its events."""
    client = valued.Client(lambda _event: None, outbox=place, executor=Never())
    yield client
    client.close(0)


def numbers(outbox: valued.Outbox) -> list[int]:
    return [event["attributes"]["number"] for event in outbox.events()]


def test_owners_and_their_events_are_shown(client: valued.Client, place: Path) -> None:
    record_all(client, [1, 2, 3])
    before = sorted(place.rglob("*"))
    outbox = valued.Outbox(place)
    [owned] = outbox.owners()
    assert (owned.state, owned.pid, owned.events) == ("alive", os.getpid(), 3)
    assert owned.host == os.uname().nodename
    assert owned.bytes == files(place)[0].stat().st_size
    assert owned.oldest == pytest.approx(os.stat(place).st_mtime, abs=60)
    assert numbers(outbox) == [1, 2, 3]
    assert sorted(place.rglob("*")) == before


def test_settled_events_are_not_shown(make: Make, place: Path) -> None:
    life = make()
    life.record(*(1, 2, 3))
    life.settle(2)
    outbox = valued.Outbox(place)
    assert [event["n"] for event in outbox.events()] == [1, 3]
    assert [owned.events for owned in outbox.owners()] == [2]


def test_events_of_a_dead_process_and_those_handed_over_are_shown(
    client: valued.Client, place: Path
) -> None:
    die_with(place, [1, 2])
    dead = valued.Outbox(place).owners()
    assert [(owned.state, owned.events) for owned in dead] == [("dead", 2)]
    record_all(client, [3])
    client.close(0)
    shown = [owned for owned in valued.Outbox(place).owners() if owned.owner == "unclaimed"]
    assert [owned[1:5] for owned in shown] == [("dead", None, None, 1)]


def test_mark_without_events_is_an_owner_of_nothing(make: Make, place: Path) -> None:
    make().append(1)
    shutil.rmtree(place / "v1" / "events")
    [owned] = valued.Outbox(place).owners()
    assert (owned.events, owned.bytes, owned.oldest) == (0, 0, None)


def test_empty_directory_has_nothing(place: Path) -> None:
    place.mkdir(0o700)
    outbox = valued.Outbox(place)
    assert (outbox.owners(), [*outbox.events()], [*outbox.rejected()]) == ([], [], [])
    outbox.forget_rejected()
    assert repr(outbox) == f"Outbox({str(place)!r})"
    assert outbox.purge() == 0


def test_directory_that_vanishes_while_it_is_looked_at_has_nothing(make: Make, place: Path) -> None:
    make().append(1)
    outbox = valued.Outbox(place)
    events = outbox.events()
    shutil.rmtree(place / "v1" / "events")
    assert [*events] == []


def test_place_that_can_not_be_used_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(valued.ValidationError, match="there is no such directory"):
        valued.Outbox(place)
    with pytest.raises(valued.ValidationError, match="none was given; pass a path, or set VALUED"):
        valued.Outbox()
    place.mkdir(0o755)
    monkeypatch.setenv("VALUED_OUTBOX", str(place))
    for use in (valued.Outbox, lambda: valued.Client("t")):
        with pytest.raises(valued.ValidationError, match="open to others"):
            use()


def test_purge_deletes_what_the_dead_left_and_nothing_of_the_living(
    client: valued.Client, place: Path
) -> None:
    record_all(client, [1])
    leave(place, 300, events=2, first=100)  # more than one step takes over
    outbox = valued.Outbox(place)
    assert outbox.purge() == 600
    assert numbers(outbox) == [1]
    assert outbox.purge() == 0
    assert len(files(place)) == 1


def installed(name: str, place: Path) -> None:
    """A directory of the test data, with the permissions and times that git doesn't keep."""
    shutil.copytree(DATA / name, place)
    for folder, _, names in os.walk(place):
        os.chmod(folder, 0o700)
        for file in names:
            os.chmod(os.path.join(folder, file), 0o600)
            os.utime(os.path.join(folder, file), (1795518000, 1795518000))
    (place / "v1" / "rejected").mkdir(0o700, exist_ok=True)


def test_directory_of_version_1_is_shown_and_delivered(place: Path, server: Server) -> None:
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
    assert [*(place / "v1").glob("events/*"), *(place / "v1").glob("owners/*")] == []


def test_json_that_is_none_is_passed_over(place: Path) -> None:
    [path] = leave(place, 1, events=2)
    with (path / "0000000001.events").open("ab") as opened:
        opened.write(records.encode(records.EVENT, 9, 1.0, b"no json"))
        opened.write(records.encode(99, 10, 1.0, b"{}"))
    assert numbers(valued.Outbox(place)) == [0, 1]

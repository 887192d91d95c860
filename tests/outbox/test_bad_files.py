"""A bad file costs itself: all else is delivered and shown, whatever is in its place."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.outbox import bad
from tests.outbox.bad import BESIDE, FEW, KINDS, SECRET, Kind
from tests.outbox.conftest import Fork, Lines, New
from tests.support.left import Sink, leave, record_all, segments
from tests.support.processes import VANISHED, until, vanish
from tests.support.server import Server
from valued.cli import main

#: Events in the ten good directories.
GOOD = 30

each_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
some_kinds = pytest.mark.parametrize("kind", FEW, ids=str)


@pytest.fixture
def place(place: Path, kind: Kind) -> Path:
    """An outbox with ten left directories of three events each, and a bad thing among them."""
    leave(place, 5, events=3)
    kind.put(place)
    leave(place, 5, events=3, first=15)
    return place


def in_a_child(fork: Fork, function: Callable[..., object], *args: Any) -> None:
    """Call *function* in a process that can be killed, as an open of a FIFO may wait for ever."""

    def child() -> None:
        function(*args)
        vanish()

    assert fork(child).wait(15) == VANISHED


def command(*arguments: str) -> tuple[int, str, str]:
    """Run ``valued outbox`` in this process: status, output and complaints."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as complaint,
    ):
        status = main(["outbox", *arguments])
    return status, out.getvalue(), complaint.getvalue()


def adopted(client: valued.Client, events: int = GOOD) -> None:
    """Let *client* deliver what was left, at least so many events."""
    client.adopt()
    client.flush(5)
    until(lambda: client.stats()["delivered"] >= events, 5)


# -- what is left is delivered ---------------------------------------------------------------------


@each_kind
def test_all_good_events_are_delivered_and_the_stats_count_the_rest(
    kind: Kind, new: New, sink: Sink, fork: Fork
) -> None:
    good = GOOD + 3 if kind in BESIDE else GOOD  # with those of the good segment beside it

    def adopt() -> None:
        client = new()
        adopted(client, good)
        assert client.flush(5)
        stats = client.stats()
        assert stats["pending"] == stats["handed_over"] == 0
        assert stats["adopted"] == stats["delivered"] + stats["dropped"] >= good
        assert stats["dropped"] == stats["dropped_by_reason"]["damaged"]
        assert client.close(5)

    in_a_child(fork, adopt)
    assert set(range(good)) - set(sink.numbers()) == set()
    assert SECRET not in sink.numbers()
    assert sink.repeats() == 0


@some_kinds
def test_the_log_says_it_at_most_once(kind: Kind, new: New, log: Lines, fork: Fork) -> None:
    def adopt() -> None:
        client = new()
        for _ in range(5):
            adopted(client)
        assert len(log.lines) == len(set(log.lines)) <= 1, log.lines
        if kind.what in (bad.a_directory, bad.garbage, bad.a_fifo) and kind.where in (
            bad.bad_segment, bad.bad_segment_beside_a_good_one, bad.bad_note,
        ):  # fmt: skip
            assert len(log.lines) == 1

    in_a_child(fork, adopt)


# -- what is left is shown -------------------------------------------------------------------------


@each_kind
def test_the_outbox_seen_from_outside_shows_the_good_ones(
    kind: Kind, place: Path, fork: Fork, tmp_path: Path
) -> None:
    file = tmp_path / "exported"

    def look() -> None:
        outbox = valued.Outbox(place)
        numbers = {event["attributes"]["number"] for event in outbox.events()}
        assert set(range(GOOD)) - numbers == set()
        assert SECRET not in numbers
        assert sum(owner.events for owner in outbox.owners()) >= GOOD
        assert [*outbox.rejected()] == []
        status, out, _ = command(str(place), "status")
        assert status == 0
        [total] = [line.split() for line in out.splitlines() if line.startswith("all")]
        assert int(total[1]) >= GOOD
        assert out.splitlines()[-1].startswith("0 rejected")
        assert command(str(place), "export", str(file))[0] == 0
        numbers = {json.loads(line)["attributes"]["number"] for line in file.open()}
        assert set(range(GOOD)) - numbers == set()
        assert command(str(place), "rejected")[:2] == (0, "")

    in_a_child(fork, look)


@some_kinds
def test_purge_and_forget_work(kind: Kind, place: Path, fork: Fork) -> None:
    def purge() -> None:
        outbox = valued.Outbox(place)
        assert outbox.purge() >= GOOD
        outbox.forget_rejected()

    in_a_child(fork, purge)
    left = [path for path in segments(place) if path.is_file() and path.stat().st_size > 100]
    assert len(left) <= 1  # that of the bad mark, if it is one, or the bad one


@some_kinds
def test_send_delivers_the_good_ones(kind: Kind, place: Path, server: Server, fork: Fork) -> None:
    def send() -> None:
        status, _, complaint = command(
            str(place), "send", "--token", "t", "--endpoint", server.url, "--timeout", "1"
        )
        assert "Traceback" not in complaint
        assert f"{GOOD}" in complaint or f"{GOOD + 3} delivered" in complaint, complaint
        assert status in (0, 1)
        assert status == 0 or len(complaint.splitlines()) > 1 or "dropped" in complaint

    in_a_child(fork, send)
    numbers = {event["attributes"]["number"] for event in server.events}
    assert set(range(GOOD)) - numbers == set()
    assert SECRET not in numbers


@pytest.mark.parametrize("kind", [Kind(bad.bad_segment, bad.nothing)], ids=str)
def test_good_rejected_events_beside_a_bad_file_are_shown(
    kind: Kind, place: Path, new: New, fork: Fork
) -> None:
    def refuse(_event: Any) -> None:
        raise valued.DeliveryError("no", 422)

    client = new(refuse)
    record_all(client, [1007])
    assert client.close(10)
    for number, what in enumerate(bad.REFUSED):
        what(place / "v1" / "rejected" / f"{number:020d}-00000000")

    def look() -> None:
        [one] = [one for one in valued.Outbox(place).rejected() if one.status == 422
                 and one.event["attributes"]["number"] == 1007]  # fmt: skip
        assert one.event["attributes"]["number"] == 1007

    in_a_child(fork, look)


# -- the own files of a living process -------------------------------------------------------------


def own(place: Path) -> tuple[Path, Path]:
    """The directory and the mark of the one process that is alive."""
    [directory] = (place / "v1" / "events").iterdir()
    return directory, place / "v1" / "owners" / directory.name.partition(".")[2]


def segment_removed(place: Path) -> None:
    for path in own(place)[0].iterdir():
        path.unlink()


def segment_replaced_by_a_file(place: Path) -> None:
    for path in own(place)[0].iterdir():
        path.unlink()
        path.touch()


def segment_replaced_by_a_directory(place: Path) -> None:
    for path in own(place)[0].iterdir():
        path.unlink()
        path.mkdir()


def segment_replaced_by_a_fifo(place: Path) -> None:
    for path in own(place)[0].iterdir():
        path.unlink()
        os.mkfifo(path)


def segment_emptied(place: Path) -> None:
    for path in own(place)[0].iterdir():
        os.truncate(path, 0)


def directory_renamed(place: Path) -> None:
    own(place)[0].rename(place / "aside")


def directory_removed(place: Path) -> None:
    shutil.rmtree(own(place)[0])


def mark_removed(place: Path) -> None:
    own(place)[1].unlink()


def mark_emptied(place: Path) -> None:
    os.truncate(own(place)[1], 0)


def everything_removed(place: Path) -> None:
    shutil.rmtree(place)


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """The directory of an outbox in which nothing was left."""
    return tmp_path / "alone"


@pytest.mark.parametrize(
    "damage",
    [
        segment_removed,
        segment_replaced_by_a_file,
        segment_replaced_by_a_directory,
        segment_replaced_by_a_fifo,
        segment_emptied,
        directory_renamed,
        directory_removed,
        mark_removed,
        mark_emptied,
        everything_removed,
    ],
    ids=lambda damage: damage.__name__,
)
def test_a_process_whose_own_files_were_replaced_loses_nothing_that_is_in_memory(
    damage: Callable[[Path], None], alone: Path, sink: Sink, fork: Fork
) -> None:
    def child() -> None:
        begun, go_on = threading.Event(), threading.Event()

        def deliver(event: dict[str, Any]) -> None:
            begun.set()
            assert go_on.wait(30)
            sink(event)

        client = valued.Client(deliver, outbox=alone)
        record_all(client, range(10))
        assert begun.wait(10)
        damage(alone)
        record_all(client, range(10, 20))
        client.adopt()
        go_on.set()
        assert client.flush(10)
        record_all(client, range(20, 30))
        assert client.close(10)
        record_all(client, range(30, 40))
        assert client.flush(10)
        vanish()

    assert fork(child).wait(40) == VANISHED
    assert sink.all() == [*range(40)]

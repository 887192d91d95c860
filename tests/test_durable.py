"""The outbox on the disk: its accounts, what it reads, what it leaves, and its trouble."""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import itertools
import json
import os
import resource
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.support.clock import Clock
from tests.support.processes import Child
from valued._errors import DeliveryError
from valued._outbox import descriptors as _descriptors
from valued._outbox import durable as _durable
from valued._outbox import files as _files
from valued._outbox import owners as _owners
from valued._outbox import reading as _reading
from valued._outbox import records as _records
from valued._outbox import segment as _segments
from valued._outbox import store as _store
from valued._outbox.durable import DurableOutbox
from valued._outbox.inspect import Outbox
from valued._outbox.owners import BEAT, LEASE, Owner
from valued._outbox.reading import LOOK
from valued._outbox.segment import Segment
from valued._outbox.store import REJECTED_BYTES, REJECTED_FILE, Store
from valued._process import fork as _fork

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no outbox on Windows")

InThread = Callable[..., "Future[Any]"]
WEEK = 604_800.0
BIG = 2**30


def no_space(*_args: Any) -> None:
    """What a full disk says."""
    raise OSError(errno.ENOSPC, "No space left on device")


def too_many_files(*_args: Any) -> None:
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.fixture
def clock() -> Clock:
    return Clock(time.monotonic())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "outbox"


Make = Callable[..., DurableOutbox]


@pytest.fixture
def make(place: Path, clock: Clock) -> Iterator[Make]:
    made: list[DurableOutbox] = []

    def make(*, sync: bool = False, max_age: float = WEEK, max_size: int = BIG, **more: Any
             ) -> DurableOutbox:  # fmt: skip
        store = Store(str(place), sync=sync)
        made.append(DurableOutbox(store, max_age, max_size, clock=clock, **more))
        return made[-1]

    yield make
    for outbox in made:
        outbox.rest()


def body(number: int, size: int = 0) -> bytes:
    return b'{"n":%d,"x":"%s"}' % (number, b"x" * size)


def put(outbox: DurableOutbox, *numbers: int, size: int = 0) -> None:
    for number in numbers:
        assert outbox.put(body(number, size)) is None


def take(outbox: DurableOutbox) -> Any:
    item = outbox.take()
    assert item is not None
    return item


def taken(outbox: DurableOutbox) -> list[bytes]:
    """Deliver all that is there."""
    bodies = []
    while (item := outbox.take()) is not None:
        bodies.append(item.body)
        outbox.delivered(item)
    return bodies


def bodies(*numbers: int, size: int = 0) -> list[bytes]:
    return [body(number, size) for number in numbers]


def die(outbox: DurableOutbox) -> None:
    """What is left of its process: its files, and a mark that is a dead one's."""
    own = outbox._files.own
    assert own is not None
    mark = os.path.join(outbox._files.store.place.owners, own.owner.name)
    content = Path(mark).read_text()
    Path(mark).write_text(content.replace('"start": "', '"start": "1'))


def be_another_process(outbox: DurableOutbox) -> None:
    """Let its owner be a living process that is not this one: its parent."""
    own, pid = outbox._files.own, os.getppid()
    assert own is not None
    mark = Path(outbox._files.store.place.owners, own.owner.name)
    content = {**json.loads(mark.read_text()), "pid": pid, "start": _fork._start(pid)}
    mark.write_text(json.dumps(content))
    _owners._names.get().discard(own.owner.name)


def move_elsewhere(outbox: DurableOutbox, age: float) -> None:
    """Let its process be on another host, silent for so long."""
    own = outbox._files.own
    assert own is not None
    mark = os.path.join(outbox._files.store.place.owners, own.owner.name)
    Path(mark).write_text(Path(mark).read_text().replace('"host": "', '"host": "other-'))
    os.utime(mark, (time.time() - age,) * 2)


def balance(outbox: DurableOutbox) -> dict[str, Any]:
    figures = outbox.figures()
    settled = figures["delivered"] + figures["failed"] + figures["dropped"] + figures["handed_over"]
    assert figures["accepted"] + figures["adopted"] == settled + figures["pending"]
    assert sum(figures["dropped_by_reason"].values()) == figures["dropped"]
    assert min(value for value in figures.values() if isinstance(value, int)) >= 0
    assert min(figures["dropped_by_reason"].values()) >= 0
    if not figures["pending"]:
        assert (outbox._held, outbox._bytes, outbox.at_stake()) == (0, 0, 0)
    return figures


def files(place: Path) -> list[str]:
    return sorted(path.name for path in place.glob("v1/*/*")) + sorted(
        path.name for path in place.glob("v1/*/*/*")
    )


# -- accepting and settling ------------------------------------------------------------------------


def test_nothing_is_made_before_the_first_event(make: Make, place: Path) -> None:
    outbox = make()
    assert (outbox.figures()["accepted"], outbox.ready(), outbox.postponed()) == (0, False, False)
    assert not place.exists()


def test_an_event_is_on_the_disk_when_its_call_returns_and_gone_when_it_is_settled(
    make: Make, place: Path
) -> None:
    outbox = make()
    put(outbox, 1)
    [path] = place.glob("v1/events/*/*.events")
    assert path.read_bytes().endswith(body(1))
    assert taken(outbox) == bodies(1)
    outbox.rest()
    assert files(place) == []
    assert balance(outbox)["delivered"] == 1


def test_all_of_it_is_private(make: Make, place: Path) -> None:
    outbox = make()
    put(outbox, 1)
    outbox.failed(take(outbox), DeliveryError("no", 422))
    for path in [place, *place.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_what_is_settled_is_noted_in_groups_and_when_nothing_is_left(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[int] = []
    real = Segment.record_settled

    def record(segment: Segment, numbers: Any) -> None:
        noted.append(len(list(numbers)))
        real(segment, numbers)

    monkeypatch.setattr(Segment, "record_settled", record)
    outbox = make()
    put(outbox, *range(_files.GROUP + 5))
    for _ in range(_files.GROUP + 4):
        outbox.delivered(take(outbox))
    assert noted == [_files.GROUP]
    outbox.delivered(take(outbox))
    assert noted == [_files.GROUP, 5]


def test_a_file_whose_events_are_all_settled_is_removed(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_durable, "SEGMENT", 1000)
    monkeypatch.setattr(_files, "SEGMENT", 1000)
    outbox = make()
    put(outbox, *range(10), size=300)
    assert len(list(place.glob("v1/events/*/*.events"))) == 4
    first = [take(outbox) for _ in range(10)]
    for item in first[:4]:
        outbox.delivered(item)
    assert len(list(place.glob("v1/events/*/*.events"))) == 3
    for item in first[4:]:
        outbox.delivered(item)
    assert len(list(place.glob("v1/events/*/*.events"))) == 1


def test_no_descriptor_is_left_open_but_of_the_file_that_is_written(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_durable, "SEGMENT", 1000)
    monkeypatch.setattr(_files, "SEGMENT", 1000)
    outbox = make()
    before = len(_descriptors._open.get())
    put(outbox, *range(20), size=300)
    item = take(outbox)
    assert len(_descriptors._open.get()) == before + 1
    outbox.postpone(item, 0.0)


def test_keys_are_the_same_in_the_next_process_and_no_other_event_has_them(make: Make) -> None:
    outbox = make()
    put(outbox, 1, 2, 3)
    keys = [take(outbox).idempotency_key for _ in range(3)]
    die(outbox)
    heir = make()
    assert heir.adopt() == 1
    assert [take(heir).idempotency_key for _ in range(3)] == keys
    assert len(set(keys)) == 3


def test_an_event_survives_a_failure_of_power_where_that_is_asked_for(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(_segments, "_sync", synced.append)
    put(make(), 1, 2)
    assert synced == []
    outbox = make(sync=True)
    put(outbox, 1, 2)
    assert len(synced) == 2
    assert taken(outbox) == bodies(1, 2)


@pytest.mark.parametrize("readable", [True, False])
def test_where_power_may_fail_the_names_of_all_that_is_made_are_synced(
    tmp_path: Path, readable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "made" / "too" / "outbox"
    synced: list[str] = []

    def sync_directory(path: str) -> None:
        if path == str(tmp_path) and not readable:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        synced.append(path)

    monkeypatch.setattr(_store, "_sync_directory", sync_directory)
    holding = Store(str(place), sync=True).open()
    inside = [place, place / "v1", *((place / "v1" / name) for name in _PARTS)]
    above = [place.parent, place.parent.parent, *([tmp_path] if readable else [])]
    assert synced == [str(path) for path in (*inside, *above)]
    synced.clear()
    Store(str(place), sync=True).open()
    assert synced == [str(path) for path in (*inside, place.parent)]
    Store(str(place), sync=False).discard(holding)
    assert len(synced) == 6


_PARTS = ("owners", "events", "rejected")


# -- adopting --------------------------------------------------------------------------------------


def test_what_a_dead_process_left_is_delivered_in_its_order_and_only_what_was_not_noted(
    make: Make, place: Path
) -> None:
    outbox = make()
    put(outbox, *range(100))
    for _ in range(_files.GROUP + 6):
        outbox.delivered(take(outbox))
    die(outbox)
    heir = make()
    assert heir.adopt() == 1
    assert taken(heir) == bodies(*range(_files.GROUP, 100))
    figures = balance(heir)
    assert (figures["adopted"], figures["delivered"], figures["accepted"]) == (36, 36, 0)
    outbox._files.own = None
    heir.rest()
    assert files(place) == []


def test_a_living_owner_is_not_robbed(make: Make) -> None:
    outbox, other = make(), make()
    put(outbox, 1)
    assert other.adopt() == 0
    assert taken(outbox) == bodies(1)


def test_an_owner_elsewhere_is_left_alone_until_its_lease_has_run_out(make: Make) -> None:
    outbox, other = make(), make()
    put(outbox, 1)
    move_elsewhere(outbox, LEASE - 60)
    assert other.adopt() == 0
    move_elsewhere(outbox, LEASE + 60)
    assert other.adopt() == 1
    assert taken(other) == bodies(1)


def test_who_was_robbed_leaves_what_it_had_and_goes_on_under_another_name(
    make: Make, clock: Clock
) -> None:
    outbox, other = make(), make()
    put(outbox, 1, 2)
    in_flight = take(outbox)
    move_elsewhere(outbox, LEASE + 60)
    assert other.adopt() == 1
    outbox._files.beaten -= BEAT + 1  # so long it slept
    put(outbox, 3)
    outbox.postpone(in_flight, clock.now)
    assert taken(outbox) == bodies(3)
    assert balance(outbox)["handed_over"] == 2
    assert taken(other) == bodies(1, 2)


def test_who_was_robbed_of_nothing_says_nothing(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    outbox, other = make(), make()
    put(outbox, 1)
    assert taken(outbox) == bodies(1)
    move_elsewhere(outbox, LEASE + 60)
    other.adopt()
    outbox._files.beaten -= BEAT + 1
    put(outbox, 2)
    assert taken(outbox) == bodies(2)
    assert caplog.messages == []


def test_who_was_robbed_and_can_not_look_leaves_what_it_had_to_the_other(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, other = make(), make()
    put(outbox, 1)
    move_elsewhere(outbox, LEASE + 60)
    assert other.adopt() == 1
    outbox._files.beaten -= BEAT + 1  # so long it slept
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", too_many_files)
        assert outbox.take() is None
        assert outbox._files.store.size() == 0
    figures = balance(outbox)
    assert (figures["handed_over"], figures["dropped"]) == (1, 0)
    assert taken(other) == bodies(1)


def test_who_takes_one_after_a_long_sleep_looks_first_whether_it_is_its_own(make: Make) -> None:
    outbox, other = make(), make()
    put(outbox, 1)
    move_elsewhere(outbox, LEASE + 60)
    other.adopt()
    outbox._files.beaten -= BEAT + 1
    outbox._next_look = float("inf")
    assert outbox.take() is None
    assert balance(outbox)["handed_over"] == 1


def test_a_sign_of_life_is_given_once_a_minute(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    beats = []
    real = Owner.beat

    def beat(owner: Owner) -> float:
        beats.append(owner)
        return real(owner)

    monkeypatch.setattr(Owner, "beat", beat)
    outbox = make()
    put(outbox, 1, 2)
    assert beats == []
    outbox._files.beaten -= BEAT
    put(outbox, 3, 4)
    assert len(beats) == 1


def test_a_look_is_taken_each_half_minute_and_only_one_at_a_time(
    make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    real = Store.claim

    def claim(store: Store, *args: Any) -> Any:
        looks.append(1)
        assert outbox.adopt() == 0  # somebody looks already
        return real(store, *args)

    monkeypatch.setattr(Store, "claim", claim)
    outbox = make()
    put(outbox, 1)
    outbox.delivered(take(outbox))
    assert looks == []
    assert outbox.take() is None
    assert outbox.take() is None
    assert len(looks) == 1
    clock.now += _reading.LOOK
    put(outbox, 2)
    outbox.delivered(take(outbox))
    assert len(looks) == 1  # events go first
    clock.now += _reading.LOOK
    put(outbox, 3)
    outbox.delivered(take(outbox))
    assert len(looks) == 2  # but not for ever


def test_who_waits_for_what_is_postponed_looks_where_there_are_others(
    make: Make, clock: Clock
) -> None:
    outbox, other = make(), make()
    put(outbox, 1)
    assert taken(outbox) == bodies(1)
    assert not outbox.postponed()  # alone: nobody needs to wait
    put(other, 2)
    outbox.adopt()
    assert not outbox.postponed()  # by another client of this process, which is no other one
    be_another_process(other)
    outbox.adopt()
    assert outbox.postponed()
    die(other)
    clock.now += _reading.LOOK
    assert outbox.wait_until_due()
    assert outbox.ready()
    assert taken(outbox) == bodies(2)


def test_who_waits_returns_when_an_event_is_due_without_a_look(make: Make, clock: Clock) -> None:
    outbox = make()
    put(outbox, 1)
    outbox.postpone(take(outbox), clock.now)
    outbox._next_look = clock.now + 1
    assert outbox.wait_until_due()
    assert taken(outbox) == bodies(1)


def test_a_hundred_thousand_events_are_read_a_window_at_a_time(make: Make) -> None:
    outbox = make(max_events=10**6)
    put(outbox, *range(5000))
    die(outbox)
    heir = make()
    heir.adopt()
    most = 0
    seen = []
    while (item := heir.take()) is not None:
        most = max(most, heir._held)
        seen.append(item.body)
        heir.delivered(item)
    assert seen == bodies(*range(5000))
    assert most <= _reading.WINDOW
    balance(heir)


def test_a_flush_does_not_wait_for_what_others_accepted(make: Make) -> None:
    outbox, heir = make(), make()
    put(outbox, 1)
    die(outbox)
    put(heir, 2)
    heir.delivered(take(heir))
    heir.adopt()
    assert take(heir).body == body(1)
    assert (heir.pending(), heir.figures()["pending"]) == (0, 1)
    assert heir.wait(heir.mark(), 0.0)


def test_an_empty_directory_of_a_dead_process_is_removed(make: Make, place: Path) -> None:
    outbox, heir = make(), make()
    own = outbox._files.begin()
    die(outbox)
    assert heir.adopt() == 1
    heir.rest()
    assert not Path(own.path).exists()
    assert files(place) == []
    outbox._files.own = None


# -- on the disk alone -----------------------------------------------------------------------------


def test_what_memory_has_no_room_for_waits_on_the_disk_and_is_delivered(
    make: Make, clock: Clock
) -> None:
    outbox = make(max_events=10)
    put(outbox, *range(100))
    mark = outbox.mark()
    put(outbox, 100)
    assert outbox._held == 11
    figures = balance(outbox)
    assert (figures["accepted"], figures["pending"], figures["dropped"]) == (101, 101, 0)
    assert not outbox.wait(mark, 0.0)
    seen = []
    while (item := outbox.take()) is not None:
        assert outbox._held <= 11
        seen.append(item.body)
        outbox.delivered(item)
        if len(seen) < 100:
            assert not outbox.wait(mark, 0.0)
        assert balance(outbox)
    assert sorted(seen) == sorted(bodies(*range(101)))
    assert outbox.wait(mark, 0.0)
    put(outbox, 101)
    assert outbox._held == 1
    assert taken(outbox) == bodies(101)


def test_who_has_room_again_is_ready(make: Make, clock: Clock) -> None:
    outbox = make(max_events=4)
    put(outbox, *range(20))
    outbox._next_look = float("inf")
    for _ in range(5):
        outbox.delivered(outbox.take())  # type: ignore[arg-type]
    assert outbox.ready()
    outbox.hold(clock.now + 60, 60)
    assert not outbox.ready()
    outbox.resume()
    assert len(taken(outbox)) == 15


def test_what_is_on_the_disk_alone_outlives_the_process_too(make: Make) -> None:
    outbox = make(max_events=10)
    put(outbox, *range(50))
    die(outbox)
    heir = make()
    heir.adopt()
    assert sorted(taken(heir)) == sorted(bodies(*range(50)))


def test_records_that_are_gone_are_counted_as_damaged(make: Make, place: Path) -> None:
    outbox = make(max_events=4)
    put(outbox, *range(20))
    spilled = outbox._files.current[1]
    assert spilled is not None
    mark = outbox.mark()
    Path(spilled._base + ".events").write_bytes(b"")
    assert taken(outbox) == bodies(0, 1, 2, 3, 4)
    assert balance(outbox)["dropped_by_reason"]["damaged"] == 15
    assert outbox.wait(mark, 0.0)


def test_damaged_records_are_reported_and_the_others_delivered(
    make: Make, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = make()
    put(outbox, 1, 2, 3)
    [path] = place.glob("v1/events/*/*.events")
    content = bytearray(path.read_bytes())
    content[content.index(body(2))] ^= 0xFF
    path.write_bytes(content)
    die(outbox)
    heir = make()
    heir.adopt()
    assert taken(heir) == bodies(1, 3)
    assert caplog.messages == ["1 place in the outbox is damaged, and was skipped"]


def test_a_file_that_can_not_be_read_is_read_later(
    make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, heir = make(), make()
    put(outbox, 1)
    die(outbox)
    heir.adopt()
    real = Segment.load

    def refuse(*_args: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Segment, "load", refuse)
    assert heir.take() is None
    assert not heir.ready()
    assert heir.postponed()
    monkeypatch.setattr(Segment, "load", real)
    assert heir.take() is None
    clock.now += _reading.READ_AGAIN
    assert heir.ready()
    assert taken(heir) == bodies(1)


def test_a_file_that_fails_amid_its_reading_is_read_again_from_where_it_was(
    make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, heir = make(), make()
    put(outbox, *range(10), size=100)
    die(outbox)
    heir.adopt()
    real = _records.read

    def fail(*args: Any) -> Iterator[Any]:
        for number, found in enumerate(real(*args)):
            if number == 5:
                raise OSError(errno.EIO, "Input/output error")
            yield found

    with monkeypatch.context() as patch:
        patch.setattr(_records, "read", fail)
        assert heir.take() is None
    clock.now += _reading.READ_AGAIN
    assert taken(heir) == bodies(*range(10), size=100)
    balance(heir)


def test_what_an_exception_breaks_off_is_read_again_from_there(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, heir = make(), make()
    put(outbox, *range(10), size=100)
    die(outbox)
    heir.adopt()
    real = _reading.Entry
    made: list[int] = []

    def interrupted(*args: Any) -> Any:
        made.append(1)
        if len(made) == 5:
            raise SoftTimeLimitError
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(_reading, "Entry", interrupted)
        with pytest.raises(SoftTimeLimitError):
            heir.take()
    assert sorted(taken(heir)) == sorted(bodies(*range(10), size=100))
    balance(heir)


def test_files_without_anything_to_deliver_are_passed_at_once(make: Make) -> None:
    dead = [make(), make(), make()]
    for number, outbox in enumerate(dead):
        put(outbox, number)
    for outbox in dead:
        outbox.delivered(take(outbox))
        outbox._next_look = float("inf")
    put(dead[-1], 3)
    for outbox in dead:
        die(outbox)
    heir = make()
    assert heir.adopt() == 3
    heir._next_look = float("inf")
    assert taken(heir) == bodies(3)


def test_one_thread_reads_at_a_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox, heir = make(), make()
    put(outbox, 1)
    die(outbox)
    heir.adopt()
    real = Segment.load

    def load(segment: Segment, *args: Any) -> Any:
        assert not heir.ready()
        heir._read(heir._files.inherited)
        return real(segment, *args)

    monkeypatch.setattr(Segment, "load", load)
    assert taken(heir) == bodies(1)


def test_what_was_handed_over_while_it_was_read_is_not_delivered(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, heir, third = make(), make(), make()
    put(outbox, 1)
    die(outbox)
    heir.adopt()
    real = Segment.load

    def load(segment: Segment, *args: Any) -> Any:
        loaded = real(segment, *args)
        if heir._files.own is not None:
            heir.rest()
        return loaded

    monkeypatch.setattr(Segment, "load", load)
    assert heir.take() is None
    assert third.adopt() == 1
    assert taken(third) == bodies(1)


# -- bounds ----------------------------------------------------------------------------------------


def test_events_that_are_too_old_are_dropped_and_counted(make: Make, clock: Clock) -> None:
    outbox = make(max_age=100.0)
    put(outbox, 1)
    outbox.postpone(take(outbox), clock.now)
    clock.now += 90
    put(outbox, 2)
    clock.now += 20
    assert taken(outbox) == bodies(2)
    figures = balance(outbox)
    assert (figures["dropped_by_reason"]["age"], figures["retried"]) == (1, 0)


def test_the_age_of_what_was_taken_over_counts_from_its_acceptance(make: Make) -> None:
    outbox, heir = make(), make(max_age=100.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda real=time.time: real() - 101)
        put(outbox, 1)
    die(outbox)
    heir.adopt()
    assert heir.take() is None
    assert balance(heir)["dropped_by_reason"]["age"] == 1


def small_files(monkeypatch: pytest.MonkeyPatch, size: int = 2000) -> None:
    monkeypatch.setattr(_durable, "SEGMENT", size)
    monkeypatch.setattr(_files, "SEGMENT", size)


def test_past_its_size_the_oldest_events_are_dropped_and_counted(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small_files(monkeypatch)
    outbox = make(max_size=10_000)
    put(outbox, *range(100), size=300)
    assert sum(path.stat().st_size for path in place.rglob("*.events")) < 10_000 + 2 * 2400
    left = taken(outbox)
    assert left == bodies(*range(100 - len(left), 100), size=300)
    assert balance(outbox)["dropped_by_reason"]["size"] == 100 - len(left) > 50
    said = [
        line for line in caplog.messages if "larger than its outbox_max_size, 10000 bytes" in line
    ]
    assert len(said) == 1


def test_past_its_size_what_is_on_the_disk_alone_goes_too(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_files(monkeypatch)
    outbox = make(max_size=10_000, max_events=4)
    put(outbox, *range(100), size=300)
    mark = outbox.mark()
    left = taken(outbox)
    figures = balance(outbox)
    assert figures["dropped_by_reason"]["size"] == 100 - len(left) > 50
    assert outbox.wait(mark, 0.0)


def test_past_its_size_what_was_taken_over_goes_first(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_files(monkeypatch)
    outbox, heir = make(), make(max_size=12_000)
    put(outbox, *range(30), size=300)
    die(outbox)
    heir.adopt()
    put(heir, *range(30, 50), size=300)
    rest = taken(heir)
    assert rest[-20:] == bodies(*range(30, 50), size=300) or set(rest) >= set(
        bodies(*range(30, 50), size=300)
    )
    figures = balance(heir)
    assert figures["adopted"] + figures["accepted"] == 50
    assert figures["dropped_by_reason"]["size"] == 50 - len(rest) > 0


def test_what_is_taken_over_past_the_size_is_dropped_at_once(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_files(monkeypatch)
    for _ in range(3):  # none of which lives for long enough to look at the size
        outbox = make(max_size=10**6)
        put(outbox, *range(20), size=300)
        die(outbox)
    heir = make(max_size=10_000)
    heir.adopt()
    assert sum(path.stat().st_size for path in place.rglob("*.events")) < 10_000
    left = taken(heir)
    assert balance(heir)["dropped_by_reason"]["size"] == 60 - len(left) > 20


def test_rejected_events_are_kept_with_the_answer_and_bounded(
    make: Make, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = make()
    put(outbox, 1, 2)
    outbox.failed(take(outbox), DeliveryError("the service answered 422", 422, 1, 0.0, "why"))
    outbox.delivered(take(outbox))
    [path] = (place / "v1" / "rejected").iterdir()
    assert b"why" in path.read_bytes()
    for number in range(20):
        old = place / "v1" / "rejected" / f"{number:020d}-x"
        old.write_bytes(b"")
        os.truncate(old, REJECTED_FILE)
    os.truncate(path, REJECTED_FILE)
    put(outbox, 3)
    outbox.failed(take(outbox), DeliveryError("no", 422))
    kept = sorted((place / "v1" / "rejected").iterdir())
    assert sum(one.stat().st_size for one in kept) <= REJECTED_BYTES
    assert kept[-2:][0] == path
    assert not (place / "v1" / "rejected" / f"{0:020d}-x").exists()
    assert "1 of the oldest files of rejected events was removed" in caplog.text  # at once
    outbox.rest()
    assert f"{21 + 1 - len(kept) - 1} of the oldest files of rejected" in caplog.text  # the others


def test_rejected_events_of_a_process_share_a_file(make: Make, place: Path) -> None:
    outbox = make()
    put(outbox, 1, 2)
    for _ in range(2):
        outbox.failed(take(outbox), DeliveryError("no", 422))
    assert len(list((place / "v1" / "rejected").iterdir())) == 1


def test_a_rejected_event_that_fits_in_part_is_reported_and_costs_no_other(
    make: Make, place: Path, fork: Callable[..., Child], caplog: pytest.LogCaptureFixture
) -> None:
    def child() -> None:
        outbox = make()
        put(outbox, 1, 2, 3)
        outbox.failed(take(outbox), DeliveryError("no", 422))
        [path] = (place / "v1" / "rejected").iterdir()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))
        outbox.failed(take(outbox), DeliveryError("no", 422))
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "1 rejected event could not be stored: [Errno 28] No space" in caplog.text
        outbox.failed(take(outbox), DeliveryError("no", 422))
        assert balance(outbox)["failed"] == 3
        assert [one.event["n"] for one in Outbox(place).rejected()] == [1, 3]
        outbox.rest()

    assert fork(child).wait() == 0


def test_an_answer_that_is_no_json_is_kept_as_text(make: Make, place: Path) -> None:
    outbox = make()
    put(outbox, 1)
    answer: Any = b"bytes"
    outbox.failed(take(outbox), DeliveryError("no", 400, body=answer))
    assert balance(outbox)["failed"] == 1
    assert [one.body for one in Outbox(place).rejected()] == ["b'bytes'"]


class Answer:
    """An answer of a stranger's, whose text can't be had."""

    def __init__(self, trouble: BaseException) -> None:
        self.trouble = trouble

    def __str__(self) -> str:
        raise self.trouble


def test_an_answer_that_can_not_be_kept_is_reported_and_the_event_settled(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = make()
    put(outbox, 1, 2)
    answer: Any = Answer(RuntimeError("no text"))
    outbox.failed(take(outbox), DeliveryError("no", 400, body=answer))
    assert "1 rejected event could not be stored: no text" in caplog.text
    answer.trouble = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        outbox.failed(take(outbox), DeliveryError("no", 400, body=answer))
    assert (balance(outbox)["failed"], balance(outbox)["pending"]) == (2, 0)


def test_what_is_under_way_at_the_end_is_noted_though_others_have_come(make: Make) -> None:
    outbox, other = make(), make()
    put(outbox, 1, 2)
    item = take(outbox)
    outbox.rest()
    put(outbox, 3)
    outbox.delivered(item)
    assert other.adopt() == 1
    assert taken(other) == bodies(2)


def test_a_rejected_event_that_can_not_be_kept_is_counted_all_the_same(
    make: Make, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = make()
    put(outbox, 1)
    (place / "v1" / "rejected").rmdir()
    outbox.failed(take(outbox), DeliveryError("no", 422))
    assert balance(outbox)["failed"] == 1
    assert "1 rejected event could not be stored" in caplog.text


# -- ending ----------------------------------------------------------------------------------------


def test_what_is_left_at_the_end_is_for_whoever_comes_first(make: Make, place: Path) -> None:
    outbox, other = make(max_events=4), make()
    put(outbox, *range(20))
    outbox.delivered(take(outbox))
    assert outbox.at_stake() == 0
    assert outbox.abandon("exit") == 0
    outbox.rest()
    figures = balance(outbox)
    assert (figures["handed_over"], figures["dropped"], figures["pending"]) == (19, 0, 0)
    assert not outbox.postponed()
    assert outbox.take() is None
    assert other.adopt() == 1
    assert sorted(taken(other)) == sorted(bodies(*range(1, 20)))


def test_after_the_end_it_begins_anew(make: Make) -> None:
    outbox = make()
    put(outbox, 1)
    outbox.rest()
    put(outbox, 2)
    assert outbox.take().body == body(2)  # type: ignore[union-attr]
    balance(outbox)


def test_what_is_under_way_at_the_end_is_noted_and_then_handed_over(
    make: Make, place: Path
) -> None:
    outbox, other = make(), make()
    put(outbox, 1, 2, 3, 4)
    first, second, third = take(outbox), take(outbox), take(outbox)
    outbox.rest()
    assert other.adopt() == 0
    outbox.delivered(first)
    outbox.postpone(second, 0.0)
    assert other.adopt() == 0
    assert outbox.dropped(third, "closed") is False
    assert other.adopt() == 1
    assert taken(other) == bodies(2, 3, 4)
    assert balance(outbox)["handed_over"] == 3
    other.rest()
    assert files(place) == []


def test_the_end_waits_for_a_thread_that_is_writing(
    make: Make, in_thread: InThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go_on = threading.Event(), threading.Event()
    real = Segment.append

    def append(segment: Segment, record: bytes) -> None:
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            assert go_on.wait(10)
        real(segment, record)

    outbox, other = make(), make()
    put(outbox, 1)
    monkeypatch.setattr(Segment, "append", append)
    writing = in_thread(outbox.put, body(2))
    assert inside.wait(10)
    real_wait = outbox._settled.wait

    def wait(timeout: float | None = None) -> bool:
        go_on.set()
        return real_wait(timeout)

    monkeypatch.setattr(outbox._settled, "wait", wait)
    outbox.rest()
    assert writing.result(10) is None
    monkeypatch.undo()
    assert other.adopt() == 1
    assert balance(outbox)["accepted"] == 2
    assert set(taken(other) + taken(outbox)) == set(bodies(1, 2))


def test_the_end_does_not_wait_for_ever(make: Make, clock: Clock) -> None:
    outbox = make()
    put(outbox, 1)
    segment = outbox._files.current[0]
    assert segment is not None
    segment.writing[outbox] = None  # for ever

    def wait(_timeout: float | None = None) -> bool:
        clock.now += 10
        return False

    outbox._settled.wait = wait  # type: ignore[method-assign]
    outbox.rest()
    assert balance(outbox)["handed_over"] == 1


# -- trouble ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EMFILE])
def test_where_nothing_can_be_written_events_wait_in_memory_until_it_can(
    make: Make, clock: Clock, place: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, number: int,
) -> None:  # fmt: skip
    real = os.open

    def refuse(path: Any, flags: int, *args: Any, **more: Any) -> int:
        if str(place) in str(path) and flags & os.O_CREAT:
            raise OSError(number, os.strerror(number))
        return real(path, flags, *args, **more)

    monkeypatch.setattr(os, "open", refuse)
    outbox = make()
    put(outbox, 1, 2)
    assert outbox.at_stake() == 2
    assert taken(outbox) == bodies(1, 2)
    clock.now += _files.TRY_AGAIN
    put(outbox, 3)
    monkeypatch.undo()
    put(outbox, 4)
    assert balance(outbox)["unsaved"] == 4
    clock.now += _files.TRY_AGAIN
    put(outbox, 5)
    figures = balance(outbox)
    assert (figures["unsaved"], outbox.at_stake()) == (4, 2)
    said = [line for line in caplog.messages if "could not be used, events wait in memory" in line]
    assert len(said) == 1
    assert os.strerror(number) in said[0]
    assert outbox.abandon("exit") == 2
    assert balance(outbox)["dropped_by_reason"]["exit"] == 2


def test_an_append_that_fails_leaves_the_event_in_memory(
    make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make(max_events=3)
    put(outbox, 1)

    with monkeypatch.context() as patch:
        patch.setattr(Segment, "append", no_space)
        put(outbox, 2, 3, 4)  # the last one is one too many
    assert balance(outbox)["dropped_by_reason"]["overflow"] == 1
    assert taken(outbox) == bodies(1, 2, 3)
    clock.now += _files.TRY_AGAIN
    put(outbox, 5)
    assert outbox.at_stake() == 0


def test_an_append_to_the_disk_alone_that_fails_leaves_the_event_in_memory(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make(max_events=2)
    put(outbox, 1, 2, 3, 4)  # the last one is on the disk alone
    delivered = [take(outbox), take(outbox)]
    for item in delivered:
        outbox.delivered(item)
    with monkeypatch.context() as patch:
        patch.setattr(Segment, "append", no_space)
        put(outbox, 5)
    assert outbox.at_stake() == 1
    assert set(taken(outbox)) == set(bodies(3, 4, 5))
    assert balance(outbox)["delivered"] == 5


def test_a_file_that_two_threads_can_not_write_to_is_closed_once(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make()
    put(outbox, 1)
    writing: list[Segment] = []

    def refuse(segment: Segment, _record: bytes) -> None:
        writing.append(segment)
        if len(writing) == 1:
            put(outbox, 3)  # as another thread may, before this one knows of its own failure
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Segment, "append", refuse)
        put(outbox, 2)
    assert len(writing) == 2
    assert writing[0] is writing[1]
    assert sorted(taken(outbox)) == bodies(1, 2, 3)
    assert list(place.rglob("*.events")) == []
    balance(outbox)


def test_a_full_disk_costs_no_event_and_no_exception(
    make: Make, place: Path, fork: Callable[..., Child]
) -> None:
    def child() -> None:
        outbox = make(max_events=10**6)
        put(outbox, 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
        put(outbox, *range(1, 100), size=100)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert 0 < outbox.at_stake() < 99
        assert sorted(taken(outbox)) == sorted([body(0), *bodies(*range(1, 100), size=100)])
        balance(outbox)
        # What could not be written to goes with its events, as it may be all that fills the disk.
        assert list(place.rglob("*.events")) == []

    assert fork(child).wait() == 0


def test_too_many_open_files_cost_no_event(make: Make, fork: Callable[..., Child]) -> None:
    def child() -> None:
        outbox = make()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        put(outbox, 1)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert taken(outbox) == bodies(1)
        assert balance(outbox)["unsaved"] == 1

    assert fork(child).wait() == 0


def test_notes_that_can_not_be_written_are_written_later(
    make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make()
    put(outbox, 1, 2)
    real = Segment.record_settled

    monkeypatch.setattr(Segment, "record_settled", no_space)
    outbox.delivered(take(outbox))
    item = take(outbox)
    outbox.delivered(item)
    monkeypatch.setattr(Segment, "record_settled", real)
    clock.now += 1
    put(outbox, 3)
    outbox.delivered(take(outbox))
    put(outbox, 4)
    die(outbox)
    heir = make()
    heir.adopt()
    assert taken(heir) == bodies(4)


def test_a_note_that_fits_in_part_is_written_again_when_there_is_room(
    make: Make, place: Path, clock: Clock, fork: Callable[..., Child]
) -> None:
    def child() -> None:
        outbox = make()
        put(outbox, 1, 2)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        outbox.delivered(take(outbox))
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
        outbox._files.tidy(idle=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [event["n"] for event in Outbox(place).events()] == [1, 2]
        clock.now += _files.TRY_AGAIN
        outbox._files.tidy(idle=True)
        assert [event["n"] for event in Outbox(place).events()] == [2]
        outbox.rest()

    assert fork(child).wait() == 0


def test_a_mark_that_somebody_removed_is_made_anew(make: Make, place: Path) -> None:
    outbox, other = make(max_events=4), make()
    put(outbox, *range(10))
    [mark] = (place / "v1" / "owners").iterdir()
    content = mark.read_text()
    mark.unlink()
    outbox._files.beaten -= BEAT
    put(outbox, 10)
    assert mark.read_text() == content
    [directory] = (place / "v1" / "events").iterdir()
    os.utime(directory, (1, 1))
    assert other.adopt() == 0
    assert taken(outbox) == bodies(*range(11))


def test_a_directory_that_somebody_removed_is_made_anew_and_nothing_in_memory_is_lost(
    make: Make, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = make(max_events=4)
    put(outbox, *range(10))
    shutil.rmtree(place)
    outbox._files.beaten -= BEAT
    put(outbox, 10)
    assert "was taken over, or removed" in caplog.text
    assert list(place.glob("v1/events/*/*.events")) != []
    assert set(taken(outbox)) >= set(bodies(0, 1, 2, 3, 4, 10))
    assert balance(outbox)["dropped_by_reason"]["damaged"] == 5


def test_a_segment_that_is_gone_when_its_descriptor_is_too_is_replaced(
    make: Make, place: Path
) -> None:
    outbox = make()
    put(outbox, 1)
    segment = outbox._files.current[0]
    assert segment is not None
    assert segment._descriptor is not None
    os.close(segment._descriptor.number)
    [path] = place.glob("v1/events/*/*.events")
    path.unlink()
    put(outbox, 2)
    assert outbox._files.current[0] is not segment
    assert taken(outbox) == bodies(1, 2)
    balance(outbox)


@pytest.mark.parametrize("sync", [False, True])
def test_where_its_replacement_can_not_be_written_either_the_event_is_in_memory(
    make: Make, monkeypatch: pytest.MonkeyPatch, sync: bool
) -> None:
    outbox = make(sync=sync)
    put(outbox, 1)
    calls = []

    def robbed(*_args: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise _segments.RobbedError(errno.ESTALE, "taken")
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Segment, "append", robbed)
    put(outbox, 2)
    assert len(calls) == 2
    monkeypatch.undo()
    assert outbox.at_stake() == 1
    assert set(taken(outbox)) == set(bodies(1, 2))


def test_where_there_is_no_replacement_the_event_is_in_memory(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make(sync=True)
    put(outbox, 1)

    def robbed(*_args: Any) -> None:
        raise _segments.RobbedError(errno.ESTALE, "taken")

    def full(*_args: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Segment, "append", robbed)
    monkeypatch.setattr(Store, "open", full)
    put(outbox, 2)
    assert outbox.at_stake() == 1
    monkeypatch.undo()


def test_an_event_is_synced_to_its_replacement_too(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make(sync=True)
    put(outbox, 1)
    real, calls = Segment.append, []

    def robbed_once(segment: Segment, record: bytes) -> None:
        calls.append(segment)
        if len(calls) == 1:
            raise _segments.RobbedError(errno.ESTALE, "taken")
        real(segment, record)

    monkeypatch.setattr(Segment, "append", robbed_once)
    put(outbox, 2)
    assert outbox.at_stake() == 0
    assert set(taken(outbox)) == set(bodies(1, 2))


def test_a_look_that_fails_is_said_and_repeated(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = make()

    def refuse(*_args: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "claim", refuse)
        assert outbox.adopt() == 0
    assert "Too many open files" in caplog.text
    assert outbox.adopt() == 0


def test_a_sign_of_life_that_fails_is_said_and_repeated(
    make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = make()
    put(outbox, 1)

    def refuse(*_args: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Owner, "beat", refuse)
    outbox._files.beaten -= BEAT
    outbox._next_look = float("inf")
    assert outbox.take() is not None
    assert "Read-only file system" in caplog.text


def test_a_directory_that_can_not_be_made_leaves_no_mark(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.mkdir

    def refuse(path: Any, *args: Any) -> None:
        if "/events/" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, *args)

    outbox = make()
    monkeypatch.setattr(os, "mkdir", refuse)
    put(outbox, 1)
    assert files(place) == []
    assert outbox.at_stake() == 1


# -- threads and signals ---------------------------------------------------------------------------


def test_threads_that_begin_together_share_one_mark(make: Make, place: Path) -> None:
    outbox = make()
    barrier = threading.Barrier(8)

    def record(number: int) -> None:
        barrier.wait(10)
        put(outbox, *range(number * 100, number * 100 + 100))

    threads = [threading.Thread(target=record, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(list(place.glob("v1/owners/*"))) == len(list(place.glob("v1/events/*"))) == 1
    assert sorted(taken(outbox)) == sorted(bodies(*range(800)))
    balance(outbox)


def test_who_was_slower_to_begin_or_to_rotate_leaves_nothing(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make()
    real_open, real_segment = Store.open, Store.segment

    def open_twice(store: Store) -> Any:
        made = real_open(store)
        with monkeypatch.context() as patch:
            patch.setattr(Store, "open", real_open)
            outbox._files.begin()
        return made

    def segment_twice(store: Store, *args: Any) -> Any:
        made = real_segment(store, *args)
        with monkeypatch.context() as patch:
            patch.setattr(Store, "segment", real_segment)
            outbox._files.prepare(0)
        return made

    monkeypatch.setattr(Store, "open", open_twice)
    monkeypatch.setattr(Store, "segment", segment_twice)
    put(outbox, 1)
    assert len(files(place)) == 3  # a mark, a directory, a file
    assert taken(outbox) == bodies(1)


def open_among(files: set[Any]) -> int:
    """How many descriptors of this process stand for these (inode, device)."""
    count = 0
    for number in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # that of the list itself
            count += os.fstat(int(number))[1:3] in files
    return count


def test_who_is_forgotten_leaves_no_descriptor_and_no_mark(make: Make, place: Path) -> None:
    outbox, heir = DurableOutbox(Store(str(place), sync=False), WEEK, BIG), make()
    put(outbox, 1, 2)
    outbox.delivered(take(outbox))
    files = {os.stat(path)[1:3] for path in place.rglob("*.events")}
    assert open_among(files) == 1
    del outbox
    gc.collect()
    assert open_among(files) == 0
    assert list(place.glob("v1/owners/*")) == []
    assert heir.adopt() == 1
    assert taken(heir) == bodies(2)


def test_what_comes_too_late_touches_no_disk_and_is_dropped(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, heir = make(), make()
    put(outbox, 1)
    outbox.rest()
    with monkeypatch.context() as patch:
        patch.delattr("builtins.open")  # as when the Python interpreter shuts down
        patch.setattr(os, "open", no_space)
        outbox.refuse("exit")
    figures = balance(outbox)
    assert (figures["accepted"], figures["handed_over"], figures["pending"]) == (2, 1, 0)
    assert figures["dropped_by_reason"]["exit"] == 1
    assert heir.adopt() == 1
    assert taken(heir) == bodies(1)


class SoftTimeLimitError(Exception):
    pass


def test_events_that_a_signal_handler_records_within_a_call_cost_no_file(
    make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small_files(monkeypatch)
    outbox = make()
    put(outbox, 0)
    came: list[bytes] = []

    def record(*args: Any) -> Any:
        monkeypatch.setattr(_durable, "Entry", real)
        put(outbox, *range(1, 20), size=300)  # so that other files are begun
        came.extend(taken(outbox))  # and the one that this call was about to write to is removed
        return real(*args)

    real = _durable.Entry
    monkeypatch.setattr(_durable, "Entry", record)
    put(outbox, 20)
    assert [*came, *taken(outbox)] == [body(0), *bodies(*range(1, 20), size=300), body(20)]
    assert caplog.messages == []
    assert balance(outbox)["unsaved"] == 0


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (_durable, "Entry"),
        (DurableOutbox, "_prepare"),
        (_files.Files, "prepare"),
        (Segment, "create"),
        (Segment, "append"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_a_child_that_comes_back_from_a_signal_handler_writes_nothing_of_its_parents(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    outbox = make()
    put(outbox, 1)
    small_files(monkeypatch, 1)  # a new one for each event
    children: list[int] = []
    real = getattr(owner, name)

    def fork(*args: Any) -> Any:
        monkeypatch.setattr(owner, name, real)
        children.append(os.fork())
        return real(*args)

    monkeypatch.setattr(owner, name, fork)
    try:
        put(outbox, 2)
    finally:
        if children == [0]:
            os._exit(len(caplog.messages))
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
    assert list(Outbox(place).events()) == [json.loads(b) for b in bodies(1, 2)]
    assert len(list(place.glob("v1/owners/*"))) == 1
    assert len(list(place.glob("v1/events/*/*.events"))) == 2
    assert taken(outbox) == bodies(1, 2)


def test_a_child_that_comes_back_before_the_first_event_was_written_writes_nothing(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make()
    children: list[int] = []
    real = DurableOutbox._prepare

    def fork(*args: Any) -> Any:
        monkeypatch.setattr(DurableOutbox, "_prepare", real)
        children.append(os.fork())
        return real(*args)

    monkeypatch.setattr(DurableOutbox, "_prepare", fork)
    try:
        put(outbox, 1)
    finally:
        if children == [0]:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
    assert len(list(place.glob("v1/owners/*"))) == 1
    assert taken(outbox) == bodies(1)


@pytest.mark.parametrize("max_events", [1, 10])
def test_a_call_that_an_exception_breaks_off_accepts_what_may_be_written(
    make: Make, monkeypatch: pytest.MonkeyPatch, max_events: int
) -> None:
    outbox = make(max_events=max_events)
    put(outbox, 1, 2)
    real = Segment.append

    def limit(*args: Any) -> None:
        if args[1:]:
            real(*args)
        raise SoftTimeLimitError

    with monkeypatch.context() as patch:
        patch.setattr(Segment, "append", limit)
        with pytest.raises(SoftTimeLimitError):
            outbox.put(body(3))
    assert balance(outbox)["accepted"] == 3
    mark = outbox.mark()
    assert taken(outbox) == bodies(1, 2, 3)
    assert outbox.wait(mark, 0.0)
    assert balance(outbox)["dropped"] == 0


def test_a_call_that_an_exception_breaks_off_before_accepts_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make()
    put(outbox, 1)

    def limit(*_args: Any) -> None:
        raise SoftTimeLimitError

    with monkeypatch.context() as patch:
        patch.setattr(_durable, "Entry", limit)
        with pytest.raises(SoftTimeLimitError):
            outbox.put(body(3))
    assert balance(outbox)["accepted"] == 1


def test_a_call_that_is_broken_off_while_the_disk_is_full_accepts_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make()

    def full(*_args: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    class Lock:
        entered = 0

        def __enter__(self) -> None:
            self.entered += 1
            if self.entered == 2:
                raise SoftTimeLimitError
            lock.acquire()

        def __exit__(self, *_args: object) -> None:
            lock.release()

    monkeypatch.setattr(Store, "open", full)
    lock = outbox._lock
    monkeypatch.setattr(outbox, "_lock", Lock())
    with pytest.raises(SoftTimeLimitError):
        outbox.put(body(1))
    monkeypatch.setattr(outbox, "_lock", lock)
    assert balance(outbox)["accepted"] == 0
    assert outbox.wait(outbox.mark(), 0.0)


def test_a_call_that_an_exception_breaks_off_at_its_end_is_delivered_once(
    make: Make, place: Path
) -> None:
    outbox = make()
    put(outbox, 1)
    real = outbox._waiting.add

    def limit(entry: Any) -> None:
        real(entry)
        raise SoftTimeLimitError

    outbox._waiting.add = limit  # type: ignore[misc]
    with pytest.raises(SoftTimeLimitError):
        outbox.put(body(2))
    outbox._waiting.add = real  # type: ignore[misc]
    assert taken(outbox) == bodies(1, 2)
    assert balance(outbox)["delivered"] == 2
    outbox.rest()
    assert files(place) == []


def test_a_call_that_an_exception_breaks_off_behind_its_end_is_delivered_once(
    make: Make, in_thread: InThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make()
    put(outbox, 1)
    landing = Landing(outbox, 2, in_thread, takeable=True)
    small_files(monkeypatch, 1)
    put(outbox, 3)  # to another file, so that the thread has to see to the first one
    real = outbox._tidy

    def limit() -> None:
        monkeypatch.setattr(DurableOutbox, "_tidy", lambda _outbox: real())
        raise SoftTimeLimitError

    monkeypatch.setattr(DurableOutbox, "_tidy", lambda _outbox: limit())
    with pytest.raises(SoftTimeLimitError):
        landing.result()
    assert taken(outbox) == bodies(1, 2, 3)
    assert balance(outbox)["delivered"] == 3


def test_a_call_that_an_exception_breaks_off_on_a_full_disk_is_not_pending(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make()

    def limit(*_args: Any) -> bool:
        raise SoftTimeLimitError

    monkeypatch.setattr(Store, "open", no_space)
    put(outbox, 1)
    with monkeypatch.context() as patch:
        patch.setattr(DurableOutbox, "_is_over", limit)
        with pytest.raises(SoftTimeLimitError):
            outbox.put(body(2))
    assert taken(outbox) == bodies(1)
    assert balance(outbox)["accepted"] == 1
    assert outbox.wait(outbox.mark(), 0.0)


def test_what_a_signal_handler_records_while_an_event_is_reserved_anew_is_counted(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A figure that is changed by a statement with a call in it would lose the handler's share."""
    outbox = make()
    put(outbox, 1)

    class Handling(bytes):
        def __len__(self) -> int:
            handle()
            return super().__len__()

    def handle() -> None:
        if outbox._lock._is_owned():  # type: ignore[attr-defined]
            put(outbox, 2)

    on_append = [_segments.RobbedError(errno.ESTALE, "taken")]
    real = Segment.append

    def robbed(segment: Segment, record: bytes) -> None:
        if on_append:
            raise on_append.pop()
        real(segment, record)

    monkeypatch.setattr(Segment, "append", robbed)
    outbox.put(Handling(body(3)))
    delivered = taken(outbox)
    assert set(delivered) >= set(bodies(1, 3))
    balance(outbox)


def test_a_file_whose_making_an_exception_breaks_off_is_removed_by_others(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, heir = make(), make()
    put(outbox, 1)
    small_files(monkeypatch, 1)
    real = Segment.create

    def limit(*args: Any) -> None:
        real(*args)
        raise SoftTimeLimitError

    with monkeypatch.context() as patch:
        patch.setattr(Segment, "create", limit)
        with pytest.raises(SoftTimeLimitError):
            outbox.put(body(2))
    assert taken(outbox) == bodies(1)
    outbox.rest()
    assert heir.adopt() == 1
    assert taken(heir) == []
    heir.rest()
    assert files(place) == []


def test_a_call_that_an_exception_breaks_off_while_it_waits_for_room_is_counted(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make(max_events=1, overflow="block", block=3600.0)

    def refuse(*_args: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    def limit(_timeout: float | None = None) -> bool:
        raise SoftTimeLimitError

    monkeypatch.setattr(Store, "open", refuse)
    put(outbox, 1)
    monkeypatch.setattr(outbox._settled, "wait", limit)
    with pytest.raises(SoftTimeLimitError):
        outbox.put(body(2))
    monkeypatch.undo()
    assert balance(outbox)["dropped_by_reason"]["overflow"] == 1
    assert taken(outbox) == bodies(1)
    assert balance(outbox)["pending"] == 0
    assert outbox.wait(outbox.mark(), 0.0)


def test_who_lost_a_race_for_what_was_left_has_nothing_of_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, slow, fast = make(), make(), make()
    put(outbox, 1)
    die(outbox)
    real = _owners.claim

    def claim(*args: Any) -> Any:
        monkeypatch.setattr("valued._outbox.store.claim", real)
        assert fast.adopt() == 1
        return real(*args)

    monkeypatch.setattr("valued._outbox.store.claim", claim)
    assert slow.adopt() == 0
    assert taken(slow) == []
    assert taken(fast) == bodies(1)


def test_a_claim_that_a_signal_breaks_off_is_given_back(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, broken, heir = make(), make(), make()
    put(outbox, 1)
    die(outbox)
    real = _owners.claim

    def claim(*args: Any) -> Any:
        monkeypatch.setattr("valued._outbox.store.claim", real)
        real(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr("valued._outbox.store.claim", claim)
    with pytest.raises(KeyboardInterrupt):
        broken.adopt()
    assert heir.adopt() == 1
    assert taken(heir) == bodies(1)


def test_what_was_lost_already_is_not_lost_again(make: Make) -> None:
    outbox = make()
    put(outbox, 1)
    own = outbox._files.own
    assert own is not None
    outbox._files.lose(own, OSError("first"))
    put(outbox, 2)
    outbox._files.lose(own, OSError("second"))
    assert outbox._files.own is not None
    assert taken(outbox) == bodies(1, 2)


def test_what_is_being_read_is_not_dropped_for_its_size(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_files(monkeypatch)
    outbox, heir = make(), make(max_size=5_000)
    put(outbox, *range(10), size=300)
    die(outbox)
    heir.adopt()
    heir._files.inherited.busy = True
    put(heir, *range(10, 20), size=300)
    heir._files.inherited.busy = False
    assert set(taken(heir)) >= set(bodies(*range(10), size=300))


def test_caller_runs_where_neither_disk_nor_memory_have_room(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make(max_events=1, overflow="caller_runs")

    def full(*_args: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Store, "open", full)
    put(outbox, 1)
    item = outbox.put(body(2))
    assert item is not None
    outbox.delivered(item)
    assert outbox.dropped(take(outbox), "closed") is True
    assert balance(outbox)["dropped_by_reason"]["closed"] == 1
    put(outbox, 3)
    outbox.rest()  # memory alone has it, so it is not let go of
    assert taken(outbox) == bodies(3)


# -- several at once -------------------------------------------------------------------------------


class Barred:
    """Lets threads into `Segment.append` of some events, and keeps them there until `free`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
        self.inside, self.free = threading.Event(), threading.Event()
        real = Segment.append

        def append(segment: Segment, record: bytes) -> None:
            if any(b'{"n":%d,' % number in record for number in numbers):
                self.inside.set()
                assert self.free.wait(10)
            real(segment, record)

        monkeypatch.setattr(Segment, "append", append)


def test_a_call_that_finds_memory_full_as_others_fill_it_writes_to_the_disk(make: Make) -> None:
    outbox = make(max_events=3)
    put(outbox, 1)

    class Lock:
        def __enter__(self) -> None:
            outbox._lock = lock
            put(outbox, 2, 3, 4)  # by other threads, before this one has the lock
            lock.acquire()

        def __exit__(self, *_args: object) -> None:
            lock.release()

    lock = outbox._lock
    outbox._lock = Lock()  # type: ignore[assignment]
    put(outbox, 5)
    figures = balance(outbox)
    assert (figures["unsaved"], figures["dropped"]) == (0, 0)
    assert taken(outbox) == bodies(1, 2, 3, 4, 5)


def test_a_file_into_which_a_thread_writes_is_read_to_its_end(
    make: Make, clock: Clock, in_thread: InThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    barred = Barred(monkeypatch, 5)
    outbox = make(max_events=2)
    put(outbox, 1, 2, 3, 4)
    writing = in_thread(outbox.put, body(5))
    assert barred.inside.wait(10)
    assert taken(outbox) == bodies(1, 2, 3, 4)
    mark = outbox.mark()
    assert outbox.postponed()
    assert not outbox.ready()
    barred.free.set()
    assert writing.result(10) is None
    clock.now += 1
    assert outbox.wait_until_due()
    assert outbox.ready()
    assert taken(outbox) == bodies(5)
    assert outbox.wait(mark, 0.0)
    assert balance(outbox)["dropped"] == 0
    assert not outbox.postponed()


def test_a_file_into_which_a_thread_writes_is_not_dropped_for_its_size(
    make: Make, in_thread: InThread, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    small_files(monkeypatch)
    barred = Barred(monkeypatch, 1)
    outbox = make(max_size=5_000)
    put(outbox, 0, size=300)
    writing = in_thread(outbox.put, body(1, 300))
    assert barred.inside.wait(10)
    put(outbox, *range(2, 30), size=300)
    barred.free.set()
    assert writing.result(10) is None
    assert "was taken over, or removed" not in caplog.text
    assert set(taken(outbox)) >= set(bodies(0, 1, 29, size=300))
    balance(outbox)


def test_an_event_that_comes_while_it_ends_is_delivered_here(
    make: Make, in_thread: InThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    barred = Barred(monkeypatch, 2)
    outbox, other = make(), make()
    put(outbox, 1)
    writing = in_thread(outbox.put, body(2))
    assert barred.inside.wait(10)
    real = outbox._settled.wait

    def wait(timeout: float | None = None) -> bool:
        monkeypatch.setattr(outbox._settled, "wait", real)
        coming = in_thread(outbox.put, body(3))
        while not coming.done():
            real(timeout)  # lets it have the lock
        barred.free.set()
        return coming.result() is not None

    monkeypatch.setattr(outbox._settled, "wait", wait)
    outbox.rest()
    assert writing.result(10) is None
    other.adopt()
    assert set(taken(other) + taken(outbox)) == set(bodies(1, 2, 3))
    assert balance(outbox)["pending"] == 0


@pytest.mark.parametrize("times", [1, 3])
def test_an_event_whose_file_is_to_be_made_as_another_thread_ends_is_on_the_disk(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, times: int
) -> None:
    outbox = make()
    put(outbox, 1)
    assert taken(outbox) == bodies(1)
    small_files(monkeypatch, 1)
    real = Segment.create
    left = [outbox.rest] * times

    def create(*args: Any) -> None:
        if left:
            left.pop()()  # which removes the directory
        real(*args)

    monkeypatch.setattr(Segment, "create", create)
    put(outbox, 2)
    assert left == []
    assert caplog.messages == []
    assert balance(outbox)["unsaved"] == 0
    assert taken(outbox) == bodies(2)


def test_a_look_for_the_dead_that_meets_the_end_in_another_thread_refuses_no_disk(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = make()
    put(outbox, 1)
    assert taken(outbox) == bodies(1)

    def beat(owner: Owner) -> float:
        outbox.rest()  # which removes the mark
        return os.stat(owner._mark).st_mtime

    with monkeypatch.context() as patch:
        patch.setattr(Owner, "beat", beat)
        assert outbox.adopt() == 0
    assert caplog.messages == []
    put(outbox, 2)
    assert outbox.at_stake() == 0


@pytest.mark.parametrize("times", [1, 3])
def test_an_event_that_is_about_to_be_written_as_another_thread_ends_is_on_the_disk(
    make: Make, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    outbox = make()
    real = _files.Files.prepare
    left = [outbox.rest] * times

    def prepare(*args: Any) -> bool:
        ready = real(*args)
        if left:
            left.pop()()
        return ready

    monkeypatch.setattr(_files.Files, "prepare", prepare)
    put(outbox, 1)
    assert left == []
    assert balance(outbox)["unsaved"] == 0
    assert taken(outbox) == bodies(1)


class Landing:
    """A thread that records an event and stops behind the write, before others may take it or not.

    It goes on when `free` is set.
    """

    def __init__(
        self, outbox: DurableOutbox, number: int, in_thread: InThread, *, takeable: bool
    ) -> None:
        self.free = threading.Event()
        inside = threading.Event()
        real = outbox._waiting.add

        def add(entry: Any) -> None:
            outbox._waiting.add = real  # type: ignore[misc]
            if takeable:
                real(entry)
            inside.set()
            assert self.free.wait(10)
            if not takeable:
                real(entry)

        outbox._waiting.add = add  # type: ignore[misc]
        self._coming = in_thread(outbox.put, body(number))
        assert inside.wait(10)

    def result(self) -> object:
        self.free.set()
        return self._coming.result(10)


@pytest.mark.parametrize("takeable", [False, True])
def test_the_end_waits_for_a_thread_that_has_just_written(
    make: Make, in_thread: InThread, monkeypatch: pytest.MonkeyPatch, takeable: bool
) -> None:
    outbox, other = make(), make()
    put(outbox, 1)
    landing = Landing(outbox, 2, in_thread, takeable=takeable)
    real = outbox._settled.wait
    waits: list[float | None] = []

    def wait(timeout: float | None = None) -> bool:
        waits.append(timeout)
        landing.free.set()
        return real(timeout)

    monkeypatch.setattr(outbox._settled, "wait", wait)
    outbox.rest()
    assert landing.result() is None
    assert waits
    assert other.adopt() == 1
    assert taken(other) == bodies(1, 2)
    assert taken(outbox) == []
    assert balance(outbox)["handed_over"] == 2


def test_a_file_whose_last_event_is_settled_before_its_call_ends_is_removed_then(
    make: Make, place: Path, in_thread: InThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make()
    put(outbox, 1)
    landing = Landing(outbox, 2, in_thread, takeable=True)
    [path] = place.glob("v1/events/*/*.events")
    small_files(monkeypatch, 1)
    put(outbox, 3)  # to another file
    assert taken(outbox) == bodies(1, 2, 3)
    assert path.exists()
    assert landing.result() is None
    assert not path.exists()


@pytest.mark.parametrize("reason", ["handed over", "damaged"])
def test_an_event_whose_file_is_lost_while_it_is_written_to_the_disk_alone_is_settled_by_that(
    make: Make, in_thread: InThread, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    barred = Barred(monkeypatch, 4)
    outbox = make(max_events=1)
    put(outbox, 1, 2, 3)
    mark = outbox.mark()
    writing = in_thread(outbox.put, body(4))
    assert barred.inside.wait(10)
    own = outbox._files.own
    assert own is not None
    monkeypatch.setattr(Store, "was_taken", lambda *_args: reason == "handed over")
    outbox._files.lose(own, OSError("lost"))
    barred.free.set()
    assert writing.result(10) is None
    # What was in memory, too, is delivered only where no other process has it.
    assert taken(outbox) == ([] if reason == "handed over" else bodies(1, 2))
    assert outbox.wait(mark, 0.0)
    assert outbox.wait(outbox.mark(), 0.0)
    figures = balance(outbox)
    assert figures["pending"] == 0
    assert figures["handed_over"] == (4 if reason == "handed over" else 0)
    assert figures["dropped_by_reason"]["damaged"] == (0 if reason == "handed over" else 2)


def test_a_file_that_is_settled_when_the_end_comes_is_removed_though_its_writer_is_late(
    make: Make, place: Path, in_thread: InThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make()
    put(outbox, 1)
    landing = Landing(outbox, 2, in_thread, takeable=True)
    assert taken(outbox) == bodies(1, 2)
    inside, free = threading.Event(), threading.Event()
    real = DurableOutbox._check

    def check(late: DurableOutbox, segment: Segment) -> None:
        inside.set()
        assert free.wait(10)
        real(late, segment)

    def wait(timeout: float | None = None) -> bool:
        landing.free.set()
        assert inside.wait(10)  # it writes no more, and has not looked what is left to do
        return real_wait(timeout)

    real_wait = outbox._settled.wait
    monkeypatch.setattr(DurableOutbox, "_check", check)
    monkeypatch.setattr(outbox._settled, "wait", wait)
    outbox.rest()
    free.set()
    assert landing.result() is None
    assert files(place) == []


@pytest.mark.parametrize("last", [1, 2, 3, 4])
def test_a_file_is_closed_though_its_writer_ends_while_that_is_looked_at(
    make: Make, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    outbox = make()
    put(outbox, 1)
    segment = outbox._files.current[0]
    assert segment is not None

    class Ending(dict[object, None]):
        looks = 0

        def __len__(self) -> int:
            self.looks += 1
            return self.looks <= last  # a thread writes until then

    segment.writing = Ending()
    small_files(monkeypatch, 1)
    put(outbox, 2)
    for _ in range(last):
        outbox._files.tidy(idle=False)
    assert segment._descriptor.number == -1


def test_a_file_whose_name_can_not_be_synced_is_not_left(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make(sync=True)
    put(outbox, 1)
    small_files(monkeypatch, 1)
    before = len(os.listdir("/dev/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(_store, "_sync_directory", too_many_files)
        put(outbox, 2)
    assert len(list(place.glob("v1/events/*/*.events"))) == 1
    assert len(os.listdir("/dev/fd")) == before
    assert taken(outbox) == bodies(1, 2)


def test_where_making_a_file_is_broken_off_it_is_looked_for_the_dead_all_the_same(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make()
    put(outbox, 1)
    assert taken(outbox) == bodies(1)
    outbox.rest()
    real = _files.Files.prepare

    def limit(*args: Any) -> bool:
        real(*args)
        raise SoftTimeLimitError

    with monkeypatch.context() as patch:
        patch.setattr(_files.Files, "prepare", limit)
        with pytest.raises(SoftTimeLimitError):
            outbox.put(body(2))
    put(outbox, 3)
    assert not outbox._resting


def test_a_handler_that_flushes_within_a_call_keeps_no_flush_waiting(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make(max_events=2)
    put(outbox, 1, 2, 3)  # the next one is on the disk alone
    real = _durable.Entry

    def mark(*args: Any) -> Any:
        monkeypatch.setattr(_durable, "Entry", real)
        outbox.mark()
        return real(*args)

    monkeypatch.setattr(_durable, "Entry", mark)
    put(outbox, 4)
    assert taken(outbox) == bodies(1, 2, 3, 4)
    assert outbox.wait(outbox.mark(), 0.0)


@pytest.mark.parametrize("broken_off", ["", "before", "after"])
def test_what_is_written_to_the_disk_alone_after_its_file_was_handed_over_is_delivered_here(
    make: Make,
    clock: Clock,
    in_thread: InThread,
    monkeypatch: pytest.MonkeyPatch,
    broken_off: str,
) -> None:
    barred = Barred(monkeypatch, 4)
    outbox, other = make(max_events=1), make()
    put(outbox, 1, 2, 3)
    writing = in_thread(outbox.put, body(4))
    assert barred.inside.wait(10)

    def wait(_timeout: float | None = None) -> bool:
        clock.now += 10  # it takes too long
        return False

    monkeypatch.setattr(outbox._settled, "wait", wait)
    outbox.rest()
    other.adopt()
    assert taken(other) == bodies(1, 2, 3)
    monkeypatch.undo()
    real = DurableOutbox._leave_on_disk

    def limit(*args: Any) -> None:
        monkeypatch.setattr(DurableOutbox, "_leave_on_disk", real)
        if broken_off == "after":
            real(*args)
        raise SoftTimeLimitError

    if broken_off:
        monkeypatch.setattr(DurableOutbox, "_leave_on_disk", limit)
    barred.free.set()
    with pytest.raises(SoftTimeLimitError) if broken_off else contextlib.nullcontext():
        writing.result(10)
    assert outbox.at_stake() == 1
    assert taken(outbox) == bodies(4)
    assert balance(outbox)["pending"] == 0


def test_a_handler_that_records_while_a_file_is_lost_breaks_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_files(monkeypatch, 1)
    outbox = make()
    put(outbox, 1, 2)
    own = outbox._files.own
    assert own is not None

    class Handling(int):
        def __lt__(self, other: int) -> bool:
            segment.settled = 0
            put(outbox, 3)
            return False

    segment = next(iter(own.segments))
    segment.settled = Handling(0)
    outbox._files.lose(own, OSError("lost"))
    assert balance(outbox)["accepted"] == 3
    while (item := outbox.take()) is not None:
        outbox.delivered(item)
    assert balance(outbox)["pending"] == 0


def test_what_is_settled_is_noted_before_it_is_handed_over(
    make: Make, in_thread: InThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, heir = make(), make()
    put(outbox, 1)
    inside, free = threading.Event(), threading.Event()
    real = Segment.record_settled

    def record(segment: Segment, numbers: Any) -> None:
        inside.set()
        assert free.wait(10)
        real(segment, numbers)

    monkeypatch.setattr(Segment, "record_settled", record)
    noting = in_thread(outbox.delivered, take(outbox))
    assert inside.wait(10)
    put(outbox, 2)
    outbox.rest()
    assert heir.adopt() == 0
    free.set()
    assert noting.result(10) is None
    assert heir.adopt() == 1
    assert taken(heir) == bodies(2)


def test_what_is_settled_while_others_are_noted_is_noted_before_it_is_handed_over(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, heir = make(), make()
    put(outbox, 1, 2, 3)
    first, second = take(outbox), take(outbox)
    outbox.rest()
    real = Segment.record_settled

    def record(segment: Segment, numbers: Any) -> None:
        monkeypatch.setattr(Segment, "record_settled", real)
        with monkeypatch.context() as patch:  # by another thread, which is not so far yet
            patch.setattr(DurableOutbox, "_tidy", lambda _outbox: None)
            outbox.delivered(second)
        real(segment, numbers)

    monkeypatch.setattr(Segment, "record_settled", record)
    outbox.delivered(first)
    outbox._files.tidy(idle=True)
    assert heir.adopt() == 1
    assert taken(heir) == bodies(3)


def test_a_directory_goes_when_its_last_file_does_though_others_are_faster(
    make: Make, place: Path, in_thread: InThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, heir = make(), make()
    put(dead, 1)
    die(dead)
    put(heir, 2)
    heir.adopt()
    items = sorted((take(heir), take(heir)), key=lambda item: item.body)
    inside, free = threading.Event(), threading.Event()
    real = Segment.remove

    def remove(segment: Segment) -> None:
        inside.set()
        assert free.wait(10)
        real(segment)

    monkeypatch.setattr(Segment, "remove", remove)
    removing = in_thread(heir.delivered, items[0])
    assert inside.wait(10)
    heir.delivered(items[1])
    free.set()
    assert removing.result(10) is None
    assert len(list(place.glob("v1/events/*"))) == 1  # its own


def test_what_can_not_be_noted_at_the_end_is_handed_over_all_the_same(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, heir = make(), make()
    put(outbox, 1, 2)

    with monkeypatch.context() as patch:
        patch.setattr(Segment, "record_settled", no_space)
        outbox.delivered(take(outbox))
        outbox.rest()
    assert heir.adopt() == 1
    assert taken(heir) == bodies(1, 2)


def test_who_comes_to_its_end_while_it_takes_over_lets_go_of_that(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, heir, third = make(), make(), make()
    put(outbox, 1)
    die(outbox)
    real = _owners.claim

    def claim(*args: Any) -> Any:
        claimed = real(*args)
        monkeypatch.setattr("valued._outbox.store.claim", real)
        heir.rest()
        return claimed

    monkeypatch.setattr("valued._outbox.store.claim", claim)
    heir.adopt()
    assert third.adopt() == 1
    assert taken(third) == bodies(1)


def test_trouble_with_one_directory_keeps_nobody_from_the_others(make: Make, place: Path) -> None:
    outbox, another, heir = make(), make(), make()
    put(outbox, 1)
    put(another, 2)
    die(outbox)
    die(another)
    for name in (
        "0.unclaimed",
        "z.unclaimed",
    ):  # no directories: who takes them over can't read them
        (place / "v1" / "events" / name).touch()
    assert heir.adopt() == 0  # it says so, and the looks go on
    assert sorted(taken(heir)) == bodies(1, 2)
    assert {path.name for path in place.glob("v1/events/?.*")} == {"0.unclaimed", "z.unclaimed"}
    assert heir.postponed()


def test_who_looks_for_the_dead_after_a_long_sleep_finds_itself_robbed_first(
    make: Make, clock: Clock
) -> None:
    outbox, other = make(), make()
    put(outbox, 1)
    move_elsewhere(outbox, LEASE + 60)
    other.adopt()
    outbox._files.beaten -= BEAT + 1
    clock.now += 2 * LOOK
    assert outbox.take() is None
    assert balance(outbox)["handed_over"] == 1
    assert taken(other) == bodies(1)


def test_a_sign_of_life_as_it_ends_leaves_no_mark(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make()
    put(outbox, 1)
    real = Owner.beat

    def beat(owner: Owner) -> float:
        outbox.rest()
        return real(owner)

    monkeypatch.setattr(Owner, "beat", beat)
    outbox._files.beaten -= BEAT
    outbox._tend()
    assert list(place.glob("v1/owners/*")) == []
    monkeypatch.undo()
    assert outbox.adopt() == 1
    assert taken(outbox) == bodies(1)


def test_a_sign_of_life_as_it_ends_leaves_the_mark_of_what_is_under_way(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, dead = make(), make()
    put(dead, 1)
    die(dead)
    put(outbox, 2)
    outbox.adopt()
    items = [take(outbox), take(outbox)]
    [inherited] = [item for item in items if item.body == body(1)]
    items.remove(inherited)
    outbox.postpone(items[0], 0.0)
    real = Owner.beat

    def beat(owner: Owner) -> float:
        outbox.rest()
        return real(owner)

    monkeypatch.setattr(Owner, "beat", beat)
    outbox._files.beaten -= BEAT
    outbox._tend()
    assert len(list(place.glob("v1/owners/*"))) == 1
    outbox.delivered(inherited)
    assert list(place.glob("v1/owners/*")) == []


def test_what_lives_on_in_a_child_touches_nothing_of_its_parents(
    make: Make, clock: Clock, place: Path, fork: Callable[..., Child]
) -> None:
    outbox, dead = make(), make()
    put(outbox, 1, 2, 3)
    put(dead, 4)
    die(dead)
    first = take(outbox)
    outbox._next_look = clock.now
    outbox._files.store.others = 1
    before = files(place)

    def greenlet() -> None:  # as gevent's do, it goes on in the child with what it had
        assert outbox.wait_until_due()
        assert outbox.take() is None
        outbox.delivered(first)
        outbox.rest()

    assert fork(greenlet).wait() == 0
    assert files(place) == before
    outbox.postpone(first, clock.now)
    assert outbox.adopt() == 1
    assert set(taken(outbox)) == set(bodies(1, 2, 3, 4))


def test_a_probe_is_no_event_that_is_too_old(make: Make, clock: Clock) -> None:
    outbox = make(max_age=100.0)
    put(outbox, 1, 2)
    clock.now += 60
    put(outbox, 3)
    outbox.hold(clock.now, 30.0)
    clock.now += 60
    assert take(outbox).body == body(3)
    assert outbox.take() is None  # one at a time
    assert balance(outbox)["dropped_by_reason"]["age"] == 2


def test_who_waits_for_events_under_way_does_not_spin_for_a_look_that_is_due(
    make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, other = make(), make()
    put(other, 1)
    put(outbox, 2)
    outbox.adopt()
    take(outbox)  # under way elsewhere
    mark = outbox.mark()
    clock.now += 2 * LOOK
    waits = []

    def wait(timeout: float) -> bool:
        waits.append(timeout)
        clock.now += max(timeout, 0.1)
        return False

    monkeypatch.setattr(outbox._settled, "wait", wait)
    assert not outbox.wait_for_work(mark, clock.now + 5)
    assert waits == [pytest.approx(5)]


@pytest.mark.parametrize("max_events", [1, 10])
def test_a_disk_that_does_not_say_that_it_has_it_doubles_and_loses_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, max_events: int
) -> None:
    outbox = make(sync=True, max_events=max_events)
    put(outbox, 1, 2)

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        put(outbox, 3)
    assert "Input/output error" in caplog.text
    assert taken(outbox) == bodies(1, 2, 3)
    balance(outbox)


def test_a_stranger_s_record_that_is_no_json_is_settled_when_it_is_refused(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = make()
    assert outbox.put(b"no json") is None
    outbox.failed(take(outbox), DeliveryError("HTTP 400", 400, 1, 0.0))
    assert balance(outbox)["failed"] == 1
    assert "could not be stored" in caplog.text


# -- any order of it all ---------------------------------------------------------------------------


class Directory(RuleBasedStateMachine):
    """Processes come, record, deliver, end and die: each event is delivered, and none is forgotten.

    An event may be delivered again only if its process died before its settling was noted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.clock = Clock()
        self.living: list[DurableOutbox] = []
        self.flying: list[tuple[DurableOutbox, Any]] = []
        self.accepted: set[bytes] = set()
        self.delivered: dict[bytes, list[str]] = {}
        self.deaths = 0
        # Names decide whose events come first: the same ones each time, or no example is repeated.
        drawn = itertools.count()
        self.names = mock.patch(
            "os.urandom", lambda size: hashlib.sha256(b"%d" % next(drawn)).digest()[:size]
        )
        self.names.start()

    def make(self) -> DurableOutbox:
        store = Store(os.path.join(self.folder, "outbox"), sync=False)
        outbox = DurableOutbox(store, WEEK, BIG, 6, clock=self.clock)
        outbox._window = 3
        self.living.append(outbox)
        return outbox

    @precondition(lambda self: len(self.living) < 3)
    @rule()
    def come(self) -> None:
        self.make()

    @precondition(lambda self: self.living)
    @rule(which=st.integers(0, 2), count=st.integers(1, 9))
    def record(self, which: int, count: int) -> None:
        outbox = self.living[which % len(self.living)]
        for _ in range(count):
            new = body(len(self.accepted))
            assert outbox.put(new) is None
            self.accepted.add(new)

    @precondition(lambda self: self.living)
    @rule(which=st.integers(0, 2), count=st.integers(1, 12))
    def take(self, which: int, count: int) -> None:
        outbox = self.living[which % len(self.living)]
        for _ in range(count):
            item = outbox.take()
            if item is not None:
                self.flying.append((outbox, item))

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0, 20), outcome=st.sampled_from(["deliver", "deliver", "postpone"]))
    def land(self, which: int, outcome: str) -> None:
        outbox, item = self.flying.pop(which % len(self.flying))
        if outcome == "postpone":
            outbox.postpone(item, self.clock.now)
        else:
            self.delivered.setdefault(item.body, []).append(item.idempotency_key)
            outbox.delivered(item)

    @precondition(lambda self: self.living)
    @rule(which=st.integers(0, 2))
    def adopt(self, which: int) -> None:
        self.living[which % len(self.living)].adopt()

    @precondition(lambda self: self.living)
    @rule(which=st.integers(0, 2))
    def rest(self, which: int) -> None:
        outbox = self.living[which % len(self.living)]
        outbox.abandon("closed")
        outbox.rest()

    @precondition(lambda self: self.living)
    @rule(which=st.integers(0, 2))
    def die(self, which: int) -> None:
        outbox = self.living.pop(which % len(self.living))
        holdings = set(outbox._files._holdings)
        holdings |= {item.segment.holding for owner, item in self.flying if owner is outbox}
        self.flying = [(owner, item) for owner, item in self.flying if owner is not outbox]
        self.deaths += 1
        outbox._born = mock.Mock(is_here=lambda: False)  # a dead process lets go of nothing
        owners = {holding.owner.name for holding in holdings}
        for name in os.listdir(outbox._files.store.place.owners) if owners else ():
            mark = Path(outbox._files.store.place.owners, name)
            if name in owners:
                mark.write_text(mark.read_text().replace('"start": "', '"start": "1'))

    @invariant()
    def accounts_balance(self) -> None:
        for outbox in self.living:
            balance(outbox)

    def teardown(self) -> None:
        try:
            self.end()
        finally:
            self.names.stop()

    def end(self) -> None:
        for outbox, item in self.flying:
            outbox.postpone(item, self.clock.now)
        last = self.make()
        for outbox in self.living:
            outbox.abandon("closed")
            outbox.rest()
        while last.adopt():
            for new in taken(last):
                self.delivered.setdefault(new, []).append("")
        assert self.accepted == self.delivered.keys()
        if not self.deaths:
            assert {len(keys) for keys in self.delivered.values()} <= {1}
        last.rest()
        assert files(Path(self.folder, "outbox")) == []
        shutil.rmtree(self.folder)


TestDirectory = Directory.TestCase
TestDirectory.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


def test_what_the_dead_left_is_read_on_before_memory_runs_empty(make: Make) -> None:
    dead = make()
    for number in range(20):
        dead.put(body(number))
    die(dead)
    heir = make(max_events=8)  # a window of 4
    assert heir.adopt() == 1
    for taken in range(1, 21):
        item = heir.take()
        assert item is not None
        # Else whoever else delivers would find nothing meanwhile, and go.
        assert heir._waiting.is_ready() or taken == 20
        heir.delivered(item)
    assert heir.figures()["delivered"] == 20

"""A process may end between any two changes of the disk, or within one; and then the power, too.

Lives of one or two processes are recorded as changes of a disk in memory. For each prefix of the
changes, and for each byte at which its last write may have been cut, the disk is built again, and a
new process takes over what is there. It must find each accepted event that was not settled, once,
and no event that was noted as settled.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from tests.outbox.life import Life
from tests.outbox.memory import Change, MemoryDisk
from valued._errors import DeliveryError
from valued._outbox import records
from valued._outbox.disk import read_file

PATH = "/valued-outbox-in-memory"

#: Bytes of a file: a few events.
SMALL = 200


class Call(NamedTuple):
    """A call of a journal: which changes it made, and what it promises from its end on."""

    what: str
    event: int
    first: int
    end: int


class World:
    """A disk, the processes that use it, and what they were promised."""

    def __init__(self, durability: str) -> None:
        self.disk = MemoryDisk()
        self.alive: set[int] = set()
        self.calls: list[Call] = []
        self.durability = durability
        self._pids = itertools.count(1)

    def process(self) -> Life:
        return Life(
            PATH, next(self._pids), self.alive, self.disk,
            durability=self.durability, segment_size=SMALL,
        )  # fmt: skip

    def call(self, what: str, event: int, function: Callable[..., Any], *args: Any) -> Any:
        first = len(self.disk.changes)
        result = function(*args)
        self.calls.append(Call(what, event, first, len(self.disk.changes)))
        return result

    def append(self, life: Life, *events: int, spill: bool = False) -> None:
        for event in events:
            assert self.call("append", event, lambda one=event: life.append(one, spill=spill))

    def settle(self, life: Life, *events: int) -> None:
        for event in events:
            self.call("settle", event, life.settle, event)

    def reject(self, life: Life, event: int) -> None:
        error = DeliveryError("the service answered 422", 422, 1, 0.0, "why")
        self.call("reject", event, life.journal.reject, f"{event}", b"{}", error)
        self.settle(life, event)

    def do(self, what: str, function: Callable[..., Any]) -> Any:
        return self.call(what, 0, function)


def appends_and_settles(world: World) -> None:
    one = world.process()
    world.append(one, 1, 2, 3)
    world.settle(one, 2)
    world.reject(one, 1)
    world.append(one, 4)
    world.settle(one, 3, 4)


def rotates(world: World) -> None:
    one = world.process()
    world.append(one, *range(1, 13))
    world.settle(one, *range(1, 8))
    world.do("maintain", one.maintain)
    world.append(one, 13)
    world.settle(one, 8, 9, 12)
    world.do("maintain", one.maintain)


def spills_and_loads(world: World) -> None:
    one = world.process()
    world.append(one, 1, 2)
    world.append(one, *range(3, 12), spill=True)
    world.settle(one, 1)
    while world.do("load", lambda: one.load(events=3)):
        world.settle(one, min(one.stored))
    world.append(one, 12, spill=True)
    world.settle(one, *sorted(one.stored)[:3])
    world.do("maintain", one.maintain)
    world.append(one, 13)


def releases_and_goes_on(world: World) -> None:
    one = world.process()
    world.append(one, 1, 2, 3, 4, 5, 6)
    world.append(one, 7, spill=True)
    world.settle(one, 1, 2, 5)
    world.do("release", one.release)
    world.append(one, 8, 9)
    world.settle(one, 9)
    world.do("release", one.release)


def releases_nothing(world: World) -> None:
    one = world.process()
    world.append(one, 1, 2)
    world.settle(one, 1, 2)
    world.do("release", one.release)
    world.append(one, 3)


def takes_over(world: World) -> None:
    one = world.process()
    world.append(one, *range(1, 9))
    world.append(one, 9, spill=True)
    world.settle(one, 2, 3)
    one.die()
    two = world.process()
    world.append(two, 20)
    assert world.do("claim", two.claim_all) == 7
    assert len(world.do("load", two.load_all)) == 7
    world.settle(two, 1, 4, 5, 20)
    world.do("maintain", two.maintain)
    world.settle(two, 6, 7, 8, 9)
    world.do("maintain", two.maintain)


def takes_turns(world: World) -> None:
    lives = [world.process()]
    world.append(lives[0], 1, 2, 3)
    for turn in range(3):
        lives[-1].die() if turn % 2 else world.do("release", lives[-1].release)
        lives.append(world.process())
        world.append(lives[-1], 10 * turn + 10)
        world.do("claim", lives[-1].claim_all)
        world.do("load", lives[-1].load_all)
        world.settle(lives[-1], min(lives[-1].stored))
        world.do("maintain", lives[-1].maintain)


def lives_beside_another(world: World) -> None:
    one, two = world.process(), world.process()
    world.append(one, 1, 2)
    world.append(two, 3, 4)
    world.do("claim", two.claim_all)
    world.settle(one, 1)
    world.do("release", one.release)
    world.do("claim", two.claim_all)
    world.do("load", two.load_all)
    world.settle(two, 2, 3)
    world.do("release", two.release)


def adopts_its_own_interrupted_event(world: World) -> None:
    one = world.process()
    world.append(one, 1)
    world.call("append", 2, lambda: one.journal.append(b'{"n":2}', spill=False))  # and not put
    world.append(one, *range(3, 10))  # the first file is full with these
    world.settle(one, 1, 3, 4, 5, 6)
    world.do("maintain", one.maintain)
    one.clock.now += 60
    world.do("maintain", one.maintain)
    assert world.do("claim", one.claim_all) == 1
    assert world.do("load", one.load_all) == [2]
    world.settle(one, 2)
    world.do("maintain", one.maintain)


LIVES = [
    appends_and_settles, rotates, spills_and_loads, releases_and_goes_on, releases_nothing,
    takes_over, takes_turns, lives_beside_another, adopts_its_own_interrupted_event,
]  # fmt: skip


def cuts(change: Change) -> Iterator[Change]:
    """*change* as it may be when the process ends: whole, or a write cut at each byte."""
    yield change
    if change.kind == "write":
        assert isinstance(change.more, bytes)
        for length in range(len(change.more)):
            yield change._replace(more=change.more[:length])


def check(disk: MemoryDisk, calls: list[Call], made: int, shown: list[Change]) -> None:
    """What a new process finds on *disk*, on which *made* changes were made, is what it must."""
    ended = [call for call in calls if call.end <= made]
    begun = [call for call in calls if call.first < made or call.end <= made]
    accepted = {call.event for call in ended if call.what == "append"}
    maybe = {call.event for call in begun if call.what == "append"}
    noted = {call.event for call in ended if call.what == "settle"}
    being_noted = {call.event for call in begun if call.what == "settle"}
    rejected = {f"{call.event}" for call in ended if call.what == "reject"}

    life = Life(PATH, 99, set(), disk)
    claimed = life.claim_all()
    found = life.load_all()
    story = "\n".join(map(str, shown))
    assert len(found) == len(set(found)) == claimed, story
    assert set(found) >= accepted - being_noted, story
    assert set(found) <= maybe - noted, story
    assert life.missing == 0, story
    assert rejected_in(disk) >= rejected, story
    for event in found:
        life.settle(event)
    life.maintain()
    life.release()
    assert not life.lost, story
    left = disk.listdir(f"{PATH}/v1/events"), disk.listdir(f"{PATH}/v1/owners")
    young = [name for name in left[1] if len(read_file(disk, f"{PATH}/v1/owners/{name}")) < 100]
    assert (left[0], [name for name in left[1] if name not in young]) == ([], []), story


def rejected_in(disk: MemoryDisk) -> set[str]:
    folder = f"{PATH}/v1/rejected"
    contents = [read_file(disk, f"{folder}/{name}") for name in disk.listdir(folder)]
    return {
        record.payload.split(b'"')[3].decode()
        for content in contents
        for record in records.scan(content)
        if isinstance(record, records.Record)
    }


@pytest.mark.parametrize("life", LIVES)
def test_each_accepted_event_is_found_wherever_the_process_ends(
    life: Callable[[World], None],
) -> None:
    world = World("process")
    life(world)
    changes = world.disk.changes
    before = MemoryDisk()
    for made, change in enumerate(changes, 1):
        for last in cuts(change):
            disk = before.clone()
            disk.repeat(last)
            whole = last is change
            check(disk, world.calls, made if whole else made - 0.5, [*changes[: made - 1], last])  # type: ignore[arg-type]
        before.repeat(change)


def unsynced(changes: list[Change], first: int) -> list[int]:
    """Which changes from *first* on a power failure may undo."""
    found = []
    for place in range(first, len(changes)):
        change, later = changes[place], changes[place + 1 :]
        if change.kind == "write":
            if Change("sync", change.target) not in later:
                found.append(place)
        elif change.kind in ("create", "mkdir", "rename", "unlink", "rmdir"):
            above = str(change.target).rpartition("/")[0] or "/"
            if Change("sync directory", above) not in later:
                found.append(place)
    return found


def subsets(places: list[int]) -> Iterator[tuple[int, ...]]:
    """All subsets of few places; of many the small ones, and all of them."""
    most = len(places) if len(places) <= 6 else 2
    for count in range(1, most + 1):
        yield from itertools.combinations(places, count)
    yield tuple(places)


@pytest.mark.parametrize("life", LIVES)
def test_each_accepted_event_is_found_whatever_of_the_last_call_a_power_failure_undoes(
    life: Callable[[World], None],
) -> None:
    world = World("power")
    life(world)
    changes = world.disk.changes
    firsts = {
        end: call.first for call in world.calls for end in range(call.first + 1, call.end + 1)
    }
    before = [MemoryDisk()]
    for change in changes:
        before.append(before[-1].clone())
        before[-1].repeat(change)
    for made in range(1, len(changes) + 1):
        first = firsts[made]
        for undone in subsets(unsynced(changes[:made], first)):
            disk = before[first].clone()
            kept = [place for place in range(first, made) if place not in undone]
            for place in kept:
                disk.repeat(changes[place])
            disk.now += 10_000.0  # without a mark, only the lease says that an owner is dead
            shown = [changes[place] for place in (*range(first), *kept)]
            # A note, a rename or a removal may be undone after its call ended: sent again.
            calls = [
                one._replace(end=one.end + len(changes)) if one.what in AGAIN and one.end == made
                else one
                for one in world.calls
            ]  # fmt: skip
            check(disk, calls, made, shown)


#: What is not synced: after a power failure an event may be sent again, and an answer be missing.
AGAIN = ("settle", "reject")

"""Processes come, record, deliver, end and die in any order: no event is lost or sent twice.

The disk is in memory, so that thousands of histories are tried.
"""

from __future__ import annotations

import os
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.outbox.life import Life
from tests.outbox.memory import MemoryDisk
from tests.support.clock import Clock

PATH = "/valued-outbox-in-memory"
WHICH = st.integers(0, 2)


class Processes(RuleBasedStateMachine):
    """Each event that was accepted and not settled is with one process, or on the disk."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = MemoryDisk()
        self.clock, self.wall = Clock(), Clock(1_000_000.0)
        self.alive: set[int] = set()
        self.lives: list[Life] = []
        self.dead: list[Life] = []  # kept: a journal that is collected would be released
        self.pids = 0
        self.accepted: set[int] = set()
        self.settled: list[int] = []
        # Names decide whose events come first. The same ones each time, or no history is repeated.
        drawn = iter(range(10**9))
        self.names = mock.patch.object(
            os, "urandom", lambda size: next(drawn).to_bytes(size, "little")
        )
        self.names.start()

    def life(self, which: int) -> Life:
        return self.lives[which % len(self.lives)]

    def begin(self) -> Life:
        self.pids += 1
        life = Life(
            PATH, self.pids, self.alive, self.disk,
            clock=self.clock, wall=self.wall, segment_size=200,
        )  # fmt: skip
        self.lives.append(life)
        return life

    def forget_lost(self, life: Life) -> None:
        """The pipeline doesn't send what is in files that were lost."""
        life.stored = {event: one for event, one in life.stored.items() if not one.file.lost}

    @precondition(lambda self: len(self.lives) < 3)
    @rule()
    def come(self) -> None:
        self.begin()

    @precondition(lambda self: self.lives)
    @rule(which=WHICH, count=st.integers(1, 6), spill=st.booleans())
    def record(self, which: int, count: int, spill: bool) -> None:
        for _ in range(count):
            event = len(self.accepted)
            self.life(which).append(event, spill=spill)
            self.accepted.add(event)

    @precondition(lambda self: self.lives)
    @rule(which=WHICH)
    def break_off_a_call(self, which: int) -> None:
        """The event is written, and the pipeline never hears of it."""
        event = len(self.accepted)
        self.life(which).journal.append(b'{"n":%d}' % event, spill=False)
        self.accepted.add(event)

    @precondition(lambda self: self.lives)
    @rule(which=WHICH, count=st.integers(1, 6))
    def load(self, which: int, count: int) -> None:
        life = self.life(which)
        before = set(life.stored)
        found = life.load(count)
        assert len(before.union(found)) == len(before) + len(found)

    @precondition(lambda self: self.lives)
    @rule(which=WHICH, place=st.integers(0, 20))
    def settle(self, which: int, place: int) -> None:
        life = self.life(which)
        if life.stored:
            event = sorted(life.stored)[place % len(life.stored)]
            life.settle(event)
            self.settled.append(event)

    @precondition(lambda self: self.lives)
    @rule(which=WHICH, events=st.integers(1, 20))
    def claim(self, which: int, events: int) -> None:
        self.life(which).claim(events)

    @precondition(lambda self: self.lives)
    @rule(which=WHICH)
    def maintain(self, which: int) -> None:
        life = self.life(which)
        life.maintain()
        self.forget_lost(life)

    @precondition(lambda self: self.lives)
    @rule(which=WHICH)
    def release(self, which: int) -> None:
        life = self.life(which)
        life.release()
        self.forget_lost(life)

    @precondition(lambda self: self.lives)
    @rule(which=WHICH)
    def die(self, which: int) -> None:
        life = self.lives.pop(which % len(self.lives))
        life.die()
        self.dead.append(life)

    @rule(seconds=st.sampled_from([1.0, 20.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.wall.now += seconds
        self.disk.now += seconds

    @invariant()
    def no_event_is_with_two_processes(self) -> None:
        held = [event for life in self.lives for event in life.stored]
        assert len(held) == len(set(held))
        assert not set(held) & set(self.settled)
        assert len(self.settled) == len(set(self.settled))
        assert [life.missing for life in self.lives] == [0] * len(self.lives)

    @invariant()
    def no_count_is_negative(self) -> None:
        files = [one.file for life in self.lives for one in life.stored.values()]
        assert all(file.unsettled >= 0 and file.unread >= 0 for file in files)

    def teardown(self) -> None:
        try:
            self.end()
        finally:
            self.names.stop()
            for life in self.dead:
                life.journal.release()

    def end(self) -> None:
        for life in self.lives:
            life.release()
        last = self.begin()
        claimed = last.claim_all()
        found = last.load_all()
        assert len(found) == claimed
        assert sorted(found + self.settled) == sorted(self.accepted)
        for event in found:
            last.settle(event)
        last.maintain()
        last.release()
        assert self.disk.listdir(f"{PATH}/v1/events") == []
        assert self.disk.listdir(f"{PATH}/v1/owners") == []


TestProcesses = Processes.TestCase
TestProcesses.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)

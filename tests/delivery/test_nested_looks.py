"""A signal handler may look into the queue between any two lines: no event gets lost by it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any
from weakref import ref

import pytest

from valued._delivery import counts, queue
from valued._delivery.entry import Entry, Run
from valued._delivery.journal import Batch, Loaded, NoFile
from valued._delivery.queue import Checkpoint, Queue

SOURCES = {
    module.__file__: Path(module.__file__).read_text("utf-8").split("\n")
    for module in (counts, queue)
}
CALL = re.compile(r"\w\(")

pytestmark = pytest.mark.usefixtures("untraced")


class Case:
    """A queue with two events: one that was never tried, and one that waits for its retry."""

    def __init__(self) -> None:
        self.now = 0.0
        self.queue = Queue(lambda: self.now, on_disk=True)
        self.queue.lock.acquire()  # as all callers do; it is re-entrant
        self.run = Run()
        for _ in range(2):
            self.queue.inbox.append(Entry(b"{}", 0.0, NoFile()))
        self.queue.absorb()
        self.taken = self.take()
        self.queue.postpone(self.taken, 1.0)

    def take(self) -> Entry:
        entry = self.queue.take(ref(self.run))
        assert entry is not None
        return entry

    def look(self) -> None:
        """What a handler that records, flushes and asks for stats does in here."""
        self.queue.absorb()
        self.queue.promote()
        self.queue.recover()
        self.queue.oldest()
        self.queue.oldest(fresh=True)
        self.queue.next_due()
        self.queue.figures()

    def rest(self) -> int:
        """How many events can still be taken and settled; all that any run had waits again."""
        self.run = Run()
        self.now = 1e6
        count = 0
        self.queue.recover()
        while True:
            self.queue.absorb()
            self.queue.promote()
            entry = self.queue.take(ref(self.run))
            if entry is None:
                return count
            self.queue.settle(entry, "delivered")
            count += 1


def absorb(case: Case) -> None:
    case.queue.inbox.append(Entry(b"{}", 0.0, NoFile()))
    case.queue.absorb()


def take_and_postpone(case: Case) -> None:
    case.queue.postpone(case.take(), 2.0)


def become_due(case: Case) -> None:
    case.now = 1.5
    case.queue.promote()


def all_due(case: Case) -> None:
    case.queue.make_all_due()


def recover(case: Case) -> None:
    case.take()
    case.run = Run()  # the one that took it has ended
    case.queue.recover()


def load(case: Case) -> None:
    file = NoFile()
    file.unread = 1
    case.queue.counts.book(file)
    case.queue.add_loaded(Batch(file, (Loaded(1, 0.0, b"{}"),), 10, 0), 0.0)


def take_and_flush(case: Case) -> None:
    entry = case.take()
    assert not Checkpoint(case.queue).is_settled()
    assert case.queue.sending() == 1
    case.queue.settle(entry, "delivered")


def traced(call: Callable[[Case], None], case: Case, at: int, do: Callable[[], None]) -> int:
    """Call *do* at the instant number *at* within *call*; how many there were.

    Python runs a handler as a function begins, after a call, and on a jump back, and nowhere else.
    """
    lines = 0
    before: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal lines
        if (source := SOURCES.get(frame.f_code.co_filename)) is None:
            return None
        last, before[frame] = before.get(frame, 0), frame.f_lineno
        is_instant = not last or frame.f_lineno <= last or CALL.search(source[last - 1])
        if event == "line" and is_instant:
            lines += 1
            if lines == at:
                sys.settrace(None)
                do()
        return trace

    sys.settrace(trace)
    try:
        call(case)
    finally:
        sys.settrace(None)
    return lines


OPERATIONS = [absorb, take_and_postpone, become_due, all_due, recover, load, take_and_flush]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_look_between_any_two_lines_loses_no_event(operation: Callable[[Case], None]) -> None:
    lines = traced(operation, Case(), 0, lambda: None)
    assert lines > 5
    lost = []
    for at in range(1, lines + 1):
        case = Case()
        traced(operation, case, at, case.look)
        pending = case.queue.pending()
        if case.rest() != pending or case.queue.pending():
            lost.append(at)
    assert lost == []

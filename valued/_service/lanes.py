"""The processes that send to the mock server, each a lane of the page: who, and how much.

A process is identified by its pid and its start time, since the system reuses pids. A sender whose
process isn't known, such as one on another machine, has the lane of its address.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from valued._service.peers import Process

#: How many lanes are kept of processes that ended, and of addresses.
MOST_ENDED: Final = 200

#: So many lanes are looked after, without anyone who watches, to find those that ended.
MANY: Final = 1000


@dataclasses.dataclass(eq=False)
class Sender:
    """One connection's other end. ``lane``: the key of its lane."""

    connection: str
    lane: str
    pid: int | None = None
    name: str | None = None
    parent: int | None = None
    parent_name: str | None = None
    parent_lane: str | None = None
    process: Any = None  # of psutil
    counted_in: Lane | None = None
    # What `records` remembers of its headers.
    shown: dict[tuple[str, str], tuple[str, str]] = dataclasses.field(
        default_factory=dict, repr=False
    )
    token: str = dataclasses.field(default="", repr=False)


def no_requests() -> dict[str, int]:
    """How many requests there were, and what became of them, before the first one."""
    return dict.fromkeys(("requests", "events", "repeats", "refused", "simulated"), 0)


@dataclasses.dataclass(eq=False)
class Lane:
    """One process, or one address. ``changed``: the version of the history that it changed with."""

    sender: Sender
    appeared: float
    changed: int = 0
    last: float = 0.0  # when a request came
    ended: float | None = None
    connections: int = 0
    counts: dict[str, int] = dataclasses.field(default_factory=no_requests)


def sender(connection: str, address: str, found: Process) -> Sender:
    """The sender at *address*, where *found* is what is known of its process."""
    if found.pid is None:
        return Sender(connection, address)
    import psutil

    made = Sender(connection, str(found.pid), found.pid, found.name)
    try:
        process = psutil.Process(found.pid)
        made.lane = _key(process)
        made.process = process
        parent = process.parent()
        if parent is not None:
            made.parent, made.parent_lane = parent.pid, _key(parent)
            made.parent_name = parent.name()
    except psutil.Error:  # it ended meanwhile, or belongs to someone else
        return made
    return made


def _key(process: Any) -> str:
    return f"{process.pid}-{int(process.create_time())}"


class Lanes:
    """All of them. Call with the history's lock."""

    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}

    def of(self, sender: Sender, at: float, version: int) -> Lane:
        """The lane of *sender*; counts its connection once."""
        lane = self._lanes.get(sender.lane)
        if lane is None:
            lane = self._lanes[sender.lane] = Lane(sender, at)
            self._make_room()
            for other in self._lanes.values():
                if other.sender.parent_lane == sender.lane:
                    other.changed = version  # now its parent has a lane
        if sender.counted_in is not lane:
            sender.counted_in = lane
            lane.connections += 1
        lane.changed = version
        lane.last = at
        lane.ended = None
        return lane

    def __len__(self) -> int:
        return len(self._lanes)

    def since(self, version: int) -> list[dict[str, Any]]:
        """Those that changed after *version*, as JSON has them."""
        return [self._shown(lane) for lane in self._lanes.values() if lane.changed > version]

    def alive(self) -> list[Lane]:
        """Those of processes that are not known to have ended."""
        return [
            lane
            for lane in self._lanes.values()
            if lane.ended is None and lane.sender.process is not None
        ]

    def end(self, lanes: Iterable[Lane], version: int, looked: float) -> None:
        """The processes of *lanes* have ended, in the *looked* seconds since the last look."""
        now = time.time()
        for lane in lanes:
            lane.ended = max(lane.last, now - looked)  # when it was last known to live
            lane.changed = version
        self._make_room()

    def clear(self) -> None:
        """Forget all."""
        self._lanes.clear()

    def _make_room(self) -> None:
        if len(self._lanes) <= MOST_ENDED:
            return
        over = [
            key
            for key, lane in self._lanes.items()
            if lane.ended is not None or lane.sender.process is None
        ]
        for key in over[: max(0, len(over) - MOST_ENDED)]:
            del self._lanes[key]

    def _shown(self, lane: Lane) -> dict[str, Any]:
        sender = lane.sender
        return {
            "lane": sender.lane,
            "pid": sender.pid,
            "name": sender.name,
            "parent": sender.parent,
            "parent_name": sender.parent_name,
            "parent_lane": sender.parent_lane if sender.parent_lane in self._lanes else None,
            "appeared": lane.appeared,
            "ended": lane.ended,
            **lane.counts,
            "connections": lane.connections,
        }


def have_ended(lanes: Iterable[Lane]) -> list[Lane]:
    """Those whose process has ended: a look at the system, without a lock."""
    return [lane for lane in lanes if _has_ended(lane.sender.process)]


def _has_ended(process: Any) -> bool:
    import psutil

    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False

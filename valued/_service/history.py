"""What the mock server has received: records, lanes of processes, and totals. All are bounded.

A record is added in constant time, and encoded only when someone reads it. Readers are woken, and
take what is new since they last looked.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import secrets
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from valued._service import lanes

if TYPE_CHECKING:
    from valued._service.records import Record

#: How many records are kept, and how many bytes of them.
MOST: Final = 10_000
MOST_BYTES: Final = 64 * 1024 * 1024

#: How many idempotency keys are remembered, to tell repeats: for longer than the records.
MOST_KEYS: Final = 50_000

#: How many kinds of events are counted, each by itself.
MOST_KINDS: Final = 1000

#: Most keys are shorter. The digest of a longer one takes its place, so that memory is bounded.
_LONG_KEY: Final = 100

#: Of a longer key of an event, the beginning is what is counted.
_LONG_NAME: Final = 200

#: Seconds between two looks at which processes have ended.
_LOOK: Final = 1.0


@dataclasses.dataclass(eq=False)
class _Kind:
    """Events of one category and key."""

    changed: int
    count: int
    first: float
    last: float


class View(NamedTuple):
    """What a reader of the stream takes at once. ``last``: the id of the last record in it."""

    version: int
    records: list[Record]
    last: int
    lost: int
    cleared: int
    lanes: list[dict[str, Any]]
    totals: dict[str, Any]
    more: bool


class History:
    """See the module. Any thread may call. *most*, *most_bytes*: with other bounds, for tests."""

    def __init__(self, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self.session: Final = secrets.token_hex(4)
        self.most: Final = most
        self._most_bytes = most_bytes
        # Guards all below, and is notified of changes; held for short work in memory only.
        self._changed = threading.Condition()
        self._version = 1
        # A record is at its id modulo the length: from the oldest that is kept to the next one.
        self._ring: list[Record | None] = [None] * most
        self._oldest = self._next = 1
        self._bytes = 0
        self._cleared = 0
        # How many requests had a key, and the id of the first that was accepted. Tuples, since they
        # are many: the garbage collector learns that it needn't look into them.
        self._keys: collections.OrderedDict[str, tuple[int, int | None]] = collections.OrderedDict()
        self._lanes = lanes.Lanes()
        self._counts = lanes.no_requests()
        self._kinds: dict[tuple[str | None, ...], _Kind] = {}
        self._looked_at = 0.0
        self._closed = threading.Event()

    # -- what was received -------------------------------------------------------------------------

    def add(self, record: Record) -> None:
        """There is one more request."""
        with self._changed:
            self._version += 1
            record.id = self._next
            self._next += 1
            self._count_attempt(record)
            self._count(record)
            self._bytes += record.weight
            if record.id - self._oldest == self.most:
                self._drop_oldest()
            self._ring[record.id % self.most] = record
            while self._bytes > self._most_bytes and self._oldest < record.id:
                self._drop_oldest()
            self._changed.notify_all()
            many = len(self._lanes) > lanes.MANY
        if many:  # no one may be watching
            self.look_for_ended()

    def clear(self) -> None:
        """Forget all; numbers go on."""
        with self._changed:
            self._version += 1
            self._ring = [None] * self.most
            self._oldest = self._next
            self._cleared = self._next - 1
            self._bytes = 0
            self._keys.clear()
            self._lanes.clear()
            self._counts = dict.fromkeys(self._counts, 0)
            self._kinds.clear()
            self._changed.notify_all()

    def _drop_oldest(self) -> None:
        place = self._oldest % self.most
        oldest, self._ring[place] = self._ring[place], None
        assert oldest is not None
        self._bytes -= oldest.weight
        self._oldest += 1

    def _count_attempt(self, record: Record) -> None:
        key = record.key
        if key is None:
            return
        if len(key) > _LONG_KEY:
            key = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        count, first = self._keys.get(key, (0, None))
        record.attempt, record.first = count + 1, first
        if record.accepted and first is None:
            first = record.id
        self._keys[key] = count + 1, first
        if len(self._keys) > MOST_KEYS:
            self._keys.popitem(last=False)

    def _count(self, record: Record) -> None:
        lane = self._lanes.of(record.sender, record.at, self._version)
        if not record.accepted:
            what = "simulated" if record.injected else "refused"
        else:
            what = "events" if record.first is None else "repeats"
        self._counts["requests"] += 1
        self._counts[what] += 1
        lane.counts["requests"] += 1
        lane.counts[what] += 1
        if what == "events":
            self._count_kind(record)

    def _count_kind(self, record: Record) -> None:
        name = tuple(_cut(part) for part in record.names[:2])
        kind = self._kinds.get(name)
        if kind is not None:
            kind.changed, kind.last = self._version, record.at
            kind.count += 1
        elif len(self._kinds) < MOST_KINDS:
            self._kinds[name] = _Kind(self._version, 1, record.at, record.at)

    # -- for readers -------------------------------------------------------------------------------

    def records(self, after: int = 0) -> list[Record]:
        """Those that are kept, after the one with the id *after*, oldest first."""
        with self._changed:
            return self._after(after)

    def last(self) -> int:
        """The id of the last record there was."""
        with self._changed:
            return self._next - 1

    def lanes(self) -> list[dict[str, Any]]:
        """All lanes, as JSON has them."""
        self.look_for_ended()
        with self._changed:
            return self._lanes.since(0)

    def view(self, seen: int, after: int | None, most: int, most_bytes: int) -> View:
        """What changed since the version *seen*; records after *after*, some of them.

        *after*: None for all that are kept.
        """
        with self._changed:
            if after is None or after >= self._next:
                after = self._oldest - 1
            lost = max(0, self._oldest - 1 - max(after, self._cleared))
            records = self._after(after, most)
            weights = itertools.accumulate(record.weight for record in records)
            fit = max(1, sum(weight <= most_bytes for weight in weights))
            records = records[:fit]
            last = records[-1].id if records else max(after, self._oldest - 1)
            return View(
                self._version,
                records,
                last,
                lost,
                self._cleared,
                self._lanes.since(seen),
                self._totals(seen),
                last < self._next - 1,
            )

    def wait(self, seen: int, timeout: float) -> None:
        """Wait for a version after *seen*, or for the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._version > seen or self._closed.is_set(), timeout)

    def wait_for_record(self, after: int, timeout: float) -> bool:
        """Wait for a record with an id above *after*; False: it was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._next - 1 > after or self._closed.is_set(), timeout)
            return not self._closed.is_set()

    def wait_for_end(self, timeout: float) -> bool:
        """Wait for the end, whatever changes; False: it was closed."""
        return not self._closed.wait(timeout)

    def touch(self) -> None:
        """Wake the readers: something else changed."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Wake the readers for the last time."""
        with self._changed:
            self._closed.set()
            self._changed.notify_all()

    def look_for_ended(self) -> None:
        """Find the processes that have ended; once a second at most."""
        with self._changed:
            now = time.monotonic()
            since = now - self._looked_at
            if since < _LOOK:
                return
            self._looked_at = now
            alive = self._lanes.alive()
        ended = lanes.have_ended(alive)
        if ended:
            with self._changed:
                self._version += 1
                self._lanes.end(ended, self._version, since)
                self._changed.notify_all()

    def _after(self, after: int, most: int | None = None) -> list[Record]:
        first = max(after + 1, self._oldest)
        last = self._next if most is None else min(self._next, first + most)
        found = [self._ring[number % self.most] for number in range(first, last)]
        return [record for record in found if record is not None]

    def _totals(self, seen: int) -> dict[str, Any]:
        kinds = {
            " ".join(filter(None, name)): {
                "count": kind.count,
                "first": kind.first,
                "last": kind.last,
            }
            for name, kind in self._kinds.items()
            if kind.changed > seen
        }
        return {**self._counts, "keys": kinds}


def _cut(name: str | None) -> str | None:
    """*name*, short enough to be kept a thousand times and to be told each page."""
    return name if name is None or len(name) <= _LONG_NAME else f"{name[:_LONG_NAME]}…"

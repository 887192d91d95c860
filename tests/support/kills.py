"""Processes that record events until they are killed, and what must be true afterwards.

Each child is a fork of one parent, with a client that the parent made. It notes each number, with
one ``write`` to a file of its own, after the call that recorded it has returned: that is what
*accepted* means. What arrived, and under which key, is told by the server.
"""

from __future__ import annotations

import collections
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import valued
from tests.support.left import files_of
from valued._delivery import attempt
from valued._outbox import claims, files, segments, store

#: Where a process can be killed on purpose: before and after what it does to the disk and the wire.
POINTS = (
    "append", "request", "answer", "record", "claim", "remove", "mark", "segment", "release",
)  # fmt: skip


def _places(client: valued.Client) -> dict[str, tuple[Any, str]]:
    return {
        "append": (files.Writer, "_write"),
        "record": (files.Notes, "settled"),
        "remove": (segments.Segment, "delete"),
        "segment": (segments.Segment, "create"),
        "claim": (claims.Scan, "_take"),
        "release": (store.Store, "hand_over"),
        "mark": (store, "write_mark"),
        "request": (client._sender, "_send"),
        "answer": (attempt.Attempts, "_settle"),
    }


def kill_at(
    client: valued.Client,
    point: str,
    call: int,
    *,
    after: bool,
    tell: Callable[[], object] = lambda: None,
) -> None:
    """Let this process be killed before, or after, the *call*-th time that it does *point*.

    *tell* is called just before.
    """
    owner, name = _places(client)[point]
    original = getattr(owner, name)
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        mine = calls
        if mine == call and not after:
            die()
        result = original(*args, **kwargs)
        if mine == call and after:
            die()
        return result

    def die() -> None:
        tell()
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, counted)


def _is_dead(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


class Killing:
    """Children on one directory, and the files in which they say what was accepted."""

    def __init__(self, folder: Path, url: str, seed: int, **options: Any) -> None:
        self._folder = folder
        self._random = random.Random(seed)
        self.outbox = folder / "outbox"
        self.client = valued.Client("test-token", url, outbox=str(self.outbox), **options)
        self._number = 0
        self.living: dict[int, float] = {}  # pid to when it is to be killed

    def start(self, events: int, prepare: Callable[[], object] = lambda: None) -> int:
        """Fork a child that records so many events, and then waits for its end."""
        first, self._number = self._number, self._number + events
        pid = os.fork()
        if pid:
            return pid
        try:
            prepare()
            self._record(range(first, first + events))
            while True:
                signal.pause()
        finally:
            os._exit(1)

    def _record(self, numbers: Iterable[int]) -> None:
        path = self._folder / f"accepted-{os.getpid()}-{time.time_ns()}"
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in numbers:
            self.client.action("killed", {"user.id": 1, "attributes.number": number})
            os.write(log, b"%d\n" % number)

    def kill(self, pid: int) -> None:
        """Kill a child, if it was not killed already, and wait for it."""
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def run(self, kills: int, workers: int, events: int, seconds: float) -> dict[str, int]:
        """So many random kills, of so many workers at a time, each within so many seconds."""
        self._run(kills, workers, seconds, lambda: self.start(events))
        return {}

    def run_on_purpose(
        self, kills: int, workers: int, events: int, seconds: float
    ) -> dict[str, int]:
        """The same at `POINTS`, in turns, before and after; how many were, at each.

        Those that don't get there are killed at a random instant.
        """
        ways = itertools.cycle([(point, after) for point in POINTS for after in (False, True)])
        self._run(kills, workers, seconds, lambda: self._start_on_purpose(events, *next(ways)))
        done = collections.Counter(path.suffix[1:] for path in self._folder.glob("killed-*"))
        return dict(sorted(done.items()))

    def _start_on_purpose(self, events: int, point: str, after: bool) -> int:
        # Most things are done often, and a worker is to be killed at any one of them.
        most = {"append": events, "request": events, "answer": events, "record": events}
        call = self._random.randint(1, max(1, most.get(point, 1)))
        enough = self._random.randint(1, events)
        name = f"killed-{self._number}.{point}-{'after' if after else 'before'}"

        def prepare() -> None:
            tell = (self._folder / name).touch
            kill_at(self.client, point, call, after=after, tell=tell)
            if point == "release":
                threading.Thread(target=self._end_after, args=(enough,), daemon=True).start()

        return self.start(events, prepare)

    def _end_after(self, enough: int) -> None:
        while self.client.stats()["accepted"] < enough:
            time.sleep(0.0001)
        self.client.close(0)

    def _run(self, kills: int, workers: int, seconds: float, start: Callable[[], int]) -> None:
        left = kills
        while left or self.living:
            while left and len(self.living) < workers:
                left -= 1
                self.living[start()] = time.monotonic() + self._random.uniform(0, seconds)
            for pid, due in list(self.living.items()):
                if time.monotonic() >= due or _is_dead(pid):
                    del self.living[pid]
                    self.kill(pid)
            time.sleep(0.0005)

    def accepted(self) -> set[int]:
        """The numbers of the events whose calls returned."""
        # The last line of a child may be cut: then it was killed before it had noted the number.
        return {
            int(line)
            for path in self._folder.glob("accepted-*")
            for line in path.read_text().split("\n")[:-1]
        }

    def drain(self, timeout: float) -> None:
        """Let this process deliver what all have left. Then the directory holds nothing."""
        deadline = time.monotonic() + timeout
        while True:
            self.client.adopt()
            if not [path for path in self.files() if path.suffix == ".events"]:
                break
            assert time.monotonic() < deadline, self.client.stats()
            time.sleep(0.01)
        assert self.client.close(10)
        # A process that is killed within the making of its mark leaves an empty one, for a while.
        left = [str(path) for path in self.files() if path.stat().st_size]
        left += map(str, (self.outbox / "v1" / "events").iterdir())
        assert left == [], left

    def files(self) -> list[Path]:
        """The files of the outbox; unlike `glob`, `walk` lets directories vanish meanwhile."""
        return files_of(self.outbox)


class Arrived:
    """What a server got: keys by number, and how often each came."""

    def __init__(self, pairs: Iterable[tuple[int, str]]) -> None:
        self.keys: dict[int, set[str]] = collections.defaultdict(set)
        self.times: collections.Counter[int] = collections.Counter()
        for number, key in pairs:
            self.keys[number].add(key)
            self.times[number] += 1

    def repeats(self) -> int:
        return sum(times - 1 for times in self.times.values())

    def with_several_keys(self) -> list[int]:
        return [number for number, keys in self.keys.items() if len(keys) > 1]

"""Celery workers, as a user starts them: ``celery worker``, with a real broker."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.programs import Program

#: What a worker that is well never prints.
_COMPLAINT = re.compile(r"Traceback|Exception ignored|Warning: |: (WARNING|ERROR|CRITICAL)/")
# What Celery says as it shuts down warmly while there are tasks left.
_NORMAL = re.compile(r"Requeuing undeliverable message|CPendingDeprecationWarning")

#: Seconds after which a child of the prefork pool ends by `os._exit`, when its signal was sent.
CELERY_GRACE = 1.0

#: Seconds that a worker may take to end. A child of billiard's waits for 30 s until its parent has
#: read what it told of its tasks; one that was told to end in that instant reads no more.
ENDS_WITHIN = 60.0


def carry_no_scope() -> None:
    """Undo `carry_scope` in this process."""
    from celery import signals

    for each in (signals.before_task_publish, signals.task_prerun, signals.task_postrun):
        each.disconnect(dispatch_uid="valued.carry_scope")


class Worker(Program):
    """``celery worker`` with its children; `kill` ends all of them.

    *app*: the module with the application. *directory*: for what it prints, and for the journal in
    which tasks of the tests write what they recorded. *tasks*: what to give it, each a name and its
    arguments; their ids are kept.
    """

    def __init__(
        self,
        app: Path,
        directory: Path,
        *options: str,
        environment: dict[str, str],
        tasks: Sequence[tuple[Any, ...]] = (),
    ) -> None:
        self._journal = directory / "journal"
        self._journal.touch()
        self._environment = {
            **os.environ,
            **environment,
            "JOURNAL": str(self._journal),
            "PYTHONPATH": str(app.parent),
        }
        self.ids: list[str] = []
        # Over files, a worker may read a message that is still being written: they come first. Over
        # Redis, both can start at the same time.
        comes_first = "FOLDER" in environment
        if comes_first:
            self._send(app, tasks)
        super().__init__(
            directory / "celery.log",
            # Where the tests run as root, Celery advises against it.
            *("-W", "ignore:You're running the worker"),
            *("-m", "celery", "--app", app.stem, "worker", "--loglevel", "INFO"),
            # A worker of its own, that looks for no others.
            *("--hostname", f"{os.getpid()}@test", "--without-gossip"),
            *("--without-mingle", "--without-heartbeat", *options),
            cwd=Path.cwd(),
            env=self._environment,
        )
        if not comes_first:
            with self._starting():
                self._send(app, tasks)

    def _send(self, app: Path, tasks: Sequence[tuple[Any, ...]]) -> None:
        if not tasks:
            return
        done = subprocess.run(
            [sys.executable, "-c", _SEND, app.stem, json.dumps(tasks)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env=self._environment,
        )
        assert (done.returncode, done.stderr) == (0, "")
        self.ids = json.loads(done.stdout)

    # -- what it says ------------------------------------------------------------------------------

    def notes(self, what: str) -> list[dict[str, Any]]:
        """The lines of its journal that are of this kind."""
        lines = self._journal.read_text().splitlines()
        return [note for note in map(json.loads, lines) if note["what"] == what]

    def recorded(self) -> list[str]:
        """The ids of the events that were recorded, sorted."""
        return sorted(note["id"] for note in self.notes("recorded"))

    def pids(self, at_least: int = 1) -> set[int]:
        """The processes that recorded events, *at_least* so many."""
        counts = Counter(note["pid"] for note in self.notes("recorded"))
        return {pid for pid, count in counts.items() if count >= at_least}

    def left(self) -> set[int]:
        """The children that were told to leave."""
        return {note["pid"] for note in self.notes("leaving")}

    def wait_until_ready(self) -> None:
        self.wait_until(lambda: "@test ready." in self.said())

    # -- what it is told ---------------------------------------------------------------------------

    def stop(self, number: int = signal.SIGTERM, timeout: float = ENDS_WITHIN) -> int:
        """Signal the parent, which shuts down warmly by SIGTERM; its exit status."""
        self.process.send_signal(number)
        return self.wait(timeout)

    def wait(self, timeout: float = ENDS_WITHIN) -> int:
        """The exit status; a worker that doesn't end fails the test.

        Where it is billiard that keeps it from ending, the test is skipped, see `is_billiards`.
        """
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(min(10.0, max(0.0, deadline - time.monotonic())))
            stacks = self.stacks()
            if is_billiards(stacks):
                pytest.skip("billiard waits for a lock that was held by a child that is dead")
            shown = "\n".join([self.said(), *stacks])
            assert time.monotonic() < deadline, f"the worker did not end in {timeout} s: {shown}"

    def stacks(self) -> list[str]:
        """What each of its processes is doing, the parent first, for a failure to show."""
        try:
            parent = psutil.Process(self.pid)
            children = parent.children(recursive=True)
            alive = [each for each in children if each.status() != psutil.STATUS_ZOMBIE]
            return [_stack(each) for each in [parent, *alive]]
        except psutil.NoSuchProcess:
            return [f"Process {self.pid}: gone"]

    def complaints(self) -> list[str]:
        """Each line that tells of trouble."""
        lines = self.said().splitlines()
        return [line for line in lines if _COMPLAINT.search(line) and not _NORMAL.search(line)]


def is_billiards(stacks: list[str]) -> bool:
    """Whether these processes wait for a lock of billiard's queues, and none is at work in ours.

    Celery has the system kill a child when its parent ends, which Linux does when the *thread* ends
    that forked it. Over files, that is billiard's supervisor for each child that replaces another
    one, and it ends first in a warm shutdown. Such a child may take the lock of a queue along: that
    of the tasks, or that of the results; and the parent, or another child, waits for ever. Workers
    without this library hang so, too. Only ``py-spy`` can tell; without it the test fails.
    """
    waits = waits_for_task = reads_task = False
    for stack in stacks:
        for thread in stack.split("\nThread ")[1:]:
            title, *frames = thread.splitlines()
            if '"valued-' not in title and "(valued/" in thread:
                return False  # it is not a thread that delivers in the background
            names = [line.split("(")[0].strip() for line in frames]
            waits |= names[:1] == ["Pool._help_stuff_finish"]
            waits |= names[:2] == ["SemLock.__enter__", "SimpleQueue.send_payload"]
            if names[:2] == ["SemLock.__enter__", "SimpleQueue.get_payload"]:
                waits_for_task = True
            elif "SimpleQueue.get_payload" in names:
                reads_task = True  # and has the lock
    return waits or (waits_for_task and not reads_task)


def _stack(process: psutil.Process) -> str:
    """By ``py-spy`` where it is there and may look, else what the system says."""
    program = shutil.which("py-spy", path=os.pathsep.join([*_SCRIPTS, os.environ["PATH"]]))
    if program is not None:
        command = [program, "dump", "--nonblocking", "--pid", str(process.pid)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode == 0:
            return done.stdout
    with contextlib.suppress(psutil.NoSuchProcess):
        return f"Process {process.pid}: {process.status()}, {process.num_threads()} threads"
    return f"Process {process.pid}: gone"


_SCRIPTS = [str(Path(sys.executable).parent)]


# A process of its own: what a test process imports, the other tests would find there.
_SEND = """
import importlib, json, sys, time
app, tasks = importlib.import_module(sys.argv[1]), json.loads(sys.argv[2])
ids = []
for name, *arguments in tasks:
    ids.append(getattr(app, name).delay(*arguments).id)
    time.sleep(0.002)  # over files, the order is that of their names, which have milliseconds
print(json.dumps(ids))
"""


class Gate:
    """Where tasks wait at work, each on a connection of its own, until the test lets them go on."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(30)
        self._waiting: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]

    def wait_for(self, count: int) -> list[int]:
        """The pids of the processes in which that many tasks wait, once they do."""
        while len(self._waiting) < count:
            self._waiting.append(self._listener.accept()[0])
        pids = []
        for connection in self._waiting:
            connection.settimeout(30)
            with connection.makefile() as lines:
                pids.append(int(lines.readline()))
        return pids

    def open(self) -> None:
        for connection in self._waiting:
            connection.close()

    def close(self) -> None:
        self.open()
        self._listener.close()


@contextlib.contextmanager
def gate() -> Iterator[Gate]:
    """A gate, opened at the end at the latest."""
    gate = Gate()
    try:
        yield gate
    finally:
        gate.close()

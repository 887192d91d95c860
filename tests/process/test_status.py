"""The stats that processes write for others: none is lost, and none is counted twice."""

from __future__ import annotations

import _thread
import collections
import errno
import functools
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.support.processes import Child
from tests.support.server import Server
from valued._process import shutdown
from valued._status.files import StatusDirectory, no_stats
from valued._status.writer import ClientStatus

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

Fork = Callable[..., Child]

#: Seconds that a failure may take, and no success does.
BOUND = 10.0


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # how often to look


def totals(place: Path) -> dict[str, Any]:
    return valued.Status(place).read().totals


def files(place: Path) -> list[str]:
    """What processes have written, and no other process has added up yet."""
    return sorted(path.parent.name for path in place.glob("v1/stats/*/stats.json"))


def record(place: Path, count: int, **options: Any) -> valued.Client:
    client = valued.Client(lambda _event: None, status=place, **options)
    for number in range(count):
        client.action("recorded", {"user.id": number})
    assert client.flush(BOUND)
    return client


def test_events_of_one_process_are_seen_by_others_within_a_second(tmp_path: Path) -> None:
    client = record(tmp_path, 50)
    began = time.monotonic()
    wait_until(lambda: totals(tmp_path)["delivered"] == 50)
    assert time.monotonic() - began < 2.0  # a second, and one for a busy machine
    (process,) = valued.Status(tmp_path).read().processes
    assert (process.pid, process.state) == (os.getpid(), "alive")
    assert client.close()


def test_writes_at_most_once_a_second_under_load(tmp_path: Path) -> None:
    client = record(tmp_path, 1)
    wait_until(lambda: files(tmp_path))
    (file,) = tmp_path.glob("v1/stats/*/stats.json")
    seen = set()
    until = time.monotonic() + 2.5
    while time.monotonic() < until:
        client.action("more", {"user.id": 1})
        client.flush(BOUND)
        seen.add(json.loads(file.read_bytes())["at"])
    assert 2 <= len(seen) <= 4


def test_idle_process_writes_no_more(tmp_path: Path) -> None:
    client = record(tmp_path, 5)
    wait_until(lambda: totals(tmp_path)["delivered"] == 5)
    (file,) = tmp_path.glob("v1/stats/*/stats.json")
    written = file.stat().st_mtime_ns
    time.sleep(2.2)  # two seconds in which it could write
    assert file.stat().st_mtime_ns == written
    assert client.close()


def test_without_a_directory_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    client = valued.Client(lambda _event: None)
    client.action("recorded", {"user.id": 1})
    assert client.close()
    assert list(tmp_path.iterdir()) == []


def test_making_a_client_writes_nothing(tmp_path: Path) -> None:
    valued.Client(lambda _event: None, status=tmp_path).stats()
    assert list(tmp_path.iterdir()) == []
    assert totals(tmp_path) == no_stats()


def test_environment_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VALUED_STATUS", str(tmp_path))
    client = valued.Client(lambda _event: None)
    client.action("recorded", {"user.id": 1})
    assert client.close()
    assert valued.Status().read().totals["delivered"] == 1


def test_outbox_has_them_by_default_and_no_other_user_can_read_it(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = tmp_path / "outbox"
    client = valued.Client("t", server.url, outbox=outbox)
    client.action("recorded", {"user.id": 1})
    assert client.close()
    assert totals(outbox)["delivered"] == 1
    assert (outbox / "v1" / "stats").stat().st_mode & 0o077 == 0
    monkeypatch.setenv("VALUED_OUTBOX", str(outbox))
    assert valued.Status().read().totals["delivered"] == 1


def test_all_clients_of_a_process_share_one_file(tmp_path: Path) -> None:
    kept = record(tmp_path, 2)
    for _ in range(3):
        record(tmp_path, 1).close()
    assert kept.close()
    assert len(files(tmp_path)) == 1
    assert totals(tmp_path)["delivered"] == 5


def test_forked_child_counts_its_own_and_what_it_wrote_stays(tmp_path: Path, fork: Fork) -> None:
    client = record(tmp_path, 3)

    def work() -> None:
        client.action("child", {"user.id": 1})
        assert client.close()

    for _ in range(4):
        assert fork(work).wait() == 0
    assert client.close()
    assert totals(tmp_path)["delivered"] == 7
    assert len(files(tmp_path)) == 1  # the others are in the totals


def test_killed_process_keeps_what_it_wrote(tmp_path: Path, fork: Fork) -> None:
    def work() -> None:
        record(tmp_path, 4)
        wait_until(lambda: totals(tmp_path)["delivered"] == 4)
        os.kill(os.getpid(), signal.SIGKILL)

    child = fork(work)
    assert child.wait() == -signal.SIGKILL
    assert totals(tmp_path)["delivered"] == totals(tmp_path)["delivered"] == 4
    assert valued.Status(tmp_path).read().processes == []


def test_exit_writes_what_is_not_written_yet(tmp_path: Path) -> None:
    from tests.support.processes import run

    program = (
        "import sys, valued\n"
        "client = valued.Client(lambda event: None, status=sys.argv[1])\n"
        "for number in range(20): client.action('recorded', {'user.id': number})\n"
    )
    done = run("-c", program, str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert totals(tmp_path)["delivered"] == 20


@pytest.mark.parametrize("has_monitor", [False, True])
def test_where_no_thread_is_left_the_last_write_is_made_only_by_clients_that_send_in_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_monitor: bool
) -> None:
    def refuse(*_args: object) -> None:
        raise RuntimeError("can't start new thread")  # as in exit handlers from Python 3.12 on

    counts = {**no_stats(), "delivered": 3, "oldest": None, "error": None}
    status = ClientStatus(
        StatusDirectory(str(tmp_path)), lambda: counts, lambda: has_monitor, refuse
    )
    status.note(later=True)
    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    status.finish()
    assert totals(tmp_path)["delivered"] == (0 if has_monitor else 3)


def test_where_no_thread_can_be_started_one_that_sent_makes_the_last_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> None:
        raise RuntimeError("can't start new thread")

    client = record(tmp_path, 1)
    client.action("second", {"user.id": 1})
    assert client.flush(BOUND)
    with monkeypatch.context() as at_the_end:
        at_the_end.setattr(_thread, "start_new_thread", refuse)
        shutdown.flush_now()
    assert totals(tmp_path)["delivered"] == 2
    assert client.close()


def test_events_in_the_call_are_written_too(tmp_path: Path) -> None:
    client = record(tmp_path, 3, executor=valued.ImmediateExecutor())
    assert client.park()
    assert totals(tmp_path)["delivered"] == 3


def test_pending_events_and_the_latest_error_are_shown(tmp_path: Path) -> None:
    failed = threading.Event()

    def fail(_event: object) -> None:
        failed.set()
        raise RuntimeError("the service is down")

    client = valued.Client(fail, status=tmp_path)
    client.action("recorded", {"user.id": 1})
    assert failed.wait(BOUND)
    wait_until(lambda: valued.Status(tmp_path).read().processes)
    wait_until(lambda: valued.Status(tmp_path).read().processes[0].error)
    found = valued.Status(tmp_path).read()
    (process,) = found.processes
    assert "the service is down" in process.error
    assert process.oldest is not None
    assert abs(process.oldest - time.time()) < BOUND
    assert found.totals["pending"] == 1
    client.close(0)
    assert totals(tmp_path)["pending"] == 0


@pytest.mark.parametrize("kind", ["a file", "a directory without rights"])
def test_directory_that_cannot_be_used_delays_nothing_and_is_logged(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "place"
    if kind == "a file":
        place.write_text("")
    elif os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    else:
        place.mkdir(0o500)
    client = record(place, 3)
    assert client.close()
    assert client.stats()["delivered"] == 3
    assert "the stats could not be written" in caplog.text


# -- adding up the dead ----------------------------------------------------------------------------


class Killed(BaseException):
    """The process was killed at this step."""


class Disk:
    """`os`, until a number of changes were made; then nothing any more."""

    def __init__(self, changes: int, error: BaseException | None = None) -> None:
        self._left = changes
        self._error = error or Killed()

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if name == "close":
            return function

        def change(*args: Any) -> Any:
            if self._left == 0:
                raise self._error
            self._left -= 1
            return function(*args)

        return change


def leave(place: Path, fork: Fork, deaths: int) -> None:
    """Each of so many processes delivers two events, writes so and dies."""

    finished = Path(tempfile.mkdtemp(dir=place.parent))

    def work() -> None:
        record(place, 2).close()
        (finished / str(os.getpid())).touch()
        wait_until(lambda: len(list(finished.iterdir())) == deaths)  # or one adds up another one

    for child in [fork(work) for _ in range(deaths)]:
        assert child.wait() == 0


def test_adding_up_killed_at_any_step_counts_nothing_twice(tmp_path: Path, fork: Fork) -> None:
    outcomes: collections.Counter[str] = collections.Counter()
    for changes in range(30):
        place = tmp_path / str(changes)
        leave(place, fork, 2)
        directory = StatusDirectory(str(place), disk=Disk(changes))
        try:
            directory.fold()
            outcomes["done"] += 1
        except Killed:
            outcomes["killed"] += 1
        found = StatusDirectory(str(place)).read()
        seen = found.totals["delivered"] + sum(
            written.stats["delivered"] for written in found.processes.values()
        )
        assert seen == 4, changes
        assert totals(place)["delivered"] == 4, changes
        leave(place, fork, 1)
        assert totals(place)["delivered"] == 6, changes
        assert files(place) == [], changes
        if outcomes["done"]:
            break
    assert outcomes["killed"] > 5
    assert outcomes["done"] == 1


class Forking:
    """`os`; it forks before one of its changes."""

    def __init__(self, changes: int, fork: Callable[[str], object]) -> None:
        self._left = changes
        self._fork = fork

    def __getattr__(self, name: str) -> Any:
        def change(*args: Any) -> Any:
            self._left -= 1
            if self._left == -1:
                self._fork(name)
            return getattr(os, name)(*args)

        return change


def test_a_fork_at_any_step_of_writing_and_adding_up_counts_each_once(
    tmp_path: Path, fork: Fork
) -> None:
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    seen: list[str] = []

    def child(place: Path, change: str) -> None:
        def work() -> None:
            names = [os.path.join(folder, number) for number in os.listdir(folder)]
            held = {os.readlink(name) for name in names if os.path.islink(name)}
            # After its `open` and before its `fstat` a file is not known: a child keeps it open.
            assert change == "fstat" or not [it for it in held if it.startswith(str(place))]
            record(place, 1).close()

        assert fork(work).wait() == 0
        seen.append(change)

    for changes in range(60):
        place = tmp_path / str(changes)
        leave(place, fork, 1)
        disk = Forking(changes, functools.partial(child, place))
        directory = StatusDirectory(str(place), disk=disk)
        own: dict[str, Any] = {"command": "own", "ended": False, "stats": no_stats()}
        directory.write("1-own", {**own, "oldest": None, "error": "", "error_at": None})
        directory.fold()
        for _ in range(2):
            found = valued.Status(place).read()
            is_over = len(seen) == changes
            assert found.totals["delivered"] == (2 if is_over else 3), seen
            assert [it.state for it in found.processes] == ["alive"]
            StatusDirectory(str(place)).fold()  # a child that could not lock left it undone
        if is_over:
            break
    assert is_over
    assert {"open", "write", "fsync", "replace", "close", "unlink", "rmdir"} <= {*seen}


def test_full_disk_while_adding_up_counts_nothing_twice(tmp_path: Path, fork: Fork) -> None:
    leave(tmp_path, fork, 2)

    class Full(Disk):
        def write(self, descriptor: int, data: bytes) -> int:
            return os.write(descriptor, data[: len(data) // 2])

    with pytest.raises(OSError, match="full"):
        StatusDirectory(str(tmp_path), disk=Full(99)).fold()
    assert totals(tmp_path)["delivered"] == 4


def test_counters_never_go_back_while_processes_come_and_go(tmp_path: Path, fork: Fork) -> None:
    over = threading.Event()
    seen: list[int] = []

    def look() -> None:
        status = valued.Status(tmp_path)
        while not over.is_set():
            seen.append(status.read().totals["delivered"])

    lookers = [threading.Thread(target=look) for _ in range(2)]
    children = 12

    def work() -> None:
        record(tmp_path, 2).close()

    begun = [fork(work) for _ in range(2)]
    lookers[0].start()
    try:
        begun += [fork(work) for _ in range(children - 2)]
        for child in begun:
            assert child.wait() == 0
    finally:
        over.set()
        lookers[0].join()
    assert seen == sorted(seen)
    assert totals(tmp_path)["delivered"] == 2 * children


def test_reader_begins_again_where_the_dead_are_added_up_meanwhile(
    tmp_path: Path, fork: Fork
) -> None:
    leave(tmp_path, fork, 2)
    reads = []

    class Meanwhile(StatusDirectory):
        def _written(self, besides: set[str]) -> Any:
            if not reads:  # the totals were read, and the files were not
                StatusDirectory(self.path).fold()
            reads.append(super()._written(besides))
            return reads[-1]

    assert Meanwhile(str(tmp_path)).read().totals["delivered"] == 4
    assert reads == [{}, {}]


def test_disk_that_hangs_holds_up_one_thread_and_no_event(tmp_path: Path) -> None:
    client = record(tmp_path, 1)
    wait_until(lambda: files(tmp_path))
    (file,) = tmp_path.glob("v1/stats/*/stats.json")
    fifo = file.with_name("stats.json.new")
    os.mkfifo(fifo)  # who opens it to write waits for a reader
    until = time.monotonic() + 2.5
    while time.monotonic() < until:  # a second later, the next thread would write
        client.action("recorded", {"user.id": 1})
        assert client.flush(BOUND)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)  # lets it go on
    try:
        wait_until(lambda: not fifo.exists())
        assert client.close()
    finally:
        os.close(reader)
    assert totals(tmp_path)["delivered"] == client.stats()["delivered"]


def test_process_that_adds_up_at_this_moment_holds_up_no_reader(tmp_path: Path, fork: Fork) -> None:
    import fcntl

    leave(tmp_path, fork, 1)
    with open(tmp_path / "v1" / "stats" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert totals(tmp_path)["delivered"] == 2
        assert len(files(tmp_path)) == 1


def change(place: Path, **parts: Any) -> None:
    (file,) = place.glob("v1/stats/*/stats.json")
    content = json.loads(file.read_bytes())
    file.write_text(json.dumps({**content, **parts}))


@pytest.mark.parametrize(
    ("age", "ended", "processes", "left"),
    [(0, False, 1, 1), (3600, False, 0, 1), (0, True, 1, 1), (3600, True, 0, 0)],
)
def test_process_on_another_host_counts_and_is_added_up_after_its_end_only(
    age: float, ended: bool, processes: int, left: int, tmp_path: Path, fork: Fork
) -> None:
    leave(tmp_path, fork, 1)
    identity = {"pid": 1, "start": "1", "boot": "b", "namespace": "n", "host": "elsewhere"}
    change(tmp_path, identity=identity, at=time.time() - age, ended=ended)
    found = valued.Status(tmp_path).read()
    assert found.totals["delivered"] == 2
    assert [process.state for process in found.processes] == ["elsewhere"] * processes
    assert len(files(tmp_path)) == left


def test_files_that_cannot_be_read_are_skipped(tmp_path: Path, fork: Fork) -> None:
    leave(tmp_path, fork, 2)
    one, _other = sorted(tmp_path.glob("v1/stats/*/stats.json"))
    one.write_text("{")
    old = tmp_path / "v1" / "stats" / "1-empty"  # of a process that died before its first write
    old.mkdir()
    os.utime(old, (0, 0))
    assert totals(tmp_path)["delivered"] == 2
    assert not old.exists()
    (tmp_path / "v1" / "stats" / "totals.json").write_text("")
    assert totals(tmp_path)["delivered"] == 0  # as after a reset; nothing is raised


def test_error_of_the_system_is_raised_and_takes_no_count_away(tmp_path: Path, fork: Fork) -> None:
    leave(tmp_path, fork, 1)
    (file,) = tmp_path.glob("v1/stats/*/stats.json")
    kept = file.rename(tmp_path / "kept")
    file.symlink_to(file)  # it can't be opened: there are too many links
    os.utime(file.parent, (0, 0))
    with pytest.raises(OSError, match="links"):
        totals(tmp_path)
    with pytest.raises(OSError, match="links"):
        StatusDirectory(str(tmp_path)).fold()
    kept.rename(file)
    assert totals(tmp_path)["delivered"] == 2


def test_what_a_later_version_adds_is_left_out(tmp_path: Path, fork: Fork) -> None:
    leave(tmp_path, fork, 1)
    (file,) = tmp_path.glob("v1/stats/*/stats.json")
    identity = json.loads(file.read_bytes())["identity"]
    change(tmp_path, added=1, identity={**identity, "added": 1})
    assert totals(tmp_path)["delivered"] == 2


def test_directory_that_was_removed_is_made_again(tmp_path: Path) -> None:
    import shutil

    place = tmp_path / "place"
    client = record(place, 1)
    wait_until(lambda: files(place))
    shutil.rmtree(place)
    client.action("again", {"user.id": 1})
    assert client.close()
    assert totals(place)["delivered"] == 2


def test_status_needs_a_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VALUED_STATUS", raising=False)
    monkeypatch.delenv("VALUED_OUTBOX", raising=False)
    with pytest.raises(valued.ValidationError, match="VALUED_STATUS"):
        valued.Status()
    assert repr(valued.Status(tmp_path)) == f"Status({str(tmp_path)!r})"


def test_error_of_the_system_counts_a_process_as_living(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fork: Fork
) -> None:
    leave(tmp_path, fork, 1)
    directory = StatusDirectory(str(tmp_path))
    (written,) = directory.read().processes.values()

    def refuse(_self: object, _other: object) -> bool:
        raise PermissionError(errno.EACCES, "hidden")

    monkeypatch.setattr("valued._outbox.owners.SystemProcesses.is_alive", refuse)
    assert directory.state(written) == "alive"


def test_client_whose_first_attempts_end_at_once_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urandom, together = os.urandom, threading.Barrier(2)

    def meet(size: int) -> bytes:  # for the name of the file: both threads are to make it
        together.wait(BOUND)
        return urandom(size)

    counts = {**no_stats(), "delivered": 3, "oldest": None, "error": None}
    directory = StatusDirectory(str(tmp_path))
    status = ClientStatus(directory, lambda: counts, lambda: False, lambda run: run())
    monkeypatch.setattr(os, "urandom", meet)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(status.note, later=True) for _ in range(2)]:
            done.result(BOUND)
    monkeypatch.undo()
    status.finish()
    assert totals(tmp_path)["delivered"] == 3


def test_file_that_is_not_for_this_user_is_skipped(tmp_path: Path) -> None:
    assert record(tmp_path, 2).close()
    (tmp_path / "v1" / "stats" / "1-other" / "stats.json").mkdir(parents=True)
    assert totals(tmp_path)["delivered"] == 2


def test_reader_who_is_another_user_changes_nothing(
    tmp_path: Path, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(tmp_path / "stats", fork, 2)
    before = files(tmp_path / "stats")
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)
    assert totals(tmp_path / "stats")["delivered"] == 4
    assert files(tmp_path / "stats") == before

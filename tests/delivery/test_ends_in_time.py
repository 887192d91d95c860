"""Whatever hangs below: calls return at their timeout, the process runs on, its end is bounded."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import valued
from tests.support.left import leave
from tests.support.processes import run_program, until

FAULTS = (
    "a silent name server",
    "six dead addresses",
    "a silent service and 10,000 events",
    "an outbox with many directories",
    "a disk whose writes hang",
    "a transport that hangs",
    "a transport that hangs, and an outbox",
)

#: Seconds beyond a bound, in all.
MORE = 0.5

#: The same until a process is gone: Python's own end takes half a second where others want the
#: CPUs, too. If the library kept its bound of a second twice, that would still be longer.
GONE = 0.9

#: Directories that others left; the soak has more.
DIRECTORIES = 2_000


def run(program: str, *arguments: str, **variables: str) -> tuple[float, dict[str, Any]]:
    """Seconds that its end took, and what it said. Without what measures coverage at an end."""
    environment = {name: os.environ[name] for name in os.environ if "COV" not in name}
    done = run_program(program, *arguments, env={**environment, **variables}, timeout=100)
    ended = time.time()
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return ended - said["ends"], said


def run_with(fault: str, place: Path, shutdown_timeout: float, **variables: str) -> Any:
    if "disk" in fault and not sys.platform.startswith("linux"):
        pytest.skip("the program finds the files of descriptors in /proc")
    if "outbox" in fault and sys.platform == "win32":
        pytest.skip("no outbox here")
    place.mkdir(0o700)
    if "directories" in fault:
        leave(place, DIRECTORIES)
    return run("end_in_time.py", fault, str(shutdown_timeout), str(place), **variables)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_process_runs_on_and_its_end_keeps_its_bound_with(fault: str, tmp_path: Path) -> None:
    tries: list[dict[str, float]] = []
    # The machine may be busy with something else: of three, one is what the library makes of it.
    while len(tries) < 3:
        took, said = run_with(fault, tmp_path / str(len(tries)), 1.0)
        tries.append({"end": took, "ticks": said["ticks"], "signals": said["signals"]})
        if took <= 1.0 + GONE and said["ticks"] < MORE and said["signals"] < MORE:
            return
    pytest.fail(str(tries))


@pytest.mark.parametrize("fault", FAULTS)
def test_flush_park_and_close_keep_their_timeouts_with(fault: str, tmp_path: Path) -> None:
    tries = []
    while len(tries) < 3:  # as above
        _, said = run_with(fault, tmp_path / str(len(tries)), 0.0, CALLS="0.5")
        tries.append(said["took"])
        if max(said["took"].values()) <= 0.5 + MORE:
            return
    pytest.fail(str(tries))


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a service that answers nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/events"


def test_a_synchronous_attempt_ends_at_its_timeout_and_the_call_returns(silent: str) -> None:
    client = valued.Client(
        "token", silent, executor=valued.ImmediateExecutor(), timeout=1.0, shutdown_timeout=0.0
    )
    began = time.monotonic()
    client.action("a", {"user.id": 1})
    assert 0.9 <= time.monotonic() - began < 2.0
    assert client.stats()["pending"] == 1
    began = time.monotonic()
    assert client.flush(0.3) is False
    assert client.close(0.3) is False
    assert client.flush(0.3) is True  # it was dropped
    assert time.monotonic() - began < 0.9 + MORE


@pytest.mark.parametrize("what", ["again", "silent", "answers"])
def test_where_no_thread_can_be_started_a_call_returns_at_once_and_what_waits_is_bounded(
    what: str,
) -> None:
    took, said = run("end_without_threads.py", what)
    assert said["slowest"] < MORE
    assert said["before"]["pending"] == 20
    assert said["before"]["dropped_by_reason"]["overflow"] == 10
    about = [line for line in said["lines before"] if "no thread could be started" in line]
    assert len(about) == 1, said["lines before"]
    assert took <= 1.0 + GONE
    assert said["stats"]["pending"] == 0
    kept = [f"{number:02}" for number in range(20)]
    if what == "silent":
        assert said["stats"]["dropped_by_reason"]["exit"] == 20
    else:
        assert sorted(said["delivered"]) == kept + ["again"] * (what == "again")
    assert said.get("flushed", True)


def test_threads_of_clients_that_are_gone_end_when_their_events_are_delivered() -> None:
    delivered: list[str] = []
    gate = threading.Event()

    def deliver(event: dict[str, Any]) -> None:
        assert gate.wait(10)
        delivered.append(event["key"])

    before = threading.active_count()
    for number in range(50):
        client = valued.Client(deliver)
        client.action(str(number), {"user.id": 1})
    del client
    gc.collect()
    until(lambda: threading.active_count() > before)
    gate.set()
    until(lambda: len(delivered) == 50)
    assert sorted(delivered) == sorted(map(str, range(50)))
    until(lambda: threading.active_count() <= before, 2.0)  # and not after `idle_time`


OTHER = """
import sys, valued
client = valued.Client(lambda _event: None, outbox=sys.argv[1])
client.action("other", {"user.id": 1})
assert client.flush(10)
print("up", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("case", ["memory", "outbox", "outbox that others use", "after a retry"])
def test_the_threads_of_a_client_that_idles_end_with_its_last_reference(
    case: str, tmp_path: Path
) -> None:
    if "outbox" in case and sys.platform == "win32":
        pytest.skip("no outbox here")
    place = tmp_path / "outbox"
    delivered: list[Any] = []
    trouble = [OSError("not now")] if "retry" in case else []

    def deliver(event: dict[str, Any]) -> None:
        if trouble:
            raise trouble.pop()
        delivered.append(event)

    with contextlib.ExitStack() as stack:
        if "others" in case:  # looking after them is no reason to stay
            arguments = [sys.executable, "-c", OTHER, str(place)]
            pipe = subprocess.PIPE
            other = stack.enter_context(subprocess.Popen(arguments, stdin=pipe, stdout=pipe))
            assert other.stdout
            assert other.stdout.readline() == b"up\n"
        before = threading.active_count()
        client = valued.Client(deliver, outbox=place if "outbox" in case else None)
        client.action("a", {"user.id": 1})
        assert client.flush(10)
        assert threading.active_count() > before
        del client
        gc.collect()
        until(lambda: threading.active_count() <= before, 2.0)
    assert len(delivered) == 1

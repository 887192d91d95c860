"""Descriptors: who may run while one is written to. What is written, `test_segments` tells."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.processes import Child
from valued._outbox import descriptors as _descriptors
from valued._outbox.descriptors import Descriptor

BOUND = 10.0  # seconds that a failure may take

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere others always may run")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.fixture
def held() -> list[bytes]:
    """What was written while nobody might run."""
    return []


@pytest.fixture
def descriptor(file: Path, held: list[bytes]) -> Iterator[Descriptor]:
    calls = _descriptors.holding_calls()
    assert calls is not None

    def write(number: int, record: bytes, size: int, place: int) -> int:
        held.append(record)
        return calls.write(number, record, size, place)

    made = Descriptor(str(file), os.O_CREAT, _descriptors.Calls(calls.seek, write))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """How fast the machine is decides nothing, unless a test says so."""
    monkeypatch.setattr(_descriptors, "LONG", BOUND)
    monkeypatch.setattr(_descriptors, "TWICE", BOUND)
    monkeypatch.setattr(_descriptors, "SLOW", BOUND)


def _append(descriptor: Descriptor, count: int) -> None:
    for _ in range(count):
        assert descriptor.append(b"record") == 6


def test_beside_a_thread_that_computes_nobody_may_run_while_it_is_written(
    descriptor: Descriptor,
    held: list[bytes],
    in_thread: Callable[..., object],
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_descriptors, "LONG", 100e-6)
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(100))

    in_thread(compute)
    written, end = 0, time.monotonic() + BOUND
    try:
        while not held and time.monotonic() < end:
            _append(descriptor, 1)
            written += 1
    finally:
        stop.set()
    assert len(held) == 1
    assert file.read_bytes() == b"record" * written


def test_single_long_write_changes_nothing(
    descriptor: Descriptor, held: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_descriptors, "LONG", -1)
    _append(descriptor, 1)
    monkeypatch.setattr(_descriptors, "LONG", BOUND)
    _append(descriptor, 5)
    assert held == []


# Far apart from each other; or long ago, when it is found out anew whether others want to run.
@pytest.mark.parametrize("within", ["TWICE", "AGAIN"])
def test_long_writes_that_are_far_from_each_other_or_from_now_change_nothing(
    descriptor: Descriptor, held: list[bytes], monkeypatch: pytest.MonkeyPatch, within: str
) -> None:
    monkeypatch.setattr(_descriptors, "LONG", -1)
    monkeypatch.setattr(_descriptors, within, 0)
    _append(descriptor, 5)
    assert held == []


@pytest.fixture
def slow(descriptor: Descriptor, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Append, and take that as slow or not; nobody may run from the first time on."""
    monkeypatch.setattr(_descriptors, "LONG", -1)
    _append(descriptor, 2)

    def append(is_slow: bool) -> None:
        monkeypatch.setattr(_descriptors, "SLOW", -1 if is_slow else BOUND)
        _append(descriptor, 1)

    return append


@pytest.mark.parametrize("between", [0, 1, _descriptors.NEAR - 1])
def test_where_the_disk_is_slow_others_may_run(
    slow: Callable[[bool], None], held: list[bytes], file: Path, between: int
) -> None:
    for is_slow in (True, *[False] * between, True, True, False, True):
        slow(is_slow)
    assert len(held) == between + 2
    assert file.read_bytes() == b"record" * (between + 7)


def test_slow_writes_that_are_far_apart_change_nothing(
    slow: Callable[[bool], None], held: list[bytes]
) -> None:
    for is_slow in [True, *[False] * _descriptors.NEAR] * 3:
        slow(is_slow)
    assert len(held) == 3 * (1 + _descriptors.NEAR)


def test_whether_the_disk_is_slow_is_found_out_anew(
    slow: Callable[[bool], None], descriptor: Descriptor, held: list[bytes]
) -> None:
    for _ in range(4):
        slow(True)
    assert len(held) == 2
    descriptor._released_until = 0.0  # as a minute later
    for _ in range(3):
        slow(True)
    assert len(held) == 4


def _forbid(event: str, _arguments: object) -> None:
    if event == "ctypes.dlopen":
        raise RuntimeError("it is not allowed here")


def test_where_nobody_may_call_c_others_may_run(fork: Callable[..., Child], file: Path) -> None:
    def child() -> None:
        sys.addaudithook(_forbid)  # which can't be taken back
        assert _descriptors.holding_calls() is None

    assert fork(child).wait() == 0


def test_python_without_ctypes_lets_others_run(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)
    assert _descriptors.holding_calls() is None
    monkeypatch.setattr(_descriptors, "LONG", -1)
    made = Descriptor(str(file), os.O_CREAT, None)
    _append(made, 5)
    made.close()
    assert file.read_bytes() == b"record" * 5


@pytest.mark.parametrize(("name", "value"), [("APPENDS_ANYWHERE", False), ("LONG_PLACE", 16)])
def test_where_calls_of_c_would_be_wrong_others_may_run(
    monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    monkeypatch.setattr(_descriptors, name, value)
    assert _descriptors.holding_calls() is None

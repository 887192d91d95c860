"""Descriptors: who may run while one is written to. What is written, `test_segments` tells."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from valued import _descriptors
from valued._descriptors import Descriptor

BOUND = 10.0  # seconds that a failure may take

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere others always may run")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.fixture
def descriptor(file: Path) -> Iterator[Descriptor]:
    made = Descriptor(str(file), os.O_CREAT)
    yield made
    made.close()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is written while nobody may run; it is written in fact."""
    calls = _descriptors.held()
    assert calls is not None
    found: list[bytes] = []

    def write(number: int, record: bytes, size: int, place: int) -> int:
        found.append(record)
        return calls.write(number, record, size, place)

    monkeypatch.setattr(_descriptors, "held", lambda: _descriptors._Calls(calls.seek, write))
    return found


def _append(descriptor: Descriptor, count: int) -> None:
    for _ in range(count):
        assert descriptor.append(b"record") == 6


def test_beside_a_thread_that_computes_nobody_may_run_while_it_is_written(
    descriptor: Descriptor, held: list[bytes], in_thread: Callable[..., object], file: Path
) -> None:
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


def test_long_writes_that_are_far_apart_change_nothing(
    descriptor: Descriptor, held: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_descriptors, "LONG", -1)
    monkeypatch.setattr(_descriptors, "TWICE", 0)
    _append(descriptor, 5)
    assert held == []


def test_where_the_disk_is_slow_others_may_run(
    descriptor: Descriptor, held: list[bytes], monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    monkeypatch.setattr(_descriptors, "LONG", -1)
    monkeypatch.setattr(_descriptors, "SLOW", -1)
    _append(descriptor, 10)
    assert len(held) == 2
    assert file.read_bytes() == b"record" * 10


def test_single_slow_write_changes_nothing(
    descriptor: Descriptor, held: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_descriptors, "LONG", -1)
    _append(descriptor, 2)
    monkeypatch.setattr(_descriptors, "SLOW", -1)
    _append(descriptor, 1)
    monkeypatch.setattr(_descriptors, "SLOW", BOUND)
    _append(descriptor, 1)
    monkeypatch.setattr(_descriptors, "SLOW", -1)
    _append(descriptor, 1)
    monkeypatch.setattr(_descriptors, "SLOW", BOUND)
    _append(descriptor, 5)
    assert len(held) == 8


def test_whether_the_disk_is_slow_is_found_out_anew(
    descriptor: Descriptor, held: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_descriptors, "LONG", -1)
    monkeypatch.setattr(_descriptors, "SLOW", -1)
    _append(descriptor, 4)
    assert len(held) == 2
    descriptor._released_until = 0.0  # as a minute later
    _append(descriptor, 3)
    assert len(held) == 4


def test_python_without_ctypes_lets_others_run(
    descriptor: Descriptor, monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)
    _descriptors.held.cache_clear()
    try:
        assert _descriptors.held() is None
        monkeypatch.setattr(_descriptors, "LONG", -1)
        _append(descriptor, 5)
    finally:
        _descriptors.held.cache_clear()
    assert file.read_bytes() == b"record" * 5


def test_where_appends_need_their_place_others_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_descriptors, "APPENDS_ANYWHERE", False)
    _descriptors.held.cache_clear()
    try:
        assert _descriptors.held() is None
    finally:
        _descriptors.held.cache_clear()

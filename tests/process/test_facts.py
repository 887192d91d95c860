"""What the system knows of this process, also when no descriptor is free or /proc is missing."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
from collections.abc import Callable, Iterator

import psutil
import pytest

import valued
from tests.support.processes import Child, until
from valued._process import facts


@contextlib.contextmanager
def no_free_descriptor() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that hasn't asked the system yet."""
    monkeypatch.setattr(facts, "_started", facts.PerProcess(list))


def test_the_system_is_asked_once_for_who_this_is(asks_again: None) -> None:
    with no_free_descriptor():
        assert facts.identity() == (os.getpid(), None)  # and asked again, since it couldn't say
    known = facts.identity()
    assert known == (os.getpid(), psutil.Process().create_time())
    with no_free_descriptor():
        assert facts.identity() == known


def test_making_a_client_asks_so_that_stats_need_no_descriptor_later(asks_again: None) -> None:
    valued.Client(print)
    with no_free_descriptor():
        found = facts.started()
    assert found == psutil.Process().create_time()


def test_a_child_has_a_start_of_its_own(fork: Callable[..., Child]) -> None:
    parents = facts.started()

    def child() -> None:
        assert facts.identity() == (os.getpid(), psutil.Process().create_time())
        assert facts.started() != parents

    assert fork(child).wait() == 0


def test_without_proc_the_start_is_left_out(
    asks_again: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not psutil.LINUX:
        pytest.skip("only Linux has /proc")
    monkeypatch.setattr(psutil, "PROCFS_PATH", "/nonexistent")
    assert facts.identity() == (os.getpid(), None)


@pytest.mark.skipif(not psutil.LINUX, reason="only Linux counts them where Python looks")
def test_the_kernel_counts_a_thread_while_it_lives() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait, args=(10,))
    thread.start()
    assert thread.native_id is not None
    with no_free_descriptor():
        assert facts.has_os_threads({0, thread.native_id})
    end.set()
    thread.join(10)
    until(lambda: not facts.has_os_threads({thread.native_id or 0}))
    assert not facts.has_os_threads(set())


def test_a_client_reports_parks_and_closes_without_a_free_descriptor(asks_again: None) -> None:
    sent: list[object] = []
    client = valued.Client(sent.append)
    facts._started.get().clear()  # as in a child, which hasn't asked the system yet
    with no_free_descriptor():
        client.action("a", {"user.id": 1})
        parked, stats, closed = client.park(10), client.stats(), client.close(10)
    assert (parked, closed, len(sent)) == (True, True, 1)
    assert (stats["delivered"], stats["pid"], stats.get("started")) == (1, os.getpid(), None)

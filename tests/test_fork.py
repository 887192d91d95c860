"""The one module that knows of forks. What a fork does to the whole: tests/prefork."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from tests.support.processes import Child, run, until
from valued._process import fork as _fork
from valued._process import pickling

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


class Thing:
    """Something that belongs to a process."""


def test_a_value_is_built_once_and_when_it_is_asked_for() -> None:
    built: list[Thing] = []

    def build() -> Thing:
        built.append(Thing())
        return built[-1]

    value = _fork.PerProcess(build)
    assert built == []
    assert value.peek() is None
    assert value.get() is value.get() is value.peek() is built[0]
    assert len(built) == 1


def test_two_threads_that_ask_first_get_the_same_value() -> None:
    both = threading.Barrier(2, timeout=10)

    def build() -> Thing:
        both.wait()  # both are in here: neither found a value
        return Thing()

    value = _fork.PerProcess(build)
    got: list[Thing] = []
    threads = [threading.Thread(target=lambda: got.append(value.get())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert got[0] is got[1] is value.get()


@needs_fork
def test_a_child_forgets_its_parents_value_at_once_and_builds_its_own(
    fork: Callable[..., Child],
) -> None:
    forgotten: list[Thing] = []
    value = _fork.PerProcess(Thing, forget=forgotten.append)
    parents = value.get()

    def child() -> None:
        assert forgotten == [parents]  # by the hook, before anybody asked
        assert value.peek() is None
        assert value.get() is not parents
        assert forgotten == [parents]

    assert fork(child).wait() == 0
    assert value.get() is parents
    assert forgotten == []


@needs_fork
def test_a_value_without_forget_is_let_go_of(fork: Callable[..., Child]) -> None:
    value = _fork.PerProcess(Thing)
    value.get()

    def child() -> None:
        assert list(value._values) == []

    assert fork(child).wait() == 0


def test_a_fork_that_no_hook_told_of_resets_every_owner_with_the_first_value_asked_for() -> None:
    forgotten: list[str] = []
    one = _fork.PerProcess(Thing, forget=lambda _thing: forgotten.append("one"))
    two = _fork.PerProcess(Thing, forget=lambda _thing: forgotten.append("two"))
    one.get()
    two.get()
    for owner in (one, two):  # as if another process had built them (a real one: test_c_fork.py)
        owner._values = {-1: owner._values.popitem()[1]}
    one.get()
    assert sorted(forgotten) == ["one", "two"]
    assert two.peek() is None


def test_the_process_of_a_birthplace_is_here() -> None:
    assert _fork.Birthplace().is_here()


@needs_fork
def test_a_birthplace_is_not_in_a_child(fork: Callable[..., Child]) -> None:
    birthplace = _fork.Birthplace()

    def child() -> None:
        assert not birthplace.is_here()
        assert _fork.Birthplace().is_here()

    assert fork(child).wait() == 0
    assert birthplace.is_here()


def test_an_owner_that_is_gone_is_not_held() -> None:
    before = len(_fork._owners.living())
    owner = _fork.PerProcess(Thing)
    assert len(_fork._owners.living()) == before + 1
    del owner
    assert len(_fork._owners.living()) == before


def test_identity_is_what_the_system_says() -> None:
    assert _fork.identity() == (os.getpid(), psutil.Process().create_time())


def test_the_kernel_counts_a_thread_while_it_lives() -> None:
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait, args=(10,))
    thread.start()
    assert thread.native_id is not None
    assert _fork.has_os_threads({thread.native_id})
    leave.set()
    thread.join(10)
    until(lambda: not _fork.has_os_threads({thread.native_id or 0}))
    assert not _fork.has_os_threads(set())


def test_a_thread_that_ends_while_psutil_looks_is_looked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def threads(process: psutil.Process) -> None:
        raise psutil.NoSuchProcess(process.pid)  # as psutil 5.9 does

    monkeypatch.setattr(psutil.Process, "threads", threads)
    assert _fork.has_os_threads({1})


class Spawned:
    """Notes what `_fork` says while it is pickled."""

    def __reduce__(self) -> Any:
        return bool, (pickling.is_spawning(),)


def exit_by(value: object) -> None:
    sys.exit(7 if value is True else 8)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_child_that_is_being_spawned_is_told_apart_from_any_other_pickle(method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    assert pickle.loads(pickle.dumps(Spawned())) is False
    process: Any = multiprocessing.get_context(method).Process(target=exit_by, args=(Spawned(),))
    process.start()
    process.join(30)
    assert process.exitcode == 7
    assert pickle.loads(pickle.dumps(Spawned())) is False


def test_without_multiprocessing_nothing_is_spawned() -> None:
    program = (
        "import sys, valued._process.pickling\n"
        "sys.modules.pop('multiprocessing.context', None)  # coverage imports it\n"
        "assert not valued._process.pickling.is_spawning()\n"
    )
    assert run("-c", program).stderr == ""


UWSGI = """
import sys, types
calls = []
sys.modules["uwsgi"] = uwsgi = types.SimpleNamespace(opt={})
BEFORE
from valued._process import fork as _fork

owner = _fork.PerProcess(object, forget=lambda _thing: calls.append("reset"))
owner._values[-1] = object()
uwsgi.post_fork_hook()
print(calls)
"""


@pytest.mark.parametrize(
    ("before", "calls"),
    [
        ("", ["reset"]),
        ('uwsgi.post_fork_hook = lambda: calls.append("before")', ["reset", "before"]),
    ],
    ids=["nothing was there", "a hook was there"],
)
def test_uwsgis_hook_runs_the_reset_and_what_was_there(before: str, calls: list[str]) -> None:
    # A stand-in, as the real server makes its module in its own processes: test_uwsgi.py has it.
    done = run("-c", UWSGI.replace("BEFORE", before))
    assert (done.stdout.strip(), done.stderr) == (str(calls), "")


def test_where_there_is_no_fork_the_library_works_without_its_hook() -> None:
    program = (
        "import os\n"
        "del os.register_at_fork, os.fork  # as on Windows\n"
        "import valued\n"
        "sent = []\n"
        "client = valued.Client(sent.append)\n"
        "client.action('k', {'user.id': 1})\n"
        "assert client.flush(10)\n"
        "print(len(sent))\n"
    )
    done = run("-c", program)
    assert (done.stdout, done.stderr) == ("1\n", "")

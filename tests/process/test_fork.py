"""Values that belong to a process. What a fork does to the whole package: tests/prefork."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from tests.support.processes import Child, run
from valued._process import fork as _fork

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
    dropped = _fork.PerProcess(Thing)
    parents = value.get()
    dropped.get()

    def child() -> None:
        assert forgotten == [parents]  # by the hook, before the value was asked for
        assert dropped._values == {}
        assert value.peek() is None
        assert value.get() is not parents
        assert forgotten == [parents]

    assert fork(child).wait() == 0
    assert value.get() is parents
    assert forgotten == []


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


@needs_fork
def test_a_token_is_current_in_its_own_process_only(fork: Callable[..., Child]) -> None:
    token = _fork.ProcessToken()

    def child() -> None:
        assert not token.is_current()
        assert _fork.ProcessToken().is_current()

    assert fork(child).wait() == 0
    assert token.is_current()


def test_an_owner_that_is_gone_is_not_held() -> None:
    before = len(_fork._owners.living())
    owner = _fork.PerProcess(Thing)
    assert len(_fork._owners.living()) == before + 1
    del owner
    assert len(_fork._owners.living()) == before


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
    # Not the real module, which the server makes in its own processes: tests/prefork/test_uwsgi.py.
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

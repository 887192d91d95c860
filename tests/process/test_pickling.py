"""Which pickles are part of starting a child. What clients make of it: tests/test_pickling.py."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from typing import Any

import pytest

from tests.support.processes import run
from valued._process import pickling


class Spawned:
    """Notes what `pickling` says while it is pickled."""

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

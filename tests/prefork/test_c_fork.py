"""A fork in C, of which Python hears nothing: no hook runs, only the pid has changed.

That is how uWSGI forks as it comes; here it is `ctypes` that calls the ``fork`` of the C library.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hold import Hold
from tests.support.processes import PROGRAMS
from tests.support.server import Server

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

BOUND = 20.0  # seconds that bound a failure


@pytest.mark.parametrize("ending", ["flush", "exit"])
@pytest.mark.parametrize("loader", ["PyDLL", "CDLL"])
def test_a_child_of_a_fork_in_c_sends_its_own_event_and_lets_go_of_what_it_inherited(
    loader: str, ending: str, server: Server, tmp_path: Path
) -> None:
    with (
        Hold(server, lambda event: event["key"] == "held") as hold,
        (tmp_path / "stderr").open("wb+") as stderr,
        subprocess.Popen(
            [sys.executable, PROGRAMS / "c_fork.py", server.url, loader, ending],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as program,
    ):
        assert program.stdin is not None
        assert program.stdout is not None
        try:
            server.wait_for(3)
            program.stdin.write("the server holds one\n")
            program.stdin.flush()
            assert program.stdout.readline() == "the child is gone\n"
            # The child's has arrived, while the parent's were still waiting.
            assert server.keys() == ["child", "held", "idle", "warm"]
            hold.release()
            program.stdin.write("it has answered\n")
            program.stdin.flush()
            status = program.wait(BOUND)
        finally:
            program.kill()
            stderr.seek(0)
            said = stderr.read().decode()
            print(said)
    assert (status, said) == (0, "")
    assert server.keys() == ["child", "held", "idle", "queued", "warm"]
    came_on = {request.event["key"]: request.connection for request in server.requests}
    assert came_on["warm"] == came_on["held"] == came_on["queued"]
    assert len({came_on["warm"], came_on["idle"], came_on["child"]}) == 3

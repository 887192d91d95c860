"""Programs that run beside a test: each in a session of its own, what it says in a file."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

ROOT = Path(__file__).parent.parent.parent

#: Seconds that bound a failure; nothing here lasts so long.
BOUND = 30.0

#: Seconds between two looks at a log or at a process table: neither can be waited for.
LOOK_AGAIN = 0.01


class Program:
    """A Python that runs until it is told to end, or `kill`. *log*: for both of its streams.

    At the end of a ``with`` block it is killed, and what it said is shown if the test failed.
    """

    def __init__(
        self,
        log: Path,
        *command: str | Path,
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
        program: str | Path = sys.executable,
    ) -> None:
        self._output = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [program, *command],
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        print(self.said())

    @contextlib.contextmanager
    def _starting(self) -> Iterator[None]:
        """A block of its start: if that fails, nothing is left running."""
        try:
            yield
        except BaseException:
            self.kill()
            raise

    def said(self) -> str:
        """What it, and all that it started, has said so far."""
        return self._output.read_text("utf-8", "replace")

    def wait_until(self, condition: Callable[[], Any], timeout: float = BOUND) -> Any:
        """What *condition* returns once that is true; *timeout* bounds a failure."""
        deadline = time.monotonic() + timeout
        while not (result := condition()):
            assert self.process.poll() is None, f"it ended early\n{self.said()}"
            assert time.monotonic() < deadline, f"not in {timeout} s\n{self.said()}"
            time.sleep(LOOK_AGAIN)
        return result

    def is_gone(self) -> bool:
        """Whether nothing of its session is left."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def kill(self) -> None:
        """End what is left of it: all of its session, whose id is the pid. May be called again."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(BOUND)


def free_port() -> int:
    """A port of loopback that nothing listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])

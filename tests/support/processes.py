"""Real children: forks of the test's own process, and programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).parent.parent / "programs"

#: The status of a child that ended by `vanish`.
VANISHED = -signal.SIGKILL


class Child:
    """A forked child that runs one function and leaves by `os._exit`."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._stderr = tempfile.TemporaryFile()
        self.stderr = ""
        self._runs = True
        hook = sys.unraisablehook
        # What a fork hook raises is printed before `fork` returns.
        sys.unraisablehook = self._unraisable
        self.pid = os.fork()
        sys.unraisablehook = hook
        if self.pid == 0:
            os.dup2(self._stderr.fileno(), 2)
            status = 1
            try:
                function(*args)
                status = 0
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(status)

    def _unraisable(self, unraisable: Any) -> None:
        text = "".join(traceback.format_exception(unraisable.exc_value))
        os.write(self._stderr.fileno(), text.encode())

    def wait(self, timeout: float = 10.0) -> int:
        """The exit status; a child that hangs is killed, and fails the test."""
        deadline = time.monotonic() + timeout
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._runs = False
                break
            if time.monotonic() > deadline:
                self.end()
                raise AssertionError(f"the child did not end in {timeout} s: {self.stderr}")
            time.sleep(0.005)  # how often to look; what is waited for is the child's end
        self.end()
        # CPython prints what a fork hook raises and goes on: nothing may be printed.
        assert self.stderr == "", self.stderr
        return os.waitstatus_to_exitcode(status)

    def end(self) -> None:
        """Kill it if it still runs; may be called again."""
        if self._runs:
            self._runs = False
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
        if not self._stderr.closed:
            self._stderr.seek(0)
            self.stderr = self._stderr.read().decode()
            self._stderr.close()


def vanish() -> None:
    """End this process at once: without a word, and without a file of coverage's.

    For tests that fork a hundred times: `os._exit` takes 0.2 s where coverage is measured.
    """
    os.kill(os.getpid(), signal.SIGKILL)


def until(true: Callable[[], object], timeout: float = 10.0) -> None:
    """Look until something is *true* that tells nobody; *timeout* bounds a failure."""
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, f"not within {timeout} s"
        time.sleep(0.002)


def run(*arguments: str, timeout: float = 60.0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run this Python with *arguments*; output is captured.

    Python's warning of a fork while other threads live is left out, from 3.12 on: such forks are
    what most programs are about. *options* may have an ``env`` of their own.
    """
    options.setdefault("env", {**os.environ, "PYTHONWARNINGS": "ignore:This process"})
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )


def run_program(
    name: str, *arguments: str, timeout: float = 60.0, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program of `tests/programs`."""
    return run(str(PROGRAMS / name), *arguments, timeout=timeout, **options)

"""The command line as its users run it: in processes of its own, at a terminal where need be."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

COMMAND = [sys.executable, "-m", "valued"]


class Listening:
    """``valued listen --json`` on a free port."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "listen", "--port", "0", "--json", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        said = self.process.stderr.readline()
        assert said.startswith("Listening on http://"), said
        self.url = said.split()[-1]
        self.page = ""
        if "--no-ui" not in arguments:
            said = self.process.stderr.readline()
            assert said.startswith("Page: http://"), said
            self.page = said.split()[-1]
        self.summary = ""
        self._output: list[str] = []
        # Read all the time: a full pipe would stop the listener.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self._output += self.process.stdout

    def end(self, number: int = signal.SIGTERM) -> list[dict[str, Any]]:
        """End it by a signal, and return what it printed."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> list[dict[str, Any]]:
        """Wait for its end, and return what it printed."""
        assert self.process.wait(10) == 0
        self._reader.join(10)
        assert self.process.stderr is not None
        self.summary = self.process.stderr.read()
        return [json.loads(line) for line in self._output]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


@contextlib.contextmanager
def listening(*arguments: str) -> Iterator[Listening]:
    """The listener, ended with the block, if it is not by then."""
    listener = Listening(*arguments)
    try:
        yield listener
    finally:
        listener.kill()


class Terminal:
    """A terminal: what is written to ``file`` is read by ``text``."""

    def __init__(self) -> None:
        self._master, slave = os.openpty()
        self.file: IO[bytes] = os.fdopen(slave, "wb", 0)
        self._text = b""

    def until(self, text: str, timeout: float = 20.0) -> str:
        """What was shown so far, once *text* is part of it."""
        deadline = time.monotonic() + timeout
        while text.encode() not in self._text:
            read = self._read(max(0.0, deadline - time.monotonic()))
            assert read, f"{text!r} was not shown in {self._text!r}"
        return self.shown()

    def rest(self) -> str:
        """All that is shown, once nobody else has the terminal open."""
        self.file.close()
        while self._read(20.0):
            pass
        return self.shown()

    def shown(self) -> str:
        return self._text.decode().replace("\r\n", "\n")

    def _read(self, seconds: float) -> bool:
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        try:
            piece = os.read(self._master, 65536)
        except OSError:  # EIO: how Linux says that the other side is closed
            return False
        self._text += piece
        return bool(piece)

    def close(self) -> None:
        self.file.close()
        os.close(self._master)


@contextlib.contextmanager
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    try:
        yield made
    finally:
        made.close()

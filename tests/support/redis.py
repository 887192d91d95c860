"""A Redis server of the tests' own, as a broker and for its results."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from tests.support.programs import free_port

PROGRAM = shutil.which("redis-server")


class Redis:
    """Starts ``redis-server`` on a free port of loopback; `close` ends it.

    *durable*: with an append-only file, written before each answer; else with nothing on disk.
    """

    def __init__(self, *, durable: bool = False) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="redis-")
        self._log = Path(self._directory.name, "log")
        self._keeps = ("yes", "--appendfsync", "always") if durable else ("no",)
        for _attempt in range(5):
            self.port = free_port()
            self._process = self._start()
            if self._is_ready():
                break
            self.close_process()  # somebody else was given the port in between
        else:
            raise AssertionError(f"redis-server does not start: {self._log.read_text()}")
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def _start(self) -> subprocess.Popen[bytes]:
        assert PROGRAM is not None
        return subprocess.Popen(
            [
                *(PROGRAM, "--port", str(self.port), "--bind", "127.0.0.1"),
                *("--save", "", "--dir", self._directory.name, "--logfile", str(self._log)),
                *("--appendonly", *self._keeps),
            ],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def pause(self) -> None:
        """It answers nothing, and its connections stay, until `resume`."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """As ``kill -9``; `start_again` brings back what was on the disk."""
        self._process.kill()
        self._process.wait(10)

    def start_again(self) -> None:
        self._process = self._start()
        assert self._is_ready(), self._log.read_text()

    def _is_ready(self, timeout: float = 10.0) -> bool:
        import redis

        deadline = time.monotonic() + timeout
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                with redis.Redis(port=self.port) as connection:
                    # Ours, and not one that another run has started on this port.
                    return bool(connection.info("server")["process_id"] == self._process.pid)
            except (redis.ConnectionError, redis.exceptions.BusyLoadingError):
                time.sleep(0.01)  # how often to look; what is waited for is the answer
        return False

    def waiting(self) -> int:
        """Events in the queue, and those that a worker has taken and not acknowledged."""
        import redis

        with redis.Redis(port=self.port) as connection:
            return int(connection.llen("valued") + connection.hlen("unacked"))

    def clear(self) -> None:
        """Forget everything."""
        import redis

        with redis.Redis(port=self.port) as connection:
            connection.flushall()

    def close_process(self) -> None:
        if self._process.poll() is None:
            self.resume()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)

    def close(self) -> None:
        self.close_process()
        self._directory.cleanup()


def filesystem(folder: Path) -> dict[str, str]:
    """A broker that needs no server: kombu's transport over files."""
    for path in (folder, Path(f"{folder}-control")):
        path.mkdir()
    return {"BROKER": "filesystem://localhost//", "FOLDER": str(folder)}

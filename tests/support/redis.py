"""A Redis server of the tests' own, as a broker and for its results."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tests.support.programs import free_port

PROGRAM = shutil.which("redis-server")


class Redis:
    """Starts ``redis-server`` on a free port of loopback, with nothing on disk; `close` ends it."""

    def __init__(self) -> None:
        assert PROGRAM is not None
        self._directory = tempfile.TemporaryDirectory(prefix="redis-")
        self._log = Path(self._directory.name, "log")
        for _attempt in range(5):
            self.port = free_port()
            self._process = subprocess.Popen(
                [
                    *(PROGRAM, "--port", str(self.port), "--bind", "127.0.0.1"),
                    *("--save", "", "--appendonly", "no", "--dir", self._directory.name),
                    *("--logfile", str(self._log)),
                ],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            if self._is_ready():
                break
            self.close_process()  # somebody else was given the port in between
        else:
            raise AssertionError(f"redis-server does not start: {self._log.read_text()}")
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def _is_ready(self, timeout: float = 10.0) -> bool:
        import redis

        deadline = time.monotonic() + timeout
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                with redis.Redis(port=self.port) as connection:
                    # Ours, and not one that another run has started on this port.
                    return bool(connection.info("server")["process_id"] == self._process.pid)
            except redis.ConnectionError:
                time.sleep(0.01)  # how often to look; what is waited for is the answer
        return False

    def clear(self) -> None:
        """Forget everything."""
        import redis

        with redis.Redis(port=self.port) as connection:
            connection.flushall()

    def close_process(self) -> None:
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

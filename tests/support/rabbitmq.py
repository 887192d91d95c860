"""A RabbitMQ server of the tests' own, where Debian's package is installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

from tests.support.programs import free_port

#: The one below the wrapper of Debian's, which runs for one user only, in one directory.
PROGRAM = (
    shutil.which("rabbitmq-server", path="/usr/lib/rabbitmq/bin") if shutil.which("erl") else None
)


class RabbitMQ:
    """Starts ``rabbitmq-server`` on a free port of loopback; `close` ends it.

    Erlang's ``epmd`` stays: where none was running, the first server starts the machine's one.
    """

    def __init__(self) -> None:
        assert PROGRAM is not None
        self._directory = tempfile.TemporaryDirectory(
            prefix="rabbitmq-", ignore_cleanup_errors=True
        )
        self.port = free_port()
        home = Path(self._directory.name)
        (home / "plugins").write_text("[].")
        (home / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "vm_memory_high_watermark.relative = 0.9\ndisk_free_limit.absolute = 1MB\n"
        )
        self._environment = {
            **os.environ,
            "HOME": str(home),
            "RABBITMQ_NODENAME": f"valued{self.port}@localhost",
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq"),
            "RABBITMQ_CONF_ENV_FILE": str(home / "none"),
            "RABBITMQ_MNESIA_BASE": str(home / "data"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
            "RABBITMQ_DIST_PORT": str(free_port()),
        }
        self._log = home / "out"
        self._process = self._start()
        self._wait()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def _start(self) -> subprocess.Popen[bytes]:
        assert PROGRAM is not None
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [PROGRAM],
                env=self._environment,
                cwd=self._directory.name,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait(self, timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        while True:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), 1) as connection,
            ):
                connection.sendall(b"AMQP\0\0\x09\x01")
                connection.settimeout(5)
                if connection.recv(1):
                    return
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.1)  # how often to look

    def _signal(self, number: int) -> None:
        # The shell that started it waits for it; what it has started belongs to it.
        for process in (*self._family(), psutil.Process(self._process.pid)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _family(self) -> list[psutil.Process]:
        return psutil.Process(self._process.pid).children(recursive=True)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """As ``kill -9``; `start_again` brings back what was on the disk."""
        self._signal(signal.SIGKILL)
        self._process.wait(10)

    def start_again(self) -> None:
        self._process = self._start()
        self._wait()

    def waiting(self) -> int:
        """Events in the queue, without those that a worker has taken."""
        from celery import Celery

        with Celery(broker=self.url, set_as_current=False).connection_for_read() as connection:
            return int(connection.SimpleQueue("valued").qsize())

    def clear(self) -> None:
        """Forget what waits in the queue of events."""
        from celery import Celery

        with Celery(broker=self.url, set_as_current=False).connection_for_read() as connection:
            connection.SimpleQueue("valued").clear()

    def close(self) -> None:
        if self._process.poll() is None:
            self.kill()
        self._directory.cleanup()

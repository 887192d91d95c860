"""Servers that answer 204: nginx where it is installed, and one with a delay; each a process."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).parent.parent
START = 10.0  # seconds that a server has to start

# One process, nothing written, connections that are kept for ever; what is no event (that of other
# libraries) is answered by a JSON object, which they read.
_NGINX = """\
daemon off;
master_process off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log crit;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000000;
  keepalive_timeout 3600s;
  client_max_body_size 64m;
  tcp_nodelay on;
  server {{
    listen 127.0.0.1:{port} backlog=511;
    location = /events {{ return 204; }}
    location = /status {{ stub_status; }}
    location / {{ default_type application/json; return 200 '{{"status": 1, "success": true}}'; }}
  }}
}}
"""


class Server(Protocol):
    """A server that runs."""

    name: str
    url: str

    def figures(self) -> dict[str, int]:
        """At least ``requests`` and ``connections`` so far."""


class Nginx:
    """nginx on *port*."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.port = port
        self.url = f"http://127.0.0.1:{port}/events"
        self._looks = 0  # each look is a connection and a request of its own

    def figures(self) -> dict[str, int]:
        """Requests and connections so far, those of `figures` itself not counted."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START)
        try:
            connection.request("GET", "/status")
            numbers = connection.getresponse().read().split(b"\n")[2].split()
        finally:
            connection.close()
        self._looks += 1
        return {
            "connections": int(numbers[0]) - self._looks,
            "requests": int(numbers[2]) - self._looks,
        }


class Delaying:
    """`benchmarks.delaying_server` in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], delay: float) -> None:
        assert process.stdout is not None
        self._process = process
        self.name = f"a server of the benchmarks' own (asyncio), {delay * 1e3:g} ms"
        self.url = f"http://127.0.0.1:{int(process.stdout.readline())}/events"

    def delay(self, seconds: float) -> None:
        """Answers to requests that come from now on wait so long."""
        self._ask(f"delay {seconds}")

    def figures(self) -> dict[str, int]:
        """See `benchmarks.delaying_server`."""
        return self._ask("figures")

    def _ask(self, line: str) -> dict[str, int]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer: dict[str, int] = json.loads(self._process.stdout.readline())
        return answer


@contextlib.contextmanager
def delaying(delay: float) -> Iterator[Delaying]:
    """A server that answers after *delay* seconds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.delaying_server", str(delay)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:  # its standard input is closed at the end, and so it ends
        yield Delaying(process, delay)


@contextlib.contextmanager
def fast() -> Iterator[Server]:
    """A server that answers at once: nginx, or the one with a delay, of 0, where there is none."""
    program = shutil.which("nginx", path=_search_path())
    if program is None:
        with delaying(0) as server:
            server.name += " (no nginx is installed; figures with it are not comparable)"
            yield server
        return
    with tempfile.TemporaryDirectory(prefix="valued-benchmarks-") as folder:
        port = _free_port()
        configuration = Path(folder, "nginx.conf")
        configuration.write_text(_NGINX.format(folder=folder, port=port), "utf-8")
        command = [program, "-p", folder, "-e", f"{folder}/error.log", "-c", str(configuration)]
        said = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            _wait_for(port, process)
            yield Nginx(said.rsplit(" ", 1)[-1].strip(), port)
        finally:
            process.terminate()
            process.wait(START)


def _search_path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START
    while not _answers(port):
        if process.poll() is not None or time.monotonic() > until:
            raise SystemExit("nginx does not start; see what `nginx -t` says")
        time.sleep(0.01)


def _answers(port: int) -> bool:
    try:
        # A request, and not a connection alone, which would count and never be read.
        Nginx("", port).figures()
    except (OSError, http.client.HTTPException):
        return False
    return True

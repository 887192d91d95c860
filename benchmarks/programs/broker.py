"""What delivery through a broker costs: events a second and CPU, with 1, 2 and 4 delivery workers.

A real redis, with an append-only file, and real Celery workers. First one process records all
events and hands them to the broker; then the delivery workers empty the queue. Beside them, the
same events delivered directly. Needs ``redis-server`` and ``celery[redis]``.

    python -m benchmarks.programs.broker [EVENTS]
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.servers import ROOT, Server, fast

#: Seconds after which a part has failed.
BOUND = 300.0

TASKS = """
import os
import valued
from celery import Celery
from valued.integrations.celery import delivery_task

app = Celery("delivery", broker=os.environ["BROKER"])
deliver = delivery_task(app, valued.Connection("token", os.environ["ENDPOINT"]))
"""

#: Prints seconds and CPU seconds, both from the first call until all events are delivered.
RECORD = """
import os, sys, time
import valued

if sys.argv[1] == "broker":
    from tasks import deliver
    from valued.integrations.celery import Relay
    client = valued.Client(Relay(deliver))
else:
    client = valued.Client("token", os.environ["ENDPOINT"])
count = int(sys.argv[2])
client.action("warm", {"user.id": 1})
assert client.flush(20)
began, cpu = time.perf_counter(), time.process_time()
for number in range(count):
    client.action("report.generated", {"user.id": number}, attributes={"format": "pdf"})
assert client.flush(300)
print(time.perf_counter() - began, time.process_time() - cpu)
"""


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[str]:
    """The address of a redis that writes an append-only file."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    program = shutil.which("redis-server")
    if program is None:
        sys.exit("redis-server is not installed")
    process = subprocess.Popen(
        [program, "--port", str(port), "--dir", str(folder), "--appendonly", "yes", "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(20)


def cpu(process: psutil.Process) -> float:
    """CPU seconds of *process* and its children so far."""
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def line(rate: float, used: float) -> str:
    """Events a second, and CPU seconds of an event, for people."""
    return f"{rate:8,.0f} events a second   {used * 1e6:6,.0f} us of CPU an event"


def record(how: str, count: int, folder: Path, environment: dict[str, str]) -> str:
    """Microseconds of CPU an event in the process that records, and events a second."""
    done = subprocess.run(
        [sys.executable, "-c", RECORD, how, str(count)],
        cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True,
        timeout=BOUND + 60,
    )  # fmt: skip
    seconds, used = map(float, done.stdout.split())
    return (
        f"{count / seconds:8,.0f} events a second   {used / count * 1e6:6,.0f} us of CPU an event"
    )


def deliver(
    workers: int, count: int, folder: Path, environment: dict[str, str], server: Server
) -> str:
    """The same of *workers* delivery workers that find *count* events in the broker."""
    before = server.figures()["requests"]
    command = [
        sys.executable, "-m", "celery", "--app", "tasks", "worker", "--queues", "valued",
        "--concurrency", str(workers), "--loglevel", "ERROR", "--without-mingle",
    ]  # fmt: skip
    with (folder / "worker.log").open("w") as log:
        worker = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    process = psutil.Process(worker.pid)
    try:
        deadline = time.monotonic() + BOUND
        began: tuple[int, float, float] | None = None
        while True:
            done = server.figures()["requests"] - before
            if began is None and done:
                began = done, time.monotonic(), cpu(process)
            if done >= count:
                break
            if time.monotonic() > deadline or worker.poll() is not None:
                sys.exit(f"{done} of {count} arrived\n{(folder / 'worker.log').read_text()}")
            time.sleep(0.05)
        assert began is not None
        first, at, used = began
        rest = count - first
        return line(rest / (time.monotonic() - at), (cpu(process) - used) / rest)
    finally:
        worker.terminate()
        worker.wait(60)


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as name, fast() as server:
        folder = Path(name)
        (folder / "tasks.py").write_text(TASKS)
        with redis(folder) as broker:
            environment = {
                **os.environ, "BROKER": broker, "ENDPOINT": server.url, "VALUED_ENV": "production",
                "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
            }  # fmt: skip
            print(f"Python {sys.version.split()[0]}, {count:,} events, server: {server.name}")
            print(f"{'direct delivery':32}", record("direct", count, folder, environment))
            for workers in (1, 2, 4):
                into = record("broker", count, folder, environment)
                if workers == 1:
                    print(f"{'into the broker':32}", into)
                out = deliver(workers, count, folder, environment, server)
                print(f"{f'out of it, {workers} delivery workers':32}", out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

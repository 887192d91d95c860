"""A Celery application. The environment says where its broker is and what it records.

Whatever it records, it writes down in the file JOURNAL, a JSON object a line: what has to arrive.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from celery import Celery, Task, signals

import valued

app = Celery("celery_app", broker=os.environ["BROKER"])
app.conf.task_ignore_result = True
app.conf.worker_pool_start_method = os.environ.get("START_METHOD", "fork")
if "FOLDER" in os.environ:  # kombu's transport over files: what is sent out is what comes in
    app.conf.broker_transport_options = {
        **dict.fromkeys(("data_folder_in", "data_folder_out"), os.environ["FOLDER"]),
        "control_folder": os.environ["FOLDER"] + "-control",
    }


def note(what: str, **more: Any) -> None:
    line = json.dumps({"what": what, "pid": os.getpid(), "at": time.monotonic(), **more})
    # One write to a file that is only appended to: no two processes' lines get mixed.
    journal = os.open(os.environ["JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(journal, f"{line}\n".encode())
    os.close(journal)


# Connected before anything else is, so that it says so before anybody can flush.
@signals.worker_process_shutdown.connect
def _leaving(**_: Any) -> None:
    note("leaving")


# Made at import, so in the parent of the pool.
client = valued.Client(
    max_workers=int(os.environ.get("MAX_WORKERS", "10")),
    shutdown_timeout=float(os.environ.get("SHUTDOWN_TIMEOUT", "5")),
)


def record(id: str) -> None:
    client.action("task.run", {"user.id": 1, "attributes": {"id": id, "pid": os.getpid()}})
    note("recorded", id=id)


@app.task(bind=True)
def work(self: Task) -> None:
    record(self.request.id)


@app.task(bind=True)
def wait(self: Task, port: int) -> None:
    """Stay at work until the test, which listens at *port*, hangs up."""
    record(f"{self.request.id} begins")
    with socket.create_connection(("127.0.0.1", port)) as gate:
        gate.sendall(f"{os.getpid()}\n".encode())
        gate.recv(1)
    record(f"{self.request.id} ends")


@app.task(bind=True, max_retries=2, acks_late=True)
def retry(self: Task) -> None:
    record(f"{self.request.id} {self.request.retries}")
    if self.request.retries < self.max_retries:
        raise self.retry(countdown=0)


def on(name: str) -> Callable[..., Any]:
    """Connect a receiver of Celery's signal *name*, if the test wants it recorded."""
    wanted = name in os.environ.get("RECORDS", "").split()
    return getattr(signals, name).connect if wanted else lambda receiver: receiver


@on("celeryd_init")
def _init(**_: Any) -> None:
    record("celeryd_init")


@on("worker_init")
def _worker_init(**_: Any) -> None:
    record("worker_init")


@on("worker_process_init")
def _process_init(**_: Any) -> None:
    record(f"worker_process_init {os.getpid()}")


@on("worker_process_shutdown")
def _process_shutdown(**_: Any) -> None:
    record(f"worker_process_shutdown {os.getpid()} 1")
    record(f"worker_process_shutdown {os.getpid()} 2")


@signals.worker_shutdown.connect
def _stopped(**_: Any) -> None:
    note("stopped")

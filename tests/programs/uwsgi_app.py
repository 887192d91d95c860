"""A WSGI application for uWSGI. Each request records one event, by a client made at import.

The environment says how the client is made (CLIENT_OPTIONS), how many events are recorded at import
(EVENTS_AT_IMPORT), whether they are waited for (FLUSH), whether each process records one as it ends
(EVENT_AT_EXIT), and how the application sets a hook of its own (HOOK), which records one, too.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import socket
import urllib.parse
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import uwsgi  # made by uWSGI itself

logging.basicConfig(format="%(levelname)s:%(name)s:%(message)s")

HOOK = os.environ.get("HOOK", "")
hooked: list[int] = []


def hook() -> None:
    hooked.append(os.getpid())
    record(f"hook-{os.getpid()}")


def set_hook() -> None:
    if HOOK.startswith("decorator"):
        import uwsgidecorators

        uwsgidecorators.postfork(hook)
    else:
        uwsgi.post_fork_hook = hook


if HOOK.endswith("before"):
    set_hook()

import valued  # noqa: E402 - the order is what is tested

if HOOK.endswith("after"):
    set_hook()

# Made at import: in the master, or in each worker where lazy-apps is on.
client = valued.Client(**json.loads(os.environ.get("CLIENT_OPTIONS", "{}")))


def record(id: str) -> None:
    client.action("recorded", {"user.id": 1, "attributes": {"id": id, "pid": os.getpid()}})


def wait_at_gate() -> None:
    with socket.create_connection(("127.0.0.1", int(os.environ["GATE"]))) as gate:
        gate.recv(1)  # until the test hangs up


if "EVENT_AT_EXIT" in os.environ:
    atexit.register(lambda: record(f"exit-{os.getpid()}"))

# The master keeps its pid when it is reloaded.
for _ in range(int(os.environ.get("EVENTS_AT_IMPORT", "0"))):
    record(f"import-{uuid.uuid4()}")
if "FLUSH" in os.environ:
    assert client.flush(10)


def application(
    environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]
) -> Iterable[bytes]:
    query = dict(urllib.parse.parse_qsl(environ["QUERY_STRING"]))
    if "silent" not in query:
        record(query["id"])
    pending = client.stats()["pending"]
    if "at_exit" in query:
        # After the event, which made the client register: the last to register is the first to run.
        atexit.register(wait_at_gate)
    if "gate" in query:
        wait_at_gate()
    answer = {"id": query["id"], "pid": os.getpid(), "pending": pending, "hooks": hooked}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]

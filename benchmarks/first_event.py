"""A child's first event: from the fork to its delivery, in milliseconds."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.events import DATA, EVENT, HEADERS, KEY, TOKEN
from benchmarks.subprocesses import serve


def deliverer(subject: str, url: str) -> Callable[[], object]:
    """What a child calls; made in the parent, which has sent an event already."""
    if subject == "requests.post":
        import requests

        def post() -> None:
            requests.post(url, data=json.dumps(EVENT), headers=HEADERS).raise_for_status()

        post()
        return post
    import valued

    client = valued.Client(TOKEN, url)

    def deliver() -> None:
        client.action(KEY, DATA)
        assert client.flush(10)
        assert client.stats()["delivered"] == 1

    client.action(KEY, DATA)
    assert client.park(10)
    return deliver


def once(deliver: Callable[[], object]) -> float:
    """Milliseconds from before the fork until the child has delivered."""
    reader, writer = os.pipe()
    started = time.monotonic()  # the same clock in parent and child
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            deliver()
            os.write(writer, repr(time.monotonic()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        ended = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    return (float(ended) - started) * 1e3


def main(subject: str, forks: int, url: str) -> dict[str, Any]:
    """The median of *forks* children."""
    deliver = deliverer(subject, url)
    return {"ms": statistics.median(once(deliver) for _ in range(forks))}


if __name__ == "__main__":
    serve(main)

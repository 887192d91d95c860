"""A child's first event: from the fork to its delivery, in milliseconds."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.bench import Bench, serve
from benchmarks.rows import Row, at_most, row
from benchmarks.senders import DATA, EVENT, HEADERS, KEY, TOKEN


def rows(bench: Bench) -> Iterator[Row]:
    figures = bench.turns(
        "processes.first_event", {"requests.post": {}, "valued": {}},
        forks=bench.scale.children, url=bench.server.url,
    )  # fmt: skip
    yield row("a child's first event, fork to delivered", "ms", figures, "ms", "requests.post",
              at_most(1.5), name="a bare requests.post in a child")  # fmt: skip


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

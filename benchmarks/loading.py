"""A process that records, so that events always wait; it ends with its standard input."""

from __future__ import annotations

import json
import logging
import select
import sys

import valued
from benchmarks.events import DATA, KEY, TOKEN

ENOUGH = 1_000  # events that wait: more than any server here answers in a pause
PAUSE = 0.02  # seconds between two looks; the caller is to be no load of its own


def main(url: str) -> None:
    """Keep so many events waiting, until the standard input ends."""
    client = valued.Client(TOKEN, url, shutdown_timeout=0)
    # Looked up when it is called: gevent's, where that has patched it.
    while not select.select([sys.stdin], [], [], PAUSE)[0]:
        for _ in range(ENOUGH - client.stats()["pending"]):
            client.action(KEY, DATA)
    logging.disable()  # of what is not delivered at the end, as it should be


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))

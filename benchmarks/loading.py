"""A process that records, so that events always wait; it ends with its standard input."""

from __future__ import annotations

import json
import logging
import sys
import threading

import valued
from benchmarks.events import DATA, KEY, TOKEN

ENOUGH = 1_000  # events that wait: more than any server here answers in a pause
PAUSE = 0.02  # seconds between two looks; the caller is to be no load of its own


def load(client: valued.Client, ended: threading.Event) -> None:
    """Keep so many events waiting, until *ended*."""
    while not ended.wait(PAUSE):
        for _ in range(ENOUGH - client.stats()["pending"]):
            client.action(KEY, DATA)


def main(url: str) -> None:
    """Record, until the standard input ends."""
    client = valued.Client(TOKEN, url, shutdown_timeout=0)
    ended = threading.Event()
    thread = threading.Thread(target=load, args=(client, ended))
    thread.start()
    sys.stdin.read()
    ended.set()
    thread.join()
    logging.disable()  # of what is not delivered at the end, as it should be


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))

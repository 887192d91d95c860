"""A process that records without end, so that events always wait; ends with its standard input."""

from __future__ import annotations

import json
import sys
import threading

import valued
from benchmarks.events import DATA, KEY, TOKEN

if __name__ == "__main__":
    client = valued.Client(
        TOKEN, json.loads(sys.argv[1])["url"], max_queue=1000, overflow="block", shutdown_timeout=0
    )
    ended = threading.Event()

    def load() -> None:
        while not ended.is_set():
            client.action(KEY, DATA)

    threading.Thread(target=load, daemon=True).start()
    sys.stdin.read()
    ended.set()

"""Ends with events waiting, or with nothing of ours at all: URL EVENTS SHUTDOWN_TIMEOUT.

EVENTS may be ``bare``: then the same is imported, and no client is made.
"""

import sys
import time

import valued

url, events, shutdown_timeout = sys.argv[1:]
if events != "bare":
    client = valued.Client("s3cret-token", url, shutdown_timeout=float(shutdown_timeout))
    for number in range(int(events)):
        client.action("a", {"user.id": number})
    if events == "1":
        assert client.flush(20)
print(time.time(), flush=True)

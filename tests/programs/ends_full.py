"""Ends with events waiting, or with nothing of ours at all: URL EVENTS SHUTDOWN_TIMEOUT.

EVENTS may be ``bare``: then the same is imported, and no client is made. Prints the time in an
`atexit` handler that runs before ours, and in one that runs after it.
"""

import atexit
import sys
import time

import valued


def say_the_time() -> None:
    print(time.time(), flush=True)


url, events, shutdown_timeout = sys.argv[1:]
atexit.register(say_the_time)
if events != "bare":
    client = valued.Client("s3cret-token", url, shutdown_timeout=float(shutdown_timeout))
    for number in range(int(events)):
        client.action("a", {"user.id": number})
    if events == "1":
        assert client.flush(20)
atexit.register(say_the_time)

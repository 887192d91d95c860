"""Ends while `on_error` is at work, as one does that writes a file: URL."""

import sys
import time
from typing import Any

import valued


def on_error(error: valued.DeliveryError, event: dict[str, Any]) -> None:
    time.sleep(0.3)  # its work; the process's shutdown_timeout is longer
    print(f"{event['key']} failed with {error.status}", flush=True)


client = valued.Client("s3cret-token", sys.argv[1], on_error=on_error)
client.action("the last event", {"user.id": 1})

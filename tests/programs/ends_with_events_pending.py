"""Ends right after recording, while the service answers nothing: URL, shutdown_timeout."""

import json
import logging
import sys
import time

import valued

logging.basicConfig(level=logging.WARNING)
url, shutdown_timeout = sys.argv[1:]
client = valued.Client("s3cret-token", url, shutdown_timeout=float(shutdown_timeout))
for number in range(3):
    client.action(f"key.{number}", {"user.id": 1})
print(json.dumps({"pending": client.stats()["pending"], "ends": time.time()}), flush=True)

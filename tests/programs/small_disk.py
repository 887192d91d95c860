"""An outbox on a file system that becomes full, and has room again: FOLDER URL.

FOLDER is one of 64 KiB. Says ``full`` when events no longer fit, and goes on with a line of its
standard input. Then says, as JSON, what happened to each event.
"""

import json
import sys
import time

import valued

folder, url = sys.argv[1:]
EVENTS = 250
client = valued.Client("token", url, outbox=f"{folder}/outbox")
for number in range(EVENTS):
    client.action("before", {"user.id": number, "attributes.note": "n" * 500})
assert 0 < client.stats()["unsaved"] < EVENTS, client.stats()
print("full", flush=True)
sys.stdin.readline()
assert client.flush(30), client.stats()

number = EVENTS
is_again_on_disk = False
deadline = time.monotonic() + 10
while not is_again_on_disk and time.monotonic() < deadline:
    unsaved = client.stats()["unsaved"]
    client.action("after", {"user.id": number})
    number += 1
    is_again_on_disk = client.stats()["unsaved"] == unsaved
    assert client.flush(30)
assert is_again_on_disk, client.stats()
assert client.close(30)
print(json.dumps({**client.stats(), "recorded": number}), flush=True)

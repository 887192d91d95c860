"""A process that has no free descriptor: OUTBOX URL WHEN.

WHEN: "first" (before its first event), "later" (after some), or "pending" (while some wait). Then
it calls everything that tells or ends something, frees descriptors, and delivers the rest.
"""

import json
import os
import resource
import sys

import valued
from tests.support.left import record_all

outbox, url, when = sys.argv[1:]
client = valued.Client("token", url, outbox=outbox)
recorded = 0
if when != "first":
    record_all(client, range(5))
    recorded = 5
if when == "later":
    assert client.flush(20)

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
held = []
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass

seen = [client.stats()]
record_all(client, range(recorded, recorded + 5))
client.flush(0.1)
client.adopt()
seen.append(client.stats())
client.park(0.1)
valued.flush_all(0.1)
client.close(0.1)
seen.append(client.stats())
lost = seen[-1]["dropped"]

for descriptor in held:
    os.close(descriptor)
record_all(client, [100])
client.adopt()
assert client.flush(20), client.stats()
assert client.close(20)
print(json.dumps({"lost": lost, "recorded": recorded + 5, "stats": client.stats(), "seen": seen}))

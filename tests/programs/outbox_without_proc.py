"""A process that sees no /proc: OUTBOX URL.

It records events, and calls all that tells or ends something.
"""

import json
import os
import sys

import valued
from tests.support.left import record_all

outbox, url = sys.argv[1:]
assert not os.path.exists("/proc/self")
client = valued.Client("token", url, outbox=outbox)
first = client.stats()
record_all(client, range(5))
assert client.flush(20)
client.adopt()
assert client.park(5)
record_all(client, range(5, 10))
pid = os.fork()
if pid == 0:
    record_all(client, range(10, 15))
    client.stats()
    assert client.close(20)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert client.close(20)
print(json.dumps({"first": first, "stats": client.stats()}))

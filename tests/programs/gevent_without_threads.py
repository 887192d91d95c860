"""gevent with threads of the system: what is open after a number of connections."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all(thread=False)

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402

import valued  # noqa: E402

connection = valued.Connection("test-token", sys.argv[1])
for _ in range(int(sys.argv[2])):
    connection.close()
    connection({"category": "action", "key": "one", "user": {"id": 1}})
print(json.dumps([len(os.listdir(f"/proc/self/{what}")) for what in ("fd", "task")]))

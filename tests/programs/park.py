"""A master that sends at boot, parks, and forks: URL. A warning of the fork gets to stderr."""

import os
import sys
import threading
import warnings

import valued

warnings.simplefilter("always")
client = valued.Client("token", sys.argv[1])
for _ in range(50):
    client.action("boot", {"user.id": 1})
threads = threading.active_count()
assert client.park(10), client.stats()
assert threads > 1
assert threading.active_count() == 1
for _ in range(20):
    pid = os.fork()  # the warning would be raised here, from 3.12 on
    if pid == 0:
        client.action("child", {"user.id": 2})
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    client.action("between", {"user.id": 1})  # threads start anew
    assert client.park(10)
assert client.park(0)  # again

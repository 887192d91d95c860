"""A hook that was registered before the library's records an event in the child: hook URL."""

import os
import sys

clients = []


def hook() -> None:
    for client in clients:
        client.action("hook", {"user.id": 3})


os.register_at_fork(after_in_child=hook)

import valued  # noqa: E402 - that is what the program is about

client = valued.Client("token", sys.argv[1])
client.action("parent", {"user.id": 1})
assert client.flush(10)
clients.append(client)
pid = os.fork()
if pid == 0:
    assert client.stats()["accepted"] == 1
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

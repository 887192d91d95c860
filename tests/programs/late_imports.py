"""What is imported from the making of a client to its end: URL [OUTBOX]. Prints it, as JSON.

A child that is forked while a thread imports a module can't import that one ever.
"""

import importlib.abc
import json
import sys
import threading

import valued

URL, *OUTBOX = sys.argv[1:]
found: list[str] = []


class Finder(importlib.abc.MetaPathFinder):
    """Finds nothing, and notes what is looked for."""

    def find_spec(self, fullname: str, *_more: object) -> None:
        found.append(f"{fullname} on {threading.current_thread().name}")


client = valued.Client("token", URL, outbox=OUTBOX[0] if OUTBOX else None, durability="power")
sys.meta_path.insert(0, Finder())
client.action("delivered", {"user.id": 1})
assert client.flush(10)
client.action("refused", {"user.id": 1})
client.action("tried again", {"user.id": 1})
assert client.flush(10)
assert client.stats()["delivered"] == 2
assert client.close(10)
print(json.dumps(found))

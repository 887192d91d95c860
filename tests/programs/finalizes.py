"""Records where the interpreter shuts down: URL ROAD."""

import atexit
import gc
import sys

import valued

URL, ROAD = sys.argv[1:]


class Recorder:
    """Records an event when it is finalized."""

    def __init__(self, client: valued.Client, key: str) -> None:
        self._client = client
        self._key = key

    def __del__(self) -> None:
        self._client.action(self._key, {"user.id": 1})
        here = self._client._sender._here.get()  # `stats` asks for the pid, by psutil
        print("dropped:", here.stats()["dropped_by_reason"]["exit"], flush=True)


client = valued.Client("token", URL, shutdown_timeout=0.5)
if "first" not in ROAD:
    client.action("one", {"user.id": 1})

if ROAD == "del of a global" or ROAD == "first event in del of a global":
    kept = Recorder(client, "two")
elif ROAD == "del in a cycle":
    kept = Recorder(client, "two")
    kept.itself = kept  # type: ignore[attr-defined]
    gc.disable()
    del kept
elif ROAD == "del in an atexit handler":
    holder = [Recorder(client, "two")]
    atexit.register(holder.clear)
elif ROAD == "del after close in an atexit handler":
    kept = Recorder(client, "two")
    atexit.register(client.close)
elif ROAD == "many":
    kept = [Recorder(client, f"two {number}") for number in range(20)]  # type: ignore[assignment]

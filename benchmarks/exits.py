"""What the end of a process takes with nothing pending, against a bare process's.

Each is a fresh process, in turns: one that imports the library and makes nothing, one with a client
that recorded nothing, one whose event was delivered. Prints medians, in milliseconds, from the last
line of the program to the end of its process. It holds when both are within 50 ms of the bare one.

    python benchmarks/exits.py [ROUNDS]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

BOUND = 50.0

PROGRAM = """
import sys, time, requests, valued
if sys.argv[2] != "bare":
    client = valued.Client("token", sys.argv[1])
if sys.argv[2] == "one event, delivered":
    client.action("a", {"user.id": 1})
    assert client.flush(20)
print(time.time(), flush=True)
"""
SUBJECTS = ("bare", "a client, no event", "one event, delivered")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        pass


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/events"
    times: dict[str, list[float]] = {subject: [] for subject in SUBJECTS}
    for _ in range(rounds):
        for subject, taken in times.items():
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, url, subject],
                stdout=subprocess.PIPE, text=True, check=True, timeout=60,
                env={**os.environ, "VALUED_ENV": "production"},
            )  # fmt: skip
            taken.append((time.time() - float(done.stdout)) * 1e3)
    medians = {subject: statistics.median(taken) for subject, taken in times.items()}
    print(f"Python {sys.version.split()[0]}, {rounds} rounds")
    for subject, taken in medians.items():
        print(f"{subject:22} {taken:7.1f} ms   {taken - medians['bare']:+6.1f} ms")
    held = all(taken - medians["bare"] < BOUND for taken in medians.values())
    print("It held." if held else "It did not hold.")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())

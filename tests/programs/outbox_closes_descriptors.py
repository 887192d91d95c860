"""A process that closes descriptors which aren't its own, as python-daemon does: OUTBOX URL.

It records an event, closes all descriptors from 3 on, opens sockets and files that get the same
numbers, and records more. It says as JSON what was written into those, and what the client says.
URL: a service, or empty: then nothing is sent, and the process is killed.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from typing import Any

import valued
from tests.support.left import Never, record_all

outbox, url = sys.argv[1:]
options: dict[str, Any] = {} if url else {"executor": Never()}
client = valued.Client("secret-token", url or "http://127.0.0.1:9/events", outbox=outbox, **options)
record_all(client, range(5))
if url:
    assert client.flush(20)
before = {int(name) for name in os.listdir("/dev/fd")}
os.closerange(3, 1024)

pairs = [socket.socketpair() for _ in range(20)]
files = [tempfile.TemporaryFile() for _ in range(20)]
flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
appended = [os.open(os.path.join(outbox, f"other-{n}"), flags) for n in range(3)]
pipes = [os.pipe() for _ in range(3)]
reused = {one.fileno() for pair in pairs for one in pair} | {file.fileno() for file in files}
reused |= {*appended, *(end for pipe in pipes for end in pipe)}
for number in before - {0, 1, 2} - reused:  # high ones, which the system gives out last
    os.dup2(files[0].fileno(), number)

record_all(client, range(5, 25))
settled = closed = True
began = time.monotonic()
if url:
    settled, closed = client.flush(20), client.close(20)
seconds = time.monotonic() - began
stats = client.stats()

written = []
for pair in pairs:
    for one in pair:
        one.setblocking(False)  # of a socket that was closed, this raises
        with contextlib.suppress(BlockingIOError):
            written.append(one.recv(100).decode("latin-1"))
for file in files:
    file.seek(0)
    written.append(file.read(100).decode("latin-1"))
for descriptor in appended:
    written.append(os.pread(descriptor, 100, 0).decode("latin-1"))
for read, write in pipes:
    os.set_blocking(read, False)
    os.write(write, b"ours")
    written.append(os.read(read, 100).decode("latin-1").replace("ours", "", 1))
said = {"written": [*filter(None, written)], "settled": settled, "closed": closed}
said |= {"seconds": seconds, "stats": stats}
print(json.dumps(said), flush=True)
if not url:
    os.kill(os.getpid(), signal.SIGKILL)

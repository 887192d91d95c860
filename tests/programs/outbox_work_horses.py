"""A worker as that of RQ, with a process for each job: OUTBOX FILE JOBS. FILE: see `Sink`."""

import os
import pathlib
import sys

import valued
from tests.support.left import Sink, adopt_all, record_all

outbox, path, jobs = sys.argv[1:]
client = valued.Client(Sink(pathlib.Path(path)), outbox=outbox)
for number in range(int(jobs)):
    pid = os.fork()
    if pid == 0:
        try:
            record_all(client, [number])
            assert client.flush(20)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
adopt_all(client, pathlib.Path(outbox))
assert client.close(20)

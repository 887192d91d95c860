"""A process that adopts, and ends at once: OUTBOX FILE SHUTDOWN_TIMEOUT. FILE: see `Sink`."""

import pathlib
import sys

import valued
from tests.support.left import Sink

outbox, path, shutdown_timeout = sys.argv[1:]
sink = Sink(pathlib.Path(path))
client = valued.Client(sink, outbox=outbox, shutdown_timeout=float(shutdown_timeout))
assert client.adopt() > 0

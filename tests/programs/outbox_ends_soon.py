"""A short process that records one event, and ends: OUTBOX FILE MAX_AGE. FILE: see `Sink`.

What it logs goes to standard error, as there is no handler.
"""

import pathlib
import sys

import valued
from tests.support.left import Sink, record_all

outbox, path, max_age = sys.argv[1:]
client = valued.Client(
    Sink(pathlib.Path(path)),
    outbox=outbox,
    outbox_max_age=float(max_age),
    shutdown_timeout=5.0,
)
client.adopt()
record_all(client, [1_000_000])

"""What the applications of the soak record, and their journal of the calls that returned."""

from __future__ import annotations

import json
import logging
import os

import valued

logging.basicConfig(format="%(process)d %(name)s: %(message)s")  # on the error stream

# Each line is one write at the end of the file, so that processes don't mix them.
_journal = os.open(os.environ["JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def record(id: str, expected: str | None) -> None:
    """An event of the scope's user, who has to be *expected*; it needs no user, as nobody's do."""
    attributes = {"id": id, "expected": expected, "pid": os.getpid()}
    valued.action("step", {"customer": {"id": "any"}, "attributes": attributes})
    note = {"what": "recorded", "id": id, "expected": expected, "pid": os.getpid()}
    os.write(_journal, json.dumps(note).encode() + b"\n")

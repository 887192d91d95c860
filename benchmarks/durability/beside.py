"""What a call costs its caller in memory, and with an outbox: in turns, in one process."""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Final

from benchmarks.bench import serve
from benchmarks.caller.blocks import BLOCK, in_blocks
from benchmarks.senders import DATA, KEY, never_sending, outbox_options

WRITE: Final = "in memory, then one bare write"


def main(calls: int) -> dict[str, float]:
    """Microseconds, medians: of a call in memory, of one with an outbox, of a third.

    That is a call in memory and one bare ``write`` to a file, of as many bytes as the outbox
    writes for an event. *beyond* is what goes beyond the call in memory next to it.
    """
    room = calls + 2 * BLOCK
    options = outbox_options("process")
    folder = Path(options["outbox"])
    in_memory, on_disk, before = (never_sending(room, **more) for more in ({}, options, {}))
    on_disk.action(KEY, DATA)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    number = os.open(folder.parent / "bare", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def and_write() -> None:
        before.action(KEY, DATA)
        os.write(number, b"x" * size)

    taken = in_blocks(
        {
            "in memory": lambda: in_memory.action(KEY, DATA),
            "outbox": lambda: on_disk.action(KEY, DATA),
            "write": and_write,
        },
        calls,
    )
    for block in taken:
        block["beyond"] = block["outbox"] - block["in memory"]
        block["beyond, write"] = block["write"] - block["in memory"]
    return {name: statistics.median(block[name] for block in taken) for name in taken[0]}


if __name__ == "__main__":
    serve(main)

"""Events that the service refused permanently, kept with its answer for people to look at."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from typing import TYPE_CHECKING, Final

from valued._outbox import records
from valued._outbox.disk import append, read_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from valued._errors import DeliveryError
    from valued._outbox.disk import Disk
    from valued._outbox.owners import OutboxPaths
    from valued._outbox.store import Store

#: Bytes of a file of rejected events, and of all such files. The oldest file is removed: after
#: thousands of rejected events the latest ones are the useful ones.
REJECTED_FILE: Final = 1024 * 1024
REJECTED_BYTES: Final = 16 * REJECTED_FILE


class Rejections:
    """Any thread may call; nothing raises an `Exception`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._numbers = itertools.count(1)
        self._path = ""

    def reject(self, key: str, body: bytes, error: DeliveryError) -> None:
        """See `Journal.reject`."""
        try:
            self._keep(key, body, error)
        except Exception as trouble:  # noqa: BLE001 - a user's transport made event and answer
            self._store.reporter.warn(
                "rejected", "%d rejected events could not be stored: %s", trouble
            )

    def _keep(self, key: str, body: bytes, error: DeliveryError) -> None:
        store = self._store
        payload = {
            "idempotency_key": key,
            "status": error.status,
            "reason": error.reason,
            "body": error.body,
            "attempts": error.attempts,
            "event": json.loads(body),
        }
        # With a transport of the user the answer may be anything.
        content = json.dumps(payload, default=str).encode()
        wall = store.wall()
        record = records.encode(records.REJECTED, next(self._numbers), wall, content)
        path = self._path
        if not path or _size(store.disk, path) >= REJECTED_FILE:
            if store.owner is None:
                store.paths.make(store.disk)
            name = f"{int(wall * 1e9):020d}-{os.urandom(4).hex()}"
            path = os.path.join(store.paths.rejected, name)
            self._make_room()
        append(store.disk, path, record)
        self._path = path

    def _make_room(self) -> None:
        store = self._store
        total = REJECTED_FILE
        for path in reversed(rejected_paths(store.disk, store.paths)):
            total += _size(store.disk, path)
            if total <= REJECTED_BYTES:
                continue
            with contextlib.suppress(OSError):  # another process was faster; or it isn't a file
                store.disk.unlink(path)
                store.reporter.warn(
                    "forgotten",
                    "%d of the oldest files of rejected events were removed: together they "
                    "exceeded %d bytes",
                    REJECTED_BYTES,
                )


def _size(disk: Disk, path: str) -> int:
    try:
        return disk.lstat(path).st_size
    except OSError:  # removed meanwhile, for example
        return 0


def rejected_paths(disk: Disk, paths: OutboxPaths) -> list[str]:
    """The files of rejected events, the oldest first. Raises `OSError`."""
    try:
        return [os.path.join(paths.rejected, name) for name in sorted(disk.listdir(paths.rejected))]
    except FileNotFoundError:
        return []


def read_rejected(disk: Disk, path: str) -> Iterator[records.Record]:
    """The records of one such file; none, if it can't be read."""
    with contextlib.suppress(OSError):
        for found in records.scan(read_file(disk, path)):
            if isinstance(found, records.Record) and found.kind == records.REJECTED:
                yield found

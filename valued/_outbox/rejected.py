"""Events that the service refused permanently, kept with its answer for people to look at."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from typing import TYPE_CHECKING, Final

from valued._outbox import records
from valued._outbox.disk import append_once, open_for_reading

if TYPE_CHECKING:
    from collections.abc import Iterator

    from valued._errors import DeliveryError
    from valued._outbox.disk import Disk
    from valued._outbox.paths import OutboxPaths
    from valued._outbox.workspace import Workspace

#: Bytes of a file of rejected events, and of all such files. The oldest file is removed: after
#: thousands of rejected events the latest ones are the useful ones.
REJECTED_FILE: Final = 1024 * 1024
REJECTED_BYTES: Final = 16 * REJECTED_FILE


class Rejections:
    """Any thread may call; nothing raises an `Exception`."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._numbers = itertools.count(1)
        self._path = ""

    def reject(self, key: str, body: bytes, error: DeliveryError) -> None:
        """See `Journal.reject`."""
        try:
            self._store(key, body, error)
        except Exception as trouble:  # noqa: BLE001 - a user's transport made event and answer
            self._workspace.reporter.warn(
                "rejected", "%d rejected events could not be stored: %s", trouble
            )

    def _store(self, key: str, body: bytes, error: DeliveryError) -> None:
        workspace = self._workspace
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
        wall = workspace.wall()
        record = records.encode(records.REJECTED, next(self._numbers), wall, content)
        path = self._path
        if not path or self._size(path) >= REJECTED_FILE:
            if workspace.owner is None:
                workspace.paths.make(workspace.disk)
            name = f"{int(wall * 1e9):020d}-{os.urandom(4).hex()}"
            path = os.path.join(workspace.paths.rejected, name)
            self._make_room()
        append_once(workspace.disk, path, record)
        self._path = path

    def _size(self, path: str) -> int:
        try:
            return self._workspace.disk.lstat(path).st_size
        except OSError:  # removed meanwhile, for example
            return 0

    def _make_room(self) -> None:
        workspace = self._workspace
        total = REJECTED_FILE
        for path in reversed(rejected_paths(workspace.disk, workspace.paths)):
            total += self._size(path)
            if total <= REJECTED_BYTES:
                continue
            with contextlib.suppress(OSError):  # another process was faster; or it isn't a file
                workspace.disk.unlink(path)
                workspace.reporter.warn(
                    "forgotten",
                    "%d of the oldest files of rejected events were removed: together they "
                    "exceeded %d bytes",
                    REJECTED_BYTES,
                )


def rejected_paths(disk: Disk, paths: OutboxPaths) -> list[str]:
    """The files of rejected events, the oldest first. Raises `OSError`."""
    try:
        return [os.path.join(paths.rejected, name) for name in sorted(disk.listdir(paths.rejected))]
    except FileNotFoundError:
        return []


def read_rejected(disk: Disk, path: str) -> Iterator[records.Record]:
    """The records of one such file, up to where it can't be read."""
    with contextlib.suppress(OSError):
        descriptor, status = open_for_reading(disk, path)
        try:
            read_at = lambda count, position: disk.pread(descriptor, count, position)  # noqa: E731
            for found in records.scan(read_at, 0, status.st_size):
                if isinstance(found, records.Record) and found.kind == records.REJECTED:
                    yield found
        finally:
            disk.close(descriptor)

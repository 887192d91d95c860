"""What a client sends with: a connection, an object with ``post``, or a callable.

Importing `Connection` is costly, so nothing here does.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from valued._http.connection import Connection
    from valued._typing import BytesTransport, SendBytes


def as_connection(transport: object) -> Connection | None:
    """*transport* if it is a `Connection`."""
    # Where the class isn't imported, there is none.
    module = sys.modules.get("valued._http.connection")
    return transport if module and isinstance(transport, module.Connection) else None


def posting(transport: object) -> BytesTransport | None:
    """*transport* if it gets events as bytes; one that can be called as well gets a dict."""
    if callable(transport) or not hasattr(transport, "post"):
        return as_connection(transport)
    return cast("BytesTransport", transport)


def send_dict(transport: Any) -> SendBytes:
    """*transport* as the pipeline calls one: with a dict of its own, decoded from what is sent."""

    def deliver(body: bytes, _idempotency_key: str, _timeout: float) -> None:
        transport(json.loads(body))

    return deliver

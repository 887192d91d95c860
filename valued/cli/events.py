"""``valued action``, ``page-view``, ``sync-user``, ``sync-customer``: one event, now."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

from valued.cli import delivery, render

if TYPE_CHECKING:
    import argparse

    import valued

#: Attempts after the first: who waits at a terminal is to hear of a wrong endpoint in seconds.
RETRIES = 2

#: Seconds for one attempt, for the same reason.
TIMEOUT = 5.0


def run(arguments: argparse.Namespace) -> int:
    """Send the event and wait until it is delivered, or given up, which is told."""
    reasons: list[str] = []

    def on_error(error: valued.DeliveryError, _event: object) -> None:
        reasons.append(str(error))

    with delivery.client(
        arguments.token, arguments.endpoint, retries=RETRIES, timeout=TIMEOUT, on_error=on_error
    ) as client:
        _record(client, arguments)
        collections.deque(delivery.settle(client), maxlen=0)
    for reason in reasons:
        render.complain(f"not delivered: {reason}")
    return 1 if reasons else 0


def _record(client: valued.Client, arguments: argparse.Namespace) -> None:
    data = dict(arguments.pairs)
    match arguments.command:
        case "action":
            client.action(arguments.subject, data)
        case "page-view":
            client.page_view(arguments.subject, data)
        case "sync-user":
            client.sync_user(data)
        case _:
            client.sync_customer(data)

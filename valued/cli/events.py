"""``valued action``, ``page-view``, ``sync-user``, ``sync-customer``: send one event now."""

from __future__ import annotations

import collections
import contextlib
from typing import TYPE_CHECKING, Any

import valued
from valued._service import render
from valued.cli import delivery, values

if TYPE_CHECKING:
    import argparse

#: Attempts after the first: at a terminal, a wrong endpoint should be reported within seconds.
RETRIES = 2

#: Seconds for one attempt, for the same reason.
TIMEOUT = 5.0


def run(arguments: argparse.Namespace) -> int:
    """Send the event, wait until it is delivered or fails permanently, and print which."""
    reasons: list[str] = []

    def on_error(error: valued.DeliveryError, _event: object) -> None:
        reasons.append(str(error))

    data = {name: values.parsed(text) for name, text in arguments.pairs}
    with contextlib.ExitStack() as stack:
        # Of this thread: what is wrong with the call. The result of the delivery is printed below.
        with delivery.warnings(render.Progress(), of_this_thread=True):
            client = stack.enter_context(
                delivery.client(
                    *(arguments.token, arguments.endpoint),
                    retries=RETRIES,
                    timeout=TIMEOUT,
                    on_error=on_error,
                )
            )
            if not arguments.quiet:
                _remark(arguments)
            _record(client, arguments, data)
        collections.deque(delivery.settle(client), maxlen=0)
    if delivery.is_off() and not delivery.is_recorded():
        render.complain(delivery.OFF)
        return 1
    for reason in reasons:
        render.complain(f"not delivered: {reason}")
    if not reasons and not arguments.quiet:
        print(render.line(f"{_named(arguments, data)} was {_fate(arguments)}"))
    return 1 if reasons else 0


def _fate(arguments: argparse.Namespace) -> str:
    if delivery.is_recorded():
        return "recorded for a test, and not sent"
    endpoint = valued.Connection(arguments.token, arguments.endpoint).endpoint
    # Without the query, which may contain something secret.
    return f"delivered to {endpoint.partition('?')[0]}"


def _record(client: valued.Client, arguments: argparse.Namespace, data: dict[str, Any]) -> None:
    match arguments.command:
        case "action":
            client.action(arguments.subject, data)
        case "page-view":
            client.page_view(arguments.subject, data)
        case "sync-user":
            client.sync_user(data)
        case _:
            client.sync_customer(data)


def _remark(arguments: argparse.Namespace) -> None:
    """Point out values that are sent as strings but look like something else."""
    for name, text in arguments.pairs:
        remark = values.remark(name, text)
        if remark is not None:
            render.complain(remark)


def _named(arguments: argparse.Namespace, data: dict[str, Any]) -> str:
    match arguments.command:
        case "action":
            return f"action {arguments.subject}"
        case "page-view":
            return f"page view of {arguments.subject}"
        case "sync-user":
            return f"sync of user {data['id']}"
        case _:
            return f"sync of customer {data['id']}"

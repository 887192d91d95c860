"""The few looks inside a client that tests can't do without, in one place."""

from __future__ import annotations

from typing import Any

import valued


def pipeline_of(client: valued.Client) -> Any:
    """What this process delivers with; None: it has recorded nothing."""
    return client._sender._here.peek()


def is_postponed(client: valued.Client) -> bool:
    """Whether an event waits for its retry."""
    queue = pipeline_of(client)._queue
    with queue.lock:
        return queue.next_due() is not None


def make_due(client: valued.Client) -> None:
    """Make retries and probes due now."""
    here = pipeline_of(client)
    if here is not None:
        here._make_all_due()


def is_breaker_open(client: valued.Client) -> bool:
    """Whether the circuit breaker lets probes pass only."""
    return bool(pipeline_of(client)._breaker.is_open)


def workers_of(client: valued.Client) -> int:
    """How many workers are under way."""
    return len(pipeline_of(client)._workers._present)

"""Celery: the ids of the user and the customer travel with each task.

>>> carry_scope()  # in the module that makes the Celery application

And events may go through its broker: see `delivery_task` and `Relay`.

Each task has a scope of its own as soon as a client is made, without this module; it starts with
the client's *defaults*. With `carry_scope` it starts with the user and the customer of the code
that published it.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from celery import signals  # type: ignore[import-untyped,unused-ignore]

import valued
from valued.integrations._celery_delivery import QUEUES, Relay, delivery_task
from valued.integrations._ids import is_id, known

__all__ = ["HEADER", "Relay", "carry_scope", "delivery_task"]

#: The header of a message that holds the ids.
HEADER: Final = "valued_scope"

#: By which Celery knows these receivers, and those that a client connects.
_UID: Final = "valued.carry_scope"
_CLIENT: Final = "valued"

_PARTIES: Final = ("user", "customer")

_keys: tuple[str, ...] = ()

#: The block with the ids of the task that runs in this context.
_block: Final[contextvars.ContextVar[contextlib.ExitStack | None]] = contextvars.ContextVar(
    "valued_carried_ids", default=None
)


def carry_scope(keys: Iterable[str] = ("user.id", "customer.id")) -> None:
    """Let ids of the shared scope travel with each task that this process publishes or runs.

    Call it in the module that makes the Celery application, which the web process and the worker
    both import. *keys* (default ``("user.id", "customer.id")``): which ids; ids in the attributes,
    such as ``"attributes.tenant_id"``, work, too. Names and addresses don't travel. Raises
    `valued.ValidationError` for any other key.

    The ids go into a header of the message with each publish, so a retry, or the next task of a
    chain, has those that the scope has then. In the task, the user and the customer are replaced as
    a whole, before the application's receivers of ``task_prerun`` run, and they end with the task.
    Tasks that run eagerly keep the scope of their caller.

    It raises nothing later: if an id can't be read, the task is published without it, and that is
    logged. If nothing is connected, nothing travels. Any thread may call. A later call replaces the
    keys. Forked children do as their parent did.
    """
    global _keys
    _keys = _checked(keys)
    for signal, receiver in (
        (signals.before_task_publish, _publish),
        (signals.task_prerun, _begin),
        (signals.task_postrun, _end),
    ):
        signal.connect(receiver, weak=False, dispatch_uid=_UID)
    _move(signals.task_prerun, last=False)


def _checked(keys: object) -> tuple[str, ...]:
    """*keys*, each once. Raises `ValidationError` for a key that doesn't name an id."""
    if isinstance(keys, (str, Mapping)) or not isinstance(keys, Iterable):
        raise valued.ValidationError(
            "carry_scope: expected keys such as ('user.id', 'customer.id'), "
            f"got {type(keys).__name__}"
        )
    found = tuple(keys)
    for key in found:
        if not isinstance(key, str) or not _is_key(key):
            shown = repr(key) if isinstance(key, str) else type(key).__name__
            raise valued.ValidationError(
                "carry_scope: expected the key of an id: 'user.id', 'customer.id', or one such as "
                f"'attributes.tenant_id', got {shown}; only ids travel through a broker"
            )
    return tuple(dict.fromkeys(found))


def _is_key(key: str) -> bool:
    first, *rest = key.split(".")
    if first in _PARTIES:
        return rest == ["id"]
    return first == "attributes" and all(rest) and f"_{'.'.join(rest)}".endswith(("_id", ".id"))


def _publish(sender: object = None, headers: Any = None, **_signal: Any) -> None:
    # Those of another publish: a retry copies them, and so may a stamp.
    headers.pop(HEADER, None)
    if sender in QUEUES:
        return  # an event of any scope
    # As a string: there are brokers that refuse large numbers, or mappings, in a header.
    if ids := known(_keys, "a task"):
        headers[HEADER] = json.dumps(ids)


def _carried(request: Any) -> dict[str, int | str]:
    """The ids that came with a task; none where the header is not one of `_publish`."""
    try:
        ids = json.loads(request.get(HEADER))
    except (TypeError, ValueError):
        return {}
    if not isinstance(ids, dict):
        return {}
    return {key: ids[key] for key in _keys if is_id(ids.get(key))}


def _begin(task: Any = None, **_signal: Any) -> None:
    if task.request.is_eager:
        return
    # Again for each task: receivers that were connected since then are called in the block, too.
    _move(signals.task_postrun, last=True)
    ids = _carried(task.request)
    if ids and valued.connected():
        block = contextlib.ExitStack()
        # A client that doesn't isolate tasks keeps what they set, but not these.
        block.enter_context(valued.nested())
        _block.set(block)
        for key, value in ids.items():
            party = key.partition(".")[0]
            if party in _PARTIES:
                # As a whole: with what is known of another user it would be a mixture of two.
                valued.scope[party] = {"id": value}
            else:
                valued.scope[key] = value


def _end(task: Any = None, **_signal: Any) -> None:
    block = _block.get()
    if block is not None and not task.request.is_eager:
        _block.set(None)
        block.close()


def _move(signal: Any, *, last: bool) -> None:
    """Have our receiver called first, or last; but within the scope that the client makes."""
    ranks = {_CLIENT: 2, _UID: 1} if last else {_CLIENT: -2, _UID: -1}
    with signal.lock:
        receivers = signal.receivers
        ordered = sorted(receivers, key=lambda entry: ranks.get(entry[0][0], 0))
        if ordered != receivers:
            receivers[:] = ordered  # in place: Celery keeps the list

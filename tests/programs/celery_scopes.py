"""A Celery application whose events say whom they belong to, and a publisher of its tasks.

Each task is given the user that it has to have: the event has it as ``expected``, beside the user
that the scope had. The environment says where the broker is, and what is turned on.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

from celery import Celery, Task, chain, chord, group, signals
from celery.canvas import StampingVisitor

import valued

app = Celery("celery_scopes", broker=os.environ["BROKER"])
app.conf.task_protocol = int(os.environ.get("PROTOCOL", "2"))
if "FOLDER" in os.environ:
    app.conf.task_ignore_result = True
    app.conf.broker_transport_options = {
        **dict.fromkeys(("data_folder_in", "data_folder_out"), os.environ["FOLDER"]),
        "control_folder": os.environ["FOLDER"] + "-control",
    }
else:
    app.conf.result_backend = os.environ["BROKER"]


def record(what: str, expected: object) -> None:
    for scope in (valued.scope, other):
        scope.action(what, {"customer": {"id": "c"}, "attributes": {"expected": expected}})


# Connected before the client is made, and so before its own receivers.
@signals.task_prerun.connect
def _user_of_the_application(task: Task, args: Any, **_: Any) -> None:
    if task.name == welcomed.name:
        valued.scope.user_id = other.user_id = args[0]


@signals.task_postrun.connect
def _report_before(task: Task, args: Any, **_: Any) -> None:
    if task.name == reported.name:
        record("before", args[0])


if "CARRY" in os.environ:
    from valued.integrations.celery import carry_scope

    carry_scope()

client = valued.connect()
other = valued.Scope(client)


@signals.task_postrun.connect
def _report_after(task: Task, args: Any, **_: Any) -> None:
    if task.name == reported.name:
        record("after", args[0])


@app.task
def sets(user: int) -> None:
    valued.scope.user_id = other.user_id = user
    record("sets", user)


@app.task
def has(user: int | None) -> None:
    record("has", user)


@app.task
def welcomed(user: int) -> None:
    """A receiver has set its user."""
    record("welcomed", user)


@app.task
def reported(user: int | None) -> None:
    """Receivers record events at its end."""
    if user is not None:
        valued.scope.user_id = other.user_id = user


barrier = threading.Barrier(2)


@app.task
def meets(user: int) -> None:
    """Runs beside another one, so that each sets its user before the other one records."""
    valued.scope.user_id = other.user_id = user
    barrier.wait(20)
    record("meets", user)


# -- ids that are carried --------------------------------------------------------------------------


def report(what: str, expected: object) -> None:
    """Record what was carried: the user's id has to be *expected*, the customer's twice that."""
    nobody = {"customer": {"id": "nobody"}} if expected is None else {}
    valued.action(what, {"attributes": {"expected": expected}, **nobody})


@app.task
def carry(*expected: Any) -> Any:
    """*expected*: the last one counts; before it is what the task before this one returned."""
    report("carry", expected[-1])
    return expected[-1]


@app.task(bind=True, max_retries=2)
def again(self: Task, expected: Any, forgets: bool = False) -> None:
    """Runs three times."""
    report("again", None if forgets and self.request.retries else expected)
    if forgets:
        valued.scope.user = valued.scope.customer = None
    if self.request.retries < self.max_retries:
        raise self.retry(countdown=0)


@app.task
def publishes(expected: Any) -> None:
    carry.delay(expected)


class Copies(StampingVisitor):
    """Hands on headers of another message, as a visitor may."""

    def on_signature(self, signature: Any, **_headers: Any) -> dict[str, Any]:
        signature.options["headers"] = {"valued_scope": STOLEN}
        return {"mark": "1"}


STOLEN = json.dumps({"user.id": 666, "customer.id": 666})


def publish(user: int | None) -> int:
    """Each way to publish, by *user*. How many events it makes."""
    carry.delay(user)
    carry.apply_async((user,), headers={"valued_scope": STOLEN})
    carry.si(user).apply_async()
    app.send_task("celery_scopes.carry", (user,))
    again.delay(user)
    again.delay(user, forgets=True)
    publishes.delay(user)
    chain(carry.si(user), carry.s(), carry.si(user))()
    group(carry.si(user), carry.si(user))()
    stamped = carry.si(user)
    stamped.stamp(Copies())
    stamped.apply_async()
    carry.apply((user,))
    if app.conf.task_protocol == 1:  # which has no chords
        return 18
    chord([carry.si(user), carry.si(user)], carry.si(user))()
    (carry.si(user) | group(carry.si(user), carry.si(user)) | carry.si(user))()
    return 25


if __name__ == "__main__":
    count = 0
    for number in json.loads(sys.argv[1]):
        with valued.isolated():
            if number is not None:
                valued.scope.apply(user={"id": number, "name": "Ada"}, customer={"id": 2 * number})
            if sys.argv[2:]:
                carry.delay(number)
            else:
                count += publish(number)
    print(count)

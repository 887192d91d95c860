"""A Celery application whose broker takes events: its workers deliver them.

The environment says where the broker is (BROKER), after how many seconds Redis gives messages out
again (VISIBLE), and where refused events are kept (REJECTED).
"""

from __future__ import annotations

import os

from celery import Celery

from valued.integrations.celery import delivery_task

app = Celery("celery_delivery", broker=os.environ["BROKER"])
if "VISIBLE" in os.environ:
    app.conf.broker_transport_options = {"visibility_timeout": float(os.environ["VISIBLE"])}
app.conf.worker_prefetch_multiplier = 1
deliver = delivery_task(app, on_rejected=os.environ.get("REJECTED"))

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
    app.conf.broker_transport_options = {
        "visibility_timeout": float(os.environ["VISIBLE"]),
        # By default it looks every 100 s, and a worker that dies as it looks keeps others away.
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 5,
    }
app.conf.worker_prefetch_multiplier = 1
deliver = delivery_task(app, on_rejected=os.environ.get("REJECTED"))

"""A small Django site with a login, whose users have reports made, by Celery.

In one terminal, start the stand-in for the service; in another, all of the site::

    valued listen

    VALUED_TOKEN=any-text VALUED_ENDPOINT=http://127.0.0.1:4567/events \
        python examples/django_project/manage.py demo

Then sign in at http://127.0.0.1:8000 as ``ada`` or ``grace``, with ``secret``, and ask for a
report. What ``valued listen`` shows is of the one who did: a page view, what was asked for, and
what the task has done.

Without more, tasks run within the request. With a broker, a worker runs them, and the user travels
along. With a Redis on this machine, in each terminal of the two that follow::

    export CELERY_BROKER_URL=redis://127.0.0.1:6379/0
    export VALUED_TOKEN=any-text VALUED_ENDPOINT=http://127.0.0.1:4567/events

    python examples/django_project/manage.py demo

    celery --workdir examples/django_project --app reports worker

It needs ``django`` and ``celery``, and ``redis`` for that broker.
"""

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "reports.settings")
    execute_from_command_line(sys.argv)

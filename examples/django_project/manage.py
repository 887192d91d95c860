"""A small Django site with a login, whose users ask for reports that Celery makes.

Start the mock server in one terminal, and the whole site in another::

    valued listen

    VALUED_TOKEN=any-token VALUED_ENDPOINT=http://127.0.0.1:4567/events \
        python examples/django_project/manage.py demo

Then sign in at http://127.0.0.1:8000 as ``ada`` or ``grace``, with the password ``secret``, and ask
for a report. ``valued listen`` shows three events of this user: the page view, the request for the
report, and the report that the task has made.

Without a broker, tasks run in the request. With a broker, a worker runs them, and the user's id is
sent along. With a Redis on this machine, set these in two terminals, and run one command in each::

    export CELERY_BROKER_URL=redis://127.0.0.1:6379/0
    export VALUED_TOKEN=any-token VALUED_ENDPOINT=http://127.0.0.1:4567/events

    python examples/django_project/manage.py demo

    celery --workdir examples/django_project --app reports worker

Needs ``django`` and ``celery``, and ``redis`` for that broker.
"""

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "reports.settings")
    execute_from_command_line(sys.argv)

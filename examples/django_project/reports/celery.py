import os

from celery import Celery

from valued.integrations.celery import carry_scope

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "reports.settings")

app = Celery("reports")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

# The id of the user whose request starts a task travels with it. The web process and the worker
# both import this.
carry_scope()

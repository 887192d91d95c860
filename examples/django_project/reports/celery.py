import os

from celery import Celery

from valued.integrations.celery import carry_scope

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "reports.settings")

app = Celery("reports")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

# Sends the id of the user whose request starts a task along with the task. The web process and the
# worker both import this module.
carry_scope()

# Loads the Celery application with Django: `shared_task` needs it.
from reports.celery import app as celery_app

__all__ = ["celery_app"]

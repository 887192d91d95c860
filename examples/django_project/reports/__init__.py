# So that Django, too, has the Celery application, which `shared_task` needs.
from reports.celery import app as celery_app

__all__ = ["celery_app"]

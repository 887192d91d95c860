from celery import shared_task

import valued


@shared_task
def generate(title: str) -> None:
    pages = len(title)  # a placeholder for the work
    # No user is given here: the event gets the user who asked for the report.
    valued.action("report.generated", attributes={"title": title, "pages": pages})

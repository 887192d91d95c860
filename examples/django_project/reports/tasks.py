from celery import shared_task

import valued


@shared_task
def generate(title: str) -> None:
    pages = len(title)  # stands for the work
    # Nobody is named here: it is who asked for the report.
    valued.action("report.generated", attributes={"title": title, "pages": pages})

"""The tasks of the application, over files."""

import os

import app as application
from celery import Celery

app = Celery("jobs", broker="filesystem://localhost//")
app.conf.task_ignore_result = True
app.conf.broker_transport_options = {
    "data_folder_in": os.environ["FOLDER"],
    "data_folder_out": os.environ["FOLDER"],
    "control_folder": os.environ["FOLDER"] + "-control",
}


@app.task
def work(number):
    application.work(number)

"""The application that the tests run under Gunicorn. The environment tells it what else to do."""

import json
import logging
import os
import time
import urllib.request

from flask import Flask, Response, request

import valued

logging.basicConfig(format="%(name)s: %(message)s")  # on the error stream

# Made at import: in the master with --preload, else in each worker.
client = valued.Client(**json.loads(os.environ.get("CLIENT_OPTIONS", "{}")))
app = Flask(__name__)


def _fields(name: str) -> dict[str, object]:
    return {"user.id": 1, "attributes": {"id": name, "pid": os.getpid()}}


def _ask_the_test() -> None:
    """Wait for the answer of the test, which thereby knows how far this is."""
    urllib.request.urlopen(os.environ["ASK"]).close()


@app.after_request
def page_view(response: Response) -> Response:
    client.page_view(request.url, _fields(request.headers["X-Request-Id"]))
    return response


@app.get("/reports/<int:number>")
def report(number: int) -> dict[str, int]:
    return {"report": number}


@app.post("/reports")
def generate() -> tuple[str, int]:
    client.action("report.generated", _fields(request.headers["X-Request-Id"]))
    return "", 204


@app.post("/hang-in-python")
def hang_in_python() -> None:
    """A signal's handler can still run, and so can threads."""
    _ask_the_test()
    client.action("hanging", _fields(request.headers["X-Request-Id"]))
    time.sleep(600)


@app.post("/hang-in-c")
def hang_in_c() -> None:
    """Nothing else can run: the interpreter's lock is held."""
    _ask_the_test()
    client.action("hanging", _fields(request.headers["X-Request-Id"]))
    sum(range(10**15))


AT_IMPORT = os.environ.get("AT_IMPORT")
if AT_IMPORT is not None:
    for number in range(20):
        client.action("imported", _fields(f"import-{os.getpid()}-{number}"))
if AT_IMPORT == "until told":
    _ask_the_test()
elif AT_IMPORT == "until idle":
    assert client.flush(10)
elif AT_IMPORT == "until parked":
    assert client.park(10)

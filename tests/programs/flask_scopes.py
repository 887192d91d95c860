"""The application whose events the tests compare with their requests, under Gunicorn.

It records for the user of the header X-User-Id; each event says by its attributes whose it is.
"""

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path

from flask import Flask, Response, request, send_file, stream_with_context

import valued
from valued.integrations import flask as valued_flask

CHUNKS = 3

# At its import: a worker heeds signals by then.
Path(os.environ["BOOTED"], str(os.getpid())).touch()
valued.connect()
app = Flask(__name__)
app.logger.disabled = True  # of what fails on purpose


def signed_in() -> dict[str, object] | None:
    user = request.headers.get("X-User-Id")
    return None if user is None else {"id": user}


valued_flask.init_app(app, user=signed_in, page_views=True)


def _record(key: str, chunk: int, who: str) -> None:
    # With a customer, so that visitors without a user can be recorded, too.
    valued.action(key, {"customer.id": 1}, attributes={"chunk": chunk, "given": who})


def _who() -> str:
    return request.headers.get("X-User-Id", "nobody")


def _chunks(key: str, who: str) -> Iterator[str]:
    for chunk in range(CHUNKS):
        _record(key, chunk, who)
        yield f"{chunk}\n"
        time.sleep(0.001)  # so that others have their turn, greenlets of the same thread, too


@app.before_request
def leave_something_behind() -> None:
    attributes = {"id": request.headers["X-Request-Id"], "expected": _who(), "pid": os.getpid()}
    valued.scope.apply(attributes=attributes)


@app.get("/plain")
def plain() -> str:
    _record("plain", 0, _who())
    return "<p>A page</p>"


@app.get("/stream")
def stream() -> Response:
    return Response(_chunks("stream", _who()))


@app.get("/held")
def held() -> Response:
    return Response(stream_with_context(_chunks("held", _who())))


@app.get("/file")
def file() -> Response:
    _record("file", 0, _who())
    return send_file(__file__, mimetype="text/plain")


@app.get("/memory")
def memory() -> Response:
    _record("memory", 0, _who())
    return send_file(io.BytesIO(b"text"), mimetype="text/plain")


@app.get("/fails")
def fails() -> str:
    _record("fails", 0, _who())
    raise RuntimeError("on purpose")


@app.get("/silent")
def silent() -> dict[str, bool]:
    return {"silent": True}

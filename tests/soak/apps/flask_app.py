"""Flask: the user is in a cookie or in a header, and the body may be made after the view."""

import json
import os
import time
from collections.abc import Iterator

from flask import Flask, Response, request, stream_with_context

import valued
from tests.soak.apps.journal import record
from valued.integrations import flask as valued_flask

valued.connect(**json.loads(os.environ.get("CLIENT_OPTIONS", "{}")))
if "FLUSH_ON_SIGNALS" in os.environ:
    valued.flush_on_signals()
app = Flask(__name__)


def signed_in() -> dict[str, object] | None:
    user = request.cookies.get("user") or request.headers.get("X-User-Id")
    return None if user is None else {"id": user}


valued_flask.init_app(app, user=signed_in)


def _chunks(id: str, expected: str | None) -> Iterator[str]:
    for number in range(3):
        record(f"{id}-{number}", expected)
        yield "chunk"
        time.sleep(0.001)  # so that others have their turn, greenlets of the same thread, too


def _given() -> tuple[str, str | None]:
    return request.headers["X-Id"], request.headers.get("X-Expected")


@app.get("/page")
def page() -> str:
    id, expected = _given()
    valued.scope["attributes.request"] = id
    time.sleep(0.001)
    record(id, expected)
    return "page"


@app.get("/stream")
def stream() -> Response:
    return Response(_chunks(*_given()))


@app.get("/held")
def held() -> Response:
    return Response(stream_with_context(_chunks(*_given())))

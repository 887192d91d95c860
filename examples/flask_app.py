"""A small Flask application that records what its users do.

Start the mock server in one terminal and the application in another. Then send requests:

    $ valued listen
    $ export VALUED_TOKEN=any-token VALUED_ENDPOINT=http://127.0.0.1:4567/events
    $ gunicorn --chdir examples --config examples/gunicorn.conf.py flask_app:app
    $ curl -H 'X-User-Id: 7' http://127.0.0.1:8000/reports/12
    $ curl -H 'X-User-Id: 7' -X POST http://127.0.0.1:8000/reports
    $ curl http://127.0.0.1:8000/reports/12

The first request is recorded as a page view, the second as an action, both of user 7. The third
visitor is not signed in, so nothing is recorded. Needs ``flask`` and ``gunicorn``.
"""

from __future__ import annotations

from flask import Flask, request

import valued
from valued.integrations import flask as valued_flask

# At import, so that a wrong setting stops the server and doesn't break a request. With
# `preload_app` this runs in Gunicorn's master, before it forks. Nothing is started here: each
# worker makes its own threads and connections with its first event. Events of visitors who are not
# signed in are dropped, and mistakes in an event are logged: neither breaks a page.
valued.connect(anonymous="drop", invalid="log")

app = Flask(__name__)


def signed_in() -> dict[str, str] | None:
    """The user of this request; None if the visitor is not signed in. Use your own login here."""
    user_id = request.headers.get("X-User-Id")
    return {"id": user_id} if user_id else None


# Each request has a scope of its own, with the user above. The function is called with the first
# event, so a view that records nothing doesn't call it. Pages are recorded with their answer.
valued_flask.init_app(app, user=signed_in, page_views=True)


@app.before_request
def name_the_request() -> None:
    # Added to each event of this request, and to no other event.
    valued.scope.apply({"attributes.id": request.headers.get("X-Request-Id")})


@app.get("/reports/<int:number>")
def report(number: int) -> str:
    return f"<h1>Report {number}</h1>"


@app.post("/reports")
def generate() -> tuple[dict[str, str], int]:
    report = {"format": "pdf"}
    # Next to the code that did it. The user comes from the scope; for a visitor who is not signed
    # in, nothing is recorded.
    valued.action("report.generated", attributes=report)
    return report, 201

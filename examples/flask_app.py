"""A small Flask application that records what its users do.

In one terminal, start the stand-in for the service; in another, the application; in a third, visit:

    $ valued listen
    $ export VALUED_TOKEN=any-text VALUED_ENDPOINT=http://127.0.0.1:4567/events
    $ gunicorn --chdir examples --config gunicorn.conf.py flask_app:app
    $ curl -H 'X-User-Id: 7' http://127.0.0.1:8000/reports/12
    $ curl -H 'X-User-Id: 7' -X POST http://127.0.0.1:8000/reports

It needs ``flask`` and ``gunicorn``.
"""

from __future__ import annotations

from flask import Flask, Response, request

import valued

# At import, so that a wrong setting stops the start and not a request. With `preload_app` this runs
# in Gunicorn's master, before it forks: nothing is started here, each worker makes its own threads
# and connections with its first event.
valued.connect()

app = Flask(__name__)


@app.before_request
def who_asks() -> None:
    # This thread has served others before, and what they left goes along with each event.
    valued.scope.reset()
    # Your application knows better who is signed in; who is not is a user of some id, too.
    valued.scope.user_id = request.headers.get("X-User-Id") or "anonymous"
    valued.scope.apply({"attributes.id": request.headers.get("X-Request-Id")})


@app.after_request
def page_view(response: Response) -> Response:
    # Afterwards, since a page that was refused or failed was not viewed. It costs microseconds: the
    # event is copied and queued, and sent in the background.
    if response.status_code < 400:
        valued.page_view(request.url)
    return response


@app.get("/reports/<int:number>")
def report(number: int) -> dict[str, int]:
    return {"report": number}


@app.post("/reports")
def generate() -> tuple[dict[str, str], int]:
    report = {"format": "pdf"}
    # Beside the code that did it. The user comes from the scope.
    valued.action("report.generated", attributes=report)
    return report, 201

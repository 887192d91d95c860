"""The site in Flask, set up by variables of the environment, but for the function."""

from collections.abc import Iterator

from flask import Flask, Response, request

import valued
from tests.programs.wrong_site import calls
from valued.integrations.flask import init_app

valued.connect(before_send=calls.before_send)
app = Flask(__name__)
init_app(
    app,
    user=lambda: calls.who(request.headers.get("X-Who")),
    page_views=lambda request, _response: calls.choose(request.headers.get("X-Page-View")),
)


@app.get("/call/<name>")
def call(name: str) -> dict[str, int]:
    return calls.called(name)


@app.get("/stream/<name>")
def stream(name: str) -> Response:
    def chunks() -> Iterator[str]:
        yield "["
        yield app.json.dumps(calls.called(name))
        yield "]"

    return Response(chunks(), mimetype="text/plain")


@app.get("/page")
def page() -> str:
    valued.action("page.opened")
    return "<p>A page</p>"


@app.get("/figures")
def figures() -> dict[str, object]:
    valued.flush(10)
    return {**valued.client().stats()}

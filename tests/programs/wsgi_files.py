"""A WSGI application that sends this file, and streams, for the user of the header X-User-Id."""

from collections.abc import Iterable, Iterator
from typing import Any

import valued
from valued.integrations.wsgi import ScopeMiddleware

valued.connect()


def _app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    user = environ["HTTP_X_USER_ID"]
    valued.action("recorded", attributes={"expected": user})
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/file":
        body: Iterable[bytes] = environ["wsgi.file_wrapper"](open(__file__, "rb"))
        return body
    return _chunks(user)


def _chunks(user: str) -> Iterator[bytes]:
    for _ in range(3):
        valued.action("recorded", attributes={"expected": user})
        yield b"chunk"


def _user(environ: dict[str, Any]) -> dict[str, Any]:
    return {"user": {"id": environ["HTTP_X_USER_ID"]}}


application = ScopeMiddleware(_app, _user)

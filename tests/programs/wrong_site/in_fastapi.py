"""The site in FastAPI, set up by options."""

import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, StreamingResponse

import valued
from tests.programs.wrong_site import calls
from valued.integrations.asgi import ScopeMiddleware

valued.connect(invalid="log", anonymous="drop", before_send=calls.before_send)
app = FastAPI()


def _header(scope: Any, name: bytes) -> str | None:
    found = dict(scope["headers"]).get(name)
    return None if found is None else found.decode()


def _data(scope: Any) -> Any:
    kind = _header(scope, b"x-who")
    # Wrong as a whole, or where the user stands.
    found = calls.who(kind)
    return found if kind in ("object", "text", None) else {"user": found}


@app.middleware("http")
async def page_view(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    response = await call_next(request)
    if request.url.path == "/page":
        valued.page_view(str(request.url))
    return response


app.add_middleware(ScopeMiddleware, data=_data)


@app.get("/call/{name}")
def call(name: str) -> dict[str, int]:
    return calls.called(name)


@app.get("/stream/{name}")
async def stream(name: str) -> StreamingResponse:
    def chunks() -> Iterator[str]:
        yield "["
        yield json.dumps(calls.called(name))
        yield "]"

    return StreamingResponse(chunks(), media_type="text/plain")


@app.get("/page", response_class=HTMLResponse)
async def page() -> str:
    valued.action("page.opened")
    return "<p>A page</p>"


@app.get("/figures")
def figures() -> dict[str, Any]:
    valued.flush(10)
    return {**valued.client().stats()}

"""FastAPI: a cookie's user is found by the middleware, a header's by a dependency."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from http.cookies import SimpleCookie
from typing import Any

from fastapi import BackgroundTasks, Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.middleware.base import BaseHTTPMiddleware

import valued
from tests.soak.apps.journal import record
from valued.integrations.asgi import ScopeMiddleware

valued.connect(**json.loads(os.environ.get("CLIENT_OPTIONS", "{}")))
if "FLUSH_ON_SIGNALS" in os.environ:
    valued.flush_on_signals()


def of_cookie(scope: Any) -> dict[str, Any] | None:
    cookies = SimpleCookie(dict(scope["headers"]).get(b"cookie", b"").decode())
    return {"user": {"id": cookies["user"].value}} if "user" in cookies else None


def sign_in(request: Request) -> None:
    time.sleep(0.001)
    user = request.headers.get("x-user-id")
    if user is not None:
        valued.scope.user_id = user


async def sign_in_async(request: Request) -> None:
    await asyncio.sleep(0)
    sign_in(request)


class Between(BaseHTTPMiddleware):
    """Has what is behind it run in another task."""

    async def dispatch(
        self, request: Request, call_next: Callable[[Request], Awaitable[Any]]
    ) -> Any:
        return await call_next(request)


app = FastAPI()
app.add_middleware(Between)
app.add_middleware(ScopeMiddleware, data=of_cookie)


def given(request: Request) -> tuple[str, str | None]:
    return request.headers["x-id"], request.headers.get("x-expected")


@app.get("/page", dependencies=[Depends(sign_in)])
def page(request: Request, tasks: BackgroundTasks) -> str:
    id, expected = given(request)
    record(f"{id}-0", expected)
    tasks.add_task(record, f"{id}-1", expected)
    return "page"


@app.get("/apage", dependencies=[Depends(sign_in)])
async def apage(request: Request) -> str:
    await asyncio.sleep(0)
    record(*given(request))
    return "page"


@app.get("/only-async", dependencies=[Depends(sign_in_async)])
async def only_async(request: Request) -> str:
    await asyncio.sleep(0)
    record(*given(request))
    return "page"


def _chunks(id: str, expected: str | None) -> Iterator[str]:
    for number in range(3):
        record(f"{id}-{number}", expected)
        yield "chunk"


@app.get("/stream", dependencies=[Depends(sign_in_async)])
def stream(request: Request) -> StreamingResponse:
    return StreamingResponse(_chunks(*given(request)))


@app.get("/astream", dependencies=[Depends(sign_in)])
async def astream(request: Request) -> StreamingResponse:
    async def chunks() -> AsyncIterator[str]:
        for chunk in _chunks(*given(request)):
            yield chunk
            await asyncio.sleep(0)

    return StreamingResponse(chunks())

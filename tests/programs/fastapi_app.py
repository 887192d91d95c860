"""What the tests run under real servers: FastAPI, with middlewares in different orders.

Each request brings the user it is of, and its id; each event carries both, to be compared.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Annotated, Any

from fastapi import BackgroundTasks, Depends, FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import HTTPConnection

import valued
from valued.integrations.asgi import ScopeMiddleware

valued.connect(**json.loads(os.environ.get("CLIENT_OPTIONS", "{}")))


def record(connection: HTTPConnection, where: str, *, anonymous: bool = False) -> None:
    headers = connection.headers
    valued.action(
        where,
        # An event needs one of the two, and so do those of nobody.
        customer={"id": "c"},
        attributes={
            "expected": None if anonymous else headers.get("x-user-id"),
            "request": headers["x-request-id"],
            "pid": os.getpid(),
        },
    )


def sign_in(connection: HTTPConnection) -> None:
    user = connection.headers.get("x-user-id")
    if user is not None:
        valued.scope.user_id = user


async def sign_in_async(connection: HTTPConnection) -> None:
    await asyncio.sleep(0)
    sign_in(connection)


class Outside(BaseHTTPMiddleware):
    """Records behind the endpoint: whom that signed in, where the middleware is outermost."""

    async def dispatch(
        self, request: Request, call_next: Callable[[Request], Awaitable[Any]]
    ) -> Any:
        response = await call_next(request)
        record(request, "outside", anonymous=request.url.path.startswith("/behind"))
        return response


def make(*middlewares: type) -> FastAPI:
    """An application; the first of the *middlewares* is the outermost."""
    app = FastAPI()
    for middleware in reversed(middlewares):
        app.add_middleware(middleware)
    for name, dependency in {"sync": sign_in, "async": sign_in_async}.items():
        add_endpoints(app, f"/{{order}}/{name}", dependency)
    add_streams(app)
    return app


def add_endpoints(app: FastAPI, path: str, dependency: Callable[..., Any]) -> None:
    def later(request: Request) -> None:
        record(request, "background")

    async def later_async(request: Request) -> None:
        await asyncio.sleep(0)
        record(request, "background")

    @app.get(f"{path}/sync", dependencies=[Depends(dependency)])
    def report(request: Request, tasks: BackgroundTasks) -> int:
        record(request, "endpoint")
        tasks.add_task(later, request)
        return os.getpid()

    @app.get(f"{path}/async", dependencies=[Depends(dependency)])
    async def report_async(request: Request, tasks: BackgroundTasks) -> int:
        await asyncio.sleep(0)
        record(request, "endpoint")
        tasks.add_task(later_async, request)
        return os.getpid()


def add_streams(app: FastAPI) -> None:
    def chunks(request: Request, count: int) -> Iterator[str]:
        for number in range(count):
            record(request, f"chunk {number}")
            yield "x" * 10_000

    async def chunks_async(request: Request, count: int) -> AsyncIterator[str]:
        for chunk in chunks(request, count):
            await asyncio.sleep(0)
            yield chunk

    @app.get("/{order}/stream/sync", dependencies=[Depends(sign_in)])
    def stream(request: Request, count: int = 3) -> StreamingResponse:
        return StreamingResponse(chunks(request, count))

    @app.get("/{order}/stream/async", dependencies=[Depends(sign_in_async)])
    async def stream_async(request: Request, count: int = 3) -> StreamingResponse:
        return StreamingResponse(chunks_async(request, count))

    @app.websocket("/{order}/talk")
    async def talk(socket: WebSocket, _user: Annotated[None, Depends(sign_in)]) -> None:
        await socket.accept()
        # The server may end amid the talk.
        with contextlib.suppress(WebSocketDisconnect):
            for number in range(3):
                await socket.receive_text()
                record(socket, f"message {number}")
                await socket.send_text("heard")
            await socket.close()


APPS = {
    "alone": make(ScopeMiddleware),
    "before": make(ScopeMiddleware, Outside),
    "behind": make(Outside, ScopeMiddleware),
    "twice": make(ScopeMiddleware, Outside, ScopeMiddleware),
}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Hand over to the application that the path begins with; the lifespan to the first one."""
    order = "alone" if scope["type"] == "lifespan" else scope["path"].split("/")[1]
    await APPS[order](scope, receive, send)

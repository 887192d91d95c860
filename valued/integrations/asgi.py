"""ASGI: a unit of work for each request, and delivery before the server ends.

>>> app.add_middleware(ScopeMiddleware)     # FastAPI, Starlette: last, so that it is outermost
>>> app = ScopeMiddleware(Litestar([home]))  # Litestar's own middlewares see no lifespan

For any ASGI server, under asyncio or trio. It imports nothing but ``valued``.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeAlias

import valued

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Data: TypeAlias = Callable[[Scope], "Mapping[str, Any] | None"]

#: The key in the ASGI scope under which a call's unit is found, while the call lasts.
_UNIT: Final = "valued.unit"

_STARTED: Final = "lifespan.startup.complete"
_ENDS: Final = frozenset({"lifespan.shutdown.complete", "lifespan.shutdown.failed"})


class ScopeMiddleware:
    """ASGI middleware: a unit of work (`valued.isolated`) for each HTTP request and WebSocket.

    >>> def data(scope):
    ...     return {"user": {"id": scope["session"]["user_id"]}}
    >>> app.add_middleware(ScopeMiddleware, data=data)

    *app*: the ASGI application. *data* (default None): a function of the ASGI scope that returns
    the data of the request's events, such as ``{"user": {"id": 1}}``, or None. It is called with
    the first event, or the first read of `valued.scope`, and again until it returns something. So
    it sees what an authentication behind this middleware put into the ASGI scope, and it costs
    nothing if nothing is recorded. The event call raises what *data* raises. Raises
    `valued.ValidationError` if *data* can't be called, or is an async function.

    The unit ends when the application's call returns; streamed bodies, background tasks, threads
    and tasks of the request belong to it. A task that goes on longer keeps its data. Exceptions of
    the application are passed on. If the middleware is applied twice, the unit and the *data* of
    the outermost one count. If nothing is connected, calls are passed through.

    At the end of the application's lifespan `valued.flush_all` runs, before the server is told that
    the shutdown is complete, or failed: many servers end by a signal after that, and run no more
    Python. Under asyncio it runs in a thread of its own; elsewhere, as under trio, in the event
    loop, which waits for it. It takes ``shutdown_timeout`` at most, and logs what is not delivered.
    A server with several processes runs a lifespan in each of them.

    One instance serves all calls, in any number of event loops, threads and forked processes.
    """

    def __init__(self, app: Application, data: Data | None = None) -> None:
        self.app = app
        self._data = None if data is None else _checked(data)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application, as ASGI defines it."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif scope["type"] in ("http", "websocket"):
            await self._serve(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        unit = scope.get(_UNIT)
        if unit is not None:
            # Not passed through: a middleware in between may have left the unit's context.
            with unit.entered():
                await self.app(scope, receive, send)
            return
        unit = valued.isolated(self._data and functools.partial(self._data, scope))
        # In place: middlewares outside of this one see what those inside put there.
        scope[_UNIT] = unit
        try:
            with unit.entered():
                await self.app(scope, receive, send)
        finally:
            # The same ASGI scope in another call starts another unit.
            scope.pop(_UNIT, None)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _UNIT in scope:  # the outermost flushes, once
            await self.app(scope, receive, send)
            return
        must_flush = False

        async def flush_and_send(message: Message) -> None:
            nonlocal must_flush
            if message["type"] == _STARTED:
                must_flush = True
            elif message["type"] in _ENDS:
                must_flush = False
                await _flush()
            await send(message)

        scope[_UNIT] = None
        try:
            await self.app(scope, receive, flush_and_send)
        finally:
            scope.pop(_UNIT, None)
            if must_flush:
                await _flush()


def _checked(data: Data) -> Data:
    if not callable(data):
        problem = type(data).__name__
    elif inspect.iscoroutinefunction(data) or inspect.iscoroutinefunction(
        getattr(data, "__call__", None)  # noqa: B004 - the method is asked for its kind
    ):
        problem = "a coroutine function, which an event can't wait for"
    else:
        return data
    raise valued.ValidationError(
        "data: expected a function of the ASGI scope that returns a mapping or None, such as "
        f"lambda scope: {{'user': {{'id': 1}}}}, got {problem}"
    )


async def _flush() -> None:
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        valued.flush_all()
        return
    # Not the loop's own threads: all of them may be busy with work of the application's.
    with ThreadPoolExecutor(1, "valued-flush") as thread:
        await loop.run_in_executor(thread, valued.flush_all)

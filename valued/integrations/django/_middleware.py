"""The middleware: a unit of work for each request."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.apps import apps

import valued
from valued.integrations import _collecting
from valued.integrations.django import _connecting, _settings
from valued.integrations.django._fields import UNIT, begin, follow_logins, user_of
from valued.integrations.django._views import PageViews


class ScopeMiddleware:
    """Django middleware: a unit of work (`valued.isolated`) for each request.

    Put it at the top of ``MIDDLEWARE``: middleware before it records without the request's user,
    and behind Django's sessions page views add ``Vary: Cookie`` to each page. Given twice, it
    counts once. *get_response*: what comes next, sync or async; it runs unchanged, on the same
    thread. The chunks of a streamed response are made in the unit, too. Files that a server sends
    by itself (``FileResponse``) are left as they are.

    The user is the one of the request's first event, or of its last login after that. Raises
    `valued.ValidationError`, when it is made, for mistakes in ``settings.VALUED``. Any number of
    threads and tasks may call it, and forked workers.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        settings = _settings.read()
        user = _settings.function("USER", settings.user)
        if settings.user == "lazy":
            user = user_of
        customer = _settings.function("CUSTOMER", settings.customer)
        choose = _settings.function("PAGE_VIEWS", settings.page_views)
        if settings.page_views is True:
            choose = _each
        given = {"user": user, "customer": customer}
        self._functions = {name: it for name, it in given.items() if it is not None}
        self._page_views = PageViews(choose)
        self._get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)
        follow_logins()
        _connecting.warn_where_nothing_is_sent(
            is_installed=apps.is_installed("valued.integrations.django")
        )

    def __call__(self, request: Any) -> Any:
        """The response to *request*; a coroutine of it where what comes next is async."""
        if hasattr(request, UNIT):  # this middleware, further out
            return self._get_response(request)
        if self._is_async:
            return self._answer(request)
        unit = begin(request, self._functions)
        try:
            with unit.entered():
                response = self._get_response(request)
                self._page_views.record(request, response)
        finally:
            delattr(request, UNIT)
        _stream_within(unit, response)
        return response

    async def _answer(self, request: Any) -> Any:
        unit = begin(request, self._functions)
        try:
            with unit.entered():
                response = await self._get_response(request)
                await self._page_views.arecord(request, response)
        finally:
            delattr(request, UNIT)
        _stream_within(unit, response, asyncio.get_running_loop())
        return response


def _each(_request: Any, _response: Any) -> bool:
    return True


def _stream_within(
    unit: valued.Isolated, response: Any, loop: asyncio.AbstractEventLoop | None = None
) -> None:
    """Have a stream, and what is done at its end, be within *unit*. *loop*: where it is read."""
    if not response.streaming or getattr(response, "file_to_stream", None) is not None:
        return
    content = response.streaming_content
    # What the view gave. *content* holds the response, which would hold itself.
    source = getattr(response, "_iterator", content)
    chunks: Any
    if hasattr(content, "__aiter__"):
        # Django puts a generator around what the view gave, and ends only that one.
        chunks = _achunks(unit, content, source)
    else:
        chunks = _Chunks(unit, source)
    response.streaming_content = chunks
    # Without a reference to itself, or only the garbage collection would end it.
    own, response_of = vars(response).get("close"), weakref.ref(response)

    def close_within() -> None:
        found = response_of()
        if found is None:  # ended by the interpreter already
            return
        vars(found).pop("close", None)
        _collecting.call(unit.run, own or found.close)
        if loop is not None:
            _end(chunks, loop)

    response.close = close_within


def _end(chunks: Any, loop: asyncio.AbstractEventLoop) -> None:
    """End a stream that its reader has dropped, if it isn't over; from any thread.

    Django leaves that to the garbage collection, which takes place in any request, and `finally` in
    a view's generator would record for the user of that request.
    """
    if getattr(chunks, "ag_frame", None) is not None and not loop.is_closed():
        loop.call_soon_threadsafe(loop.create_task, chunks.aclose())


class _Chunks:
    """A stream, each chunk of which, and whose end, is made within the unit."""

    def __init__(self, unit: valued.Isolated, content: Iterator[bytes]) -> None:
        self._unit = unit
        self._content = content

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._unit.entered():
            return next(self._content)

    def close(self) -> None:
        """End the stream; called by Django, within the unit."""
        content, self._content = self._content, iter(())
        close = getattr(content, "close", None)
        if close is not None:
            close()

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # Dropped by a server that closes nothing, during another request; or at the end of the
        # interpreter, where nothing can be recorded any more, and the names of modules are gone.
        if not is_finalizing():  # pragma: no branch - coverage has ended by then
            contextvars.copy_context().run(self._unit.run, self.close)


async def _achunks(
    unit: valued.Isolated, content: AsyncIterator[bytes], source: object
) -> AsyncIterator[bytes]:
    try:
        while True:
            with unit.entered():
                try:
                    chunk = await anext(content)
                except StopAsyncIteration:
                    return
            yield chunk
    finally:
        with unit.entered():
            await _aclose(content)
            await _aclose(source)


async def _aclose(iterator: object) -> None:
    close = getattr(iterator, "aclose", None)
    if close is not None:
        await close()

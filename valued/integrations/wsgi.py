"""WSGI: a unit of work for each request, however its answer is sent."""

from __future__ import annotations

import contextvars
import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

import valued
from valued.integrations import _collecting

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: Where a request's environ holds its unit, and whose data it has, as long as the request lasts.
UNIT: Final = "valued.unit"
_SOURCE: Final = "valued.unit.source"

_FILE_WRAPPER: Final = "wsgi.file_wrapper"


class ScopeMiddleware:
    """WSGI middleware: serves each request of *app* in a unit of work (`valued.isolated`).

    >>> def data(environ):
    ...     return {"user": {"id": environ["app.user_id"]}}
    >>> app = ScopeMiddleware(app, data=data)

    What a request sets in `valued.scope` belongs to that request only: in the application, in each
    chunk of its body and in the body's ``close``, in whichever threads they run. Nothing of it
    stays in these threads, even if a body is never read to its end or closed.

    *app*: the WSGI application. *data* (default None): a function of the request's ``environ`` that
    returns what the scope starts with, a mapping such as ``{"user": {"id": 7}}``, or None. It is
    called at the first event, or the first read of the scope, and again at the next one while it
    returns None; never in a request without either. The event call raises what it raises.

    Bodies that are lists or tuples, and those that the server's ``wsgi.file_wrapper`` made, are
    returned as they are, and the unit ends with the call. If the middleware is applied twice, the
    unit of the outermost one counts. If nothing is connected when a request comes, it is passed
    through. Exceptions of the application are passed on.

    Raises `valued.ValidationError` if *data* can't be called. Any thread may call; forked workers
    keep it.
    """

    def __init__(
        self,
        app: WSGIApplication,
        data: Callable[[WSGIEnvironment], object] | None = None,
    ) -> None:
        if data is not None and not callable(data):
            raise valued.ValidationError(
                f"data: expected a function of environ, got {type(data).__name__}"
            )
        self._app = app
        self._data = data

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        unit: valued.Isolated | None = environ.get(UNIT)
        source = self._source()
        if unit is not None and (source is None or source == environ.get(_SOURCE)):
            # The outermost one's. What lies between may have gone to another thread: so enter it.
            return self._serve(unit, environ, start_response, _nothing)
        if not valued.connected():
            return self._app(environ, start_response)
        before = {name: environ.pop(name, None) for name in (UNIT, _SOURCE)}
        environ[UNIT] = unit = self._isolated(environ)
        environ[_SOURCE] = source

        def end() -> None:
            # With the unit it would be a cycle, which holds the request until it is collected. And
            # the same environ may be served once more: as another request.
            for name, found in before.items():
                environ.pop(name, None)
                if found is not None:
                    environ[name] = found

        return self._serve(unit, environ, start_response, end)

    def _source(self) -> object:
        """What has users of its own, below whatever else is served; None: nothing has."""
        return None

    def _isolated(self, environ: WSGIEnvironment) -> valued.Isolated:
        return valued.isolated(
            None if self._data is None else functools.partial(self._data, environ)
        )

    def _serve(
        self,
        unit: valued.Isolated,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        end: Callable[[], object],
    ) -> Iterable[bytes]:
        files = _Files(environ)
        stream = None
        try:
            with unit.entered():
                body = self._app(environ, start_response)
            if isinstance(body, (list, tuple)) or files.made(body):
                return body
            stream = _Stream(body, unit, end)
            return stream
        finally:
            files.end()
            if stream is None:
                end()


def _nothing() -> None:
    """The end of a request that isn't ours to end."""


class _Files:
    """Tells the bodies that the server sends by itself, as by ``sendfile``, from all others.

    A server knows them by their class, so that one is left alone, or by their identity.
    """

    def __init__(self, environ: WSGIEnvironment) -> None:
        self._environ = environ
        self._wrapper = environ.get(_FILE_WRAPPER)
        self._made: list[object] = []
        if self._wrapper is not None and not isinstance(self._wrapper, type):
            environ[_FILE_WRAPPER] = self._wrap

    def _wrap(self, *args: Any, **kwargs: Any) -> Any:
        assert self._wrapper is not None
        made = self._wrapper(*args, **kwargs)
        self._made.append(made)
        return made

    def made(self, body: object) -> bool:
        """Whether *body* is one of them."""
        if isinstance(self._wrapper, type):
            return isinstance(body, self._wrapper)
        return any(body is made for made in self._made)

    def end(self) -> None:
        """Leave the environ as it was, unless other code changed it."""
        if self._environ.get(_FILE_WRAPPER) == self._wrap:
            self._environ[_FILE_WRAPPER] = self._wrapper


class _Stream:
    """A body, each chunk of which is made in the request's unit."""

    def __init__(
        self, body: Iterable[bytes], unit: valued.Isolated, end: Callable[[], object]
    ) -> None:
        self._body: Iterable[bytes] | None = body
        self._chunks: Iterator[bytes] | None = None
        self._unit = unit
        self._end = end

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._unit.entered():
            if self._chunks is None:
                if self._body is None:  # it is closed
                    raise StopIteration
                self._chunks = iter(self._body)
            return next(self._chunks)

    def close(self) -> None:
        """Close the body, once; called by the server."""
        if self._body is not None:
            try:
                _collecting.call(self._unit.run, self._close)
            finally:
                self._end()

    def _close(self) -> None:
        body, self._body = self._body, None
        close = getattr(body, "close", None)
        try:
            if close is not None:
                close()
        finally:
            # A generator that was not read to its end has its `finally` run here.
            del close, body
            self._chunks = None

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # A server that closes nothing: what a generator in the body does at its end is still part
        # of this request, and not of the one that is served here and now. In a context of its own,
        # so that the context of that one stays as it is. At the end of the interpreter nothing can
        # be recorded any more, and the names of modules are gone.
        if self._body is not None and not is_finalizing():
            contextvars.copy_context().run(self._unit.run, self._close)

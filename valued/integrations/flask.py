"""Flask: a unit of work for each request, its user, and page views."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import flask

import valued
from valued.integrations import _page_views
from valued.integrations.wsgi import UNIT, ScopeMiddleware

if TYPE_CHECKING:
    from typing import TypeAlias

    from _typeshed.wsgi import WSGIEnvironment

    PageViews: TypeAlias = bool | Callable[[flask.Request, flask.Response], bool | str | None]

#: By which an application knows that this is done.
_NAME: Final = "valued"


def init_app(
    app: flask.Flask,
    user: Callable[[], object] | None = None,
    *,
    page_views: PageViews = False,
) -> None:
    """Serve each request of *app* in a unit of work (`valued.isolated`). Call it once for each app.

    >>> def user():
    ...     return {"id": session["user_id"]} if "user_id" in session else None
    >>> init_app(app, user=user)

    What a request sets in `valued.scope` belongs to that request only, in streamed answers, too.
    ``init_app`` wraps ``app.wsgi_app``, as `valued.integrations.wsgi.ScopeMiddleware` does.

    *user* (default None): a function without arguments that returns the request's user: a mapping
    such as ``{"id": 7}``, an object with a converter, or None for a visitor who is not signed in.
    It is called in the request's context, at the first event that lacks a user, and again at the
    next event while it returns None; never in a request without events. The event call raises what
    it raises. While a body is streamed without ``stream_with_context``, it gets a request context
    of its own: ``flask.request`` and ``flask.session`` are those of the request, ``flask.g`` is
    empty.

    *page_views* (default False): True records a page view for each answer to GET with a 2xx status
    and the type ``text/html`` that is not a static file, if the user's id is known; its URL is the
    request's, without the query string. A function of the request and the response is called for
    each of these: None or False skips the page view, True records it, a string records that URL.
    What *user* and *page_views* raise for a page view is logged on the logger ``valued``, and the
    page is served.

    Raises `valued.ValidationError` for arguments that can't be used, and if the app was given to it
    before. Requests before `valued.connect` are passed through. Call it before *app* serves its
    first request. After that, any number of threads may serve requests; forked workers keep it.
    """
    if not isinstance(app, flask.Flask):
        raise valued.ValidationError(
            f"init_app: expected a Flask application, got {type(app).__name__}"
        )
    if user is not None and not callable(user):
        raise valued.ValidationError(
            f"user: expected a function without arguments, got {type(user).__name__}"
        )
    _page_views.check(page_views)
    if _NAME in app.extensions:
        raise valued.ValidationError(
            "init_app: this application has been given to it before; call it once for each"
        )
    if page_views:
        app.after_request(functools.partial(_record, app, page_views))
        # What is registered first is called last, and then the answer is known.
        functions = app.after_request_funcs[None]
        functions.insert(0, functions.pop())
    app.extensions[_NAME] = middleware = _Middleware(app, user)
    app.wsgi_app = middleware  # type: ignore[method-assign]


class _Middleware(ScopeMiddleware):
    def __init__(self, app: flask.Flask, user: Callable[[], object] | None) -> None:
        super().__init__(app.wsgi_app)
        self._flask = app
        self._user = user

    def _source(self) -> object:
        # An application that is mounted below another one has its own users.
        return None if self._user is None else self._flask

    def _isolated(self, environ: WSGIEnvironment) -> valued.Isolated:
        if self._user is None:
            return valued.isolated()
        return valued.isolated(
            lazy={"user": functools.partial(_user_of, self._flask, self._user, environ)}
        )


def _user_of(app: flask.Flask, user: Callable[[], object], environ: WSGIEnvironment) -> object:
    if _is_current(app, environ):
        return user()
    # Flask is done with the request, and its body is still being made. What the application does at
    # the end of a request, such as to close its session, is done, or will be: not once more.
    quiet = copy.copy(app)
    quiet.teardown_request_funcs = {}
    quiet.teardown_appcontext_funcs = []
    with quiet.request_context(environ):
        return user()


def _is_current(app: flask.Flask, environ: WSGIEnvironment) -> bool:
    """Whether the context is that of this request, and not of another one on the same thread."""
    # `==` looks through Flask's proxies.
    if not flask.has_request_context() or flask.current_app != app:
        return False
    unit = environ.get(UNIT)
    # By the unit, since a middleware below may have given Flask a copy of the environ. None: the
    # request is over, so the context is another one's, which may have no unit either.
    return unit is not None and flask.request.environ.get(UNIT) is unit


def _record(app: flask.Flask, page_views: PageViews, response: flask.Response) -> flask.Response:
    request = flask.request
    if _page_views.is_page(
        request.method, response.status_code, response.content_type
    ) and not _is_static(app, request):
        choose = functools.partial(page_views, request, response) if callable(page_views) else None
        _page_views.record(request.base_url, choose)
    return response


def _is_static(app: flask.Flask, request: flask.Request) -> bool:
    # By the endpoint: static files may lie at the root, and each blueprint may have a folder.
    blueprint = app.blueprints.get(request.blueprint or "")
    owner = blueprint or app
    name = "static" if blueprint is None else f"{request.blueprint}.static"
    if owner.has_static_folder and request.endpoint == name:
        return True
    # And by the path, for what serves such files in place of Flask.
    path = app.static_url_path
    return bool(path) and request.path.startswith(f"{path}/")

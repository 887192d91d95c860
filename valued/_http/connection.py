"""`Connection`: one POST for each event, on kept-alive connections of `requests`.

Each process has a session of its own, made with its first request. A forked child closes the
descriptors that it inherited (see `pool`), and sends nothing on them. What is raised here says
nothing of the token: neither the message, nor an exception that led to it, nor their frames.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final

import requests
import urllib3

from valued._errors import DeliveryError, PicklingError, ValidationError
from valued._events.serializer import encode
from valued._http import recording
from valued._http.endpoint import checked_endpoint, checked_token, hide_argument, warn_of_clear_text
from valued._http.pool import IDLE_TIMEOUT
from valued._http.route import Response, Route
from valued._http.session import new_session
from valued._options import seconds, whole
from valued._process.fork import PerProcess
from valued._process.pickling import is_spawning
from valued._redaction import RedactedStr, redacted
from valued._version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from valued._typing import JSONObject

_UNAUTHORIZED: Final = frozenset({401, 403})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

_PYTHON: Final = ".".join(map(str, sys.version_info[:3]))
USER_AGENT: Final = f"valued-client/{__version__} (Python/{_PYTHON})"


#: What a request raises where there is no response.
_NO_RESPONSE: Final = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)


class Connection:
    """Sends events to the service: a token, an endpoint, and connections that are kept alive.

    >>> connection = valued.Connection("TOKEN")
    >>> connection({"category": "action", "key": "report.generated", "user": {"id": 123}})

    *token* (default ``VALUED_TOKEN``). *endpoint*: an http(s) URL (default ``VALUED_ENDPOINT``,
    else the service's). *timeout* (default 10.0): seconds for one request, from the look-up of the
    host's name to the last byte of the answer. *pool_size* (default 10): connections that are kept.
    *idle_timeout* (default 50.0): a connection that was not used for so many seconds is not used
    again; less than the 60 and more after which load balancers, NATs and servers drop one. Raises
    `ValidationError`. Proxies and certificates come from the environment, read once in each
    process: a later change of the variables is not seen. ``~/.netrc`` is not read.

    A client makes its own. Use it for a transport of your own: ``endpoint`` (a string) and
    `Connection.headers` are what a request needs. Any thread may call. A forked child makes
    connections of its own, and those of its parent go on working.
    """

    def __init__(
        self,
        token: str | None = None,
        endpoint: str | None = None,
        *,
        timeout: float = 10.0,
        pool_size: int = 10,
        idle_timeout: float = IDLE_TIMEOUT,
    ) -> None:
        # Before anything can raise: error trackers show what is in the frames of an exception.
        token, endpoint = hide_argument(token), hide_argument(endpoint)
        problems = [
            *seconds("timeout", timeout, zero=False),
            *whole("pool_size", pool_size, least=1),
            *seconds("idle_timeout", idle_timeout, zero=False),
        ]
        if problems:
            raise ValidationError(*problems)
        self._token = checked_token(token)
        self._token_given = token is not None
        self.endpoint: Final = checked_endpoint(endpoint)
        warn_of_clear_text(self.endpoint)
        # For what this imports: a forked child whose parent was importing it in another thread
        # would wait for ever. A failure is raised again for each event.
        with contextlib.suppress(requests.RequestException):
            requests.Request("POST", self.endpoint).prepare()
        self._timeout = timeout
        self._pool_size = pool_size
        self._idle_timeout = idle_timeout
        self._route: PerProcess[Route] = PerProcess(self._new_route)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request: content type, authorization, user agent. A new dict."""
        return {
            "Content-Type": "application/json",
            "Authorization": RedactedStr(f"Bearer {self._token}"),
            "User-Agent": USER_AGENT,
        }

    @property
    def session(self) -> requests.Session:
        """This process's `requests.Session`, for example to mount an adapter on.

        Read it from here again before each change: changed settings apply from the next request on.
        A mounted adapter always applies.
        """
        route = self._route.get()
        route.reset()
        return route.session

    def __call__(self, data: JSONObject) -> None:
        """Send one event, a mapping of JSON data. Raises `DeliveryError` where that fails."""
        self.post(encode(data))

    def post(
        self, body: bytes, idempotency_key: str | None = None, timeout: float | None = None
    ) -> None:
        """Send one event that is encoded already. Raises `DeliveryError` where that fails.

        *idempotency_key* goes as the header ``Idempotency-Key``. *timeout*: seconds, default the
        connection's.
        """
        if recording.blocked:
            recording.refuse(self.endpoint)
        headers = {}
        if idempotency_key is not None:
            if not idempotency_key.isascii() or not idempotency_key.isprintable():
                raise ValidationError(
                    "idempotency_key: it holds control characters or letters outside ASCII; "
                    "give one such as a UUID"
                )
            headers["Idempotency-Key"] = idempotency_key
        # An exception that the caller handles is the context of what is raised here. It isn't ours.
        handled = sys.exc_info()[1]
        try:
            # The response isn't kept in this frame: it may quote the token.
            failure = self._rejection(
                self._route.get().send(body, headers, self._timeout if timeout is None else timeout)
            )
        except BaseException as error:  # also out of a signal handler, or a timeout of gevent's
            is_clean = _scrub(error, self._token, handled)
            if not isinstance(error, _NO_RESPONSE if is_clean else (Exception,)):
                raise
            failure = DeliveryError(redacted(_reason(error), self._token))
            if is_clean:
                failure.__cause__ = error
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # else it and this frame would hold each other

    def close(self) -> None:
        """Close this process's connections. The next request makes new ones."""
        route = self._route.peek()
        if route is not None:
            route.close()

    def __repr__(self) -> str:
        # Error trackers also ask for this where the constructor raised and there is no endpoint.
        return f"Connection(endpoint={getattr(self, 'endpoint', None)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Its configuration. Raises `PicklingError` where the token would get into a file."""
        if self._token_given and not is_spawning():
            raise PicklingError(
                "a token is pickled only while multiprocessing starts a child: set VALUED_TOKEN "
                "and give no token; the process that unpickles this then reads it again"
            )
        token = self._token if self._token_given else None
        restored = functools.partial(
            Connection,
            timeout=self._timeout,
            pool_size=self._pool_size,
            idle_timeout=self._idle_timeout,
        )
        return restored, (token, self.endpoint)

    def _new_route(self) -> Route:
        session = new_session(self.endpoint, self.headers, self._pool_size, self._idle_timeout)
        return Route(session, self.endpoint)

    def _rejection(self, response: Response) -> DeliveryError | None:
        """The error that *response* stands for; None: the service accepted the event."""
        if 200 <= response.status <= 299:
            return None
        # A proxy may quote the request that it refuses, and a service the token.
        body = redacted(response.body.decode("utf-8", "replace"), self._token)
        status_line = redacted(f"{response.status} {response.reason}", self._token)
        reason = f"the service answered {status_line[:500].rstrip()}"
        if response.status in _REDIRECTS:
            reason += " (redirects are not followed: set the endpoint to where it leads)"
        elif response.status in _UNAUTHORIZED:
            source = "was given as token=…" if self._token_given else "came from VALUED_TOKEN"
            where = redacted(self.endpoint.partition("?")[0], self._token)
            reason += f" at {where} (check the token, which {source}, and the endpoint)"
        return DeliveryError(
            reason,
            response.status,
            body=body[:500],
            retry_after=_retry_after(response.headers.get("Retry-After")),
        )


#: Attributes in which exceptions of `requests`, of mocks and of recorders hold a request.
_REQUESTS: Final = ("request", "response", "failed_request")


def _chain(error: BaseException, without: Sequence[BaseException] = ()) -> list[BaseException]:
    """*error*, and all exceptions that it refers to, except those in *without*."""
    found: list[BaseException] = []
    seen = set(map(id, without))
    waiting: list[object] = [error]
    while waiting:
        one = waiting.pop()
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            found.append(one)
            waiting += (one.__cause__, one.__context__, *one.args, *vars(one).values())
    return found


def _scrub(error: BaseException, token: str, handled: BaseException | None = None) -> bool:
    """Take requests out of *error*, and all it refers to. Whether it then says nothing of *token*.

    A request is in the frames below this module, and in attributes, and error trackers record both.
    *handled*: an exception of the caller's, which stays as it is with all that it refers to.
    """
    chain = _chain(error, () if handled is None else _chain(handled))
    for one in chain:
        traceback.clear_frames(one.__traceback__)
        for name in _REQUESTS:
            if vars(one).get(name) is not None:
                setattr(one, name, None)
    try:
        text = "\n".join(f"{one}\n{one.args}\n{vars(one)}" for one in chain)
    except Exception:  # noqa: BLE001 - of a foreign exception's own methods: what it says is unknown
        return False
    return redacted(text, token) == text


def _reason(error: Exception) -> str:
    cause: Any = error
    # `requests` and urllib3 wrap each other's exceptions; the innermost says what happened.
    while cause.args and isinstance(cause.args[0], Exception):
        cause = cause.args[0]
    reason = getattr(cause, "reason", None)
    cause = reason if isinstance(reason, Exception) else cause
    try:
        return f"no answer: {type(cause).__name__}: {cause}"
    except Exception:  # noqa: BLE001 - of a foreign exception's own methods
        return f"no answer: {type(cause).__name__}"


def _retry_after(header: str | None) -> float | None:
    if header is None:
        return None
    try:
        return float(urllib3.Retry().parse_retry_after(header))
    except (urllib3.exceptions.InvalidHeader, ValueError):  # neither seconds nor a valid date
        return None

"""One POST for each event, on connections of `requests` that are kept alive.

Each process has a session, and so connections, of its own, made with its first request. A forked
child closes the descriptors that it inherited, and sends nothing on them.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any, Final

import requests
import urllib3
from requests.auth import AuthBase

from valued._errors import DeliveryError, PicklingError, ValidationError
from valued._events.serializer import encode
from valued._http import recording
from valued._http.endpoint import (
    checked_endpoint,
    checked_token,
    hidden_or_type,
    warn_of_clear_text,
)
from valued._http.pool import Adapter
from valued._http.route import Answer, Route
from valued._options import ca_bundle_from_environment, seconds, whole
from valued._process.fork import PerProcess
from valued._process.pickling import is_spawning
from valued._redaction import Secret, redacted
from valued._version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from valued._typing import JSONObject

_UNAUTHORIZED: Final = frozenset({401, 403})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

_PYTHON: Final = ".".join(map(str, sys.version_info[:3]))
USER_AGENT: Final = f"valued-client/{__version__} (Python/{_PYTHON})"


class _Bearer(AuthBase):
    """Sets our ``Authorization``; as `auth` it goes before a ``~/.netrc`` entry for the host."""

    def __init__(self, authorization: Secret) -> None:
        self._authorization = authorization

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        # A plain string: recorders save it with the request, and no class of ours is to be in it.
        request.headers["Authorization"] = str.__str__(self._authorization)
        return request


class Connection:
    """Sends events to the service: a token, an endpoint, and connections that are kept alive.

    >>> connection = valued.Connection("TOKEN")
    >>> connection({"category": "action", "key": "report.generated", "user": {"id": 123}})

    *token* (default ``VALUED_TOKEN``). *endpoint*: an http(s) URL (default ``VALUED_ENDPOINT``,
    else the service's). *timeout* (default 10.0): seconds for one request, from the first packet to
    the last byte of the answer; connecting to each address of the host, and a TLS handshake, may
    each take as long. *pool_size* (default 10): connections that are kept. Raises
    `ValidationError`. Proxies and certificates come from the environment; ``~/.netrc`` is not read.

    A client makes its own. Use it for a transport of your own: ``endpoint`` (a string) and
    `Connection.headers` are what a request needs. Any thread may call. A forked child makes
    connections of its own, and leaves those of its parent whole.
    """

    def __init__(
        self,
        token: str | None = None,
        endpoint: str | None = None,
        *,
        timeout: float = 10.0,
        pool_size: int = 10,
    ) -> None:
        # First of all: error trackers show what is in the frames of an exception.
        token, endpoint = hidden_or_type(token), hidden_or_type(endpoint)
        problems = [
            *seconds("timeout", timeout, zero=False),
            *whole("pool_size", pool_size, least=1),
        ]
        if problems:
            raise ValidationError(*problems)
        self._token = checked_token(token)
        self._token_given = token is not None
        self.endpoint: Final = checked_endpoint(endpoint)
        warn_of_clear_text(self.endpoint)
        # For what this imports: a worker, and a forked child, are to import nothing any more.
        with contextlib.suppress(requests.RequestException):  # it is raised again for each event
            requests.Request("POST", self.endpoint).prepare()
        self._timeout = timeout
        self._pool_size = pool_size
        self._route: PerProcess[Route] = PerProcess(self._new_route)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request: content type, authorization, user agent. A dict of its own."""
        return {
            "Content-Type": "application/json",
            "Authorization": Secret(f"Bearer {self._token}"),
            "User-Agent": USER_AGENT,
        }

    @property
    def session(self) -> requests.Session:
        """This process's `requests.Session`, for example to mount an adapter on.

        Read it from here again before each change: changed settings apply from the next request on.
        A mounted adapter always applies.
        """
        route = self._route.get()
        route.forget()
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
        # What the caller is handling becomes the context of what is raised here, and is not ours.
        handled = sys.exc_info()[1]
        headers = {}
        if idempotency_key is not None:
            if not idempotency_key.isascii() or not idempotency_key.isprintable():
                raise ValidationError(
                    "idempotency_key: it holds control characters or letters outside ASCII; "
                    "give one such as a UUID"
                )
            headers["Idempotency-Key"] = idempotency_key
        bound = self._timeout if timeout is None else timeout
        try:
            # Not kept here: it may repeat the token, and error trackers show frames.
            failure = self._refusal(self._route.get().send(body, headers, bound))
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            failure = self._no_answer(error, handled)
        except Exception as error:
            if _is_clean(error, self._token, handled):
                raise
            failure = self._no_answer(error, handled)
        except BaseException as error:  # out of a signal handler, or a timeout of gevent's
            _is_clean(error, self._token, handled)
            raise
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
        # It may be half made: error trackers ask for this, too, where a constructor raised.
        return f"Connection(endpoint={getattr(self, 'endpoint', None)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Its configuration. Raises `PicklingError` where the token would get into a file."""
        if self._token_given and not is_spawning():
            raise PicklingError(
                "a token is pickled only while multiprocessing starts a child: set VALUED_TOKEN "
                "and give no token; the process that unpickles this then reads it again"
            )
        token = self._token if self._token_given else None
        return _restored, (token, self.endpoint, self._timeout, self._pool_size)

    def _new_route(self) -> Route:
        session = requests.Session()
        session.headers.update(self.headers)
        session.auth = _Bearer(Secret(self.headers["Authorization"]))
        # Not from `requests`: it would look up ~/.netrc, and the system's proxies, which on macOS
        # crashes in a forked child. The variables alone are asked, once.
        session.trust_env = False
        session.proxies.update(_proxies(self.endpoint))
        session.verify = ca_bundle_from_environment() or True
        adapter = Adapter(pool_connections=1, pool_maxsize=self._pool_size, max_retries=0)
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        return Route(session, self.endpoint)

    def _no_answer(self, error: Exception, handled: BaseException | None) -> DeliveryError:
        failure = DeliveryError(redacted(_reason(error), self._token))
        if _is_clean(error, self._token, handled):
            failure.__cause__ = error
        return failure

    def _refusal(self, answer: Answer) -> DeliveryError | None:
        """The error that *answer* stands for; None if the event was taken."""
        if 200 <= answer.status <= 299:
            return None
        # Proxies answer with the request that they refuse, services with the token.
        said = redacted(answer.content.decode("utf-8", "replace"), self._token)
        status_line = redacted(f"{answer.status} {answer.reason}", self._token)
        reason = f"the service answered {status_line[:500].rstrip()}"
        if answer.status in _REDIRECTS:
            reason += " (redirects are not followed: set the endpoint to where it leads)"
        elif answer.status in _UNAUTHORIZED:
            source = "was given as token=…" if self._token_given else "came from VALUED_TOKEN"
            where = redacted(self.endpoint.partition("?")[0], self._token)
            reason += f" at {where} (check the token, which {source}, and the endpoint)"
        return DeliveryError(
            reason,
            answer.status,
            body=said[:500],
            retry_after=_retry_after(answer.headers.get("Retry-After")),
        )


def _restored(token: str | None, endpoint: str, timeout: float, pool_size: int) -> Connection:
    return Connection(token, endpoint, timeout=timeout, pool_size=pool_size)


def _proxies(endpoint: str) -> dict[str, str]:
    host = urllib.parse.urlsplit(endpoint).netloc
    bypass = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]  # not in typeshed
    if bypass(host):
        return {}
    return dict(urllib.request.getproxies_environment())


#: Attributes in which exceptions of `requests`, of mocks and of recorders hold a request.
_REQUESTS: Final = ("request", "response", "failed_request")


def _chain(error: BaseException, known: Sequence[BaseException] = ()) -> list[BaseException]:
    """*error*, and all exceptions that it leads to, but not by those that are *known*."""
    found: list[BaseException] = []
    seen = set(map(id, known))
    waiting: list[object] = [error]
    while waiting:
        one = waiting.pop()
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            found.append(one)
            waiting += (one.__cause__, one.__context__, *one.args, *vars(one).values())
    return found


def _is_clean(error: BaseException, token: str, handled: BaseException | None = None) -> bool:
    """Whether *error* says nothing of *token*, once its frames and requests are taken from it.

    A request is in the frames below this module, as bytes, and in attributes. Error trackers record
    both. *handled*: the caller's exception, which stays as it is with all that it leads to.
    """
    chain = _chain(error, () if handled is None else _chain(handled))
    for one in chain:
        traceback.clear_frames(one.__traceback__)
        for name in _REQUESTS:
            if vars(one).get(name) is not None:
                setattr(one, name, None)
    try:
        said = "\n".join(f"{one}\n{one.args}\n{vars(one)}" for one in chain)
    except Exception:  # noqa: BLE001 - a foreign one: what can't be read is not passed on
        return False
    return redacted(said, token) == said


def _reason(error: Exception) -> str:
    cause: Any = error
    # `requests` and urllib3 wrap each other's exceptions; the innermost says what happened.
    while cause.args and isinstance(cause.args[0], Exception):
        cause = cause.args[0]
    reason = getattr(cause, "reason", None)
    cause = reason if isinstance(reason, Exception) else cause
    try:
        return f"no answer: {type(cause).__name__}: {cause}"
    except Exception:  # noqa: BLE001 - a foreign one
        return f"no answer: {type(cause).__name__}"


def _retry_after(header: str | None) -> float | None:
    if header is None:
        return None
    try:
        return float(urllib3.Retry().parse_retry_after(header))
    except (urllib3.exceptions.InvalidHeader, ValueError):  # neither, or a date that is none
        return None

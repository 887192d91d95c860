"""Token, endpoint and headers; one POST on kept-alive connections of `requests`.

Each process has a session, and so connections, of its own, made with its first request. A forked
child closes the descriptors that it inherited without a word on the wire.
"""

from __future__ import annotations

import ipaddress
import sys
import traceback
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any, Final

import requests
import urllib3
from requests.auth import AuthBase

from valued._errors import DeliveryError, PicklingError, ValidationError
from valued._fork import PerProcess, is_spawning
from valued._options import (
    DEFAULT_ENDPOINT,
    ca_bundle_from_environment,
    endpoint_from_environment,
    seconds,
    token_from_environment,
    whole,
)
from valued._pool import Adapter
from valued._reporting import log
from valued._route import Answer, Route
from valued._serializer import encode
from valued._version import __version__

if TYPE_CHECKING:
    from valued._typing import JSONObject

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

_PYTHON: Final = ".".join(map(str, sys.version_info[:3]))
USER_AGENT: Final = f"valued-client/{__version__} (Python/{_PYTHON})"


class _Secret(str):
    """A text that does its work as one, but never shows in a `repr` (of a dict, of a frame)."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'<secret>'"


class _Bearer(AuthBase):
    """Sets our ``Authorization``; as `auth` it goes before a ``~/.netrc`` entry for the host."""

    def __init__(self, authorization: str) -> None:
        self._authorization = authorization

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self._authorization
        return request


class Connection:
    """The way to the service: a token, an endpoint, and connections that are kept alive.

    *token*: default ``VALUED_TOKEN``. *endpoint*: an http(s) URL, default ``VALUED_ENDPOINT``, else
    the service's. *timeout*: seconds for one request, from the first packet to the last byte of the
    answer, default 10; each address of the host, and a handshake of TLS, may take as long before it
    is given up. *pool_size*: connections kept, default 10. Raises `ValidationError`.

    Calling it with an event sends it; ``endpoint`` and ``headers`` serve a transport of your own.
    Any thread may call. A forked child makes connections of its own.
    """

    def __init__(
        self,
        token: str | None = None,
        endpoint: str | None = None,
        *,
        timeout: float = 10.0,
        pool_size: int = 10,
    ) -> None:
        problems = [
            *seconds("timeout", timeout, zero=False),
            *whole("pool_size", pool_size, least=1),
        ]
        if problems:
            raise ValidationError(*problems)
        self._token = _Secret(_checked_token(token))
        self._token_given = token is not None
        self.endpoint: Final = _checked_endpoint(endpoint)
        _warn_of_clear_text(self.endpoint)
        self._timeout = timeout
        self._pool_size = pool_size
        self._route: PerProcess[Route] = PerProcess(self._new_route)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request, a new dict: content type, authorization, user agent."""
        return {
            "Content-Type": "application/json",
            "Authorization": _Secret(f"Bearer {self._token}"),
            "User-Agent": USER_AGENT,
        }

    @property
    def session(self) -> requests.Session:
        """This process's session, to mount an adapter on, for example.

        What is changed in its settings counts from the next request, if it was taken from here for
        that; a mounted adapter always does.
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
            answer = self._route.get().send(body, headers, bound)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            _clear_frames(error)
            raise DeliveryError(_reason(error)) from error
        except BaseException as error:  # out of a signal handler, or a timeout of gevent's
            _clear_frames(error)
            raise
        if not 200 <= answer.status <= 299:
            # Some proxies answer with the request that they refuse.
            said = answer.content.decode("utf-8", "replace").replace(self._token, "<secret>")
            answer = answer._replace(content=b"")  # or this frame would show it
            raise _refusal(answer, said)

    def close(self) -> None:
        """Close this process's connections. They are made again with the next request."""
        route = self._route.peek()
        if route is not None:
            route.close()

    def __repr__(self) -> str:
        return f"Connection(endpoint={self.endpoint!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Its configuration. Raises `PicklingError` where the token would get into a file."""
        if self._token_given and not is_spawning():
            raise PicklingError(
                "a token is pickled only for a child that multiprocessing is starting: set "
                "VALUED_TOKEN and give no token, then it is read again where this is unpickled"
            )
        token = str(self._token) if self._token_given else None
        return _restored, (token, self.endpoint, self._timeout, self._pool_size)

    def _new_route(self) -> Route:
        session = requests.Session()
        session.headers.update(self.headers)
        session.auth = _Bearer(self.headers["Authorization"])
        # Not from `requests`: it would look up ~/.netrc, and the system's proxies, which on macOS
        # crashes in a forked child. The variables alone are asked, once.
        session.trust_env = False
        session.proxies.update(_proxies(self.endpoint))
        session.verify = ca_bundle_from_environment() or True
        adapter = Adapter(pool_connections=1, pool_maxsize=self._pool_size, max_retries=0)
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        return Route(session, self.endpoint)


def _restored(token: str | None, endpoint: str, timeout: float, pool_size: int) -> Connection:
    return Connection(token, endpoint, timeout=timeout, pool_size=pool_size)


def _checked_token(token: object) -> str:
    given = token_from_environment() if token is None else token
    if given is None:
        raise ValidationError("token: none was given; pass one, or set VALUED_TOKEN")
    where = "VALUED_TOKEN" if token is None else "token"
    if not isinstance(given, str):
        raise ValidationError(f"{where}: expected a text, got {type(given).__name__}")
    if not given:
        raise ValidationError(f"{where}: it is empty; copy the token from your account")
    if not given.isascii() or not given.isprintable() or " " in given:
        raise ValidationError(
            f"{where}: it holds blanks, control characters or letters outside ASCII; "
            "copy it again, without a line end"
        )
    return given


def _checked_endpoint(endpoint: object) -> str:
    given = endpoint_from_environment() if endpoint is None else endpoint
    if given is None:
        return DEFAULT_ENDPOINT
    where = "VALUED_ENDPOINT" if endpoint is None else "endpoint"
    expected = "expected an http(s) URL, such as 'http://127.0.0.1:4567/events'"
    if not isinstance(given, str):
        raise ValidationError(f"{where}: {expected}, got {type(given).__name__}")
    try:
        parts = urllib.parse.urlsplit(given)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    # What was given is not shown: a token in the endpoint's place is a likely mistake.
    if not usable or any(character.isspace() for character in given):
        raise ValidationError(f"{where}: {expected}; what was given is none")
    if parts.username is not None or parts.password is not None:
        raise ValidationError(f"{where}: it holds a user name; the token is what authorizes")
    return given


#: Hosts that this process, or one that it was forked from, has warned of.
_told_of: Final[set[str]] = set()


def _warn_of_clear_text(endpoint: str) -> None:
    parts = urllib.parse.urlsplit(endpoint)
    host = parts.hostname or ""
    if parts.scheme == "https" or host in _told_of or _is_loopback(host):
        return
    _told_of.add(host)
    log.warning(
        "the endpoint is http://%s: the token, and all events, travel in clear; use https", host
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _proxies(endpoint: str) -> dict[str, str]:
    host = urllib.parse.urlsplit(endpoint).netloc
    bypass = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]  # not in typeshed
    if bypass(host):
        return {}
    return dict(urllib.request.getproxies_environment())


def _clear_frames(error: BaseException) -> None:
    """Empty the frames below this module that *error* and its causes hold.

    The request is in them, as bytes with the token, and error trackers record the locals of frames.
    """
    known: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in known:
            known.append(one)
            traceback.clear_frames(one.__traceback__)
            waiting += (one.__cause__, one.__context__)


def _reason(error: Exception) -> str:
    cause: Any = error
    # `requests` and urllib3 wrap each other's exceptions; the innermost says what happened.
    while cause.args and isinstance(cause.args[0], Exception):
        cause = cause.args[0]
    reason = getattr(cause, "reason", None)
    cause = reason if isinstance(reason, Exception) else cause
    return f"no answer: {type(cause).__name__}: {cause}"


def _refusal(answer: Answer, said: str) -> DeliveryError:
    reason = f"the service answered {answer.status} {answer.reason}".rstrip()
    if answer.status in _REDIRECTS:
        reason += " (redirects are not followed: set the endpoint to where it leads)"
    return DeliveryError(
        reason,
        answer.status,
        body=said[:500],
        retry_after=_retry_after(answer.headers.get("Retry-After")),
    )


def _retry_after(header: str | None) -> float | None:
    if header is None:
        return None
    try:
        return float(urllib3.Retry().parse_retry_after(header))
    except (urllib3.exceptions.InvalidHeader, ValueError):  # neither, or a date that is none
        return None

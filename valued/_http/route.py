"""The shortest way to the endpoint: what the environment and a session's settings come to.

A `requests.Session` looks all of them up again for each request (environment, proxies, cookies,
hooks, headers), which costs more than the request. Here this is done once, and then the session's
connection pool is used directly. The session itself sends only if the application mounted its own
adapter, set hooks or an ``auth``, or replaced what requests pass through (see `mocks`).

A service or a load balancer may close a kept-alive connection just as we write to it. That is not a
failure: the request is sent again at once, on a new connection. A request without any response was
most likely not processed; if it was, the service recognizes the repeat by the ``Idempotency-Key``.
"""

from __future__ import annotations

import http.client
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import requests
import requests.utils
import urllib3
from requests.structures import CaseInsensitiveDict
from urllib3.util.proxy import connection_requires_http_tunnel

from valued._http.mocks import NETWORK, one_at_a_time, what_is_replaced
from valued._http.pool import Adapter, checkin, checkout_idle
from valued._http.reading import remaining
from valued._http.wire import StaleConnection
from valued._process.clock import CLOCK
from valued._redaction import RedactedBytes, hide

#: Bytes of a response's body that are read. The service answers 204, without a body; what is
#: longer than this is a proxy's page.
MAX_BODY: Final = 64 * 1024

#: Options for a single request: the pool follows no redirect and doesn't retry.
_ONCE: Final[Any] = {
    "redirect": False,
    "retries": urllib3.Retry(total=False, redirect=False),
    "assert_same_host": False,
    "preload_content": False,
}


class Response(NamedTuple):
    """The response of the service; *body*: the beginning of it."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes


class _Prepared(NamedTuple):
    """What the session's settings come to for the endpoint."""

    adapter: Any
    pool: Any
    target: str  # of the request line
    headers: dict[str, str]
    head: RedactedBytes  # of a request on an idle connection, without what differs in each


class Route:
    """The way of one process to *endpoint*, through *session*. Any thread may call."""

    def __init__(self, session: requests.Session, endpoint: str) -> None:
        self.session = session
        self._endpoint = endpoint
        self._auth = session.auth
        self._prepared: _Prepared | None = None

    def reset(self) -> None:
        """Look up the session's settings again with the next request."""
        self._prepared = None

    def close(self) -> None:
        """Close the connections. The next request makes new ones."""
        self._prepared = None
        self.session.close()

    def send(self, body: bytes, headers: dict[str, str], timeout: float) -> Response:
        """Post *body*, within *timeout* s. Raises what `requests`, urllib3 and sockets raise."""
        deadline = CLOCK.monotonic() + timeout
        while True:
            try:
                return self._send_once(body, headers, deadline)
            except StaleConnection:  # noqa: PERF203 - once for all that are stale
                # The others have been idle for as long. So this loop ends: all idle connections are
                # closed, and a new one can't be stale. None: another thread is closing them.
                prepared = self._prepared
                while prepared is not None and (idle := checkout_idle(prepared.pool)) is not None:
                    idle.close()
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError):
                self.reset()  # with urllib3 1.26, a session that was closed has new pools
                raise

    def _send_once(self, body: bytes, headers: dict[str, str], deadline: float) -> Response:
        replaced = what_is_replaced(remaining(deadline))
        if replaced == NETWORK:
            with one_at_a_time(remaining(deadline)):
                return self._send_by_session(body, headers, remaining(deadline))
        prepared = None if replaced or "send" in vars(self.session) else self._prepare()
        if prepared is None:
            return self._send_by_session(body, headers, remaining(deadline))
        idle = checkout_idle(prepared.pool)
        if idle is not None:
            return _send_on_idle(idle, prepared, body, headers, deadline)
        raw = prepared.pool.urlopen(
            "POST",
            prepared.target,
            body=body,
            headers={**prepared.headers, **headers},
            timeout=urllib3.Timeout(total=remaining(deadline)),
            **_ONCE,
        )
        try:
            return Response(raw.status, raw.reason or "", raw.headers, _read(raw)[0])
        finally:
            raw.close()  # closes the connection, too, if the body wasn't read to its end
            raw.release_conn()

    def _prepare(self) -> _Prepared | None:
        """None: an adapter, an ``auth`` or a hook of the application must see each request."""
        session, prepared = self.session, self._prepared
        adapter: Any = session.get_adapter(self._endpoint)
        if prepared is not None and prepared.adapter is adapter:
            return prepared
        hooked = session.auth is not self._auth or any(session.hooks.values())
        ours = type(adapter) is Adapter and not hooked
        if not ours:
            return None
        request = session.prepare_request(requests.Request("POST", self._endpoint))
        url = request.url or self._endpoint
        settings = session.merge_environment_settings(url, {}, None, None, None)
        pool: Any = adapter.get_connection_with_tls_context(
            request, settings["verify"], proxies=settings["proxies"], cert=settings["cert"]
        )
        adapter.cert_verify(pool, url, settings["verify"], settings["cert"])
        common = {name: hide(value) for name, value in request.headers.items()}
        common.pop("Content-Length", None)  # there is no body yet
        target = adapter.request_url(request, settings["proxies"])
        parts = urllib.parse.urlsplit(url)
        lines = CaseInsensitiveDict[Any]({"Host": parts.netloc})
        lines.update(common)
        if not connection_requires_http_tunnel(pool.proxy, pool.proxy_config, parts.scheme):
            lines.update(pool.proxy_headers or {})  # with a tunnel they are for CONNECT only
        self._prepared = made = _Prepared(adapter, pool, target, common, _head(target, lines))
        return made

    def _send_by_session(self, body: bytes, headers: dict[str, str], timeout: float) -> Response:
        response = self.session.post(
            self._endpoint,
            data=body,
            headers=headers,
            timeout=urllib3.Timeout(total=timeout),  # type: ignore[arg-type]  # not in the stubs
            allow_redirects=False,  # a redirected POST would arrive as a GET without its body
            stream=True,
        )
        try:
            return Response(
                response.status_code,
                response.reason or "",
                response.headers,
                _read(response.raw, decode_content=True)[0],
            )
        finally:
            if response.raw is not None:  # None in a response made by a mock
                response.close()


def _head(target: str, headers: Mapping[str, str | bytes]) -> RedactedBytes:
    """The request line, and the headers that are the same for each request."""
    lines = [f"POST {target} HTTP/1.1".encode("ascii")]
    for name, value in headers.items():
        text = value.encode("latin-1") if isinstance(value, str) else value
        lines.append(hide(name.encode("ascii") + b": " + text))
    return RedactedBytes(b"\r\n".join(lines))


def _send_on_idle(
    idle: Any, prepared: _Prepared, body: bytes, headers: dict[str, str], deadline: float
) -> Response:
    """Post on an open connection: one packet out, one response in, and nothing is looked up.

    What urllib3 does in addition is only needed to make connections and to follow redirects.
    """
    reusable = False
    try:
        differing = "".join(f"\r\n{name}: {value}" for name, value in headers.items())
        request = RedactedBytes(
            b"%b%b\r\nContent-Length: %d\r\n\r\n%b"
            % (prepared.head, differing.encode("latin-1"), len(body), body)
        )
        raw = idle.exchange(request, deadline)
        # The body of a success is not shown, so it needs no decoding.
        content, is_whole = _read(raw if 200 <= raw.status <= 299 else _decoding(raw))
        reusable = is_whole and raw.isclosed() and not raw.will_close
    except http.client.HTTPException as error:
        raise urllib3.exceptions.ProtocolError("Connection aborted.", error) from error
    finally:
        if reusable:
            checkin(prepared.pool, idle)
        else:
            idle.close()
    return Response(raw.status, raw.reason, raw.headers, content)


def _decoding(raw: http.client.HTTPResponse) -> Any:
    """*raw* in a response of urllib3's, which decodes gzip and others."""
    return urllib3.HTTPResponse(
        raw, dict(raw.headers), raw.status, preload_content=False, original_response=raw
    )


def _read(raw: Any, **options: Any) -> tuple[bytes, bool]:
    """The beginning of the body, and whether reading it went well.

    Empty if it can't be read: the status is enough to decide.
    """
    try:
        return raw.read(MAX_BODY, **options) or b"", True
    except (AttributeError, TypeError):  # a response made by an adapter or a mock
        return b"", False
    except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError):
        return b"", False

"""The way to the endpoint: what `requests` makes of its settings, worked out once for each process.

A `requests.Session` looks all of them up again for each request (environment, proxies, cookies,
hooks, headers), which costs more than the request. Here this is done once, and then the session's
connection pool is used directly. Only if the application mounted its own adapter, or replaced what
requests pass through (see `_seams`), the session itself sends.

A service or a load balancer may close a kept-alive connection just as we write to it. That is not a
failure: the request is sent again at once, on a new connection. A request without any answer was
most likely not processed; if it was, the service recognizes the repeat by the ``Idempotency-Key``.
"""

from __future__ import annotations

import http.client
import sys
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import requests
import urllib3
from requests.structures import CaseInsensitiveDict
from urllib3.util.proxy import connection_requires_http_tunnel

from valued._http.mocks import WIRE, alone, replaced
from valued._http.pool import LEAST, Adapter, give_back, is_stale, take_kept
from valued._redaction import SecretBytes, hide

#: Bytes of an answer that are read. The service answers 204; anything longer is a proxy's page.
MOST_OF_ANSWER: Final = 64 * 1024

#: Options for a single request: the pool follows no redirect and doesn't retry.
_ONCE: Final[Any] = {
    "redirect": False,
    "retries": urllib3.Retry(total=False, redirect=False),
    "assert_same_host": False,
    "preload_content": False,
}


class Answer(NamedTuple):
    """The answer of the service; *content* is the beginning of its body."""

    status: int
    reason: str
    headers: Mapping[str, str]
    content: bytes


class _Ready(NamedTuple):
    """The result of a session's settings for the endpoint."""

    adapter: Any
    pool: Any
    target: str  # of the request line
    headers: dict[str, str]
    head: SecretBytes  # of a request on a kept connection, without the headers that differ


class Route:
    """The route of one process to *endpoint*, through *session*. Any thread may call."""

    def __init__(self, session: requests.Session, endpoint: str) -> None:
        self.session = session
        self._endpoint = endpoint
        self._auth = session.auth
        self._ready: _Ready | None = None

    def forget(self) -> None:
        """Look up the session's settings again with the next request."""
        self._ready = None

    def close(self) -> None:
        """Close the connections. The next request makes new ones."""
        self._ready = None
        self.session.close()

    def send(self, body: bytes, headers: dict[str, str], seconds: float) -> Answer:
        """Post *body*, within *seconds*. Raises what `requests`, urllib3 and sockets raise."""
        deadline = time.monotonic() + seconds
        # An exception that the caller handles is in the chain of each that is raised here.
        handled = sys.exc_info()[1]
        told_before = handled is not None and is_stale(handled)
        while True:
            left = max(LEAST, deadline - time.monotonic())
            try:
                return self._send_once(body, headers, left)
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                ready = self._ready
                self.forget()  # with urllib3 1.26, a session that was closed has new pools
                if told_before or not is_stale(error):
                    raise
                # This loop ends: it closes all kept connections, and a new one can't be stale.
                # None: another thread has found a stale connection, and closes them.
                while ready is not None and (kept := take_kept(ready.pool)) is not None:
                    kept.close()

    def _send_once(self, body: bytes, headers: dict[str, str], seconds: float) -> Answer:
        adapter = self.session.get_adapter(self._endpoint)
        ready = self._ready
        found = replaced(seconds)
        if found == WIRE:
            began = time.monotonic()
            with alone(seconds):
                left = max(LEAST, seconds - (time.monotonic() - began))
                return self._send_by_session(body, headers, left)
        if found or "send" in self.session.__dict__:
            return self._send_by_session(body, headers, seconds)
        if ready is None or ready.adapter is not adapter:
            if not self._is_plain(adapter):
                return self._send_by_session(body, headers, seconds)
            self._ready = ready = self._prepared(adapter)
        connection = take_kept(ready.pool)
        if connection is not None:
            return _send_on_kept(connection, ready, body, headers, seconds)
        raw = ready.pool.urlopen(
            "POST",
            ready.target,
            body=body,
            headers={**ready.headers, **headers},
            timeout=urllib3.Timeout(total=seconds),
            **_ONCE,
        )
        try:
            return Answer(raw.status, raw.reason or "", raw.headers, _content(raw)[0])
        finally:
            raw.close()  # closes the connection, too, if the body wasn't read to its end
            raw.release_conn()

    def _is_plain(self, adapter: object) -> bool:
        """Whether the settings can be reused: no adapter, auth or hook must see each request."""
        session = self.session
        return (
            type(adapter) is Adapter
            and session.auth is self._auth
            and not any(session.hooks.values())
        )

    def _prepared(self, adapter: Any) -> _Ready:
        session = self.session
        request = session.prepare_request(requests.Request("POST", self._endpoint))
        url = request.url or self._endpoint
        settings = session.merge_environment_settings(url, {}, None, None, None)
        pool = adapter.get_connection_with_tls_context(
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
        return _Ready(adapter, pool, target, common, _head(target, lines))

    def _send_by_session(self, body: bytes, headers: dict[str, str], seconds: float) -> Answer:
        answer = self.session.post(
            self._endpoint,
            data=body,
            headers=headers,
            timeout=urllib3.Timeout(total=seconds),  # type: ignore[arg-type]  # not in the stubs
            allow_redirects=False,  # a redirected POST would arrive as a GET without its body
            stream=True,
        )
        try:
            return Answer(
                answer.status_code,
                answer.reason or "",
                answer.headers,
                _content(answer.raw, decode_content=True)[0],
            )
        finally:
            if answer.raw is not None:  # None in an answer made by a mock
                answer.close()


def _head(target: str, headers: Mapping[str, str | bytes]) -> SecretBytes:
    """The request line, and the headers that are the same for each request."""
    lines = [f"POST {target} HTTP/1.1".encode("ascii")]
    for name, value in headers.items():
        text = value.encode("latin-1") if isinstance(value, str) else value
        lines.append(hide(name.encode("ascii") + b": " + text))
    return SecretBytes(b"\r\n".join(lines))


def _send_on_kept(
    connection: Any, ready: _Ready, body: bytes, headers: dict[str, str], seconds: float
) -> Answer:
    """Post on an open connection: one packet out, one answer in, and nothing is looked up.

    What urllib3 does in addition is only needed to make connections and to follow redirects.
    """
    kept = False
    try:
        differing = "".join(f"\r\n{name}: {value}" for name, value in headers.items())
        request = SecretBytes(
            b"%b%b\r\nContent-Length: %d\r\n\r\n%b"
            % (ready.head, differing.encode("latin-1"), len(body), body)
        )
        raw = connection.exchange(request, seconds)
        said = raw if 200 <= raw.status <= 299 else _unpacked(raw)  # read only after a failure
        content, is_whole = _content(said)
        answer = Answer(raw.status, raw.reason, raw.headers, content)
        kept = is_whole and raw.isclosed() and not raw.will_close
    except http.client.HTTPException as error:
        raise urllib3.exceptions.ProtocolError("Connection aborted.", error) from error
    finally:
        if kept:
            give_back(ready.pool, connection)
        else:
            connection.close()
    return answer


def _unpacked(raw: http.client.HTTPResponse) -> Any:
    return urllib3.HTTPResponse(
        raw, dict(raw.headers), raw.status, preload_content=False, original_response=raw
    )


def _content(raw: Any, **options: Any) -> tuple[bytes, bool]:
    """The beginning of the body, and whether reading it went well.

    Empty if it can't be read: the status is enough to decide.
    """
    try:
        return raw.read(MOST_OF_ANSWER, **options) or b"", True
    except (AttributeError, TypeError):  # an answer made by an adapter or a mock
        return b"", False
    except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError):
        return b"", False

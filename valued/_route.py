"""The way to the endpoint: what `requests` makes of its settings, worked out once for each process.

A `requests.Session` looks all of them up again for each request (environment, proxies, cookies,
hooks, headers), which costs more than the request. Here it is asked once, and then its pool of
connections is used. Only where somebody mounted an adapter of their own, or replaced what requests
pass through (see `_seams`), the session itself sends.

A kept-alive connection that the service, or a balancer before it, closes just as we write is no
failure: the request goes out again at once, on a connection that was never used. What was answered
nothing at all by then was not begun, as far as anybody can tell; for the rest there is the
``Idempotency-Key``.
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

from valued._pool import LEAST, Adapter, give_back, is_stale, take_kept
from valued._seams import WIRE, alone, replaced
from valued._secret import SecretBytes, hide

#: Bytes of an answer that are read. The service answers 204; what is longer is some proxy's page.
MOST_OF_ANSWER: Final = 64 * 1024

#: A whole answer, or none: what comes after a redirect, or a pause of urllib3's, is no business of
#: the pool's.
_ONCE: Final[Any] = {
    "redirect": False,
    "retries": urllib3.Retry(total=False, redirect=False),
    "assert_same_host": False,
    "preload_content": False,
}


class Answer(NamedTuple):
    """What the service said: the content is its beginning."""

    status: int
    reason: str
    headers: Mapping[str, str]
    content: bytes


class _Ready(NamedTuple):
    """What a session makes of its settings for the endpoint."""

    adapter: Any
    pool: Any
    target: str  # of the request line
    headers: dict[str, str]
    head: SecretBytes  # of a request on a kept connection, without what differs


class Route:
    """One process's way to *endpoint*, by *session*. Any thread may call."""

    def __init__(self, session: requests.Session, endpoint: str) -> None:
        self.session = session
        self._endpoint = endpoint
        self._auth = session.auth
        self._ready: _Ready | None = None

    def forget(self) -> None:
        """Ask the session once more: its settings may have changed."""
        self._ready = None

    def close(self) -> None:
        """Close the connections. They are made again with the next request."""
        self._ready = None
        self.session.close()

    def send(self, body: bytes, headers: dict[str, str], seconds: float) -> Answer:
        """Post *body*, in *seconds* as a whole. Raises what `requests`, urllib3 and sockets do."""
        deadline = time.monotonic() + seconds
        # The caller's exception is in the chain of each that is raised here, and tells nothing.
        handled = sys.exc_info()[1]
        told_before = handled is not None and is_stale(handled)
        while True:
            left = max(LEAST, deadline - time.monotonic())
            try:
                return self._send_once(body, headers, left)
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                ready = self._ready
                self.forget()  # of urllib3 1.26, a session that somebody closed has new pools
                if told_before or not is_stale(error):
                    raise
                # It ends: those that were kept as long are gone, and a new one can't be stale.
                # None: another thread has found the same, and closes them.
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
            raw.close()  # the connection, too, where more would come
            raw.release_conn()

    def _is_plain(self, adapter: object) -> bool:
        """Whether what is worked out once holds for each request: nobody wants to see each."""
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
        common.pop("Content-Length", None)  # of a body that is not there yet
        target = adapter.request_url(request, settings["proxies"])
        parts = urllib.parse.urlsplit(url)
        lines = CaseInsensitiveDict[Any]({"Host": parts.netloc})
        lines.update(common)
        if not connection_requires_http_tunnel(pool.proxy, pool.proxy_config, parts.scheme):
            lines.update(pool.proxy_headers or {})  # else they are for CONNECT alone
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
            if answer.raw is not None:  # as in an answer that a mock made by hand
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
    """Post on a connection that stands: one packet out, one answer in, and nothing looked up.

    What urllib3 does beyond that is for making connections, and for whoever follows redirects.
    """
    kept = False
    try:
        differing = "".join(f"\r\n{name}: {value}" for name, value in headers.items())
        request = SecretBytes(
            b"%b%b\r\nContent-Length: %d\r\n\r\n%b"
            % (ready.head, differing.encode("latin-1"), len(body), body)
        )
        raw = connection.exchange(request, seconds)
        said = raw if 200 <= raw.status <= 299 else _unpacked(raw)  # else nobody looks at it
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

    Empty where it can't be had: the status has decided already.
    """
    try:
        return raw.read(MOST_OF_ANSWER, **options) or b"", True
    except (AttributeError, TypeError):  # of an adapter, or a mock, that made an answer by hand
        return b"", False
    except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError):
        return b"", False

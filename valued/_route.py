"""The way to the endpoint: what `requests` makes of its settings, worked out once for each process.

A `requests.Session` looks all of them up again for each request (environment, proxies, cookies,
hooks, headers), which costs more than the request. Here it is asked once, and then its pool of
connections is used. Only where somebody mounted an adapter of their own the session itself sends.

A kept-alive connection that the service, or a balancer before it, closes just as we write is no
failure: the request goes out again at once, on a connection that was never used. What was answered
nothing at all by then was not begun, as far as anybody can tell; for the rest there is the
``Idempotency-Key``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import requests
import urllib3

from valued._pool import Adapter, is_stale

#: Bytes of an answer that are read. The service answers 204; what is longer is some proxy's page.
MOST_OF_ANSWER: Final = 64 * 1024

#: Seconds that an attempt has at least, however late it is.
LEAST: Final = 0.001

#: A whole answer, or none: what comes after a redirect, or a pause of urllib3's, is no business of
#: the pool's.
_ONCE: Final[Any] = {
    "redirect": False,
    "retries": urllib3.Retry(total=False, redirect=False),
    "assert_same_host": False,
    "preload_content": False,
    "decode_content": False,
}


class Answer(NamedTuple):
    """What the service said: the content is its beginning."""

    status: int
    reason: str
    headers: Mapping[str, str]
    content: bytes


class Route:
    """One process's way to *endpoint*, by *session*. Any thread may call."""

    def __init__(self, session: requests.Session, endpoint: str) -> None:
        self.session = session
        self._endpoint = endpoint
        self._ready: tuple[Any, Any, str, dict[str, str]] | None = None

    def forget(self) -> None:
        """Ask the session once more: its settings may have changed."""
        self._ready = None

    def close(self) -> None:
        """Close the connections. They are made again with the next request."""
        self._ready = None
        self.session.close()

    def send(self, body: bytes, headers: dict[str, str], seconds: float) -> Answer:
        """Post *body*, in *seconds* as a whole. Raises what `requests` and urllib3 raise."""
        deadline = time.monotonic() + seconds
        while True:
            left = urllib3.Timeout(total=max(LEAST, deadline - time.monotonic()))
            try:
                return self._send_once(body, headers, left)
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                # It ends: each time a connection goes that was used before, and a new one is none.
                if not is_stale(error):
                    self.forget()  # of urllib3 1.26, a session that somebody closed has new pools
                    raise

    def _send_once(self, body: bytes, headers: dict[str, str], timeout: urllib3.Timeout) -> Answer:
        adapter = self.session.get_adapter(self._endpoint)
        ready = self._ready
        if ready is None or ready[0] is not adapter:
            if type(adapter) is not Adapter:
                return self._send_by_session(body, headers, timeout)
            self._ready = ready = (adapter, *self._prepared(adapter))
        _, pool, target, common = ready
        raw = pool.urlopen(
            "POST", target, body=body, headers={**common, **headers}, timeout=timeout, **_ONCE
        )
        try:
            return Answer(raw.status, raw.reason or "", raw.headers, _content(raw))
        finally:
            raw.close()  # the connection, too, where more would come
            raw.release_conn()

    def _prepared(self, adapter: Any) -> tuple[Any, str, dict[str, str]]:
        """The pool, what stands in the request line, and the headers, as `requests` has them."""
        session = self.session
        request = session.prepare_request(requests.Request("POST", self._endpoint))
        url = request.url or self._endpoint
        settings = session.merge_environment_settings(url, {}, None, None, None)
        pool = adapter.get_connection_with_tls_context(
            request, settings["verify"], proxies=settings["proxies"], cert=settings["cert"]
        )
        adapter.cert_verify(pool, url, settings["verify"], settings["cert"])
        common = dict(request.headers)
        common.pop("Content-Length", None)  # of a body that is not there yet
        return pool, adapter.request_url(request, settings["proxies"]), common

    def _send_by_session(
        self, body: bytes, headers: dict[str, str], timeout: urllib3.Timeout
    ) -> Answer:
        with self.session.post(
            self._endpoint,
            data=body,
            headers=headers,
            timeout=timeout,  # type: ignore[arg-type]  # not in the stubs
            allow_redirects=False,  # a redirected POST would arrive as a GET without its body
            stream=True,
        ) as answer:
            return Answer(
                answer.status_code, answer.reason or "", answer.headers, _content(answer.raw)
            )


def _content(raw: Any) -> bytes:
    """The beginning of the body; empty where it can't be had: the status has decided already."""
    try:
        return raw.read(MOST_OF_ANSWER, decode_content=True) or b""
    except (urllib3.exceptions.HTTPError, OSError, ValueError):
        return b""

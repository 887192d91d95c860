"""The page at ``/``: one file, and the headers with which the browser shows that alone.

The browser runs the script of the file and nothing else, whatever is in an event: the policy names
the script and the styles by their hashes.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
from typing import Final

from valued._service.refusals import Answer

#: Of all answers to pages and programs.
HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@functools.cache
def page() -> Answer:
    """The page with its headers."""
    content = importlib.resources.files("valued._service").joinpath("page.html").read_bytes()
    return Answer(
        200,
        {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": policy(content),
            **HEADERS,
        },
        content,
    )


def policy(content: bytes) -> str:
    """What the browser may do for the page *content*."""
    return "; ".join(
        [
            "default-src 'none'",
            "connect-src 'self'",
            "img-src data:",
            f"script-src 'sha256-{_digest(content, b'script')}'",
            f"style-src 'sha256-{_digest(content, b'style')}'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


def _digest(content: bytes, name: bytes) -> str:
    """That of the text in the only element of this name."""
    [_, rest] = content.split(b"<%s>" % name)
    [text, _] = rest.split(b"</%s>" % name)
    # The browser takes all ends of lines as \\n.
    text = text.replace(b"\r\n", b"\n")
    return base64.b64encode(hashlib.sha256(text).digest()).decode()

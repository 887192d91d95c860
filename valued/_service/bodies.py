"""Reads the body of a request, to its end, and what event it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import valued
from valued._service import strict_json
from valued._service.refusals import Refusal

if TYPE_CHECKING:
    from email.message import Message
    from io import BufferedIOBase

#: The most bytes of one event: some hundred times the size of a large one.
MAX_BODY: Final = 1024 * 1024

#: How many bytes of a refused request are read to keep the connection; else it is closed.
MAX_DISCARD: Final = 16 * MAX_BODY


def read(method: str, headers: Message, stream: BufferedIOBase) -> bytes:
    """The body, read to its end; raises a refusal if its length isn't known."""
    if "Transfer-Encoding" in headers:
        raise Refusal(411, "send a Content-Length; chunks are not supported", close=True)
    lengths = set(headers.get_all("Content-Length", []))
    if not lengths:
        if method == "POST":
            raise Refusal(411, "send a Content-Length", close=True)
        return b""
    length = lengths.pop().strip()
    if lengths or not (length.isascii() and length.isdigit() and len(length) < 16):
        raise Refusal(400, "Content-Length: expected one whole number", close=True)
    size = int(length)
    if size > MAX_BODY:
        reason = f"an event may have at most {MAX_BODY} bytes, this one has {size}"
        raise Refusal(413, reason, close=not _discard(stream, size))
    body = stream.read(size)
    if len(body) < size:
        raise Refusal(400, "the body ended before its Content-Length", close=True)
    return body


def _discard(stream: BufferedIOBase, size: int) -> bool:
    """Read and ignore *size* bytes; False: they are too many, or did not arrive."""
    if size > MAX_DISCARD:
        return False
    while size and (piece := stream.read(min(size, 65536))):
        size -= len(piece)
    return size == 0


def decoded(body: bytes) -> Any:
    """The JSON of *body*; raises a refusal."""
    try:
        return strict_json.parsed(body)
    except ValueError as error:
        raise Refusal(400, f"the body: {error}") from None


def check(event: Any) -> dict[str, Any]:
    """*event*, if it is one; else raises a refusal with all reasons."""
    try:
        valued.validate(event)
    except valued.ValidationError as error:
        raise Refusal(400, *error.problems) from None
    except valued.ValuedError as error:
        raise Refusal(400, str(error)) from None
    checked: dict[str, Any] = event
    return checked

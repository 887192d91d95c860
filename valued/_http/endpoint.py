"""Checks the token and the endpoint that were given.

Neither error messages nor stack frames show their values: a token in place of the endpoint is a
likely mistake.
"""

from __future__ import annotations

import ipaddress
import urllib.parse
from typing import Any, Final

from valued._errors import ValidationError
from valued._options import (
    DEFAULT_ENDPOINT,
    endpoint_from_environment,
    is_async,
    token_from_environment,
)
from valued._process.reporting import log
from valued._redaction import RedactedStr, hide


def hide_argument(given: object) -> Any:
    """*given* as a `RedactedStr`; for anything but a string or None, its type.

    A list with the token, for example, would show it wherever a stack frame is shown.
    """
    if given is None or isinstance(given, str):
        return hide(given)
    return bytes if isinstance(given, bytes) else type(given)  # they may be hidden already


def check_transport(transport: object, endpoint: object) -> None:
    """Raises `ValidationError` if *transport*, a callable, can't be used as one."""
    if endpoint is not None:
        raise ValidationError("endpoint: a transport has its own; give a token with it")
    if is_async(transport):
        raise ValidationError("token: expected a transport without async: it runs on a thread")


def checked_token(token: Any) -> RedactedStr:
    """*token*, of `hide_argument`; default ``VALUED_TOKEN``. Raises `ValidationError`."""
    given = hide(token_from_environment()) if token is None else token
    if given is None:
        hint = "pass one, or set VALUED_TOKEN, or set VALUED_DISABLED=1 to send nothing"
        raise ValidationError(f"token: none was given; {hint}")
    where = "VALUED_TOKEN" if token is None else "token"
    if not isinstance(given, RedactedStr):
        raise ValidationError(f"{where}: expected a string, got {given.__name__}")
    if not given:
        raise ValidationError(f"{where}: it is empty; copy the token from your account")
    if given[:7].lower() == "bearer ":
        raise ValidationError(f"{where}: leave out 'Bearer'; the client adds it")
    if not given.isascii() or not given.isprintable() or " " in given:
        raise ValidationError(
            f"{where}: it contains spaces, control characters or non-ASCII letters; "
            "copy it again, without a line break"
        )
    if given.lower().startswith(("http://", "https://")):
        raise ValidationError(
            f"{where}: it is a URL; the token is the first argument, the endpoint the second"
        )
    return given


def checked_endpoint(endpoint: Any) -> str:
    """*endpoint*, of `hide_argument`; default ``VALUED_ENDPOINT``, else the service's endpoint.

    Raises `ValidationError`.
    """
    given = hide(endpoint_from_environment()) if endpoint is None else endpoint
    if given is None:
        return DEFAULT_ENDPOINT
    where = "VALUED_ENDPOINT" if endpoint is None else "endpoint"
    expected = "expected an http(s) URL, such as 'http://127.0.0.1:4567/events'"
    if not isinstance(given, RedactedStr):
        raise ValidationError(f"{where}: {expected}, got {given.__name__}")
    if "://" not in given:
        raise ValidationError(f"{where}: {expected}; what was given has no 'https://' or 'http://'")
    if not _is_url(given):
        raise ValidationError(f"{where}: {expected}; what was given isn't one")
    if "@" in urllib.parse.urlsplit(given).netloc:
        raise ValidationError(
            f"{where}: it contains a user name; leave that out, the token is enough"
        )
    return str(given)


def _is_url(given: RedactedStr) -> bool:
    try:
        parts = urllib.parse.urlsplit(given)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return False
    return bool(usable) and not any(character.isspace() for character in given)


#: Hosts that this process, or one that it was forked from, has warned of.
_warned_of: Final[set[str]] = set()


def warn_of_clear_text(endpoint: str) -> None:
    """Log a warning, once for each host, if the token would be sent unencrypted."""
    parts = urllib.parse.urlsplit(endpoint)
    host = parts.hostname or ""
    if parts.scheme == "https" or host in _warned_of or is_loopback(host):
        return
    _warned_of.add(host)
    log.warning("the endpoint is http://%s: token and events are sent unencrypted; use https", host)


def is_loopback(host: str) -> bool:
    """Whether *host*, of a URL, is this machine. No name is looked up."""
    name = host.rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)  # `is_loopback` ignores it before Python 3.13
    return (mapped or address).is_loopback

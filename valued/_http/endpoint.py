"""Checks the token and the endpoint that were given.

Neither error messages nor stack frames show their values: a token in place of the endpoint is a
likely mistake.
"""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from typing import Any, Final

from valued._errors import ValidationError, name_of
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
    """Raises `ValidationError` if *transport*, called or with ``post``, can't be used as one."""
    if endpoint is not None:
        raise ValidationError("endpoint: a transport has its own; give a token with it")
    called: object = transport
    if not callable(transport):
        called = transport.post  # type: ignore[attr-defined]
        if not callable(called) or not callable(getattr(transport, "close", None)):
            raise ValidationError(
                "token: expected a transport with the methods post(body, idempotency_key, timeout) "
                f"and close(), got {name_of(type(transport))}"
            )
    if is_async(called):
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
    problem = _endpoint_problem(given)
    if problem is _NO_URL:
        raise ValidationError(f"{where}: {expected}; {problem}{_suggestion(given)}")
    if problem is not None:
        raise ValidationError(f"{where}: {problem}")
    return str(given)


_NO_URL: Final = "what was given isn't one"


def _endpoint_problem(given: RedactedStr) -> str | None:
    try:
        parts = urllib.parse.urlsplit(given)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return _NO_URL
    if not usable or any(character.isspace() for character in given):
        return _NO_URL
    if parts.username is not None or parts.password is not None:
        return "it contains a user name; leave that out, the token is enough"
    return None


#: What may be shown, since it can only be an address: a host with a top-level domain or a port, in
#: lower case, as hardly any token is; then maybe a path.
_ADDRESS: Final = re.compile(
    r"""
    /* (?P<host>
        (?: localhost | (?: [0-9]{1,3} \. ){3} [0-9]{1,3} | \[ [0-9a-f:.]+ \]
          | (?: [a-z0-9-]{1,63} \. )+ [a-z]{2,18} ) (?: : [0-9]{1,5} )?
      | [a-z][a-z0-9-]{0,31} : [0-9]{2,5} )
    (?P<path> / [a-z0-9/._-]{0,60} )?
    """,
    re.VERBOSE,
)


def _suggestion(given: RedactedStr) -> str:
    """*given* with a scheme, as a question; empty if that isn't a URL, or may be a secret."""
    address = _ADDRESS.fullmatch(given)
    if address is None:
        return ""
    host = address["host"]
    local = is_loopback(host.strip("[]")) or is_loopback(host.rpartition(":")[0].strip("[]"))
    meant = f"{'http' if local else 'https'}://{host}{address['path'] or '/events'}"
    if _endpoint_problem(RedactedStr(meant)) is not None:
        return ""
    return f"; did you mean '{meant}'?"


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

"""The token, the endpoint, and the variables that switch a client off."""

from __future__ import annotations

import ipaddress
import os
import urllib.parse

import valued
from valued.cli import delivery
from valued.cli.doctor.result import Result, fail, ok, warn

#: What is checked without a token, or without an endpoint, gets these. Neither is ever used.
NO_TOKEN = "unused"  # noqa: S105
NO_ENDPOINT = "http://127.0.0.1:9/events"


def switches() -> Result:
    """Whether the variables can be read, and let events go to the service."""
    check = "variables"
    try:
        # The outbox has a check of its own.
        with delivery.variables(VALUED_OUTBOX=""):
            valued.Client(lambda _event: None).close(0)
    except valued.ValidationError as error:
        name = str(error).partition(":")[0]
        return fail(check, str(error), f"unset {name}")
    if delivery.is_off():
        return warn(check, "VALUED_DISABLED is set: no event is sent", "unset VALUED_DISABLED")
    if delivery.is_recorded():
        return warn(
            check, "VALUED_RECORD is set: events are recorded for a test", "unset VALUED_RECORD"
        )
    if os.environ.get("VALUED_BLOCK") == "1":
        return warn(check, "VALUED_BLOCK is set: real endpoints are refused", "unset VALUED_BLOCK")
    return ok(check, "none of them keeps events from being sent")


def token(given: str | None) -> Result:
    """Whether there is a token that has the form of one. Only the service knows more."""
    try:
        valued.Connection(given, NO_ENDPOINT)
    except valued.ValidationError as error:
        text = str(error).removeprefix("token: ")
        return fail("token", text, "export VALUED_TOKEN='the token of your account'")
    source = "VALUED_TOKEN" if given is None else "--token"
    return ok("token", f"{source} has the form of a token")


def endpoint(given: str | None) -> Result:
    """Whether the endpoint is a URL that events can be sent to."""
    try:
        url = valued.Connection(NO_TOKEN, given).endpoint
    except valued.ValidationError as error:
        example = "https://ingest.valued.app/events"
        text = str(error).removeprefix("endpoint: ")
        return fail("endpoint", text, f"export VALUED_ENDPOINT={example}")
    shown = shown_url(url)
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        return warn(
            "endpoint",
            f"{shown}: token and events are sent unencrypted",
            f"export VALUED_ENDPOINT={shown.replace('http:', 'https:', 1)}",
        )
    return ok("endpoint", shown)


def shown_url(url: str) -> str:
    """*url* without the query, which may contain something secret."""
    return url.partition("?")[0]


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

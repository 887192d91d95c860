"""Runs the checks in their order, and prints what each found.

It reads the variables that a client would read, sends no event unless it is told to, and starts
nothing that outlives it. Each check is a function that returns results. A check whose precondition
failed is skipped, and says so.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Final

from valued._redaction import redacted
from valued._service import render
from valued.cli.doctor import network, outbox, servers, settings
from valued.cli.doctor.result import FAIL, OK, SKIPPED, WARN, Result, skipped

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

#: How a terminal shows them.
_STYLES: Final = {OK: "green", WARN: "yellow", FAIL: "bold red", SKIPPED: "dim"}


def run(arguments: argparse.Namespace) -> int:
    """Print what each check found; 1 if one of them failed."""
    # The results say the same: without a handler, Python would print the library's warnings, too.
    logging.getLogger("valued").addHandler(logging.NullHandler())
    secrets = _secrets(arguments)
    results: list[Result] = []
    for found in _checks(arguments):
        result = found._replace(
            text=_without(found.text, secrets), fix=_without(found.fix, secrets)
        )
        results.append(result)
        if not arguments.json:
            _show(result)
    failed = any(result.status == FAIL for result in results)
    if arguments.json:
        checks = [result._asdict() for result in results]
        print(json.dumps({"status": FAIL if failed else OK, "checks": checks}))
    return 1 if failed else 0


def _checks(arguments: argparse.Namespace) -> Iterator[Result]:
    switches = settings.switches()
    token = settings.token(arguments.token)
    endpoint = settings.endpoint(arguments.endpoint)
    yield from (switches, token, endpoint)
    if endpoint.status == FAIL:
        for check in network.CHECKS:
            yield skipped(check, "the endpoint can't be used")
    else:
        # The address can be tried with any token: it goes out with an event only.
        given = settings.NO_TOKEN if token.status == FAIL else arguments.token
        without_event = ""
        if not arguments.send:
            without_event = "none was sent (--send), so the token is not tested"
        elif FAIL in (token.status, switches.status):
            without_event = "the token or a variable can't be used"
        elif switches.status == WARN:
            without_event = switches.text
        yield from network.checks(given, arguments.endpoint, arguments.timeout, without_event)
    yield from outbox.checks(arguments.outbox)
    directory = arguments.outbox or os.environ.get("VALUED_OUTBOX")
    seconds = arguments.shutdown_timeout
    if seconds is None:
        seconds = 1.0 if directory else 5.0  # as a client has it by default
    yield servers.uwsgi(arguments.uwsgi)
    yield from servers.gunicorn(arguments.gunicorn, seconds)
    yield servers.gevent(arguments.module_to_import, arguments.timeout)


def _secrets(arguments: argparse.Namespace) -> list[str]:
    """What no output may contain: tokens, and the passwords of proxies."""
    found = [arguments.token, os.environ.get("VALUED_TOKEN")]
    for proxy in urllib.request.getproxies_environment().values():
        name, at, _ = proxy.rpartition("@")
        if at:
            user, _, password = name.rpartition("//")[2].partition(":")
            found += [password or user, urllib.parse.unquote(password or user)]
    return [secret.strip() for secret in found if secret and secret.strip()]


def _without(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = redacted(text, secret)
    return text


def _show(result: Result) -> None:
    fix = f"; try: {result.fix}" if result.fix else ""
    line = render.line(f" {result.check:<10} {result.text}{fix}")
    terminal = render.console(sys.stdout)
    if terminal is None:
        print(f"{result.status:<7}{line}", flush=True)
        return
    from rich.text import Text

    terminal.print(Text.assemble((f"{result.status:<7}", _STYLES[result.status]), line))

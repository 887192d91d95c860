"""The arguments of ``valued doctor``, apart from the checks: those import `requests`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def add(parser: argparse.ArgumentParser, seconds: Callable[[str], float]) -> None:
    """Add them to *parser*. *seconds*: the type of an argument in seconds."""

    def positive(text: str) -> float:
        if number := seconds(text):
            return number
        raise argparse.ArgumentTypeError("expected more than 0 seconds")

    for name, metavar, text in (
        ("--outbox", "DIR", "directory given to clients as outbox (default: VALUED_OUTBOX)"),
        ("--uwsgi", "FILE", "configuration of uWSGI (default: uwsgi.ini here, if there is one)"),
        ("--gunicorn", "FILE", "configuration of Gunicorn (default: gunicorn.conf.py here)"),
    ):
        parser.add_argument(name, metavar=metavar, help=text)
    parser.add_argument(
        "--shutdown-timeout",
        type=seconds,
        metavar="S",
        help="shutdown_timeout of your client (default: 5, with an outbox 1)",
    )
    parser.add_argument(
        "--import",
        dest="module_to_import",
        metavar="MODULE",
        help="import this module in a process of its own, and see whether gevent patches in time",
    )
    parser.add_argument(
        "--timeout",
        type=positive,
        default=10.0,
        metavar="S",
        help="seconds that a check may take (default: %(default)g)",
    )
    parser.add_argument(
        "--send", action="store_true", help="also send one event (default: send none)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")

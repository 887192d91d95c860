"""The command line: ``valued``, and ``python -m valued``.

Exit statuses: 0 when all went well, 1 when something could not be delivered or done, 2 for a
command that can't be understood, 130 after Ctrl-C. Errors are one line on standard error each.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import valued

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

#: As a shell reports a program that SIGINT ended: 128 and its number.
INTERRUPTED: Final = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. *argv*: default the process's own arguments.

    Like any parser of `argparse`, ``--help``, ``--version`` and a command that can't be understood
    raise `SystemExit`. Call it from the main thread: commands handle signals.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that can't show a character gets its number, and no traceback.
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # here, where a broken pipe can still be told from success
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has enough (`valued listen | head`). What the interpreter flushes at its end
        # must go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(argv: Sequence[str] | None) -> int:
    from valued.cli import render

    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.module is None:
        parser.print_help(sys.stderr)
        return 2
    command = importlib.import_module(f"valued.cli.{arguments.module}")
    try:
        status: int = command.run(arguments)
    except valued.ValuedError as error:  # what was given can't be used as it is
        render.complain(str(error))
        return 2
    except BrokenPipeError:
        raise
    except OSError as error:
        render.complain(str(error))
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="valued", description="Record events for Valued (valued.app), and see what is sent."
    )
    parser.add_argument("--version", action="version", version=f"valued {valued.__version__}")
    parser.set_defaults(module=None)
    commands = parser.add_subparsers(metavar="COMMAND")
    _add_listen(_command(commands, "listen", "listen", "stand in for the service, show each event"))
    _add_send(_command(commands, "send", "send", "deliver events written one a line"))
    for name, subject, text in (
        ("action", "KEY", "record that somebody did something"),
        ("page-view", "URL", "record that a user looked at a page"),
        ("sync-user", None, "send what is known of a user"),
        ("sync-customer", None, "send what is known of a customer"),
    ):
        _add_event(_command(commands, name, "events", text), name, subject)
    _add_outbox(_command(commands, "outbox", "outbox", "see and send what processes left behind"))
    _add_demo(_command(commands, "demo", "demo", "see it at work: forks, a pool, threads, a spawn"))
    return parser


def _command(commands: Any, name: str, module: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}."
    )
    parser.set_defaults(module=module)
    return parser


def _add_listen(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument(
        "--port", type=_port, default=4567, help="port (%(default)s; 0: a free one)"
    )
    parser.add_argument(
        "--delay", type=_seconds, default=0.0, metavar="S", help="wait S seconds before each answer"
    )
    parser.add_argument(
        "--fail",
        type=_failure,
        action="append",
        default=[],
        metavar="STATUS:COUNT",
        help="answer the first COUNT valid events with STATUS, as 503:3; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON for each event")
    parser.add_argument(
        "--until-eof", action="store_true", help="end when standard input does, too"
    )


def _add_send(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="one JSON object a line; -: standard input")
    _add_delivery(parser)


def _add_event(parser: argparse.ArgumentParser, name: str, subject: str | None) -> None:
    parser.set_defaults(command=name)
    if subject:
        parser.add_argument("subject", metavar=subject)
    parser.add_argument(
        "pairs",
        nargs="*",
        type=_pair,
        metavar="NAME=VALUE",
        help="such as user.id=1 or attributes.plan=pro; a value is JSON where that keeps what was "
        "typed (7, true, [1, 2]), else text (pro, 007); in quotes of its own, '\"7\"', it is text",
    )
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="say nothing where the event was delivered"
    )
    _add_delivery(parser)


def _add_delivery(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--token",
        help="default VALUED_TOKEN, which is the better place: arguments can be seen by everybody "
        "on this machine in the list of processes",
    )
    parser.add_argument(
        "--endpoint", metavar="URL", help="default VALUED_ENDPOINT, else the service's"
    )


def _add_outbox(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="what clients were given as outbox")
    parts = parser.add_subparsers(metavar="WHAT", dest="what")
    parts.add_parser("status", help="owners alive and dead, events, bytes, rejected (the default)")
    send = parts.add_parser("send", help="deliver what dead processes left")
    send.add_argument(
        "--timeout",
        type=_seconds,
        default=60.0,
        metavar="S",
        help="give up, and leave the rest, when nothing was delivered for S seconds (%(default)g)",
    )
    _add_delivery(send)
    rejected = parts.add_parser("rejected", help="what the service refused for good, and why")
    choice = rejected.add_mutually_exclusive_group()
    choice.add_argument(
        "--export", metavar="FILE", help="write the events one a line, to be mended and sent"
    )
    choice.add_argument("--forget", action="store_true", help="remove them")
    export = parts.add_parser("export", help="write what is not delivered, one event a line")
    export.add_argument("file", metavar="FILE", help="for `valued send`; -: standard output")
    purge = parts.add_parser("purge", help="remove what dead processes left, undelivered (asks)")
    purge.add_argument("--yes", action="store_true", help="do not ask")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--events",
        type=_count,
        default=100,
        metavar="N",
        help="events that each process and each thread records (%(default)s)",
    )


# -- types of arguments ----------------------------------------------------------------------------


def _port(text: str) -> int:
    if _is_whole(text) and int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a port, 0 to 65535, got {text!r}")


def _count(text: str) -> int:
    if _is_whole(text) and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    # A day is longer than any sender waits, and far below what a lock can be waited for.
    if 0 <= seconds <= 86_400:
        return seconds
    raise argparse.ArgumentTypeError(f"expected seconds, 0 to 86400, got {text!r}")


def _failure(text: str) -> tuple[int, int]:
    status, _, count = text.partition(":")
    if _is_whole(status) and 300 <= int(status) <= 599 and _is_whole(count) and int(count) > 0:
        return int(status), int(count)
    raise argparse.ArgumentTypeError(
        f"expected STATUS:COUNT, a status of 300 to 599 and how often, as 503:3, got {text!r}"
    )


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, as user.id=1, got {text!r}")
    return name, value

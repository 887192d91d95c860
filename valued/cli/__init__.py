"""The command line: ``valued``, and ``python -m valued``.

Exit statuses: 0 for success, 1 if something could not be delivered or done, 2 for wrong arguments,
130 after Ctrl-C. Each error is one line on standard error.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
import urllib.parse
from typing import TYPE_CHECKING, Any, Final

import valued
from valued.cli.doctor import arguments as doctor_arguments

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

#: The status that a shell reports for a program ended by SIGINT: 128 and the number of the signal.
INTERRUPTED: Final = 130

EPILOG: Final = (
    "Environment variables: VALUED_TOKEN is the token, if there is no --token. VALUED_ENDPOINT is "
    "the address that events are sent to, if there is no --endpoint. VALUED_DISABLED=1 sends "
    "nothing. Type `valued COMMAND --help` for the options of a command."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. *argv*: default the arguments of the process.

    As with any parser of `argparse`, ``--help``, ``--version`` and wrong arguments raise
    `SystemExit`. Call it on the main thread: commands handle signals.
    """
    # Without it, what goes to standard error would be printed on standard output.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A character that the terminal can't show is escaped, instead of raising an error.
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # here, where a broken pipe can still change the exit status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has ended (`valued listen | head`). What the interpreter flushes at shutdown
        # must go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(argv: Sequence[str] | None) -> int:
    from valued._service import render

    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.module is None:
        parser.print_help(sys.stderr)
        return 2
    command = importlib.import_module(f"valued.cli.{arguments.module}")
    try:
        status: int = command.run(arguments)
    except valued.ValuedError as error:  # the arguments can't be used
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
        prog="valued",
        description="Send events to Valued (valued.app), and see what your application sends.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"valued {valued.__version__}")
    parser.set_defaults(module=None)
    commands = parser.add_subparsers(metavar="COMMAND")
    _add_listen(
        _command(commands, "listen", "mock server: receives events, checks each and shows it")
    )
    _add_send(_command(commands, "send", "deliver events from a file, one JSON object per line"))
    for name, text, subject, about in (
        ("action", "record that a user did something", "KEY", "what, such as report.generated"),
        ("page-view", "record that a user looked at a page", "URL", "address of the page"),
        ("sync-user", "send what is known about a user", None, ""),
        ("sync-customer", "send what is known about a customer", None, ""),
    ):
        _add_event(_command(commands, name, text, module="events"), name, subject, about)
    _add_outbox(_command(commands, "outbox", "inspect an outbox, and deliver what is left in it"))
    text = "check what a client needs, and say what to do about what is missing"
    doctor = _command(commands, "doctor", text, module="doctor.report")
    _add_delivery(doctor)
    doctor_arguments.add(doctor, _seconds)
    _add_stats(_command(commands, "stats", "show the stats of all processes of an application"))
    _add_top(_command(commands, "top", "watch the processes of an application"))
    _add_demo(_command(commands, "demo", "see the client at work: forks, threads, a pool, a spawn"))
    return parser


def _command(
    commands: Any, name: str, text: str, *, module: str | None = None
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}."
    )
    parser.set_defaults(module=module or name)
    return parser


def _add_listen(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    parser.add_argument(
        "--port",
        type=_port,
        default=4567,
        help="port to listen on (default: %(default)s; 0: any free port)",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="also answer requests for the host NAME, such as host.docker.internal; repeatable "
        "(default: localhost, loopback addresses, and HOST; on another address any for events)",
    )
    parser.add_argument(
        "--delay",
        type=_seconds,
        default=0.0,
        metavar="S",
        help="wait S seconds before each answer (default: %(default)g)",
    )
    parser.add_argument(
        "--fail",
        type=_failure,
        action="append",
        default=[],
        metavar="STATUS:COUNT",
        help="answer the first COUNT valid events with STATUS, such as 503:3; can be repeated "
        "(default: accept all)",
    )
    _add_output(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    """What ``valued listen`` does with what it received."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one line of JSON for each event (default: readable text)",
    )
    parser.add_argument(
        "--events",
        metavar="FILE",
        help="also append each event to FILE, as --json prints it",
    )
    parser.add_argument(
        "--forward-to",
        type=_url,
        metavar="URL",
        help="pass valid events on to this endpoint, with their token, and answer what it answers",
    )
    page = parser.add_mutually_exclusive_group()
    page.add_argument("--open", action="store_true", help="show the page in the browser")
    page.add_argument(
        "--no-ui",
        action="store_false",
        dest="ui",
        help="answer nothing but events: no page, nothing for programs",
    )
    parser.add_argument(
        "--until-eof", action="store_true", help="also end when standard input ends"
    )


def _add_send(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", help="file with one JSON object per line; -: standard input"
    )
    _add_delivery(parser)


def _add_event(parser: argparse.ArgumentParser, name: str, subject: str | None, about: str) -> None:
    parser.set_defaults(command=name)
    if subject:
        parser.add_argument("subject", metavar=subject, help=about)
    parser.add_argument(
        "pairs",
        nargs="*",
        type=_pair,
        metavar="NAME=VALUE",
        help="data of the event, such as user.id=1 or attributes.plan=pro. VALUE is read as JSON "
        "if that keeps it exactly as typed (7, true, [1, 2]), else it is a string (pro, 007). "
        "For the string 7, type '\"7\"'",
    )
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="print nothing if the event was delivered"
    )
    _add_delivery(parser)


def _add_delivery(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--token",
        help="token of your account (default: VALUED_TOKEN, which is safer: every user of this "
        "machine can see arguments in the list of processes)",
    )
    parser.add_argument(
        "--endpoint",
        metavar="URL",
        help="where to send events (default: VALUED_ENDPOINT, else the service's address)",
    )


def _add_outbox(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="directory given to clients as outbox")
    parts = parser.add_subparsers(metavar="[WHAT]", dest="what")
    _part(parts, "status", "show owners, their events and bytes, and rejected events (default)")
    send = _part(parts, "send", "deliver what dead or expired owners left")
    send.add_argument(
        "--timeout",
        type=_seconds,
        default=60.0,
        metavar="S",
        help="stop, and keep the rest, if nothing was delivered for S seconds (default: "
        "%(default)g)",
    )
    _add_delivery(send)
    rejected = _part(parts, "rejected", "show what the service refused permanently, and why")
    choice = rejected.add_mutually_exclusive_group()
    choice.add_argument(
        "--export", metavar="FILE", help="write the events to FILE, one per line, to fix and send"
    )
    choice.add_argument("--forget", action="store_true", help="delete them")
    export = _part(parts, "export", "write undelivered events to a file, one per line")
    export.add_argument("file", metavar="FILE", help="file for `valued send`; -: standard output")
    purge = _part(parts, "purge", "delete, after asking, what dead or expired owners left")
    purge.add_argument("--yes", action="store_true", help="don't ask")


def _part(parts: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = parts.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}."
    )
    return parser


def _add_stats(parser: argparse.ArgumentParser) -> None:
    _add_status_directory(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print them as a JSON object")
    form.add_argument(
        "--prometheus", action="store_true", help="print the totals in the format of Prometheus"
    )
    form.add_argument(
        "--listen",
        type=_address,
        metavar="[HOST:]PORT",
        help="answer each request with the totals in the format of Prometheus, until Ctrl-C; "
        "HOST: default 127.0.0.1; PORT: 0 for any free one",
    )


def _add_top(parser: argparse.ArgumentParser) -> None:
    _add_status_directory(parser)
    parser.add_argument("--once", action="store_true", help="print them once, and end")


def _add_status_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory",
        metavar="DIR",
        nargs="?",
        help="directory given to clients as status or outbox (default: VALUED_STATUS, else "
        "VALUED_OUTBOX)",
    )


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--events",
        type=_count,
        default=100,
        metavar="N",
        help="number of events that each process and each thread records (default: %(default)s)",
    )
    parser.add_argument(
        "--open",
        action="store_true",
        help="show it on the page of `valued listen` in the browser, and keep that until Ctrl-C",
    )


# -- types of arguments ----------------------------------------------------------------------------


def _port(text: str) -> int:
    if _is_whole(text) and int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a port, 0 to 65535, got {text!r}")


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]") or "127.0.0.1", _port(port)


def _count(text: str) -> int:
    if _is_whole(text) and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    # A day is longer than any sender waits, and far below the longest timeout of a lock.
    if 0 <= seconds <= 86_400:
        return seconds
    raise argparse.ArgumentTypeError(f"expected seconds, 0 to 86400, got {text!r}")


def _failure(text: str) -> tuple[int, int]:
    status, _, count = text.partition(":")
    if _is_whole(status) and 300 <= int(status) <= 599 and _is_whole(count) and int(count) > 0:
        return int(status), int(count)
    raise argparse.ArgumentTypeError(
        f"expected STATUS:COUNT, a status of 300 to 599 and a number, such as 503:3, got {text!r}"
    )


def _url(text: str) -> str:
    try:
        parts = urllib.parse.urlsplit(text)
        good = parts.scheme in ("http", "https") and parts.hostname and "@" not in text
    except ValueError:
        good = False
    if good:
        return text
    raise argparse.ArgumentTypeError(
        "expected a URL such as https://example.com/events, without a password, got "
        + (repr(text) if "@" not in text else "one with an @")
    )


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, such as user.id=1, got {text!r}")
    return name, value

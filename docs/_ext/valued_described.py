"""What the code says of itself: options, keys of `stats`, commands. Tests read it, too."""
# ruff: noqa: SLF001 - argparse has no public names for what its parsers hold

from __future__ import annotations

import argparse
import inspect
import re
from typing import Literal, get_args, get_origin

import valued
from valued import _options, cli

#: How the types of the signature are shown, where they are names of ours.
_TYPES = {
    "OnError | None": "Callable[[DeliveryError, dict], object] | None",
    "Data": "Mapping | None",
    "Callable[[JSONObject], JSONObject | None] | None": "Callable[[dict], dict | None] | None",
    "str | PathLike[str] | None": "str | os.PathLike | None",
}


#: Every environment variable that the package reads, and what it does.
VARIABLES: dict[str, str] = {
    "VALUED_TOKEN": "The token, if none is given to the client or to a command.",
    "VALUED_ENDPOINT": (
        "The URL that events are sent to, if none is given; by default the service's own."
    ),
    "VALUED_ENV": (
        '"test" sends each event in the call itself, "development" sends on one thread; anything '
        "else, and by default, in the background. If it is not set, a run of pytest, of python -m "
        "unittest or of manage.py test counts as a test."
    ),
    "VALUED_DISABLED": (
        "1 (or true, yes, on): events are checked and not sent, and no token is needed; 0 (or "
        "false, no, off): they are sent."
    ),
    "VALUED_INVALID": (
        'The default of the option invalid: "log" logs and counts an event that can\'t be sent, '
        '"raise" (the default) raises an exception.'
    ),
    "VALUED_ANONYMOUS": (
        'The default of the option anonymous: "drop" counts and drops an event without the ids it '
        'needs, "raise" (the default) raises an exception.'
    ),
    "VALUED_OUTBOX": "The default of the option outbox: the directory of the outbox.",
    "VALUED_STATUS": (
        "The default of the option status: the directory in which each process writes its stats; "
        "also what valued stats and valued top read."
    ),
    "VALUED_ISOLATE_TASKS": (
        "0 (or false, no, off): a Celery task has no scope of its own; the default of the option "
        "isolate_tasks."
    ),
    "VALUED_RECORD": (
        "Set by valued.testing for the programs that a test starts: the directory in which they "
        "record events instead of sending them."
    ),
    "VALUED_BLOCK": (
        "1: an event for an endpoint that is not on this machine is an error; set by the pytest "
        "setting valued_block for the programs that a test starts."
    ),
    "REQUESTS_CA_BUNDLE": (
        "A file or a directory with the certificate authorities to trust, instead of those that "
        "requests brings."
    ),
    "CURL_CA_BUNDLE": "The same, if REQUESTS_CA_BUNDLE is not set.",
    "http_proxy": "The URL of the proxy for an http:// endpoint; upper case works, too.",
    "https_proxy": "The URL of the proxy for an https:// endpoint; upper case works, too.",
    "all_proxy": "The URL of the proxy, if neither of these is set; upper case works, too.",
    "no_proxy": "Hosts to reach without a proxy, separated by commas; upper case works, too.",
}


def described(owner: object) -> dict[str, tuple[str, str]]:
    """The entries of a docstring's lists, ``* *name* (note): text``: by name, note and text."""
    found = {}
    # To the next entry, or to the paragraph behind the list.
    for entry in re.split(r"\n(?=\* )|\n\n", inspect.getdoc(owner) or ""):
        match = re.match(r"\* \*(\w+)\* \((.+?)\): (.+)", entry, re.S)
        if match:
            found[match[1]] = match[2], " ".join(match[3].split())
    return found


def options() -> dict[str, dict[str, str]]:
    """Each option of the client: its type, default, variable (maybe none), and what it means."""
    signature = inspect.signature(valued.Client)
    found = {}
    for name, (note, text) in described(valued.Client).items():
        variables = [it for it in re.findall(r"VALUED_\w+", text) if it != "VALUED_ENV"]
        found[name] = {
            "type": _shown(str(signature.parameters[name].annotation)),
            "default": note.removeprefix("default ").strip("`"),
            "variable": variables[0] if variables else "",
            "text": text,
        }
    return found


def _shown(annotation: str) -> str:
    for name, alias in vars(_options).items():
        if get_origin(alias) is Literal:
            values = " | ".join(f'"{value}"' for value in get_args(alias))
            annotation = re.sub(rf"\b{name}\b", values, annotation)
    return _TYPES.get(annotation, annotation)


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, such as ``outbox send``; that of the program has no name."""
    found: dict[str, argparse.ArgumentParser] = {}

    def walk(name: str, parser: argparse.ArgumentParser) -> None:
        parser.color = False  # type: ignore[attr-defined]  # of 3.14 and later
        found[name] = parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for below, child in action.choices.items():
                    walk(f"{name} {below}".strip(), child)

    walk("", cli._parser())
    return found


def arguments(parser: argparse.ArgumentParser) -> dict[str, str]:
    """What a command takes, as it is typed, and the help of each."""
    formatter = parser._get_formatter()
    found = {}
    for action in parser._actions:
        if isinstance(action, (argparse._SubParsersAction, argparse._HelpAction)):
            continue
        value = action.metavar or action.dest.upper()
        typed = ", ".join(action.option_strings) or str(value)
        if action.option_strings and action.nargs != 0:
            typed += f" {value}"
        found[typed] = formatter._expand_help(action) if action.help else ""
    return found

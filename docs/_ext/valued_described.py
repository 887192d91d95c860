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

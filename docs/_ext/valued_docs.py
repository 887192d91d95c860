"""Pages that are made from the code: options, variables, the keys of `stats`, the commands.

* ``.. valued-options:: NAME …``: these options, as the docstring of `valued.Client` describes them;
* ``.. valued-environment:: NAME …``: these variables, as ``valued_described.VARIABLES`` does;
* ``.. valued-stats:: NAME …``: these keys, as the docstring of `valued.Stats` does;
* ``.. valued-command:: NAME``: this command of the command line, as its parser does.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import valued_described
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective
from valued_described import arguments, described, options, parsers

import valued
from valued import _client, _options, _typing, cli

#: What the pages are made from, so that a change builds them again.
_SOURCES = [inspect.getfile(it) for it in (_client, _options, _typing, cli, valued_described)]
_SOURCES.append(__file__)


class _Made(SphinxDirective):
    """Reads lines that are made from the code."""

    required_arguments = 1
    final_argument_whitespace = True

    def names(self) -> list[str]:
        return str(self.arguments[0]).split()

    def parsed(self, lines: list[str]) -> list[nodes.Node]:
        for file in _SOURCES:
            self.env.note_dependency(file)
        container = nodes.Element()
        source = self.get_source_info()[0]
        self.state.nested_parse(StringList(lines, source), self.content_offset, container)
        return container.children


class OptionsDirective(_Made):
    """Options of the client, each with an anchor: ``:confval:`max_queue```."""

    def run(self) -> list[nodes.Node]:
        lines = []
        for name in self.names():
            one = options()[name]
            facts = [f"``{one['type']}``", f"default ``{one['default']}``"]
            facts += [f"variable :envvar:`{one['variable']}`"] if one["variable"] else []
            lines += [f".. _option-{name}:", "", f".. confval:: {name}", ""]
            lines += [f"   {' · '.join(facts)}", ""]
            lines += [f"   {_sentence(_with_options(one['text'], name))}", ""]
        return self.parsed(lines)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"


def _with_options(text: str, name: str) -> str:
    """*text* with names of other options as links to them, and variables likewise."""
    text = re.sub(r"``(VALUED_\w+)``", r":envvar:`\1`", text)
    text = re.sub(r"(?<![`:])`(?!`|valued)(\w[\w.]*)`(?!`)", r"`valued.\1`", text)
    names = set(options()) - {name}
    return re.sub(
        r"(?<!\*)\*(\w+)\*(?!\*)",
        lambda match: f":confval:`{match[1]}`" if match[1] in names else match[0],
        text,
    )


class EnvironmentDirective(_Made):
    """Environment variables, each with an anchor: ``:envvar:`VALUED_TOKEN```."""

    def run(self) -> list[nodes.Node]:
        lines = []
        for name in self.names():
            lines += [f".. envvar:: {name}", "", f"   {valued_described.VARIABLES[name]}", ""]
        return self.parsed(lines)


class StatsDirective(_Made):
    """Keys of `valued.Stats`: a table."""

    def run(self) -> list[nodes.Node]:
        lines = [".. list-table::", "   :header-rows: 1", "   :widths: 22 12 66", ""]
        lines += ["   * - Key", "     - Type", "     - What it counts"]
        for name in self.names():
            note, text = described(valued.Stats)[name]
            text = _sentence(_with_options(text, ""))
            lines += [f"   * - ``{name}``", f"     - {note}", f"     - {text}"]
        return self.parsed(lines)


class CommandDirective(_Made):
    """One command of ``valued``: usage and arguments, each with an anchor."""

    def run(self) -> list[nodes.Node]:
        name = " ".join(self.names())
        parser = parsers()[name]
        usage = [line[len("usage: ") :] for line in parser.format_usage().splitlines()]
        lines = [f"{parser.description}", "", ".. code-block:: text", ""]
        lines += [f"   {line}" for line in usage]
        lines += ["", f".. program:: valued {name}", ""]
        for typed, text in arguments(parser).items():
            lines += [f".. option:: {typed}", "", f"   {_sentence(_plain(text)).rstrip('.')}.", ""]
        return self.parsed(lines)


def _plain(text: str) -> str:
    """*text* without a mark that reStructuredText would read."""
    return re.sub(r"([*\\]|(?<!`)`(?!`))", r"\\\1", text)


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("valued-options", OptionsDirective)
    app.add_directive("valued-environment", EnvironmentDirective)
    app.add_directive("valued-stats", StatsDirective)
    app.add_directive("valued-command", CommandDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

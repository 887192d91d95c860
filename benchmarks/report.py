"""What was measured, as text for a terminal, and as reStructuredText with charts for the docs."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.servers import ROOT

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def circumstances(command: str, server: str) -> dict[str, Any]:
    """Machine, versions, commit, command, and how busy the machine was."""
    import pyperf  # type: ignore[import-untyped]

    found = pyperf.Run([1.0], collect_metadata=True).get_metadata()
    processor = found.get("cpu_model_name", platform.machine())
    return {
        "command": command,
        "commit": commit(ROOT),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{processor}, {os.cpu_count()} cores, {found['platform']}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(
            f"{name} {importlib.metadata.version(name)}" for name in ("requests", "urllib3")
        ),
        "server": server,
        "load": found.get("load_avg_1min"),
    }


def commit(tree: Path) -> str:
    """That of *tree*; changes are mentioned, since they could not be measured again."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=tree, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "valued", "benchmarks")
        return git("rev-parse", "--short=12", "HEAD") + (" and changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def said(where: dict[str, Any]) -> str:
    """`circumstances` in a few lines."""
    return (
        f"{where['machine']}\n{where['python']}, {where['packages']}; server: {where['server']}\n"
        f"commit {where['commit']}, {where['date']}, load before: {where['load']}\n"
        f"{where['command']}"
    )


# -- tables ----------------------------------------------------------------------------------------


def number(value: float | None, unit: str = "") -> str:
    """*value* with three digits that say something."""
    if value is None:
        return "–"
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text} {unit}".rstrip()


def goals(rows: Sequence[dict[str, Any]]) -> Table:
    """Rows, each with its goal."""
    head = ("what", "yardstick", "", "valued", "ratio", "goal", "met")
    return head, [
        (
            row["what"],
            row["yardstick_name"],
            number(row["yardstick"], row["unit"]),
            number(row["ours"], row["unit"]),
            f"{row['ratio']:.2f} x" if row["ratio"] is not None else "–",
            row["goal"],
            ("yes" if row["met"] else "NO") if row["goal"] else "",
        )
        for row in rows
    ]


def others(rows: Sequence[dict[str, Any]]) -> Table:
    """What has no goal: other ways, other libraries."""
    return ("what", "by", ""), [
        (row["what"], name, number(value, row["unit"]))
        for row in rows
        for name, value in row["further"].items()
    ]


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is to be known of some rows."""
    return [f"{row['what']}: {row['note']}" for row in rows if row["note"]]


def text(title: str, table: Table) -> str:
    """A table for a terminal."""
    lines = [list(table[0]), *[list(row) for row in table[1]]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table[0]))]
    rows = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([f"\n{title}", rows[0], "-" * len(rows[0]), *rows[1:]])


# -- for the docs ----------------------------------------------------------------------------------


def rst(
    where: dict[str, Any], tables: Iterable[tuple[str, Table]], charts: Iterable[str],
    remarks: Iterable[str],
) -> str:  # fmt: skip
    """What ``docs/explanation/cost.rst`` includes for one command; *charts*: files of images."""
    parts = ["\n".join(f"| {line}" for line in said(where).splitlines()) + "\n"]
    parts += [_list_table(title, table) for title, table in tables]
    parts += [f".. image:: {chart}\n   :alt: {Path(chart).stem}\n" for chart in charts]
    if lines := "\n".join(f"* {_escaped(remark)}" for remark in remarks):
        parts.append(lines + "\n")
    return "\n".join(parts)


def _list_table(title: str, table: Table) -> str:
    lines = [f".. list-table:: {title}", "   :header-rows: 1", ""]
    for row in (table[0], *table[1]):
        for column, cell in enumerate(row):
            lines.append(f"   {'*' if column == 0 else ' '} - {_escaped(cell)}".rstrip())
    return "\n".join([*lines, ""])


def _escaped(cell: str) -> str:
    return "".join(f"\\{one}" if one in "*`_|\\" else one for one in cell)

"""What was measured, as text for a terminal, and as reStructuredText with charts for the docs."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.plots import svg
from benchmarks.servers import ROOT

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def circumstances(command: str, server: str) -> dict[str, Any]:
    """Machine, versions, commit, command, and how busy the machine was."""
    return {
        "command": command,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.platform(terse=True)}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(
            f"{name} {importlib.metadata.version(name)}" for name in ("requests", "urllib3")
        ),
        "server": server,
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else [],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        # Uncommitted changes are mentioned, since they could not be measured again.
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "valued", "benchmarks")
        return git("rev-parse", "--short=12", "HEAD") + (" and changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def said(where: dict[str, Any]) -> str:
    """`circumstances` in a few lines."""
    load = ", ".join(f"{one:.1f}" for one in where["load"])
    return (
        f"{where['machine']}\n{where['python']}, {where['packages']}; server: {where['server']}\n"
        f"commit {where['commit']}, {where['date']}, load before: {load}\n{where['command']}"
    )


# -- tables ----------------------------------------------------------------------------------------


def number(value: float | None, unit: str = "") -> str:
    """*value* with three digits that say something."""
    if value is None:
        return "–"
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text} {unit}".rstrip()


def goals(rows: Sequence[dict[str, Any]]) -> Table:
    """The table of `benchmarks.table`."""
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


def processes(found: dict[str, Any]) -> Table:
    """Forked workers."""
    head = ("workers", "events a second", "urllib3's", "CPU of an event", "urllib3's",
            "by one worker's", "connections", "urllib3's")  # fmt: skip
    return head, [
        (
            str(row["workers"]),
            number(row["valued"]["per_second"]),
            number(row["urllib3"]["per_second"]),
            number(row["valued"]["cpu_us"], "us"),
            number(row["urllib3"]["cpu_us"], "us"),
            f"{row['cpu_by_one_worker']:.2f} x",
            number(row["valued"]["connections"]),
            number(row["urllib3"]["connections"]),
        )
        for row in found["rows"]
    ]


def growth(part: str, points: Sequence[dict[str, float]]) -> Table:
    """One part of the growth."""
    names = [name for name in points[0] if name != "size"]
    return (part, *names), [
        (f"{point['size']:,}", *(number(point[name], "us") for name in names)) for point in points
    ]


def curve(found: dict[str, Any]) -> Table:
    """The phases of the curve."""
    return (
        "server's delay",
        "events a second",
        "settled after",
        "connections in use",
        "settled after",
    ), [
        (
            f"{phase['delay_ms']:g} ms",
            number(phase["per_second"]),
            f"{phase['settled_after']:.1f} s",
            number(phase["in_use"]),
            f"{phase['workers_after']:.1f} s",
        )
        for phase in found["phases"]
    ]


def profile(found: dict[str, Any]) -> Iterator[tuple[str, Table]]:
    """Where the microseconds go."""
    for part, figures in found.items():
        for kind, title in (
            ("own", "its own"),
            ("with_callees", "with what it calls"),
            ("lines", "by line"),
        ):
            rows = [(number(us), place) for place, us in figures[kind]]
            yield (
                (
                    f"{part}: {number(figures['us_per_event'], 'us')} an event, {title}, "
                    f"{figures['samples']} samples"
                ),
                (("us", "where"), rows or [("", "no sample was taken: profile more events")]),
            )


def tables(found: dict[str, Any]) -> Iterator[tuple[str, str, Table]]:
    """Everything that was measured: the command that did it, a title, a table."""
    if "table" in found:
        yield "table", "Goals", goals(found["table"])
        if others(found["table"])[1]:
            yield "table", "Others", others(found["table"])
    if "outbox" in found:
        yield "outbox", "With an outbox on the disk", goals(found["outbox"])
    if "processes" in found:
        yield "processes", "Forked workers", processes(found["processes"])
    for part, points in found.get("growth", {}).items():
        yield "growth", f"By {part}", growth(part, points)
    for workers, one in found.get("curve", {}).items():
        yield "curve", f"A server that changes, and {workers}", curve(one)
    for title, table in profile(found.get("profile", {})):
        yield "profile", title, table


def notes(found: dict[str, Any]) -> list[str]:
    """What is to be known of some rows of the table."""
    return [f"{row['what']}: {row['note']}" for row in found.get("table", ()) if row["note"]]


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


def write_rst(folder: Path, found: dict[str, Any]) -> None:
    """A file for each command, with its charts, which ``docs/explanation/cost.rst`` includes."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[str]] = {}
    for command, title, table in tables(found):
        parts.setdefault(command, []).append(_list_table(title, table))
    for name, chart in charts(found).items():
        command = name.split("-")[0]
        (folder / f"{name}.svg").write_text(chart, "utf-8")
        # Beside the document that includes this, and not beside this: so docutils reads a path.
        parts[command].append(f".. image:: {folder.name}/{name}.svg\n   :alt: {name}\n")
    if remarks := notes(found):
        parts["table"].append("\n".join(f"* {_escaped(remark)}" for remark in remarks) + "\n")
    measured = "\n".join(f"| {line}" for line in said(found["circumstances"]).splitlines())
    for command, blocks in parts.items():
        content = "\n".join([measured, "", *blocks])
        (folder / f"{command}.rst").write_text(content, "utf-8")


def _list_table(title: str, table: Table) -> str:
    lines = [f".. list-table:: {title}", "   :header-rows: 1", ""]
    for row in (table[0], *table[1]):
        for column, cell in enumerate(row):
            lines.append(f"   {'*' if column == 0 else ' '} - {_escaped(cell)}".rstrip())
    return "\n".join([*lines, ""])


def _escaped(cell: str) -> str:
    return "".join(f"\\{one}" if one in "*`_|\\" else one for one in cell)


def charts(found: dict[str, Any]) -> dict[str, str]:
    """SVG by name, which begins with the command."""
    made = {}
    for part, points in found.get("growth", {}).items():
        series = {
            name: [(point["size"], point[name]) for point in points]
            for name in points[0]
            if name != "size"
        }
        made[f"growth-{part.replace(' ', '-')}"] = svg(
            f"Microseconds by {part}", part, "us", series, logarithmic=True
        )
    if "processes" in found:
        rows = found["processes"]["rows"]
        for key, title in (("per_second", "events a second"), ("cpu_us", "us of CPU an event")):
            series = {
                name: [(row["workers"], row[name][key]) for row in rows]
                for name in ("valued", "urllib3")
            }
            name = f"processes-{key.replace('_', '-')}"
            made[name] = svg(f"Forked workers: {title}", "workers", title, series)
    if "curve" in found:
        for key, title in (("per_second", "events a second"), ("in_use", "connections in use")):
            series = {
                workers: [(point["seconds"], point[key]) for point in one["points"]]
                for workers, one in found["curve"].items()
            }
            if key == "in_use":
                series["server's delay, ms"] = [
                    (point["seconds"], point["delay_ms"])
                    for point in found["curve"]["threads"]["points"]
                ]
            name = f"curve-{key.replace('_', '-')}"
            made[name] = svg(f"A server that changes: {title}", "seconds", title, series)
    return made

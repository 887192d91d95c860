"""Measure what the library costs, against yardsticks in the same run.

A machine with nothing else to do gives figures that mean something; ratios are what counts anyway.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from benchmarks import compare, report
from benchmarks.bench import FULL, QUICK, Bench
from benchmarks.caller import calls, growth, profiling, units
from benchmarks.delivery import curve, delivered, memory
from benchmarks.durability import crowd, outbox
from benchmarks.peers import clients
from benchmarks.processes import first_event, fork, idle, imports, workers
from benchmarks.rows import Row
from benchmarks.servers import fast

ROWS: Final[dict[str, tuple[str, Sequence[Callable[[Bench], Iterator[Row]]]]]] = {
    "table": (
        "Goals",
        (
            calls.rows, delivered.rows, delivered.slow_rows, memory.rows, fork.rows,
            first_event.rows, units.rows, imports.rows, idle.rows,
        ),
    ),
    "outbox": (
        "With an outbox on the disk",
        (
            outbox.caller_rows, outbox.delivery_rows, outbox.fork_rows, outbox.adoption_rows,
            crowd.rows,
        ),
    ),
}  # fmt: skip
#: What is no row: each module has ``measured`` and ``tables``, and ``charts`` if it draws any.
STUDIES: Final[dict[str, ModuleType]] = {"processes": workers, "growth": growth, "curve": curve}
COMMANDS: Final = (*ROWS, *STUDIES)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("what", nargs="*", metavar="WHAT", default=[],
        help=f"{', '.join(COMMANDS)} or all; default: table. Or: compare OLD_TREE NEW_TREE, "
        "two checked-out trees, whose rows are measured in turns")  # fmt: skip
    add(
        "--peers",
        action="store_true",
        help="add other libraries to the table; pip installs each into an environment in .peers",
    )
    add("--profile", action="store_true", help="say where a caller's and a worker's time goes")
    add("--quick", action="store_true", help="a few events, once: the figures mean nothing")
    add("--rounds", type=int, metavar="N", help="rounds of each row; default: 5")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    add("--rst", type=Path, metavar="FOLDER",
        help="write tables and charts there; for the docs: docs/explanation/cost")  # fmt: skip
    return parser


def _rows(bench: Bench, groups: Sequence[Callable[[Bench], Iterator[Row]]]) -> list[dict[str, Any]]:
    found = []
    for group in groups:
        for row in group(bench):
            print(f"  {row.what}", file=sys.stderr, flush=True)
            found.append(row.as_dict())
    return found


def _measure(
    command: str, bench: Bench, trees: Sequence[Path]
) -> tuple[Any, list[tuple[str, report.Table]], dict[str, str], list[str]]:
    """What was found, as tables, charts by name, and remarks."""
    if command in ROWS:
        title, groups = ROWS[command]
        found = _rows(bench, groups)
        tables = [(title, report.goals(found))]
        if command == "table" and report.others(found)[1]:
            tables.append(("Others", report.others(found)))
        return found, tables, {}, report.notes(found)
    if command == "compare":
        compared = compare.measured(bench, trees)
        told = [f"{tree}: commit {report.commit(tree)}" for tree in trees]
        return compared, list(compare.tables(compared)), {}, told
    study = profiling if command == "profile" else STUDIES[command]
    studied = study.measured(bench)
    drawn = study.charts(studied) if hasattr(study, "charts") else ()
    charts = {f"{command}-{name}".replace("_", "-").replace(" ", "-"): svg for name, svg in drawn}
    return studied, list(study.tables(studied)), charts, []


def _asked_for(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    what = options.what
    if what[:1] == ["compare"]:
        if len(what) != 3 or not all(Path(tree, "valued").is_dir() for tree in what[1:]):
            parser.error("compare: expected two folders that have the package valued in them")
        return ["compare"]
    if unknown := [name for name in what if name not in (*COMMANDS, "all")]:
        parser.error(f"{unknown[0]}: expected one of {', '.join(COMMANDS)} or all")
    if "all" in what:
        what = COMMANDS
    # A profile alone is what is wanted then, unless the table is named, too.
    elif not what and not options.profile:
        what = ("table",)
    asked = [name for name in COMMANDS if name in what]
    return [*asked, "profile"] if options.profile else asked


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. 0, whatever was measured: that a goal is missed is no error of a program."""
    parser = _parser()
    options = parser.parse_args(arguments)
    commands = _asked_for(parser, options)
    scale = QUICK if options.quick else FULL
    scale = dataclasses.replace(scale, rounds=options.rounds or scale.rounds)
    given = sys.argv[1:] if arguments is None else arguments
    # So that a server, which is a process of its own, ends however this one does.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    with fast() as server:
        command = shlex.join(["python", "-m", "benchmarks", *given])
        where = report.circumstances(command, server.name)
        print(report.said(where), flush=True)
        bench = Bench(scale, server, peers=clients.in_table() if options.peers else {})
        found: dict[str, Any] = {"circumstances": where}
        for name in commands:
            found[name], tables, charts, remarks = _measure(
                name, bench, [Path(tree) for tree in options.what[1:]]
            )
            print("\n".join([*(report.text(*table) for table in tables), "", *remarks]), flush=True)
            if options.json:
                options.json.write_text(json.dumps(found, indent=1), "utf-8")
            if options.rst:
                folder = options.rst
                folder.mkdir(parents=True, exist_ok=True)
                for chart, svg in charts.items():
                    (folder / f"{chart}.svg").write_text(svg, "utf-8")
                # Docutils reads an image's path from the document that includes this.
                images = [f"{folder.name}/{chart}.svg" for chart in charts]
                page = report.rst(where, tables, images, remarks)
                (folder / f"{name}.rst").write_text(page, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

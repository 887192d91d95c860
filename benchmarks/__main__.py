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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import durable, peers, report, studies, table
from benchmarks.scale import FULL, QUICK, Scale
from benchmarks.servers import Server, fast
from benchmarks.subprocesses import measure

COMMANDS = ("table", "outbox", "processes", "growth", "curve")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "what", nargs="*", metavar="WHAT", default=[],
        help=f"{', '.join(COMMANDS)} or all; default: table",
    )  # fmt: skip
    parser.add_argument("--peers", action="store_true",
                        help="add other libraries to the table, from an environment of their own, "
                        ".peers, into which pip installs them")  # fmt: skip
    parser.add_argument("--profile", action="store_true",
                        help="say where a caller's and a worker's microseconds go")  # fmt: skip
    parser.add_argument("--quick", action="store_true",
                        help="a few events, once: the figures mean nothing")  # fmt: skip
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each row; default: 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--rst",
        type=Path,
        metavar="FOLDER",
        help="write tables and charts there; for the docs: docs/explanation/cost",
    )
    return parser


def _show(found: dict[str, Any], *, shown: int) -> int:
    """Print the tables from the number *shown* on; how many there are now."""
    all_of_them = list(report.tables(found))
    for _command, title, one in all_of_them[shown:]:
        print(report.text(title, one), flush=True)
    return len(all_of_them)


def _measured(
    what: Sequence[str], scale: Scale, server: Server, found: dict[str, Any], *, with_peers: bool
) -> None:
    shown = 0
    if "table" in what:
        python = peers.environment() if with_peers else None
        found["table"] = []
        for row in table.rows(scale, server, python):
            print(f"  {row.what}", file=sys.stderr, flush=True)
            found["table"].append(row.as_dict())
        shown = _show(found, shown=shown)
        print("\n" + "\n".join(report.notes(found)))
    if "outbox" in what:
        found["outbox"] = []
        for row in durable.rows(scale, server):
            print(f"  {row.what}", file=sys.stderr, flush=True)
            found["outbox"].append(row.as_dict())
        shown = _show(found, shown=shown)
    for name in ("processes", "growth", "curve"):
        if name in what:
            found[name] = getattr(studies, name)(scale, server)
            shown = _show(found, shown=shown)
    if "profile" in what:
        sizes = {"caller": scale.profiled, "worker": scale.worker_profiled}
        found["profile"] = {
            part: measure("profiling", part=part, events=events, url=server.url)
            for part, events in sizes.items()
        }
        _show(found, shown=shown)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. 0, whatever was measured: that a goal is missed is no error of a program."""
    parser = _parser()
    options = parser.parse_args(arguments)
    unknown = [name for name in options.what if name not in (*COMMANDS, "all")]
    if unknown:
        parser.error(f"{unknown[0]}: expected one of {', '.join(COMMANDS)} or all")
    what = list(COMMANDS) if "all" in options.what else options.what
    # A profile alone is what who asks for one wants, unless the table is named, too.
    what = [*(what or ([] if options.profile else ["table"])), *["profile"] * options.profile]
    scale = QUICK if options.quick else FULL
    if options.rounds:
        scale = dataclasses.replace(scale, rounds=options.rounds)
    given = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "benchmarks", *given])
    # So that a server, which is a process of its own, ends however this one does.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    with fast() as server:
        found: dict[str, Any] = {"circumstances": report.circumstances(command, server.name)}
        print(report.said(found["circumstances"]), flush=True)
        _measured(what, scale, server, found, with_peers=options.peers)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), "utf-8")
    if options.rst:
        report.write_rst(options.rst, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())

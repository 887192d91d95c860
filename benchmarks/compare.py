"""Two trees on one machine: the standard rows of both, interleaved.

The measurements are those of this tree. In each round every group of rows is taken with the client
of the old tree, then with that of the new one, so that both see the same machine. Only public names
of a client are used, so that its inside may differ.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.bench import Bench
from benchmarks.caller import calls
from benchmarks.delivery import delivered, memory
from benchmarks.durability import crowd, outbox
from benchmarks.processes import first_event, fork, idle
from benchmarks.report import Table, number
from benchmarks.rows import Row
from benchmarks.servers import ROOT

GROUPS: Final[Sequence[tuple[str, Callable[[Bench], Iterator[Row]]]]] = (
    ("", calls.rows),
    ("", delivered.rows),
    ("", delivered.slow_rows),
    ("", memory.rows),
    ("", fork.rows),
    ("", first_event.rows),
    ("", idle.rows),
    ("outbox: ", outbox.caller_rows),
    ("outbox: ", outbox.delivery_rows),
    ("outbox: ", crowd.rows),
)
TREES: Final = ("old", "new")


@contextlib.contextmanager
def client_of(tree: Path) -> Iterator[Path]:
    """A folder with the client of *tree* and the benchmarks of this one, for a `Bench`."""
    with tempfile.TemporaryDirectory(prefix="valued-benchmarks-") as name:
        folder = Path(name).resolve()
        (folder / "valued").symlink_to(tree.resolve() / "valued")
        (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
        # A client that is installed must not be taken in place of it.
        program = "import valued; print(valued.__file__)"
        imported = subprocess.run(
            [sys.executable, "-c", program],
            cwd=folder, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        if Path(imported.stdout.strip()).parent.parent != folder:
            raise SystemExit(f"{tree}: {imported.stdout.strip()} was imported instead")
        yield folder


def measured(bench: Bench, trees: Sequence[Path]) -> dict[str, Any]:
    """By row: unit, yardstick, and the figures of each round, of each tree."""
    one_round = dataclasses.replace(bench.scale, rounds=1)
    found: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        benches = {
            name: dataclasses.replace(
                bench, scale=one_round, folder=stack.enter_context(client_of(tree))
            )
            for name, tree in zip(TREES, trees, strict=True)
        }
        for prefix, rows in GROUPS:
            for round_ in range(bench.scale.rounds):
                for name, of_tree in benches.items():
                    for row in rows(of_tree):
                        what = prefix + row.what
                        print(f"  {round_ + 1} {name}: {what}", file=sys.stderr, flush=True)
                        one = found.setdefault(
                            what,
                            {
                                "unit": row.unit,
                                "yardstick_name": row.yardstick_name,
                                **{tree: {"ours": [], "yardstick": []} for tree in TREES},
                            },
                        )
                        one[name]["ours"].append(row.ours)
                        one[name]["yardstick"].append(row.yardstick)
    return found


def tables(found: dict[str, Any]) -> Iterator[tuple[str, Table]]:
    head = ("what", "tree", "median", "from – to", "yardstick", "", "ratio", "new by old")
    lines = []
    for what, one in found.items():
        medians = {tree: statistics.median(one[tree]["ours"]) for tree in TREES}
        for tree in TREES:
            ours, yardstick = one[tree]["ours"], statistics.median(one[tree]["yardstick"])
            lines.append(
                (
                    what if tree == "old" else "",
                    tree,
                    number(medians[tree], one["unit"]),
                    f"{number(min(ours))} – {number(max(ours))}",
                    one["yardstick_name"] if tree == "old" else "",
                    number(yardstick, one["unit"]),
                    _ratio(medians[tree], yardstick),
                    _ratio(medians["new"], medians["old"]) if tree == "new" else "",
                )
            )
    yield "Old and new: medians, and the least and the greatest of the rounds", (head, lines)


def _ratio(value: float, by: float) -> str:
    return f"{value / by:.2f} x" if by else "–"

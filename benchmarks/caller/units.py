"""What a unit of work costs: `isolated` next to `nested`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Final

from benchmarks.bench import Bench, serve
from benchmarks.caller.blocks import in_blocks
from benchmarks.rows import Row, at_most, row
from benchmarks.senders import never_sending

NESTED: Final = "a nested block"


def rows(bench: Bench) -> Iterator[Row]:
    figures = bench.in_turns({"": lambda: bench.measure("caller.units", units=bench.scale.calls)})
    nested, *others = figures[""].items()
    for name, us in others:
        pair = {NESTED: {"us": nested[1]}, "valued": {"us": us}}
        yield row(f"a unit of work: {name}", "us", pair, "us", NESTED, at_most(1.05),
                  note="a block that does nothing; both are ours.")  # fmt: skip


def main(units: int) -> dict[str, Any]:
    """Microseconds of one block that does nothing, medians, by its kind."""
    import valued

    scope = valued.Scope(never_sending(1))
    user = {"id": 123}
    lazy = {"user": lambda: user}
    makers: dict[str, Callable[[], AbstractContextManager[object]]] = {
        NESTED: lambda: scope.nested(user=user),
        "isolated": lambda: scope.isolated(user=user),
        "isolated, lazy user": lambda: scope.isolated(lazy=lazy),
        "isolated, entered once more": lambda: scope.isolated(lazy=lazy).entered(),
    }

    def entering(make: Callable[[], AbstractContextManager[object]]) -> Callable[[], None]:
        def enter() -> None:
            with make():
                pass

        return enter

    taken = in_blocks({name: entering(make) for name, make in makers.items()}, units)
    return {name: statistics.median(block[name] for block in taken) for name in makers}


if __name__ == "__main__":
    serve(main)

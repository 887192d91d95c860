"""The table of goals: each row ours, its yardstick, their ratio, and whether the goal is met."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

from benchmarks import idling, importing, peers
from benchmarks.scale import Scale, in_turns
from benchmarks.servers import Server, delaying
from benchmarks.subprocesses import measure
from benchmarks.units import NESTED, SUBJECTS

SLOW: Final = 0.02  # seconds after which the slow server answers
TEN: Final = 10  # threads of the yardstick there

At = Callable[[float, float], bool]


@dataclasses.dataclass(frozen=True)
class Row:
    """One row. *further*: what others take, and what has no goal, by name, in the same unit."""

    what: str
    unit: str
    yardstick_name: str
    yardstick: float | None
    ours: float
    goal: str
    met: bool
    further: dict[str, float] = dataclasses.field(default_factory=dict)
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours by the yardstick."""
        return self.ours / self.yardstick if self.yardstick else None

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "ratio": self.ratio}


NO_GOAL: Final[tuple[str, At]] = ("", lambda *_: True)


def at_most(factor: float) -> tuple[str, At]:
    return f"at most {factor:g} x", lambda ours, yardstick: ours <= factor * yardstick


def at_least(factor: float) -> tuple[str, At]:
    return f"at least {factor:g} x", lambda ours, yardstick: ours >= factor * yardstick


def row(
    what: str,
    unit: str,
    figures: dict[str, dict[str, Any]],
    key: str,
    yardstick: tuple[str, str],
    goal: tuple[str, At],
    note: str = "",
) -> Row:
    """A row of *figures*, by subject. *yardstick*: the subject, and how it is called."""
    subject, name = yardstick
    ours, theirs = figures["valued"][key], figures[subject][key]
    further = {
        other: found[key]
        for other, found in figures.items()
        if other not in ("valued", subject) and key in found
    }
    return Row(what, unit, name, theirs, ours, goal[0], goal[1](ours, theirs), further, note)


def caller(scale: Scale, server: Server, python: str | None) -> Iterator[Row]:
    """The caller's time."""
    name = ("yardstick", "json.dumps + SimpleQueue.put")
    alone = partial(measure, "calling", calls=scale.calls)
    working = partial(alone, url=server.url)
    figures = in_turns(
        scale.rounds,
        {
            "yardstick": partial(alone, subject="yardstick"),
            "valued": partial(alone, subject="valued"),
            "valued at work": partial(working, subject="valued"),
            "a thread with urllib3": partial(working, subject="urllib3"),
        },
    )
    figures |= _peers(scale, python, "calling", calls=scale.calls, url=server.url)
    at_work = {**figures, "valued": figures.pop("valued at work")}
    del at_work["valued at work"]
    yield row(
        "caller's time, median", "us", figures, "median", name, at_most(3),
        "nothing is sent meanwhile; by what has a thread, and by other libraries, it is.",
    )  # fmt: skip
    note = f"{scale.calls:,} calls without a pause, and what they record is delivered meanwhile."
    yield row("caller's time, 99th percentile, sender at work", "us", at_work, "p99", name,
               at_most(5), note)  # fmt: skip
    yield row("caller's time, slowest, sender at work", "us", at_work, "slowest", name,
               ("under 5 ms", lambda ours, _yardstick: ours < 5_000), note)  # fmt: skip
    paced = in_turns(
        scale.rounds,
        {
            "a thread with urllib3": partial(
                working, subject="urllib3", pause=0.001, calls=scale.calls // 5
            ),
            "valued": partial(working, subject="valued", pause=0.001, calls=scale.calls // 5),
        },
    )
    yield row("caller's time, median, a call each millisecond", "us", paced, "median",
               ("a thread with urllib3",) * 2, NO_GOAL,
               "the sender is at work in each pause.")  # fmt: skip


def delivery(scale: Scale, server: Server, python: str | None) -> Iterator[Row]:
    """CPU time of an event, and events a second, at a server that answers at once."""
    run = partial(measure, "delivering", events=scale.events, url=server.url)
    subjects = ("urllib3", "valued", "http.client", "requests.Session", "requests.post")
    figures = in_turns(scale.rounds, {name: partial(run, subject=name) for name in subjects})
    figures |= _peers(scale, python, "delivering", events=scale.events, url=server.url)
    name = ("urllib3", "a thread with a urllib3 pool's urlopen")
    yield row("CPU of the whole process for a delivered event", "us", figures, "cpu_us", name,
               at_most(1.25), "other libraries send many events in one request.")  # fmt: skip
    yield row("events a second, server answers at once", "1/s", figures, "per_second", name,
               at_least(0.85))  # fmt: skip


def slow_delivery(scale: Scale, _server: Server, _python: str | None) -> Iterator[Row]:
    """Events a second at a server that answers after 20 ms."""
    with delaying(SLOW) as slow:
        run = partial(measure, "delivering", events=scale.slow_events, url=slow.url, warm_up=200)
        if scale.slow_events < 200:
            run = partial(run, warm_up=1)
        figures = in_turns(
            scale.rounds,
            {
                "urllib3": partial(run, subject="urllib3", threads=TEN),
                "valued": partial(run, subject="valued"),
            },
        )
        slow.delay(0)
        figures["the same server without its delay, http.client"] = run(subject="http.client")
        yield row("events a second, server answers after 20 ms", "1/s", figures, "per_second",
                   ("urllib3", f"a urllib3 pool's urlopen, {TEN} threads"), at_least(0.95),
                   f"the server is {slow.name}.")  # fmt: skip


def memory(scale: Scale, _server: Server, python: str | None) -> Iterator[Row]:
    """Memory while events wait."""
    name = ("yardstick", "the JSON strings in a SimpleQueue")
    run = partial(measure, "waiting", events=scale.waiting)
    figures = in_turns(
        scale.rounds,
        {subject: partial(run, subject=subject) for subject in ("yardstick", "valued")},
    )
    figures |= _peers(scale, python, "waiting", events=scale.waiting)
    what = f"memory while {scale.waiting:,} events wait"
    yield row(f"{what}, by tracemalloc", "MB", figures, "allocated", name, at_most(2))
    yield row(f"{what}, resident pages", "MB", figures, "resident", name, NO_GOAL)


def fork(scale: Scale, _server: Server, _python: str | None) -> Iterator[Row]:
    """A fork, in the parent."""
    run = partial(
        measure, "forking", events=scale.queued, in_flight=scale.in_flight, forks=scale.forks
    )
    figures = in_turns(
        scale.rounds, {subject: partial(run, subject=subject) for subject in ("bare", "valued")}
    )
    ours, bare = figures["valued"], figures["bare"]
    yield row(
        f"fork in the parent, {scale.queued:,} waiting, {scale.in_flight} in flight", "us",
        figures, "us", ("bare", "a bare fork of a process of that size"),
        ("at most 1 ms more", lambda ours, bare: ours <= bare + 1_000),
        f"reached: {ours['pending']:.0f} pending, {ours['in_flight']:.0f} in flight, "
        f"{ours['resident_mb']:.0f} MB resident; the bare one has {bare['resident_mb']:.0f} MB.",
    )  # fmt: skip


def first_event(scale: Scale, server: Server, _python: str | None) -> Iterator[Row]:
    """A child's first event."""
    run = partial(measure, "first_event", forks=scale.children, url=server.url)
    figures = in_turns(
        scale.rounds,
        {subject: partial(run, subject=subject) for subject in ("requests.post", "valued")},
    )
    yield row("a child's first event, fork to delivered", "ms", figures, "ms",
               ("requests.post", "a bare requests.post in a child"), at_most(1.5))  # fmt: skip


def units(scale: Scale, _server: Server, _python: str | None) -> Iterator[Row]:
    """A unit of work."""
    # All kinds in one process, by turns: they differ by less than two processes of one kind do.
    runs = [measure("units", units=scale.calls) for _ in range(scale.rounds)]
    figures = {
        name: {"us": statistics.median(run[name]["us"] for run in runs)} for name in SUBJECTS
    }
    for subject in SUBJECTS[1:]:
        pair = {NESTED: figures[NESTED], "valued": figures[subject]}
        yield row(f"a unit of work: {subject}", "us", pair, "us", (NESTED,) * 2,
                   at_most(1.05), "a block that does nothing; both are ours.")  # fmt: skip


def imports(scale: Scale, _server: Server, _python: str | None) -> Iterator[Row]:
    """The import."""
    subjects = {
        "valued": partial(importing.main, "valued"),
        "requests": partial(importing.main, "requests"),
    }
    in_turns(1, subjects)  # so that the byte code is there
    yield row("import valued", "ms", in_turns(scale.imports, subjects), "ms",
               ("requests", "import requests"), at_most(1.15))  # fmt: skip


def idle(scale: Scale, server: Server, _python: str | None) -> Iterator[Row]:
    """Wake-ups of an idle process."""
    figures = in_turns(
        scale.rounds,
        {
            subject: partial(idling.main, subject, scale.idle, server.url)
            for subject in ("bare", "valued")
        },
    )
    yield row("wake-ups of an idle process that has sent an event", "1/s", figures,
               "per_second", ("bare", "a process without the library"),
               ("none", lambda ours, bare: ours <= bare))  # fmt: skip


GROUPS: Final[Sequence[Callable[[Scale, Server, str | None], Iterator[Row]]]] = (
    caller, delivery, slow_delivery, memory, fork, first_event, units, imports, idle,
)  # fmt: skip


def rows(scale: Scale, server: Server, python: str | None = None) -> Iterator[Row]:
    """All rows, one by one, as they are measured. *python*: of the environment with the peers."""
    for group in GROUPS:
        yield from group(scale, server, python)


def _peers(scale: Scale, python: str | None, module: str, **arguments: Any) -> dict[str, Any]:
    if python is None:
        return {}
    return in_turns(
        scale.rounds,
        {peer: partial(measure, module, python, subject=peer, **arguments) for peer in peers.PEERS},
    )

"""Line charts as SVG text: axes, a line and a name for each series. No more is needed here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape

Points = Sequence[tuple[float, float]]

WIDTH: Final = 640
HEIGHT: Final = 320
LEFT, RIGHT, TOP, BOTTOM = 64, 150, 32, 44
MIDDLE: Final = 'text-anchor="middle"'
#: Colours that can be told apart without seeing red or green (Okabe and Ito).
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")


def svg(
    title: str, x: str, y: str, series: Mapping[str, Points], *, logarithmic: bool = False
) -> str:
    """A chart. *logarithmic*: both axes, which zero then is not on."""
    xs = [point[0] for points in series.values() for point in points]
    ys = [point[1] for points in series.values() for point in points]
    across, across_ticks = _axis(xs, LEFT, WIDTH - RIGHT, logarithmic=logarithmic)
    up, up_ticks = _axis([*ys, *([] if logarithmic else [0.0])], HEIGHT - BOTTOM, TOP,
                         logarithmic=logarithmic)  # fmt: skip
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 18, title, 'font-weight="bold"'),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x, MIDDLE),
        _text(14, HEIGHT / 2, y, f'{MIDDLE} transform="rotate(-90 14 {HEIGHT / 2})"'),
    ]
    for tick in across_ticks:
        parts.append(_line(across(tick), TOP, across(tick), HEIGHT - BOTTOM))
        parts.append(_text(across(tick), HEIGHT - BOTTOM + 16, f"{tick:,g}", MIDDLE))
    for tick in up_ticks:
        parts.append(_line(LEFT, up(tick), WIDTH - RIGHT, up(tick)))
        parts.append(_text(LEFT - 6, up(tick) + 4, f"{tick:,g}", 'text-anchor="end"'))
    for number, (name, points) in enumerate(series.items()):
        colour, top = COLOURS[number % len(COLOURS)], TOP + 16 * (number + 1)
        places = [(across(point[0]), up(point[1])) for point in points]
        path = " ".join(f"{left:.1f},{down:.1f}" for left, down in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(places) <= 12:
            parts += [
                f'<circle cx="{left:.1f}" cy="{down:.1f}" r="3" fill="{colour}"/>'
                for left, down in places
            ]
        box = f'x="{WIDTH - RIGHT + 12}" y="{top - 9}" width="10" height="10"'
        parts += [f'<rect {box} fill="{colour}"/>', _text(WIDTH - RIGHT + 28, top, name)]
    return "\n".join([*parts, "</svg>", ""])


def _axis(
    values: Sequence[float], start: float, end: float, *, logarithmic: bool
) -> tuple[Callable[[float], float], list[float]]:
    """Where on the axis a value is, and the values that are marked."""
    if logarithmic:
        first = math.floor(math.log10(min(values)))
        last = max(first + 1, math.ceil(math.log10(max(values))))
        length = (end - start) / (last - first)
        ticks = [10.0**power for power in range(first, last + 1)]
        return lambda value: start + length * (math.log10(value) - first), ticks
    low, high = min(values), max(values)
    step = _step(high - low)
    low = math.floor(low / step) * step
    high = max(low + step, math.ceil(high / step) * step)
    ticks = [low + step * number for number in range(round((high - low) / step) + 1)]
    return lambda value: start + (end - start) * (value - low) / (high - low), ticks


def _step(span: float) -> float:
    """A round distance of which *span* has about five."""
    if span <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(span / 5))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span / 5)


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(text)}</text>'

"""Charts of the benchmarks as SVG files: a thin line for every seed, a thick one for their mean with its standard deviation."""

import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from markupsafe import Markup

sys.path.insert(0, str(Path(__file__).parents[1]))

from stagecraft.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    axes,
    dot,
    line,
    number,
    path,
    scale_over,
    text,
)

Curve = Sequence[tuple[float, float]]
TITLE = 28  # pixels above the panels, beside the rows of the key
COLOURS = ["#1b6ca8", "#d1495b", "#3a7d44", "#b07d12", "#6a4c93", "#555555", "#17a2a2", "#e07a2f", "#8f8f2a", "#c2569b"]
COLOURS += ["#00527a", "#8c1c2c", "#77b37b", "#e0bd5a", "#a893c9", "#a0a0a0", "#7a3e10", "#2d2d80"]
KEY_WIDTH, KEY_ROW = 150, 16  # pixels
ROW = HEIGHT + 16  # pixels from one row of panels to the next
STYLE = """
  svg { background: #ffffff; font: 11px system-ui, sans-serif; }
  text { fill: #333333; } .title { font-weight: 600; font-size: 13px; }
  .rule { stroke: #e3e3e3; } .base { stroke: #777777; } polyline { fill: none; }
  .seed { stroke-width: 0.8; opacity: 0.45; } .mean { stroke-width: 2; }
  .bar { stroke-width: 1.2; } .level { stroke: #777777; stroke-dasharray: 4 3; }
"""


def colours() -> str:
    """CSS of the arms' colours."""
    return "".join(f".c{i} {{ stroke: {c}; }} circle.c{i} {{ fill: {c}; }}\n" for i, c in enumerate(COLOURS))


def mean_curve(curves: Sequence[Curve]) -> list[tuple[float, float]]:
    """The mean of curves, point by point."""
    return [
        (statistics.mean(x for x, _ in points), statistics.mean(y for _, y in points))
        for points in zip(*curves, strict=True)
    ]


def bars(curves: Sequence[Curve]) -> list[tuple[float, float, float]]:
    """x, mean y less (at least the lowest) and plus its standard deviation over curves, by point; none for one curve."""
    if len(curves) < 2:
        return []
    found = []
    for points in zip(*curves, strict=True):
        values = [y for _, y in points]
        middle, deviation = statistics.mean(values), statistics.stdev(values)
        found.append((statistics.mean(x for x, _ in points), max(middle - deviation, min(values)), middle + deviation))
    return found


def panel(
    arms: dict[str, Sequence[Curve]],
    title: str,
    x_label: str,
    y_label: str,
    *,
    levels: dict[str, float] | None = None,
    zero: bool = True,
    apart: float = 0.0,
) -> Markup:
    """The curves of all arms and seeds, y logarithmic.

    Args:
        levels: named values of y, dashed lines across the panel.
        zero: x begins at zero.
        apart: pixels to draw one arm beside the next, where many have the same x.
    """
    levels = levels or {}
    points = [point for curves in arms.values() for curve in curves for point in curve]
    left, right = LEFT + apart * len(arms) / 2, RIGHT - apart * len(arms) / 2
    x = scale_over([p[0] for p in points], left, right, zero=zero)
    y = scale_over([*(p[1] for p in points), *levels.values()], BOTTOM, TOP, log=True)
    parts = [text((LEFT + RIGHT) / 2, TOP - 6, title, "middle", "title"), axes(x, y, x_label, y_label)]
    for name, value in levels.items():
        parts.append(line(LEFT, y(value), RIGHT, y(value), "level"))
        parts.append(text(RIGHT, y(value) - 3, f"{name}: {number(value)}", "end"))
    for index, (name, curves) in enumerate(arms.items()):
        shift = apart * (index - (len(arms) - 1) / 2)
        own = replace(x, start=x.start + shift, end=x.end + shift)
        parts += [path([(own(px), y(py)) for px, py in curve], f"seed c{index}") for curve in curves]
        mean = mean_curve(curves)
        parts += [line(own(px), y(low), own(px), y(high), f"bar c{index}") for px, low, high in bars(curves)]
        parts.append(path([(own(px), y(py)) for px, py in mean], f"mean c{index}"))
        parts += [dot(own(px), y(py), f"c{index}", 2.5, f"{name}: {number(py)}") for px, py in mean]
    return Markup("").join(parts)


def key(names: Sequence[str], columns: int) -> Markup:
    """Names of the arms in their colours, in rows of `columns`."""
    parts = []
    for index, name in enumerate(names):
        at, row = LEFT + KEY_WIDTH * (index % columns), KEY_ROW * (1 + index // columns)
        parts += [path([(at, row), (at + 18, row)], f"mean c{index}"), text(at + 24, row + 4, name, "start")]
    return Markup("").join(parts)


def write_figure(panels: Sequence[Markup], names: Sequence[str], target: Path, across: int | None = None) -> None:
    """Panels in rows of `across`, all in one row for None, under one key, as a file of its own."""
    form = Markup('<g transform="translate({} {})">{}</g>')
    across = across or len(panels)
    columns = (WIDTH * across - LEFT) // KEY_WIDTH
    head = KEY_ROW * math.ceil(len(names) / columns) + TITLE
    places = [(WIDTH * (index % across), head - TOP + ROW * (index // across)) for index in range(len(panels))]
    body = [form.format(*place, content) for place, content in zip(places, panels, strict=True)]
    width, height = WIDTH * across, HEIGHT + head - TOP + ROW * (math.ceil(len(panels) / across) - 1)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    )
    drawn = f"{key(names, columns)}{Markup('').join(body)}"
    target.write_text(f"{opening}\n<style>{STYLE}{colours()}</style>\n{drawn}\n</svg>\n")

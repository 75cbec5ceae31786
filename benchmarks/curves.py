"""Charts of the benchmarks as SVG files: a thin line for every seed, a thick one for their mean."""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

sys.path.insert(0, str(Path(__file__).parents[1]))

from stages.evaluation.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, axes, dot, number, path, scale_over, text

Curve = Sequence[tuple[float, float]]
HEAD = 44  # pixels above the panels, for their titles and the key
COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#b07d12", "#6a4c93", "#555555")
STYLE = """
  svg { background: #ffffff; font: 11px system-ui, sans-serif; }
  text { fill: #333333; } .title { font-weight: 600; font-size: 13px; }
  .rule { stroke: #e3e3e3; } .base { stroke: #777777; } polyline { fill: none; }
  .seed { stroke-width: 0.8; opacity: 0.45; } .mean { stroke-width: 2; }
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


def panel(arms: dict[str, Sequence[Curve]], title: str, x_label: str, y_label: str) -> Markup:
    """The curves of all arms and seeds, y logarithmic."""
    points = [point for curves in arms.values() for curve in curves for point in curve]
    x = scale_over([p[0] for p in points], LEFT, RIGHT, zero=True)
    y = scale_over([p[1] for p in points], BOTTOM, TOP, log=True)
    parts = [text((LEFT + RIGHT) / 2, TOP - 6, title, "middle", "title"), axes(x, y, x_label, y_label)]
    for index, (name, curves) in enumerate(arms.items()):
        parts += [path([(x(px), y(py)) for px, py in curve], f"seed c{index}") for curve in curves]
        mean = mean_curve(curves)
        parts.append(path([(x(px), y(py)) for px, py in mean], f"mean c{index}"))
        parts += [dot(x(px), y(py), f"c{index}", 2.5, f"{name}: {number(py)}") for px, py in mean]
    return Markup("").join(parts)


def key(names: Sequence[str]) -> Markup:
    """Names of the arms in their colours, in a row."""
    parts = []
    for index, name in enumerate(names):
        at = LEFT + 120 * index
        parts += [path([(at, 16), (at + 18, 16)], f"mean c{index}"), text(at + 24, 20, name, "start")]
    return Markup("").join(parts)


def write_figure(panels: Sequence[Markup], names: Sequence[str], target: Path) -> None:
    """Panels side by side under one key, as a file of its own."""
    form = Markup('<g transform="translate({} {})">{}</g>')
    body = [form.format(WIDTH * index, HEAD - TOP, content) for index, content in enumerate(panels)]
    width, height = WIDTH * len(panels), HEIGHT + HEAD - TOP
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    )
    target.write_text(f"{opening}\n<style>{STYLE}{colours()}</style>\n{key(names)}{Markup('').join(body)}\n</svg>\n")

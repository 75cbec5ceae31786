"""Charts as inline SVG and pictures as data URIs: no external resource, colours by CSS class, the same bytes every time."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

WIDTH = 360
HEIGHT = 220
LEFT = 52
RIGHT = 348
TOP = 12
BOTTOM = 180
SAMPLE_SIDE, GAP = 48, 3  # pixels
THUMBNAIL_SIDE = 64
# Ends and middle of the heat map's ramp, light to dark: low to high similarity.
RAMP = np.array([[246, 244, 236], [127, 178, 189], [24, 78, 119], [12, 30, 60]], dtype=float)


@dataclass(frozen=True)
class Scale:
    """A value in `low`..`high` to a place in `start`..`end`, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (self.map(v) for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def map(self, value: float) -> float:
        """The value, or its logarithm with the lower end of the scale as floor."""
        return math.log10(max(value, self.low)) if self.log else value

    def ticks(self) -> list[float]:
        """About four round values; powers of ten on a logarithmic scale, with 2 and 5 between when there are few."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            factors = (1,) if len(powers) > 3 else (1, 2, 5)
            inside = [f * 10.0**p for p in powers for f in factors if self.low <= f * 10.0**p <= self.high]
            if inside:
                return inside[:: math.ceil(len(inside) / 5)]
        step = round_step((self.high - self.low) / 4)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def round_step(size: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least `size`."""
    power = 10.0 ** math.floor(math.log10(size))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= size * (1 - 1e-9))


def scale_over(values: Sequence[float], start: float, end: float, *, log: bool = False, zero: bool = False) -> Scale:
    """A scale that holds all values, with a little room; from zero when asked."""
    if log:
        known = [v for v in values if v > 0] or [1.0]
        low = min(known)
        high = max(known)
        return Scale(low / 1.15, high * 1.15, start, end, log=True)
    low = min(values)
    high = max(values)
    low = min(low, 0.0) if zero else low
    room = (high - low or abs(high) or 1.0) * 0.05
    return Scale(low if zero and low == 0 else low - room, high + room, start, end)


def number(value: float) -> str:
    """A number for an axis or a coordinate's label: 3 figures, k and M for large ones."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def place(value: float) -> str:
    """A coordinate with one decimal."""
    return f"{value:.1f}"


def axes(x: Scale, y: Scale, x_label: str, y_label: str) -> Markup:
    """Grid lines, tick labels and axis names."""
    parts = [Markup('<g class="axis">')]
    for tick in y.ticks():
        parts.append(line(LEFT, y(tick), RIGHT, y(tick), "rule"))
        parts.append(text(LEFT - 6, y(tick) + 4, number(tick), "end"))
    for tick in x.ticks():
        parts.append(text(x(tick), BOTTOM + 16, number(tick), "middle"))
    parts.append(line(LEFT, BOTTOM, RIGHT, BOTTOM, "base"))
    parts.append(text((LEFT + RIGHT) / 2, HEIGHT - 6, x_label, "middle", "name"))
    parts.append(
        Markup('<text class="name" transform="translate(11 {}) rotate(-90)" text-anchor="middle">{}</text></g>').format(
            place((TOP + BOTTOM) / 2), y_label
        )
    )
    return Markup("").join(parts)


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    """A straight line."""
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(css, *map(place, (x1, y1, x2, y2)))


def text(x: float, y: float, content: str, anchor: str, css: str = "tick") -> Markup:
    """A line of text."""
    form = Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>')
    return form.format(css, place(x), place(y), anchor, content)


def path(points: Sequence[tuple[float, float]], css: str) -> Markup:
    """A line through points."""
    return Markup('<polyline class="{}" points="{}"/>').format(css, " ".join(f"{px:.1f},{py:.1f}" for px, py in points))


def svg(body: Markup, alt: str, height: int = HEIGHT) -> Markup:
    """A whole chart with its text alternative."""
    form = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')
    return form.format(WIDTH, height, alt, body)


def line_chart(
    series: dict[str, list[tuple[float, float]]],
    *,
    x_label: str,
    y_label: str,
    alt: str,
    log: bool = False,
    zero: bool = True,
    dots: bool = False,
    marks: Sequence[float] = (),
) -> Markup:
    """Named lines of (x, y) points, y from `zero` unless `log`; `marks` are vertical lines, as the interval boundaries.

    A key follows by `key`.
    """
    points = [point for line_points in series.values() for point in line_points]
    x = scale_over([p[0] for p in points] + list(marks), LEFT, RIGHT, zero=not dots)
    y = scale_over([p[1] for p in points], BOTTOM, TOP, log=log, zero=zero and not log)
    parts = [axes(x, y, x_label, y_label)]
    parts += [line(x(mark), TOP, x(mark), BOTTOM, "boundary") for mark in marks]
    for index, (name, line_points) in enumerate(series.items()):
        parts.append(path([(x(px), y(py)) for px, py in line_points], f"line c{index % 6}"))
        if dots:
            parts += [dot(x(px), y(py), f"dot c{index % 6}", 3, f"{name}: {number(py)}") for px, py in line_points]
    return svg(Markup("").join(parts), alt)


def dot(x: float, y: float, css: str, radius: float, title: str) -> Markup:
    """A point that names itself when pointed at."""
    form = Markup('<circle class="{}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>')
    return form.format(css, place(x), place(y), radius, title)


def candidate_chart(
    points: Sequence[tuple[float, float]],
    chosen: tuple[float, float] | None,
    titles: Sequence[str],
    alt: str,
    *,
    x_label: str,
) -> Markup:
    """NMSE over a cost (as a share of the teacher's block) of every candidate, the Pareto front and the chosen one, if any.

    `titles` name the candidates when pointed at.
    """
    x = scale_over([p[0] for p in points], LEFT, RIGHT, zero=True)
    y = scale_over([p[1] for p in points], BOTTOM, TOP, log=True)
    front = [(x(px), y(py)) for px, py in pareto_front(points)]
    stairs = [front[0]]
    for px, py in front[1:]:
        stairs += [(px, stairs[-1][1]), (px, py)]
    parts = [axes(x, y, x_label, "NMSE")]
    parts += [dot(x(px), y(py), "candidate", 2, title) for (px, py), title in zip(points, titles, strict=True)]
    parts.append(path(stairs, "front"))
    if chosen is not None:
        parts.append(dot(x(chosen[0]), y(chosen[1]), "chosen", 5, "chosen"))
    return svg(Markup("").join(parts), alt)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both coordinates, from left to right."""
    front: list[tuple[float, float]] = []
    for point in sorted(set(points)):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def heat_map(matrix: Sequence[Sequence[float]], grid: Sequence[float], boundaries: Sequence[float], alt: str) -> Markup:
    """A similarity matrix over timesteps, square, with the interval boundaries as lines; both axes ascend from the top left."""
    values = np.asarray(matrix, dtype=float)
    start = LEFT
    end = 338
    top = 10
    span = end - start
    where = [start + span * int(np.searchsorted(grid, b)) / len(grid) for b in boundaries]
    parts = [
        Markup(
            '<image x="{}" y="{}" width="{}" height="{}" preserveAspectRatio="none" href="{}" class="pixels"/>'
        ).format(start, top, span, span, png(ramp_colours(values)))
    ]
    for edge in where:
        parts += [
            line(edge, top, edge, top + span, "cut"),
            line(start, edge - start + top, end, edge - start + top, "cut"),
        ]
    parts.append(Markup('<g class="axis">'))
    for index in np.linspace(0, len(grid) - 1, 5).round().astype(int).tolist():
        at = span * (index + 0.5) / len(grid)
        parts.append(text(start + at, top + span + 16, number(grid[index]), "middle"))
        parts.append(text(start - 6, top + at + 4, number(grid[index]), "end"))
    parts.append(text((start + end) / 2, top + span + 34, "timestep t", "middle", "name"))
    return svg(Markup("").join([*parts, Markup("</g>")]), alt, height=top + span + 42)


def ramp_colours(values: np.ndarray) -> np.ndarray:
    """uint8 RGB (n, n, 3) of values (n, n), their smallest to their largest over the ramp."""
    low = float(values.min())
    high = float(values.max())
    shares = (values - low) / ((high - low) or 1.0)
    stops = np.linspace(0, 1, len(RAMP))
    return np.stack([np.interp(shares, stops, RAMP[:, c]) for c in range(3)], axis=-1).round().astype(np.uint8)


def shrink(images: np.ndarray) -> np.ndarray:
    """Images uint8 (N, H, W, C) as thumbnails of at most 64 pixels a side, each the mean of what it covers."""
    count, height, width, channels = images.shape
    size = -(-max(height, width) // THUMBNAIL_SIDE)
    rows = height // size
    columns = width // size
    cells = images[:, : rows * size, : columns * size].reshape(count, rows, size, columns, size, channels)
    return cells.mean(axis=(2, 4)).round().astype(np.uint8)


def image_grid(images: np.ndarray, columns: int) -> str:
    """The sheet of some images as a data URI."""
    return png(image_sheet(images, columns))


def image_sheet(images: np.ndarray, columns: int) -> np.ndarray:
    """uint8 images (N, H, W, C), small ones enlarged, in rows on a transparent ground, uint8 (H, W, 4)."""
    count, height, width, channels = images.shape
    enlarge = max(1, SAMPLE_SIDE // height)
    images = images.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    height, width = images.shape[1:3]
    rows = -(-count // columns)
    sheet = np.zeros((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 4), np.uint8)
    for index, image in enumerate(images):
        top = index // columns * (height + GAP)
        left = index % columns * (width + GAP)
        sheet[top : top + height, left : left + width, :3] = image if channels == 3 else image[..., :1]
        sheet[top : top + height, left : left + width, 3] = 255
    return sheet


def png(pixels: np.ndarray) -> str:
    """uint8 pixels (H, W, 3 or 4) as a PNG data URI."""
    return "data:image/png;base64," + base64.b64encode(encode_png(pixels)).decode("ascii")


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 pixels (H, W, 3 or 4) as a PNG file, the same bytes every time."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def key(names: Sequence[str]) -> Markup:
    """The colours of a line chart's series by name."""
    items = (f'<li><span class="swatch c{i % 6}"></span>{escape(name)}</li>' for i, name in enumerate(names))
    return Markup('<ul class="key">{}</ul>').format(Markup("".join(items)))

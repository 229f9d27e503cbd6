"""Line charts and boxed pictures as SVG text. Pure functions, no scripts, colours by CSS class only.

What holds
    * Every text that comes from outside (titles, labels, series names) is escaped here.
    * Values that are not finite (or beyond 1e30) are left out of a curve, and the curve is interrupted there.
    * `picture` draws in one frame: the shown frame, longest side PICTURE_SIDE units. Boxes come with the size of the
      frame they were measured in, and come to the shown one as everywhere (`data.coordinates.rescaled`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import Literal, Sequence

from data.coordinates import rescaled

WIDTH, HEIGHT = 440, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 34
PICTURE_SIDE = 320.0
_LABEL_HEIGHT, _LABEL_CHARACTER = 15.0, 6.4
_LARGEST = 1e30
_MAX_DOTS = 120  # more points than this: the line alone


@dataclass(frozen=True)
class Series:
    """A named curve of (x, y) points in increasing x."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class DrawnBox:
    """A box (x1, y1, x2, y2) in a frame of `frame` = (width, height) units, and how to draw it."""

    bbox: tuple[float, float, float, float]
    frame: tuple[float, float]
    label: str
    kind: Literal["true", "after", "before"]


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) within [low, high]; low < high."""
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def number(value: float) -> str:
    """A short decimal for people: four significant digits, no exponent where it can be avoided."""
    if value != value or math.isinf(value):
        return "n/a"
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}"


def line_chart(title: str, series: Sequence[Series], x_label: str = "step", log: bool = False) -> str:
    """An HTML figure with the curves, their legend with last values, and axes; says so when nothing can be drawn.

    `log`: logarithmic y axis; values <= 0 cannot be shown there and are left out.
    """
    kept = [(s.name, [(float(x), _height_value(y, log)) for x, y in s.points]) for s in series]
    kept = [(name, points) for name, points in kept if any(y is not None for _, y in points)]
    if not kept:
        return f'<figure class="chart"><figcaption>{escape(title)}</figcaption><p class="none">No values.</p></figure>'
    xs = [x for _, points in kept for x, _ in points]
    ys = [y for _, points in kept for _, y in points if y is not None]
    x_range, y_range = _padded(min(xs), max(xs), 0.0), _padded(min(ys), max(ys), 0.06)
    body = [_axes(x_range, y_range, x_label, log)]
    legend = []
    for index, (name, points) in enumerate(kept):
        body.append(_curve(points, name, index % 8, x_range, y_range, log))
        last = next(y for _, y in reversed(points) if y is not None)
        shown = number(10.0**last if log else last)
        legend.append(f'<span class="key k{index % 8}"><i></i>{escape(name)} <b>{shown}</b></span>')
    return (
        f'<figure class="chart"><figcaption>{escape(title)}<span class="legend">{"".join(legend)}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(body)}</svg></figure>'
    )


def picture(data_uri: str, size: tuple[float, float], boxes: Sequence[DrawnBox]) -> str:
    """An SVG of a picture of `size` = (width, height) pixels with boxes on top, in the shown frame."""
    width, height = shown_size(size)
    drawn = "".join(_box(box, width, height) for box in boxes)
    return (
        f'<svg class="picture" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="picture with boxes">'
        f'<image href="{escape(data_uri)}" width="{width:g}" height="{height:g}" preserveAspectRatio="none"/>'
        f"{drawn}</svg>"
    )


def shown_size(size: tuple[float, float]) -> tuple[float, float]:
    """(width, height) of the shown frame: the aspect ratio of `size`, longest side PICTURE_SIDE."""
    scale = PICTURE_SIDE / max(size)
    return size[0] * scale, size[1] * scale


def to_shown(box: DrawnBox, width: float, height: float) -> tuple[float, float, float, float]:
    """Corners of `box` in a shown frame of (width, height) units."""
    return rescaled(box.bbox, box.frame, (width, height))


def _box(box: DrawnBox, width: float, height: float) -> str:
    x1, y1, x2, y2 = to_shown(box, width, height)
    text = box.label if len(box.label) <= 24 else box.label[:23] + "…"
    label_width = len(text) * _LABEL_CHARACTER + 6
    if box.kind == "true":  # labels of the kinds keep to different corners, so that equal boxes stay readable
        left, top = x1, y1 - _LABEL_HEIGHT
    elif box.kind == "after":
        left, top = x2 - label_width, y2
    else:
        left, top = x1, y2
    left = min(max(left, 0.0), max(width - label_width, 0.0))
    top = min(max(top, 0.0), height - _LABEL_HEIGHT)
    return (
        f'<g class="box {box.kind}"><title>{box.kind}: {escape(box.label)}</title>'
        f'<rect class="outline" x="{x1:.3f}" y="{y1:.3f}" width="{x2 - x1:.3f}" height="{y2 - y1:.3f}"/>'
        f'<rect class="plate" x="{left:.1f}" y="{top:.1f}" width="{label_width:.1f}" height="{_LABEL_HEIGHT:g}"/>'
        f'<text x="{left + 3:.1f}" y="{top + 11.2:.1f}">{escape(text)}</text></g>'
    )


def _height_value(y: float, log: bool) -> float | None:
    if not abs(y) < _LARGEST or (log and y <= 0):  # also true for nan
        return None
    return math.log10(y) if log else float(y)


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    if high == low:
        spread = abs(low) * 0.1 or 1.0
        return low - spread, high + spread
    margin = (high - low) * share
    return low - margin, high + margin


def _place(x: float, y: float, x_range: tuple[float, float], y_range: tuple[float, float]) -> tuple[float, float]:
    across = (x - x_range[0]) / (x_range[1] - x_range[0])
    up = (y - y_range[0]) / (y_range[1] - y_range[0])
    return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def _axes(x_range: tuple[float, float], y_range: tuple[float, float], x_label: str, log: bool) -> str:
    parts = []
    for tick in nice_ticks(*y_range):
        _, y = _place(x_range[0], tick, x_range, y_range)
        text = number(10.0**tick) if log else number(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
    for tick in nice_ticks(*x_range, about=6):
        x, _ = _place(tick, y_range[0], x_range, y_range)
        parts.append(_centred(x, HEIGHT - BOTTOM + 14, number(tick)))
    parts.append(_centred((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_label))
    return "".join(parts)


def _centred(x: float, y: float, text: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:g}" text-anchor="middle">{escape(text)}</text>'


def _curve(
    points: list[tuple[float, float | None]],
    name: str,
    colour: int,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    log: bool,
) -> str:
    path, dots, pen_down = [], [], False
    for x, y in points:
        if y is None:
            pen_down = False
            continue
        px, py = _place(x, y, x_range, y_range)
        path.append(f'{"L" if pen_down else "M"}{px:.1f} {py:.1f}')
        pen_down = True
        hint = f"{name} at {number(x)}: {number(10.0**y if log else y)}"
        place = f'class="dot d{colour}" cx="{px:.1f}" cy="{py:.1f}" r="2.2"'
        dots.append(f"<circle {place}><title>{escape(hint)}</title></circle>")
    shown_dots = "".join(dots) if len(dots) <= _MAX_DOTS else ""
    return f'<path class="curve c{colour}" d="{" ".join(path)}"/>{shown_dots}'

"""Furniture made of simple solids: what the plain procedural rooms and the generic pictures are furnished with.

Every piece stands on z = 0 and is centred in x and y; its solids fill its bounding box exactly, so that the box of the
solids is the box of the object. Each category keeps a typical colour, jittered, because at a dozen pixels a shape
alone says little; a caller may repaint a piece.
"""

from __future__ import annotations

import colorsys
from dataclasses import replace
from typing import Callable

import numpy as np

from data.scenes.types import SceneObject, Solid

Color = tuple[float, float, float]


def part(x0, y0, z0, x1, y1, z1, color: Color, kind: str = "box") -> Solid:
    """The solid of a kind that fills the box from one corner to the other, metres."""
    return Solid(kind, ((x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2), ((x1 - x0) / 2, (y1 - y0) / 2, (z1 - z0) / 2), color)


def darker(color: Color, factor: float = 0.6) -> Color:
    """The colour with `factor` of its light."""
    return tuple(channel * factor for channel in color)


def _chair(r, c):
    w, d, h = r.uniform(0.42, 0.52), r.uniform(0.42, 0.52), r.uniform(0.8, 1.0)
    seat = 0.46
    legs = [part(x, y, 0, x + 0.05, y + 0.05, seat, darker(c)) for x in (-w / 2, w / 2 - 0.05) for y in (-d / 2, d / 2 - 0.05)]
    return [part(-w / 2, -d / 2, seat - 0.06, w / 2, d / 2, seat, c), part(-w / 2, d / 2 - 0.06, seat, w / 2, d / 2, h, c)] + legs


def _table(r, c):
    w, d, h = r.uniform(1.0, 1.6), r.uniform(0.7, 0.95), r.uniform(0.7, 0.78)
    legs = [part(x, y, 0, x + 0.08, y + 0.08, h - 0.08, darker(c)) for x in (-w / 2, w / 2 - 0.08) for y in (-d / 2, d / 2 - 0.08)]
    return [part(-w / 2, -d / 2, h - 0.08, w / 2, d / 2, h, c)] + legs


def _sofa(r, c):
    w, d, h = r.uniform(1.5, 2.1), r.uniform(0.8, 0.95), r.uniform(0.75, 0.9)
    arms = [part(x, -d / 2, 0, x + 0.2, d / 2, 0.6, darker(c, 0.8)) for x in (-w / 2, w / 2 - 0.2)]
    return [part(-w / 2, -d / 2, 0, w / 2, d / 2, 0.42, c), part(-w / 2, d / 2 - 0.25, 0.42, w / 2, d / 2, h, c)] + arms


def _bed(r, c):
    w, d, h = r.uniform(1.3, 1.7), r.uniform(1.9, 2.1), r.uniform(0.45, 0.6)
    return [part(-w / 2, -d / 2, 0, w / 2, d / 2, h - 0.12, c), part(-w / 2 + 0.1, d / 2 - 0.55, h - 0.12, w / 2 - 0.1, d / 2 - 0.1, h, (0.95, 0.93, 0.9))]


def _lamp(r, c):
    s, h = r.uniform(0.4, 0.55), r.uniform(1.4, 1.7)
    return [part(-0.15, -0.15, 0, 0.15, 0.15, 0.05, darker(c), "cylinder"), part(-0.03, -0.03, 0.05, 0.03, 0.03, h - s, darker(c)),
            part(-s / 2, -s / 2, h - s, s / 2, s / 2, h, c, "ellipsoid")]


def _cabinet(r, c):
    w, d, h = r.uniform(0.8, 1.2), r.uniform(0.4, 0.6), r.uniform(0.9, 1.3)
    return [part(-w / 2, -d / 2 + 0.02, 0, w / 2, d / 2, h, c), part(-0.03, -d / 2, 0.1, 0.03, -d / 2 + 0.02, h - 0.1, darker(c, 0.4))]


def _shelf(r, c):
    w, d, h = r.uniform(0.7, 1.0), r.uniform(0.3, 0.4), r.uniform(1.7, 2.0)
    boards = [part(-w / 2, -d / 2, z, w / 2, d / 2, z + 0.06, c) for z in np.linspace(0, h - 0.06, 5)]
    return boards + [part(-w / 2, d / 2 - 0.05, 0, w / 2, d / 2, h, darker(c, 0.7))]


def _fridge(r, c):
    w, d, h = r.uniform(0.6, 0.75), r.uniform(0.6, 0.7), r.uniform(1.6, 1.85)
    return [part(-w / 2, -d / 2, 0, w / 2, d / 2, h * 0.6, c), part(-w / 2, -d / 2, h * 0.62, w / 2, d / 2, h, c),
            part(-w / 2 + 0.02, -d / 2 + 0.02, h * 0.6, w / 2 - 0.02, d / 2 - 0.02, h * 0.62, darker(c, 0.4))]


def _plant(r, c):
    s, h = r.uniform(0.45, 0.65), r.uniform(0.8, 1.2)
    return [part(-0.16, -0.16, 0, 0.16, 0.16, 0.3, (0.55, 0.3, 0.2), "cylinder"), part(-s / 2, -s / 2, 0.25, s / 2, s / 2, h, c, "ellipsoid")]


def _bin(r, c):
    s, h = r.uniform(0.35, 0.45), r.uniform(0.45, 0.6)
    return [part(-s / 2, -s / 2, 0, s / 2, s / 2, h - 0.08, c, "cylinder"), part(-s / 2, -s / 2, h - 0.08, s / 2, s / 2, h, darker(c), "cylinder")]


def _stool(r, c):
    s, h = r.uniform(0.35, 0.42), r.uniform(0.5, 0.65)
    return [part(-s / 2, -s / 2, h - 0.1, s / 2, s / 2, h, c, "cylinder"), part(-0.05, -0.05, 0, 0.05, 0.05, h - 0.1, darker(c), "cylinder"),
            part(-0.14, -0.14, 0, 0.14, 0.14, 0.05, darker(c), "cylinder")]


def _tv(r, c):
    w, h = r.uniform(1.0, 1.4), r.uniform(1.0, 1.2)
    return [part(-w / 2, -0.2, 0, w / 2, 0.2, 0.4, (0.45, 0.36, 0.3)), part(-w / 2, -0.04, 0.45, w / 2, 0.04, h, c), part(-0.1, -0.04, 0.4, 0.1, 0.04, 0.45, c)]


#: label -> (builder, typical hue, saturation, value).
CATEGORIES: dict[str, tuple[Callable, float, float, float]] = {
    "chair": (_chair, 0.07, 0.9, 0.95),
    "table": (_table, 0.08, 0.65, 0.5),
    "sofa": (_sofa, 0.62, 0.75, 0.85),
    "bed": (_bed, 0.99, 0.75, 0.8),
    "lamp": (_lamp, 0.15, 0.8, 1.0),
    "cabinet": (_cabinet, 0.50, 0.85, 0.6),
    "shelf": (_shelf, 0.78, 0.65, 0.75),
    "fridge": (_fridge, 0.55, 0.08, 0.98),
    "plant": (_plant, 0.33, 0.8, 0.6),
    "bin": (_bin, 0.6, 0.15, 0.45),
    "stool": (_stool, 0.90, 0.6, 0.95),
    "tv": (_tv, 0.0, 0.0, 0.12),
}


def typical_color(label: str, rng: np.random.Generator) -> Color:
    """The category's colour with a little jitter of hue, saturation and value."""
    _, hue, saturation, value = CATEGORIES[label]
    jitter = rng.uniform(-1, 1, 3)
    return colorsys.hsv_to_rgb((hue + 0.015 * jitter[0]) % 1, float(np.clip(saturation + 0.08 * jitter[1], 0, 1)),
                               float(np.clip(value + 0.06 * jitter[2], 0, 1)))


def build(label: str, rng: np.random.Generator, color: Color | None = None) -> SceneObject:
    """A piece of furniture at the origin with id 0. `color` repaints it. KeyError for a label not in CATEGORIES."""
    solids = tuple(CATEGORIES[label][0](rng, color or typical_color(label, rng)))
    return fit(SceneObject(0, label, (0, 0, 0), (0, 0, 0), solids))


def fit(item: SceneObject) -> SceneObject:
    """The object with its box set to the box of its solids."""
    low = np.min([np.subtract(s.center, s.half) for s in item.solids], axis=0)
    high = np.max([np.add(s.center, s.half) for s in item.solids], axis=0)
    return replace(item, center=tuple(map(float, (low + high) / 2)), dimensions=tuple(map(float, high - low)))


def place(item: SceneObject, x: float, y: float, quarter_turns: int = 0, id: int = 0) -> SceneObject:
    """The object turned by quarter turns about z (so boxes stay axis-aligned) and moved to (x, y)."""
    solids = []
    for solid in item.solids:
        (cx, cy, cz), (hx, hy, hz) = solid.center, solid.half
        for _ in range(quarter_turns % 4):
            cx, cy, hx, hy = -cy, cx, hy, hx
        solids.append(replace(solid, center=(cx + x, cy + y, cz), half=(hx, hy, hz)))
    return fit(replace(item, id=id, solids=tuple(solids)))

"""What stands in real rooms: categories with the sizes and colours they come in, each made of simple solids of any size.

What holds
    * A shape fills the box it is given exactly, stands on z = 0, is centred in x and y, and has its back at +y.
    * Sizes are full sizes (width, depth, height) in metres, drawn between those of ordinary pieces; ours, no statistics of
      a data set.
    * Labels are those of VSI-Bench's ScanNet part where it has them.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Sequence

import numpy as np

from data.scenes.furniture import Color, darker, part
from data.scenes.types import SceneObject, Solid, Vector

_DARK, _PALE, _STEEL = (0.08, 0.08, 0.09), (0.93, 0.92, 0.9), (0.55, 0.56, 0.58)
_WOOD, _CLAY = (0.42, 0.28, 0.17), (0.5, 0.27, 0.18)


@dataclass(frozen=True)
class Part:
    """One solid of a shape: two corners in shares of the box, x and y from -1/2 to 1/2, z from 0 to 1; `tone` is the share
    of the piece's colour that it keeps, or a colour of its own."""

    low: Vector
    high: Vector
    tone: float | Color = 1.0
    kind: str = "box"


Shape = tuple[Part, ...]


@dataclass(frozen=True)
class Kind:
    """A category: its shape, the least and largest sizes, and its usual colours as (hue, saturation, value). `round`
    pieces are as deep as wide."""

    shape: Shape
    low: Vector
    high: Vector
    colors: tuple[Vector, ...]
    round: bool = False


# Shapes -----------------------------------------------------------------------------------------------------------


def _p(x0, x1, y0, y1, z0, z1, tone: float | Color = 1.0, kind: str = "box") -> Part:
    return Part((x0, y0, z0), (x1, y1, z1), tone, kind)


def _legs(t: float, top: float, side: float = 0.5) -> Shape:
    """Four legs of a share `t` of width and depth."""
    return tuple(_p(x, x + t, y, y + t, 0, top, 0.6) for x in (-side, side - t) for y in (-side, side - t))


def _front(rows: int) -> Shape:
    """A body with drawers."""
    gap = 0.06 / rows
    return (_p(-0.5, 0.5, -0.46, 0.5, 0, 1),
            *(_p(-0.47, 0.47, -0.5, -0.46, i / rows + gap, (i + 1) / rows - gap, 0.85) for i in range(rows)))


def _framed(inside: Color) -> Shape:
    """A flat frame with something in it."""
    return _p(-0.5, 0.5, -0.3, 0.5, 0, 1), _p(-0.44, 0.44, -0.5, -0.3, 0.06, 0.94, inside)


def _shelves(rows: int) -> Shape:
    tints = ((0.6, 0.2, 0.15), (0.15, 0.3, 0.5), (0.75, 0.65, 0.4), (0.2, 0.4, 0.25))
    step = 0.975 / rows
    return (_p(-0.5, 0.5, 0.45, 0.5, 0, 1, 0.7), _p(-0.5, -0.46, -0.5, 0.5, 0, 1), _p(0.46, 0.5, -0.5, 0.5, 0, 1),
            *(_p(-0.5, 0.5, -0.5, 0.5, i * step, i * step + 0.025) for i in range(rows + 1)),
            *(_p(-0.45, 0.45 - 0.13 * (i % 3), -0.3, 0.4, i * step + 0.025, (i + 0.78) * step, tints[i % 4])
              for i in range(rows)))


_BLOCK: Shape = (_p(-0.5, 0.5, -0.5, 0.5, 0, 1),)
_ROUND: Shape = (_p(-0.5, 0.5, -0.5, 0.5, 0, 1, 1.0, "cylinder"),)
_CUSHION: Shape = (_p(-0.5, 0.5, -0.5, 0.5, 0, 1, 1.0, "ellipsoid"),)
_CHAIR: Shape = (_p(-0.5, 0.5, -0.5, 0.5, 0.46, 0.52), _p(-0.5, 0.5, 0.38, 0.5, 0.52, 1), *_legs(0.1, 0.46))
_OFFICE_CHAIR: Shape = (
    _p(-0.5, 0.5, -0.5, 0.5, 0, 0.07, _DARK, "cylinder"), _p(-0.06, 0.06, -0.06, 0.06, 0.07, 0.43, _STEEL),
    _p(-0.42, 0.42, -0.42, 0.42, 0.43, 0.5), _p(-0.38, 0.38, 0.3, 0.42, 0.5, 1))
_STOOL: Shape = (_p(-0.5, 0.5, -0.5, 0.5, 0.85, 1, 1.0, "cylinder"), *_legs(0.1, 0.85, 0.35))
_TABLE: Shape = (_p(-0.5, 0.5, -0.5, 0.5, 0.92, 1), *_legs(0.07, 0.92))
_DESK: Shape = (
    _p(-0.5, 0.5, -0.5, 0.5, 0.94, 1), _p(-0.5, -0.46, -0.5, 0.5, 0, 0.94, 0.6), _p(0.2, 0.5, -0.45, 0.5, 0, 0.94, 0.8),
    _p(0.3, 0.4, -0.47, -0.45, 0.6, 0.63, _STEEL))
_SOFA: Shape = (
    _p(-0.5, 0.5, -0.5, 0.5, 0, 0.5), _p(-0.5, 0.5, 0.2, 0.5, 0.5, 1),
    _p(-0.5, -0.39, -0.5, 0.2, 0.5, 0.72, 0.8), _p(0.39, 0.5, -0.5, 0.2, 0.5, 0.72, 0.8))
_BED: Shape = (
    _p(-0.5, 0.5, -0.5, 0.47, 0, 0.22, _WOOD), _p(-0.5, 0.5, 0.47, 0.5, 0, 1, _WOOD),
    _p(-0.5, 0.5, -0.5, 0.47, 0.22, 0.45, _PALE), _p(-0.5, 0.5, -0.5, 0.1, 0.45, 0.5))
_DOORS: Shape = (
    _p(-0.5, 0.5, -0.46, 0.5, 0, 1),
    _p(-0.48, -0.01, -0.5, -0.46, 0.03, 0.97, 0.88), _p(0.01, 0.48, -0.5, -0.46, 0.03, 0.97, 0.88))
_FRIDGE: Shape = (
    _p(-0.5, 0.5, -0.45, 0.5, 0, 1, 0.8), _p(-0.5, 0.5, -0.5, -0.45, 0, 0.63), _p(-0.5, 0.5, -0.5, -0.45, 0.65, 1))
_APPLIANCE: Shape = (_p(-0.5, 0.5, -0.46, 0.5, 0, 1), _p(-0.4, 0.4, -0.5, -0.46, 0.15, 0.75, _DARK))
_COUNTER: Shape = (_p(-0.5, 0.5, -0.46, 0.5, 0, 0.95), _p(-0.5, 0.5, -0.5, 0.5, 0.95, 1, 0.5))
_RADIATOR: Shape = (
    _p(-0.5, 0.5, -0.2, 0.5, 0.05, 0.95, 0.8),
    *(_p(-0.5 + i * 0.105, -0.445 + i * 0.105, -0.5, 0.5, 0, 1) for i in range(9)), _p(0.445, 0.5, -0.5, 0.5, 0, 1))
_SCREEN: Shape = (
    _p(-0.25, 0.25, -0.5, 0.5, 0, 0.04, _DARK), _p(-0.05, 0.05, -0.1, 0.1, 0.04, 0.3, _DARK),
    _p(-0.5, 0.5, -0.15, 0.15, 0.2, 1, _DARK), _p(-0.47, 0.47, -0.2, -0.15, 0.24, 0.96))
_LAPTOP: Shape = (
    _p(-0.5, 0.5, -0.5, 0.5, 0, 0.08), _p(-0.5, 0.5, 0.42, 0.5, 0.08, 1), _p(-0.46, 0.46, 0.4, 0.42, 0.15, 0.95, _DARK))
_KEYBOARD: Shape = (_p(-0.5, 0.5, -0.5, 0.5, 0, 0.6), _p(-0.46, 0.46, -0.4, 0.4, 0.6, 1, 0.7))
_BIN: Shape = (_p(-0.45, 0.45, -0.45, 0.45, 0, 0.9, 1.0, "cylinder"), _p(-0.5, 0.5, -0.5, 0.5, 0.9, 1, 0.6, "cylinder"))
_LAMP: Shape = (
    _p(-0.35, 0.35, -0.35, 0.35, 0, 0.04, _DARK, "cylinder"), _p(-0.06, 0.06, -0.06, 0.06, 0.04, 0.7, _STEEL),
    _p(-0.5, 0.5, -0.5, 0.5, 0.65, 1, 1.0, "cylinder"))
_PLANT: Shape = (_p(-0.3, 0.3, -0.3, 0.3, 0, 0.3, _CLAY, "cylinder"), _p(-0.5, 0.5, -0.5, 0.5, 0.25, 1, 1.0, "ellipsoid"))
_BACKPACK: Shape = (
    _p(-0.5, 0.5, -0.2, 0.5, 0, 0.8), _p(-0.5, 0.5, -0.2, 0.5, 0.6, 1, 1.0, "ellipsoid"),
    _p(-0.35, 0.35, -0.5, -0.2, 0.05, 0.45, 0.7))
_CARTON: Shape = (_p(-0.5, 0.5, -0.5, 0.5, 0, 0.97), _p(-0.5, 0.5, -0.1, 0.1, 0.97, 1, 0.7))
_PRINTER: Shape = (
    _p(-0.5, 0.5, -0.4, 0.5, 0, 0.85), _p(-0.4, 0.4, -0.3, 0.4, 0.85, 1, _DARK), _p(-0.3, 0.3, -0.5, -0.4, 0.2, 0.25, _PALE))
_TELEPHONE: Shape = (_p(-0.5, 0.5, -0.5, 0.5, 0, 0.5), _p(-0.5, -0.2, -0.45, 0.45, 0.5, 1, 0.6))
_FAN: Shape = (
    _p(-0.4, 0.4, -0.5, 0.5, 0, 0.04, 1.0, "cylinder"), _p(-0.05, 0.05, -0.1, 0.1, 0.04, 0.7),
    _p(-0.5, 0.5, -0.3, 0.3, 0.6, 1, 0.8, "ellipsoid"))
_DOOR: Shape = (_p(-0.5, 0.5, -0.3, 0.5, 0, 1), _p(0.36, 0.44, -0.5, -0.3, 0.48, 0.51, _STEEL))
_PIANO: Shape = (
    _p(-0.5, 0.5, -0.1, 0.5, 0, 1), _p(-0.5, 0.5, -0.5, -0.1, 0.5, 0.6), _p(-0.45, 0.45, -0.48, -0.1, 0.6, 0.63, _PALE),
    _p(-0.5, -0.44, -0.5, -0.4, 0, 0.5), _p(0.44, 0.5, -0.5, -0.4, 0, 0.5))

_WOODS = ((0.08, 0.5, 0.45), (0.09, 0.35, 0.75), (0.06, 0.55, 0.25), (0.0, 0.0, 0.88))
_CLOTHS = ((0.6, 0.35, 0.4), (0.02, 0.5, 0.45), (0.1, 0.2, 0.7), (0.35, 0.3, 0.4), (0.0, 0.0, 0.3), (0.0, 0.0, 0.6))
_WHITES, _BLACKS = ((0.1, 0.03, 0.92), (0.6, 0.02, 0.8)), ((0.0, 0.0, 0.12), (0.6, 0.1, 0.25))
_BRIGHTS = tuple((hue, 0.7, 0.7) for hue in (0.0, 0.08, 0.15, 0.33, 0.55, 0.65, 0.85))
_SCREENS = ((0.6, 0.4, 0.18), (0.58, 0.5, 0.45), (0.0, 0.0, 0.06))

KINDS: dict[str, Kind] = {
    "chair": Kind(_CHAIR, (0.4, 0.42, 0.78), (0.52, 0.55, 1.0), (*_WOODS, *_CLOTHS)),
    "office chair": Kind(_OFFICE_CHAIR, (0.55, 0.55, 0.85), (0.68, 0.68, 1.15), (*_BLACKS, *_CLOTHS), round=True),
    "armchair": Kind(_SOFA, (0.7, 0.7, 0.75), (0.95, 0.95, 1.0), _CLOTHS),
    "stool": Kind(_STOOL, (0.32, 0.32, 0.42), (0.42, 0.42, 0.7), (*_WOODS, *_BLACKS), round=True),
    "sofa": Kind(_SOFA, (1.5, 0.8, 0.75), (2.3, 1.0, 0.95), _CLOTHS),
    "table": Kind(_TABLE, (1.0, 0.75, 0.7), (1.9, 1.0, 0.78), _WOODS),
    "coffee table": Kind(_TABLE, (0.8, 0.45, 0.35), (1.2, 0.65, 0.48), _WOODS),
    "desk": Kind(_DESK, (1.1, 0.6, 0.7), (1.6, 0.8, 0.78), _WOODS),
    "bed": Kind(_BED, (0.9, 1.95, 0.75), (1.8, 2.15, 1.1), _CLOTHS),
    "nightstand": Kind(_front(2), (0.38, 0.35, 0.45), (0.55, 0.45, 0.65), _WOODS),
    "dresser": Kind(_front(3), (0.9, 0.42, 0.75), (1.5, 0.55, 1.1), _WOODS),
    "cabinet": Kind(_DOORS, (0.6, 0.38, 0.7), (1.2, 0.55, 1.3), (*_WOODS, *_WHITES)),
    "wardrobe": Kind(_DOORS, (1.0, 0.55, 1.85), (1.9, 0.65, 2.2), (*_WOODS, *_WHITES)),
    "bookshelf": Kind(_shelves(5), (0.7, 0.28, 1.2), (1.2, 0.38, 2.1), _WOODS),
    "tv stand": Kind(_front(2), (1.1, 0.38, 0.4), (1.8, 0.5, 0.6), (*_WOODS, *_BLACKS)),
    "tv": Kind(_SCREEN, (0.9, 0.18, 0.58), (1.35, 0.26, 0.85), _SCREENS),
    "refrigerator": Kind(_FRIDGE, (0.58, 0.6, 1.5), (0.9, 0.75, 1.9), (*_WHITES, (0.6, 0.03, 0.6))),
    "oven": Kind(_APPLIANCE, (0.58, 0.58, 0.85), (0.62, 0.65, 0.92), (*_WHITES, *_BLACKS)),
    "washing machine": Kind(_APPLIANCE, (0.58, 0.55, 0.83), (0.62, 0.65, 0.9), _WHITES),
    "microwave": Kind(_APPLIANCE, (0.44, 0.32, 0.26), (0.54, 0.42, 0.32), (*_WHITES, *_BLACKS)),
    "counter": Kind(_COUNTER, (1.2, 0.58, 0.88), (2.4, 0.66, 0.94), (*_WOODS, *_WHITES)),
    "radiator": Kind(_RADIATOR, (0.7, 0.1, 0.5), (1.3, 0.14, 0.7), _WHITES),
    "trash bin": Kind(_BIN, (0.25, 0.25, 0.3), (0.42, 0.42, 0.65), (*_BLACKS, *_WHITES, (0.58, 0.6, 0.5)), round=True),
    "lamp": Kind(_LAMP, (0.28, 0.28, 1.4), (0.45, 0.45, 1.75), ((0.12, 0.25, 0.97), (0.1, 0.05, 0.95)), round=True),
    "table lamp": Kind(_LAMP, (0.18, 0.18, 0.32), (0.3, 0.3, 0.5), ((0.12, 0.25, 0.97), (0.1, 0.05, 0.95)), round=True),
    "plant": Kind(_PLANT, (0.35, 0.35, 0.6), (0.7, 0.7, 1.4), ((0.33, 0.6, 0.4), (0.28, 0.7, 0.5)), round=True),
    "fan": Kind(_FAN, (0.35, 0.3, 0.9), (0.45, 0.4, 1.3), (*_WHITES, *_BLACKS)),
    "backpack": Kind(_BACKPACK, (0.28, 0.2, 0.4), (0.36, 0.3, 0.52), (*_BRIGHTS, *_BLACKS)),
    "box": Kind(_CARTON, (0.3, 0.25, 0.2), (0.55, 0.45, 0.45), ((0.09, 0.45, 0.6), (0.08, 0.35, 0.75))),
    "suitcase": Kind(_BLOCK, (0.4, 0.22, 0.55), (0.5, 0.3, 0.75), (*_BRIGHTS, *_BLACKS)),
    "monitor": Kind(_SCREEN, (0.48, 0.18, 0.4), (0.68, 0.24, 0.55), _SCREENS),
    "keyboard": Kind(_KEYBOARD, (0.4, 0.13, 0.025), (0.46, 0.17, 0.04), (*_BLACKS, *_WHITES)),
    "laptop": Kind(_LAPTOP, (0.3, 0.22, 0.2), (0.38, 0.27, 0.26), ((0.6, 0.02, 0.6), *_BLACKS)),
    "telephone": Kind(_TELEPHONE, (0.18, 0.2, 0.08), (0.24, 0.25, 0.12), (*_BLACKS, *_WHITES)),
    "printer": Kind(_PRINTER, (0.4, 0.36, 0.2), (0.52, 0.46, 0.36), (*_WHITES, *_BLACKS)),
    "book": Kind(_BLOCK, (0.15, 0.21, 0.02), (0.24, 0.3, 0.06), _BRIGHTS),
    "cup": Kind(_ROUND, (0.07, 0.07, 0.09), (0.1, 0.1, 0.14), (*_BRIGHTS, *_WHITES), round=True),
    "vase": Kind(_ROUND, (0.12, 0.12, 0.2), (0.2, 0.2, 0.38), _BRIGHTS, round=True),
    "pillow": Kind(_CUSHION, (0.4, 0.3, 0.12), (0.6, 0.42, 0.2), (*_CLOTHS, *_WHITES)),
    "towel": Kind(_BLOCK, (0.3, 0.2, 0.06), (0.45, 0.3, 0.14), (*_BRIGHTS, *_WHITES)),
    "clock": Kind(_framed(_PALE), (0.25, 0.04, 0.25), (0.38, 0.05, 0.38), _BLACKS),
    "picture": Kind(_framed((0.45, 0.55, 0.6)), (0.4, 0.03, 0.35), (1.1, 0.05, 0.8), (*_WOODS, *_BLACKS)),
    "mirror": Kind(_framed((0.75, 0.82, 0.85)), (0.45, 0.03, 0.7), (0.8, 0.05, 1.4), (*_WOODS, *_WHITES)),
    "whiteboard": Kind(_framed((0.97, 0.97, 0.97)), (1.2, 0.04, 0.9), (2.2, 0.05, 1.2), ((0.6, 0.03, 0.6),)),
    "window": Kind(_framed((0.72, 0.87, 0.98)), (0.9, 0.04, 0.9), (1.8, 0.05, 1.4), (*_WHITES, *_WOODS)),
    "piano": Kind(_PIANO, (1.35, 0.55, 1.0), (1.55, 0.65, 1.25), (*_BLACKS, *_WOODS)),
    "door": Kind(_DOOR, (0.8, 0.04, 1.98), (0.95, 0.05, 2.1), (*_WOODS, *_WHITES)),
}


def draw_color(label: str, rng: np.random.Generator) -> Color:
    """One of the category's usual colours, jittered; a pale grey-brown for a label that is not in `KINDS`."""
    colors = KINDS[label].colors if label in KINDS else ((0.1, 0.15, 0.6), (0.6, 0.1, 0.5))
    hue, saturation, value = colors[rng.integers(len(colors))]
    jitter = rng.uniform(-1, 1, 3)
    return colorsys.hsv_to_rgb((hue + 0.02 * jitter[0]) % 1, float(np.clip(saturation + 0.08 * jitter[1], 0, 1)),
                               float(np.clip(value + 0.1 * jitter[2], 0.04, 1)))


def solids_of(label: str, sizes: Sequence[float], rng: np.random.Generator) -> tuple[Solid, ...]:
    """The category's solids, filling a box of `sizes` on z = 0; a plain box for a label that is not in `KINDS`."""
    color, shape, solids = draw_color(label, rng), KINDS[label].shape if label in KINDS else _BLOCK, []
    for one in shape:
        tint = darker(color, one.tone) if isinstance(one.tone, float) else one.tone
        solids.append(part(*np.multiply(one.low, sizes).tolist(), *np.multiply(one.high, sizes).tolist(), tint, one.kind))
    return tuple(solids)


def furnish(label: str, rng: np.random.Generator) -> SceneObject:
    """A piece of ordinary size at the origin, id 0. KeyError for a label not in `KINDS`."""
    kind = KINDS[label]
    w, d, h = (float(value) for value in rng.uniform(kind.low, kind.high))
    sizes = (w, w if kind.round else d, h)
    return SceneObject(0, label, (0.0, 0.0, h / 2), sizes, solids_of(label, sizes, rng))

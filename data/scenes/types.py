"""A 3-D scene, whatever its source: objects with boxes, frames with cameras, all in one world frame.

What holds: metres; world z up, floor at about z = 0; boxes axis-aligned in the world frame; cameras x right, y down,
z forward; `camera_to_world` maps camera coordinates to world coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Solid:
    """A primitive that the renderer draws: axis-aligned box, ellipsoid or upright cylinder inscribed in its box.

    `center` and `half` are (3,) metres, `color` linear RGB in [0, 1].
    """

    kind: Literal["box", "ellipsoid", "cylinder"]
    center: tuple[float, float, float]
    half: tuple[float, float, float]
    color: tuple[float, float, float]


@dataclass(frozen=True)
class SceneObject:
    """One labelled thing: its box (middle and full sizes, metres) and, where it is rendered, the solids it is made of."""

    id: int
    label: str
    center: tuple[float, float, float]
    dimensions: tuple[float, float, float]
    solids: tuple[Solid, ...] = ()


@dataclass(frozen=True)
class Camera:
    """Pinhole camera without distortion: intrinsics (3, 3) in pixels, camera_to_world (4, 4), image size in pixels."""

    intrinsics: np.ndarray
    camera_to_world: np.ndarray
    width: int
    height: int


@dataclass(frozen=True)
class Frame:
    """One picture of a scene. `image` is a file for real scenes and None where the renderer makes the picture."""

    name: str
    camera: Camera
    image: str | None = None


@dataclass(frozen=True)
class Scene:
    """Objects and frames. `room` is the extent ((x0, y0, z0), (x1, y1, z1)) in metres, None where unknown.

    `frames` are in temporal order.
    """

    id: str
    objects: tuple[SceneObject, ...]
    frames: tuple[Frame, ...]
    room: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None

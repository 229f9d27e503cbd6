"""A 3-D scene, whatever its source: objects with boxes, frames with cameras, all in one world frame; and what a source is.

What holds: metres; world z up, floor at about z = 0; boxes turned by their `axes`, along the world's by default; cameras
x right, y down, z forward; `camera_to_world` maps camera coordinates to world coordinates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, Sequence

import numpy as np

Vector = tuple[float, float, float]
#: Rows are the unit directions, in the world, of a box's dimensions 0, 1 and 2; right-handed.
Axes = tuple[Vector, Vector, Vector]
ALIGNED: Axes = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def hull_sizes(dimensions: Vector, axes: Axes) -> Vector:
    """Full sizes along world x, y and z of the axis-aligned hull of an oriented box; the centre is the same."""
    return dimensions if axes == ALIGNED else tuple((np.abs(np.array(axes)).T @ dimensions).tolist())


@dataclass(frozen=True)
class Solid:
    """A primitive that the renderer draws: a box, or an ellipsoid or cylinder (along axis 2) inscribed in its box.

    `center` and `half` are (3,) metres, `half` along `axes`; `color` linear RGB in [0, 1].
    """

    kind: Literal["box", "ellipsoid", "cylinder"]
    center: Vector
    half: Vector
    color: Vector
    axes: Axes = ALIGNED


@dataclass(frozen=True)
class SceneObject:
    """One labelled thing: its box (middle and full sizes, metres) and, where it is rendered, the solids it is made of.

    `dimensions[i]` is the size along `axes[i]`. `outline` are points whose convex hull holds the thing and is tighter than
    its box (`data.scenes.outlines`), for its place in pictures; empty where only the box is known.
    """

    id: int
    label: str
    center: Vector
    dimensions: Vector
    solids: tuple[Solid, ...] = ()
    axes: Axes = ALIGNED
    outline: tuple[Vector, ...] = ()

    @property
    def hull(self) -> Vector:
        """Full sizes along world x, y and z of the box's axis-aligned hull, metres; its middle is `center`."""
        return hull_sizes(self.dimensions, self.axes)


@dataclass(frozen=True)
class Camera:
    """Pinhole camera without distortion: intrinsics (3, 3) in pixels, camera_to_world (4, 4), image size in pixels."""

    intrinsics: np.ndarray
    camera_to_world: np.ndarray
    width: int
    height: int


@dataclass(frozen=True)
class Frame:
    """One picture of a scene. `image` is a file for real scenes and None where the renderer makes the picture.

    `depth` is a 16-bit PNG of the same view in millimetres along the viewing axis, 0 where unknown (ScanNet's
    convention), or None; it may have another size than the picture. `depth_intrinsics` (3, 3) are the depth picture's, in
    its pixels; None: the camera's, scaled by the ratio of the sizes. `data.scenes.depth` reads it.
    """

    name: str
    camera: Camera
    image: str | None = None
    depth: str | None = None
    depth_intrinsics: np.ndarray | None = None


@dataclass(frozen=True)
class Texture:
    """A pattern over a surface, by the world's coordinates: square tiles with joints, staggered boards, upright stripes, or
    patches, of `size` metres each. `contrast` is the largest share of the colour that it takes away.
    """

    kind: Literal["tiles", "planks", "stripes", "noise"]
    size: float
    contrast: float


@dataclass(frozen=True)
class Light:
    """`direction` (3,) towards the light, any length; `ambient` is the share of light that comes from everywhere;
    `gain` (3,) multiplies the colours of everything: bright or dim, warm or cold.
    """

    direction: Vector = (0.35, -0.5, 0.79)
    ambient: float = 0.5
    gain: Vector = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Backdrop:
    """What is not an object: colours (linear RGB in [0, 1]) of walls or sky, of floor or ground, of the ceiling, their
    patterns, and the light on everything.
    """

    wall: Vector = (0.86, 0.84, 0.80)
    floor: Vector = (0.62, 0.55, 0.47)
    ceiling: Vector = (0.95, 0.95, 0.95)
    wall_texture: Texture | None = None
    floor_texture: Texture | None = None
    light: Light = Light()


@dataclass(frozen=True)
class Scene:
    """Objects and frames. `room` is the extent ((x0, y0, z0), (x1, y1, z1)) in metres, None where unknown.

    `frames` are in temporal order. `room_area` is the floor's area in square metres where the source knows it better
    than by the sides of `room`: a floor need not be a rectangle. `backdrop` is how frames without an image are drawn; None:
    as the scene's name has it (`data.scenes.rooms.frame_picture`).
    """

    id: str
    objects: tuple[SceneObject, ...]
    frames: tuple[Frame, ...]
    room: tuple[Vector, Vector] | None = None
    room_area: float | None = None
    backdrop: Backdrop | None = None


# Sources ----------------------------------------------------------------------------------------------------------

#: What a scene may be called: a folder is named by it.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class SceneError(ValueError):
    """One scene that cannot be read: which scene, which file, which field of it, why, and what to do.

    Other scenes of the source are not concerned: whoever builds from many reports it and goes on.
    """

    def __init__(self, scene: str, file: str | Path, field: str, reason: str, action: str):
        self.scene, self.file, self.field, self.reason, self.action = scene, Path(file), field, reason, action
        super().__init__(f"scene {scene}: {file}: {field}: {reason}. {action}")

    def __reduce__(self):
        return type(self), (self.scene, self.file, self.field, self.reason, self.action)


class SourceError(ValueError):
    """A source that has no scenes to offer: where it was looked for, why it is none, and what to do."""

    def __init__(self, place: str | Path, reason: str, action: str):
        self.place, self.reason, self.action = Path(place), reason, action
        super().__init__(f"{place}: {reason}. {action}")

    def __reduce__(self):
        return type(self), (self.place, self.reason, self.action)


class SceneSource(Protocol):
    """Where scenes come from. Small and picklable, so that every process of a build may hold one.

    `load` depends on the source's settings and the id alone: not on the order of calls, nor on other scenes.
    """

    def scene_ids(self) -> Sequence[str]:
        """Names of all scenes, each once, in an order that does not change; no scene is loaded. SourceError."""
        ...

    def load(self, scene_id: str) -> Scene:
        """The scene, whose `id` is `scene_id`, checked whole. SceneError; KeyError for a name that is not listed."""
        ...

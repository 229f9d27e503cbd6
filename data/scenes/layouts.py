"""Real room layouts without pictures: VSI-Bench's meta-information, drawn by our renderer.

The file is JSON, gzipped where its name ends in .gz. Per scene: `object_bbox`, label -> oriented boxes with `centroid`,
`axesLengths` (full sizes) and `normalizedAxes` (nine numbers, row i the direction of size i); `room_size` in square metres;
`room_center`. Metres, z up. Other keys are ignored, `object_counts` too: for some labels it is not the number of boxes.

What holds
    * The world is the file's, moved and turned about the upright alone: sizes, distances, turning directions and heights
      above one another stay. The floor, z = 0, is the lowest point of any box; the smallest rectangle around all boxes
      seen from above lies along x and y and starts at the origin.
    * `room_area` is the file's `room_size`. `room`, the walls that are drawn, is that rectangle, widened to this area
      where it is smaller. Real rooms have more corners than four: where the rectangle is larger, it shows more floor than
      `room_area` says.
    * A thing's box is the file's. Its solids fill it (`data.scenes.furnishings`): the box's most upright side is the
      height, the back looks away from the middle of the room.
    * Ids count the boxes in the order of the file. Cameras (`data.scenes.walk`) are a function of seed and scene.
"""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from configs.data_schema import LayoutsConfig
from data.scenes.furnishings import KINDS, solids_of
from data.scenes.render import corners
from data.scenes.types import NAME, Scene, SceneError, SceneObject, Solid, SourceError
from data.scenes.walk import CLEARANCE, free_points, walk

#: Metres between the outermost boxes and the walls, from the floor to the ceiling at least, and below which a thing is in
#: the way of a camera.
MARGIN, CEILING, HEAD = 0.05, 2.4, 1.9
_POINT = "Point data.source at VSI-Bench's meta-information file"
_ACTION = "Take the file as VSI-Bench publishes it, or drop the scene"


@dataclass(frozen=True)
class Layouts:
    """The scenes of one file."""

    file: str
    config: LayoutsConfig
    seed: int

    def scene_ids(self) -> list[str]:
        """Sorted. SourceError when the file cannot be read or has no scenes."""
        return sorted(_document(self.file))

    def load(self, scene_id: str) -> Scene:
        """SceneError on boxes or sizes that are missing or impossible; KeyError for an unknown name."""
        reader = _Reader(scene_id, self.file, _document(self.file)[scene_id])
        boxes, area, middle = reader.boxes(), reader.area(), reader.numbers(reader.entry, "room_center", "", 3)
        boxes, low, high = _upright(boxes, area, middle)
        rng = np.random.default_rng([self.seed, zlib.crc32(scene_id.encode())])
        objects = tuple(_object(index, box, high / 2, rng) for index, box in enumerate(boxes))
        floor = (float(high[0]), float(high[1]))
        points = _places(objects, floor, rng)
        if points is None:
            reader.refuse("object_bbox", "the boxes leave no place for a camera")
        frames = walk(objects, points, self.config.frames_per_scene, self.config.image_size, rng)
        return Scene(scene_id, objects, frames, (tuple(low.tolist()), tuple(high.tolist())), area)


@dataclass(frozen=True)
class _Box:
    """`axes` (3, 3): row i is the direction of `sizes[i]`."""

    label: str
    center: np.ndarray
    sizes: np.ndarray
    axes: np.ndarray


@lru_cache(maxsize=2)
def _document(file: str) -> dict:
    try:
        data = Path(file).read_bytes()
        document = json.loads(gzip.decompress(data) if file.endswith(".gz") else data)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise SourceError(file, f"cannot be read as JSON ({error})", _POINT) from error
    if not isinstance(document, dict) or not document:
        raise SourceError(file, "has no scenes by name", _POINT)
    if bad := [name for name in document if not NAME.fullmatch(name)]:
        raise SourceError(file, f"the scene {bad[0]!r} cannot name a folder", "Use letters, digits, '.', '_' and '-'")
    return document


@dataclass(frozen=True)
class _Reader:
    """One scene of the file; every refusal names the field."""

    scene: str
    file: str
    entry: object

    def refuse(self, field: str, reason: str):
        raise SceneError(self.scene, self.file, field, reason, _ACTION)

    def value(self, entry: object, key: str, at: str) -> object:
        if not isinstance(entry, dict) or key not in entry:
            self.refuse(f"{at}{key}", "is missing")
        return entry[key]

    def numbers(self, entry: object, key: str, at: str, count: int) -> np.ndarray:
        value = self.value(entry, key, at)
        try:
            array = np.array(value, float)
        except (TypeError, ValueError):
            array = np.zeros(0)
        if array.shape != (count,) or not np.isfinite(array).all():
            self.refuse(f"{at}{key}", f"must be {count} finite numbers, got {str(value)[:80]}")
        return array

    def area(self) -> float:
        value = self.value(self.entry, "room_size", "")
        if not isinstance(value, (int, float)) or not 0 < value < 1e6:
            self.refuse("room_size", f"must be square metres, got {value!r}")
        return float(value)

    def boxes(self) -> list[_Box]:
        labels = self.value(self.entry, "object_bbox", "")
        if not isinstance(labels, dict) or not all(isinstance(boxes, list) for boxes in labels.values()):
            self.refuse("object_bbox", "must map labels to lists of boxes")
        found = []
        for label, boxes in labels.items():
            for index, box in enumerate(boxes):
                at = f"object_bbox.{label}[{index}]."
                axes = self.numbers(box, "normalizedAxes", at, 9).reshape(3, 3)
                sizes = self.numbers(box, "axesLengths", at, 3)
                if np.abs(axes @ axes.T - np.eye(3)).max() > 1e-3:
                    self.refuse(f"{at}normalizedAxes", "are not three perpendicular unit directions")
                if (sizes <= 0).any():
                    self.refuse(f"{at}axesLengths", f"must be positive, got {sizes.tolist()}")
                axes[2] *= np.sign(np.linalg.det(axes))  # either way along an axis it is the same box
                found.append(_Box(label, self.numbers(box, "centroid", at, 3), sizes, axes))
        if not found:
            self.refuse("object_bbox", "has no boxes")
        return found


def _upright(boxes: list[_Box], area: float, middle: np.ndarray) -> tuple[list[_Box], np.ndarray, np.ndarray]:
    """The boxes in a world along the walls, and two corners (3,) of the room, the lower one at the origin."""
    outline = np.concatenate([corners(box.center, box.sizes, box.axes) for box in boxes])
    turn = _smallest_rectangle(outline[:, :2])
    outline, middle = outline @ turn.T, turn @ middle
    low, high = outline.min(axis=0) - MARGIN, outline.max(axis=0) + MARGIN
    low[2] += MARGIN
    sides = (high - low)[:2] * max(1.0, np.sqrt(area / np.prod((high - low)[:2])))
    start = np.clip(middle[:2] - sides / 2, high[:2] - sides, low[:2])  # as near the room's middle as the boxes allow
    origin = np.array([*start, low[2]])
    moved = [_Box(box.label, turn @ box.center - origin, box.sizes, box.axes @ turn.T) for box in boxes]
    return moved, np.zeros(3), np.array([*sides, max(CEILING, high[2] - low[2])])


def _smallest_rectangle(points: np.ndarray) -> np.ndarray:
    """The turn about z (3, 3), by less than 45 degrees, that makes the axis-aligned rectangle around (N, 2) smallest: one
    side of it lies on a side of the convex hull."""
    try:
        hull = points[ConvexHull(points).vertices]
    except QhullError:  # all in one line
        hull = points
    edges = np.roll(hull, -1, axis=0) - hull
    angles = np.unique(np.round(-np.arctan2(edges[:, 1], edges[:, 0]) % (np.pi / 2), 9))
    angles = np.where(angles > np.pi / 4, angles - np.pi / 2, angles)
    turns = [np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) for a in angles]
    return min(turns, key=lambda turn: np.ptp(hull @ turn[:2, :2].T, axis=0).prod())


def _object(number: int, box: _Box, middle: np.ndarray, rng: np.random.Generator) -> SceneObject:
    up = int(np.abs(box.axes[:, 2]).argmax())
    across = sorted((i for i in range(3) if i != up), key=lambda i: -box.sizes[i])  # the longer one is the width
    if box.label in KINDS and KINDS[box.label].low[1] > 1.2 * KINDS[box.label].low[0]:  # but for a bed
        across.reverse()
    z = box.axes[up] * (1 if box.axes[up, 2] >= 0 else -1)
    x = box.axes[across[0]]
    y = np.cross(z, x)
    if y @ (box.center - middle) < 0:
        x, y = -x, -y
    frame = np.stack([x, y, z])
    axes, sizes = tuple(map(tuple, frame.tolist())), box.sizes[[*across, up]]
    shift = box.center - frame[2] * sizes[2] / 2
    solids = tuple(Solid(solid.kind, tuple((solid.center @ frame + shift).tolist()), solid.half, solid.color, axes)
                   for solid in solids_of(box.label, sizes, rng))
    return SceneObject(number, box.label, tuple(box.center.tolist()), tuple(box.sizes.tolist()), solids,
                       tuple(map(tuple, box.axes.tolist())))


def _places(objects: tuple[SceneObject, ...], floor: tuple[float, float], rng: np.random.Generator) -> np.ndarray | None:
    """Places (P, 2) for a camera, as far from things as the room allows; None where there are none."""
    in_the_way = [item for item in objects if item.center[2] - item.hull[2] / 2 < HEAD]
    for clearance, fewest in product((CLEARANCE, CLEARANCE / 2, CLEARANCE / 6), (20, 6)):
        points = free_points(in_the_way, floor, rng, clearance, fewest, draws=4000)
        if points is not None:
            return points
    return None

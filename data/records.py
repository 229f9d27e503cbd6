"""What one object looks like in one picture: the only thing that question construction reads of a scene.

What holds
    * `box2d` is tight and inside the image, pixels of the original image, pixel (u, v) covering [u, u+1) x [v, v+1).
      Rendered rooms: the hull of the pixels the object has when drawn alone. Real frames, whose boxes are annotations:
      the hull of the projected 3-D box, clipped to z >= `NEAR` and to the image.
    * `visibility` is the share of the pixels the object has alone in this image that nothing else covers. In rendered
      rooms the solids cover each other, as in the picture. Of real frames only boxes are known, mostly air: a box
      covers what begins behind its far side, so a table in the corner of a sofa stays visible. Walls and things without
      a box cover nothing. Real frames are measured at a reduced size, longest side at most `MASK_SIDE`.
    * `truncation` is the share of the unclipped projection's bounding rectangle that lies outside the image, always
      from the 3-D box; what is nearer than `NEAR` is cut off first.
    * An object whose box (grown by `NEAR`) holds the camera has no record: its projection means nothing. It may show
      all the same, as may what the boxes of real frames hide: `unrecorded` finds them, so that a label that also fits
      one of them is not taken for the name of a single thing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Sequence

import numpy as np

from data.scenes.render import corners, render
from data.scenes.types import Camera, Frame, Scene, SceneObject, Solid

#: Metres in front of the camera where projection starts.
NEAR = 0.1
#: Longest side, pixels, of the masks that measure the visibility of real frames.
MASK_SIDE = 320
_EDGES = tuple((i, i | bit) for bit in (1, 2, 4) for i in range(8) if not i & bit)


@dataclass(frozen=True)
class ObjectRecord:
    """One object in one frame.

    `center_world`, `center_camera` (x right, y down, z forward) and `dimensions` (along world x, y, z) in metres;
    `box2d` (x1, y1, x2, y2) in pixels; `area` is the share of the image that box2d covers; `image_size` is (width,
    height).
    """

    scene_id: str
    frame: str
    object_id: int
    label: str
    center_world: tuple[float, float, float]
    center_camera: tuple[float, float, float]
    dimensions: tuple[float, float, float]
    box2d: tuple[float, float, float, float]
    visibility: float
    truncation: float
    area: float
    image_size: tuple[int, int]


def frame_records(scene: Scene, frame: Frame) -> list[ObjectRecord]:
    """Records of the objects with at least one visible pixel, in the order of `scene.objects`. Reads no image file."""
    camera = frame.camera
    width, height = camera.width, camera.height
    rendered = frame.image is None
    mask_camera = camera if rendered else _scaled(camera, min(1.0, MASK_SIDE / max(width, height)))
    world_to_camera = np.linalg.inv(camera.camera_to_world)
    nearest = np.full((mask_camera.height, mask_camera.width), np.inf)
    seen = []
    for item in scene.objects:
        outline = None if _holds(item, camera.camera_to_world[:3, 3]) else project_box(item, camera)
        window = None if outline is None else _window(outline, camera, mask_camera)
        if window is None:
            continue
        u0, v0, u1, v1 = window
        front, covers = _surfaces(item, mask_camera, window, rendered)
        nearest[v0:v1, u0:u1] = np.minimum(nearest[v0:v1, u0:u1], covers)
        seen.append((item, outline, window, front))
    records = []
    for item, outline, window, front in seen:
        mask = np.isfinite(front)
        visible = int((mask & (front <= nearest[window[1]:window[3], window[0]:window[2]])).sum())
        if not visible:
            continue
        box2d = _pixel_hull(mask, window) if rendered else clipped_hull(outline, width, height)
        if box2d is None:
            continue
        center = world_to_camera @ np.array([*item.center, 1.0])
        records.append(ObjectRecord(
            scene.id, frame.name, item.id, item.label, tuple(item.center), tuple(map(float, center[:3])),
            tuple(item.dimensions), box2d, visible / int(mask.sum()), _truncation(outline, width, height),
            (box2d[2] - box2d[0]) * (box2d[3] - box2d[1]) / (width * height), (width, height)))
    return records


def unrecorded(scene: Scene, frame: Frame, records: Sequence[ObjectRecord]) -> list[SceneObject]:
    """Objects that show in the picture, or may, though `records` (of this frame) has none of them; in scene order.

    Rendered rooms: those with a pixel in the picture. Real frames: those whose box holds the camera or meets the image;
    what hides them is a box, mostly air, so that nobody knows.
    """
    recorded = {record.object_id for record in records}
    left = [item for item in scene.objects if item.id not in recorded]
    around = [item for item in left if _holds(item, frame.camera.camera_to_world[:3, 3])]
    if frame.image is None:
        if not around:  # then whatever is drawn has a record
            return []
        drawn = set(np.unique(render(scene.objects, frame.camera).instance).tolist())
        return [item for item in left if item.id in drawn]
    return [item for item in left if item in around or _meets_image(item, frame.camera)]


# Projection -------------------------------------------------------------------------------------------------------


def project_box(item: SceneObject, camera: Camera) -> np.ndarray | None:
    """Pixels (N, 2) whose convex hull is the projection of the object's 3-D box where z >= NEAR; None if it is behind.

    Not clipped to the image. The points are the corners in front of the near plane and the edges' crossings with it.
    """
    world = corners(item.center, item.dimensions)
    local = np.c_[world, np.ones(8)] @ np.linalg.inv(camera.camera_to_world)[:3].T
    z = local[:, 2]
    points = [local[z >= NEAR]]
    if not len(points[0]):
        return None
    if len(points[0]) < 8:
        for a, b in _EDGES:
            if (z[a] < NEAR) != (z[b] < NEAR):
                points.append((local[a] + (NEAR - z[a]) / (z[b] - z[a]) * (local[b] - local[a]))[None])
    pixels = np.concatenate(points) @ camera.intrinsics[:3, :3].T
    return pixels[:, :2] / pixels[:, 2:]


def clipped_hull(points: np.ndarray, width: int, height: int) -> tuple[float, float, float, float] | None:
    """Bounding box of (convex hull of points (N, 2)) inside the image; None where they do not meet in an area."""
    low, high = points.min(axis=0), points.max(axis=0)
    if (low < 0).any() or (high > (width, height)).any():
        polygon = _convex(points)
        for axis, sign, limit in ((0, 1, 0), (0, -1, -width), (1, 1, 0), (1, -1, -height)):
            polygon = _cut(polygon, axis, sign, limit)
            if not polygon:
                return None
        low, high = np.min(polygon, axis=0), np.max(polygon, axis=0)
    if (high - low <= 1e-9).any():
        return None
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _convex(points: np.ndarray) -> list[tuple[float, float]]:
    """Corners of the convex hull in order (monotone chain)."""
    ordered = sorted(set(map(tuple, points.tolist())))

    def half(sequence):
        chain: list[tuple[float, float]] = []
        for p in sequence:
            while len(chain) > 1 and ((chain[-1][0] - chain[-2][0]) * (p[1] - chain[-2][1])
                                      <= (chain[-1][1] - chain[-2][1]) * (p[0] - chain[-2][0])):
                chain.pop()
            chain.append(p)
        return chain[:-1]

    return half(ordered) + half(ordered[::-1])


def _cut(polygon: list[tuple[float, float]], axis: int, sign: int, limit: float) -> list[tuple[float, float]]:
    """The part of a convex polygon where sign * coordinate >= limit (Sutherland-Hodgman)."""
    kept = []
    for p, q in zip(polygon, polygon[1:] + polygon[:1]):
        a, b = sign * p[axis] - limit, sign * q[axis] - limit
        if a >= 0:
            kept.append(p)
        if a * b < 0:
            share = a / (a - b)
            crossing = [p[0] + share * (q[0] - p[0]), p[1] + share * (q[1] - p[1])]
            crossing[axis] = sign * limit
            kept.append((crossing[0], crossing[1]))
    return kept


def _meets_image(item: SceneObject, camera: Camera) -> bool:
    outline = project_box(item, camera)
    return outline is not None and clipped_hull(outline, camera.width, camera.height) is not None


def _truncation(points: np.ndarray, width: int, height: int) -> float:
    low, high = points.min(axis=0), points.max(axis=0)
    inside = np.clip(high, 0, (width, height)) - np.clip(low, 0, (width, height))
    return float(np.clip(1.0 - inside.prod() / (high - low).prod(), 0.0, 1.0))


def _holds(item: SceneObject, point: np.ndarray) -> bool:
    return bool((np.abs(point - item.center) <= np.array(item.dimensions) / 2 + NEAR).all())


# Masks ------------------------------------------------------------------------------------------------------------


def _scaled(camera: Camera, factor: float) -> Camera:
    """The same view with fewer pixels."""
    width, height = max(1, round(camera.width * factor)), max(1, round(camera.height * factor))
    shrink = np.diag([width / camera.width, height / camera.height, 1.0])
    return Camera(shrink @ camera.intrinsics[:3, :3], camera.camera_to_world, width, height)


def _window(outline: np.ndarray, camera: Camera, mask_camera: Camera) -> tuple[int, int, int, int] | None:
    """Pixel rectangle (u0, v0, u1, v1) of the mask that can hold the object, None when it is empty."""
    size = np.array([mask_camera.width, mask_camera.height])
    scale = size / (camera.width, camera.height)
    low = np.clip(np.floor(outline.min(axis=0) * scale), 0, size).astype(int)
    high = np.clip(np.ceil(outline.max(axis=0) * scale), 0, size).astype(int)
    return (int(low[0]), int(low[1]), int(high[0]), int(high[1])) if (low < high).all() else None


def _surfaces(item: SceneObject, camera: Camera, window: tuple[int, int, int, int],
              rendered: bool) -> tuple[np.ndarray, np.ndarray]:
    """Depth (h, w) in the window at which the object alone begins, and from which on it hides others; inf beside it."""
    u0, v0, u1, v1 = window
    intrinsics = camera.intrinsics[:3, :3].copy()
    intrinsics[:2, 2] -= (u0, v0)
    cropped = Camera(intrinsics, camera.camera_to_world, u1 - u0, v1 - v0)
    if rendered:
        front = render([item], cropped).depth
        return front, front
    half = tuple(side / 2 for side in item.dimensions)
    whole = replace(item, solids=(Solid("box", item.center, half, (0.5, 0.5, 0.5)),))
    front = render([whole], cropped).depth.astype(float)
    return front, np.where(np.isfinite(front), _far_side(item, cropped), np.inf)


def _far_side(item: SceneObject, camera: Camera) -> np.ndarray:
    """Depth (H, W) at which the rays through pixel centres leave the object's box; meaningless beside the box."""
    u, v = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    pixels = np.stack([u, v, np.ones_like(u)], -1)
    rays = pixels @ (camera.camera_to_world[:3, :3] @ np.linalg.inv(camera.intrinsics)).T
    ahead = np.copysign(np.array(item.dimensions) / 2, rays) + item.center - camera.camera_to_world[:3, 3]
    with np.errstate(divide="ignore"):
        return (ahead / rays).min(axis=-1)


def _pixel_hull(mask: np.ndarray, window: tuple[int, int, int, int]) -> tuple[float, float, float, float]:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    u0, v0 = window[:2]
    return float(u0 + columns[0]), float(v0 + rows[0]), float(u0 + columns[-1] + 1), float(v0 + rows[-1] + 1)

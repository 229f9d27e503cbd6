"""What one object looks like in one picture: the only thing that question construction reads of a scene.

What holds
    * `box2d` is inside the image, pixels of the original image, pixel (u, v) covering [u, u+1) x [v, v+1). Rendered
      rooms: the hull of the pixels the object has when drawn alone. Real frames, whose boxes are annotations: the hull
      of the projected outline or 3-D box, clipped to z >= `near_plane` and to the image. What hides an object does not
      shrink it.
    * `visibility` is the share of the pixels the object has alone in this image that nothing else covers. In rendered
      rooms the solids cover each other, as in the picture. In a real frame with a depth picture the measured depth
      says what covers (`_measured_share`): anything, also what has no box. Without one only boxes are known,
      mostly air: a box covers what begins behind its far side, so a table in the corner of a sofa stays visible, and
      walls and things without a box cover nothing. Real frames are measured at a reduced size (`mask_side`).
    * `truncation` is the share of the unclipped projection's bounding rectangle that lies outside the image, always
      from outline or box; what is nearer than `near_plane` is cut off first.
    * An object whose box (grown by `near_plane`) holds the camera has no record: its projection means nothing. It may
      show all the same, as may what only the boxes of real frames hide: `unrecorded` finds them, so that a label that
      also fits one of them is not taken for the name of a single thing.

Thresholds are those of `ConstructionConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Sequence

import numpy as np

from configs.data_schema import ConstructionConfig
from data.oriented import OrientedBox
from data.scenes.depth import measured_depth
from data.scenes.render import corners, depth_alone, render
from data.scenes.types import ALIGNED, Axes, Camera, Frame, Scene, SceneObject, Solid

_DEFAULTS = ConstructionConfig()


@dataclass(frozen=True)
class ObjectRecord:
    """One object in one frame.

    `center_world`, `center_camera` (x right, y down, z forward) and `dimensions` (along the rows of `axes`, which are
    directions in the world) in metres; `box2d` (x1, y1, x2, y2) in pixels; `area` is the share of the image that box2d
    covers; `image_size` is (width, height).
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
    axes: Axes = ALIGNED

    @property
    def box3d(self) -> OrientedBox:
        """The object's box in the world."""
        return OrientedBox(self.center_world, self.dimensions, self.axes)


def frame_records(scene: Scene, frame: Frame, config: ConstructionConfig = _DEFAULTS) -> list[ObjectRecord]:
    """Records of the objects with at least one visible pixel, in the order of `scene.objects`.

    Of the frame's files only the depth picture is read, if there is one (OSError, ValueError: `data.scenes.depth`).
    """
    camera = frame.camera
    width, height = camera.width, camera.height
    rendered = frame.image is None
    mask_camera = camera if rendered else _mask_camera(camera, config)
    measured = None if rendered or frame.depth is None else measured_depth(frame, mask_camera)
    world_to_camera = np.linalg.inv(camera.camera_to_world)
    nearest = np.full((mask_camera.height, mask_camera.width), np.inf)
    seen = []
    for item in scene.objects:
        around = _holds(item, camera.camera_to_world[:3, 3], config.near_plane)
        outline = None if around else project_box(item, camera, config.near_plane)
        window = None if outline is None else _window(outline, camera, mask_camera)
        if window is None:
            continue
        u0, v0, u1, v1 = window
        front, covers = _surfaces(item, mask_camera, window, rendered)
        nearest[v0:v1, u0:u1] = np.minimum(nearest[v0:v1, u0:u1], covers)
        share = None if measured is None else _measured_share(front, covers, measured[v0:v1, u0:u1], config)
        seen.append((item, outline, window, front, share))
    records = []
    for item, outline, window, front, share in seen:
        mask = np.isfinite(front)
        if share is None:
            uncovered = mask & (front <= nearest[window[1]:window[3], window[0]:window[2]])
            share = float(uncovered.sum() / max(int(mask.sum()), 1))
        if not share:
            continue
        box2d = _pixel_hull(mask, window) if rendered else clipped_hull(outline, width, height)
        if box2d is None:
            continue
        center = world_to_camera @ np.array([*item.center, 1.0])
        records.append(ObjectRecord(
            scene.id, frame.name, item.id, item.label, tuple(item.center), tuple(map(float, center[:3])),
            tuple(item.dimensions), box2d, share, _truncation(outline, width, height),
            (box2d[2] - box2d[0]) * (box2d[3] - box2d[1]) / (width * height), (width, height), item.axes))
    return records


def unrecorded(scene: Scene, frame: Frame, records: Sequence[ObjectRecord],
               config: ConstructionConfig = _DEFAULTS) -> list[SceneObject]:
    """Objects that show in the picture, or may, though `records` (of this frame) has none of them; in scene order.

    Rendered rooms: those with a pixel in the picture. Real frames: those whose box holds the camera or meets the image,
    unless measured depth says that they are covered; what hides them otherwise is a box, mostly air, and nobody knows.
    """
    recorded = {record.object_id for record in records}
    left = [item for item in scene.objects if item.id not in recorded]
    around = [item for item in left if _holds(item, frame.camera.camera_to_world[:3, 3], config.near_plane)]
    if frame.image is None:
        if not around:  # then whatever is drawn has a record
            return []
        drawn = set(np.unique(render(scene.objects, frame.camera).instance).tolist())
        return [item for item in left if item.id in drawn]
    inside = [item for item in left if item not in around and _meets_image(item, frame.camera, config.near_plane)]
    covered = _measured_away(inside, frame, config) if inside and frame.depth is not None else []
    return [item for item in left if item in around or (item in inside and item not in covered)]


# Projection -------------------------------------------------------------------------------------------------------


def project_box(item: SceneObject, camera: Camera, near: float = _DEFAULTS.near_plane) -> np.ndarray | None:
    """Pixels (N, 2) whose convex hull is the projection of the object's outline or 3-D box where z >= near.

    Not clipped to the image. None if all of it is behind. The points are those in front of the near plane, and where the
    lines between them and those behind cross it.
    """
    world = np.array(item.outline) if item.outline else corners(item.center, item.dimensions, item.axes)
    local = np.c_[world, np.ones(len(world))] @ np.linalg.inv(camera.camera_to_world)[:3].T
    ahead, behind = local[local[:, 2] >= near], local[local[:, 2] < near]
    if not len(ahead):
        return None
    if len(behind):
        step = behind[None] - ahead[:, None]
        share = (near - ahead[:, None, 2]) / step[..., 2]
        ahead = np.concatenate([ahead, (ahead[:, None] + share[..., None] * step).reshape(-1, 3)])
    pixels = ahead @ camera.intrinsics[:3, :3].T
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


def _meets_image(item: SceneObject, camera: Camera, near: float) -> bool:
    outline = project_box(item, camera, near)
    return outline is not None and clipped_hull(outline, camera.width, camera.height) is not None


def _truncation(points: np.ndarray, width: int, height: int) -> float:
    low, high = points.min(axis=0), points.max(axis=0)
    inside = np.clip(high, 0, (width, height)) - np.clip(low, 0, (width, height))
    return float(np.clip(1.0 - inside.prod() / (high - low).prod(), 0.0, 1.0))


def _holds(item: SceneObject, point: np.ndarray, near: float) -> bool:
    return bool((np.abs(np.array(item.axes) @ (point - item.center)) <= np.array(item.dimensions) / 2 + near).all())


# Masks ------------------------------------------------------------------------------------------------------------


def _mask_camera(camera: Camera, config: ConstructionConfig) -> Camera:
    """The same view with at most `mask_side` pixels along its longer side."""
    factor = min(1.0, config.mask_side / max(camera.width, camera.height))
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
        front = depth_alone(item, cropped)
        return front, front
    half = tuple(side / 2 for side in item.dimensions)
    whole = replace(item, solids=(Solid("box", item.center, half, (0.5, 0.5, 0.5), item.axes),))
    front = depth_alone(whole, cropped).astype(float)
    return front, np.where(np.isfinite(front), _far_side(item, cropped), np.inf)


def _far_side(item: SceneObject, camera: Camera) -> np.ndarray:
    """Depth (H, W) at which the rays through pixel centres leave the object's box; meaningless beside the box."""
    u, v = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    pixels = np.stack([u, v, np.ones_like(u)], -1)
    axes = np.array(item.axes)
    rays = pixels @ (axes @ camera.camera_to_world[:3, :3] @ np.linalg.inv(camera.intrinsics)).T
    ahead = np.copysign(np.array(item.dimensions) / 2, rays) + axes @ (item.center - camera.camera_to_world[:3, 3])
    with np.errstate(divide="ignore"):
        return (ahead / rays).min(axis=-1)


def _measured_share(front: np.ndarray, far: np.ndarray, depth: np.ndarray, config: ConstructionConfig) -> float | None:
    """Visible share by measured depth (h, w), given where the rays enter and leave the box; None: too little measured.

    A pixel is covered where something lies before the box (by more than the tolerance), the object's where it lies in
    the box, and air where it lies behind. The share is own / (own + covered). Of a thing that is nearly all air, a glass
    table or a bicycle, the sensor sees what stands behind: there it is what nothing covers.
    """
    known = np.isfinite(front) & np.isfinite(depth)
    count = int(known.sum())
    if not count or count < config.min_measured * int(np.isfinite(front).sum()):
        return None
    covered = int((known & (depth < front - config.depth_tolerance)).sum())
    own = int((known & (depth >= front - config.depth_tolerance) & (depth <= far + config.depth_tolerance)).sum())
    if own < config.min_filled * (count - covered):
        return (count - covered) / count
    return own / (own + covered) if own else 0.0


def _measured_away(items: Sequence[SceneObject], frame: Frame, config: ConstructionConfig) -> list[SceneObject]:
    """Those that measured depth shows to be covered wholly."""
    camera = _mask_camera(frame.camera, config)
    measured, found = measured_depth(frame, camera), []
    for item in items:
        window = _window(project_box(item, frame.camera, config.near_plane), frame.camera, camera)
        if window is not None:
            u0, v0, u1, v1 = window
            share = _measured_share(*_surfaces(item, camera, window, False), measured[v0:v1, u0:u1], config)
            if share == 0:
                found.append(item)
    return found


def _pixel_hull(mask: np.ndarray, window: tuple[int, int, int, int]) -> tuple[float, float, float, float]:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    u0, v0 = window[:2]
    return float(u0 + columns[0]), float(v0 + rows[0]), float(u0 + columns[-1] + 1), float(v0 + rows[-1] + 1)

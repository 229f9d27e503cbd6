"""A small ray caster with a depth buffer: solids, a room or an open ground, one pinhole camera.

What holds: `depth` is the camera's z (metres), not the ray length; `instance` and `depth` come from the same hit;
rays go through pixel centres, so pixel (u, v) covers [u, u+1) x [v, v+1) in box coordinates. Each solid is intersected
only inside the rectangle its bounding box projects to, which is what makes a picture cost milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from data.scenes.types import ALIGNED, Axes, Backdrop, Camera, SceneObject, Solid, Texture

NEAR = 0.05
#: Stable shades of the four walls, so that a corner of the room is visible.
_WALL_SHADE = (0.95, 0.86, 0.90, 0.80)
#: Width of a joint between tiles as a share of the tile, and length of a board in widths.
_JOINT, _PLANK = 0.06, 8.0


@dataclass(frozen=True)
class Rendering:
    """rgb (H, W, 3) uint8; depth (H, W) float32 metres along the view axis, inf where no object; instance (H, W) int32
    object id, -1 where no object."""

    rgb: np.ndarray
    depth: np.ndarray
    instance: np.ndarray


def project(points: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """World points (N, 3) -> pixels (N, 2) and depths (N,). Pixels are meaningless where depth <= 0."""
    rotation, origin = camera.camera_to_world[:3, :3], camera.camera_to_world[:3, 3]
    local = (np.asarray(points, float) - origin) @ rotation
    depth = local[:, 2]
    safe = np.where(np.abs(depth) < 1e-9, 1e-9, depth)
    homogeneous = local @ camera.intrinsics[:3, :3].T
    return homogeneous[:, :2] / safe[:, None], depth


def corners(center: Sequence[float], dimensions: Sequence[float], axes: Axes = ALIGNED) -> np.ndarray:
    """The eight corners (8, 3) of a box given its middle, and its full sizes along the rows of `axes`.

    Corners i and j share an edge where i and j differ in one bit; bit 4 is dimension 0, bit 1 dimension 2.
    """
    signs = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    return np.asarray(center, float) + (signs * np.asarray(dimensions, float)) @ np.asarray(axes, float)


def _windows(solids: Sequence[Solid], camera: Camera) -> list[tuple[int, int, int, int] | None]:
    """For each solid the pixel rectangle (u0, v0, u1, v1) that can hold it, None when it is out of sight."""
    if not solids:
        return []
    boxes = [corners(solid.center, 2 * np.asarray(solid.half), solid.axes) for solid in solids]
    pixels, depth = project(np.concatenate(boxes), camera)
    pixels, depth = pixels.reshape(-1, 8, 2), depth.reshape(-1, 8)
    size = (camera.width, camera.height)
    low = np.maximum(np.floor(pixels.min(axis=1)) - 1, 0)
    high = np.minimum(np.ceil(pixels.max(axis=1)) + 1, size)
    beside, cut = (depth < NEAR).all(axis=1), (depth < NEAR).any(axis=1)
    low[cut], high[cut] = 0, size
    beside |= (low >= high).any(axis=1)
    return [None if out else tuple(map(int, (*a, *b))) for out, a, b in zip(beside, low, high)]


# Hits: rays (3, ...) that start at `origin` (3,), both relative to the solid's middle, `half` (3,) along its axes. A hit is
# the multiple t of the ray, inf where there is none; a normal (3, N) belongs to rays (3, N) that hit at t (N,). The axis
# comes first because numpy is slow on a last axis of three.


def _hit_box(origin: np.ndarray, rays: np.ndarray, half: np.ndarray) -> np.ndarray:
    enter, leave = _slabs(origin, rays, half)
    t = np.maximum(np.maximum(enter[0], enter[1]), enter[2])
    t_out = np.minimum(np.minimum(leave[0], leave[1]), leave[2])
    return np.where((t <= t_out) & (t > NEAR), t, np.inf)


def _normal_box(origin: np.ndarray, rays: np.ndarray, half: np.ndarray, t: np.ndarray) -> np.ndarray:
    return np.where(_slabs(origin, rays, half)[0] == t, -np.sign(rays), 0.0)


def _slabs(origin: np.ndarray, rays: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where rays enter and leave the space between each pair of opposite sides."""
    low, high = _along(-half - origin, rays), _along(half - origin, rays)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1.0 / rays
        low, high = low * inverse, high * inverse
    return np.fmin(low, high), np.fmax(low, high)


def _along(values: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """One value per axis, shaped to go with the rays."""
    return values.reshape(3, *(1,) * (rays.ndim - 1))


def _hit_ellipsoid(origin: np.ndarray, rays: np.ndarray, half: np.ndarray) -> np.ndarray:
    o, d = origin / half, rays / _along(half, rays)
    a, b, c = _dot(d, d), d[0] * o[0] + d[1] * o[1] + d[2] * o[2], (o * o).sum() - 1.0
    disc = b * b - a * c
    t = np.where(disc >= 0, (-b - np.sqrt(np.maximum(disc, 0))) / a, np.inf)
    return np.where(t > NEAR, t, np.inf)


def _normal_ellipsoid(origin: np.ndarray, rays: np.ndarray, half: np.ndarray, t: np.ndarray) -> np.ndarray:
    point = _along(origin / half, rays) + t * (rays / _along(half, rays))
    normal = point / _along(half, rays)
    return normal / np.sqrt(_dot(normal, normal))


def _hit_cylinder(origin: np.ndarray, rays: np.ndarray, half: np.ndarray) -> np.ndarray:
    return np.minimum(*_side_and_cap(origin, rays, half))


def _normal_cylinder(origin: np.ndarray, rays: np.ndarray, half: np.ndarray, t: np.ndarray) -> np.ndarray:
    side, cap = _side_and_cap(origin, rays, half)
    at_cap = cap < side
    normal = np.zeros_like(rays)
    normal[:2] = (_along(origin / half, rays) + t * (rays / _along(half, rays)))[:2] / _along(half, rays)[:2]
    normal[:2] /= np.maximum(np.sqrt(normal[0] ** 2 + normal[1] ** 2), 1e-9)
    normal[:2, at_cap] = 0.0
    normal[2] = np.where(at_cap, -np.sign(rays[2]), 0.0)
    return normal


def _side_and_cap(origin: np.ndarray, rays: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where rays hit the mantle and the nearer cap, inf where they do not."""
    o, d = origin / half, rays / _along(half, rays)
    a = d[0] ** 2 + d[1] ** 2
    b, c = d[0] * o[0] + d[1] * o[1], (o[:2] ** 2).sum() - 1.0
    disc = b * b - a * c
    with np.errstate(divide="ignore", invalid="ignore"):
        side = (-b - np.sqrt(np.maximum(disc, 0))) / a
        cap = (-np.sign(d[2]) - o[2]) / d[2]
        on_side = (disc >= 0) & (np.abs(o[2] + side * d[2]) <= 1) & (side > NEAR)
        on_cap = ((o[0] + cap * d[0]) ** 2 + (o[1] + cap * d[1]) ** 2 <= 1) & (cap > NEAR)
    return np.where(on_side, side, np.inf), np.where(on_cap, cap, np.inf)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


_HITS = {"box": _hit_box, "ellipsoid": _hit_ellipsoid, "cylinder": _hit_cylinder}
_NORMALS = {"box": _normal_box, "ellipsoid": _normal_ellipsoid, "cylinder": _normal_cylinder}


def _rays(camera: Camera) -> np.ndarray:
    """World directions (3, H, W) through pixel centres, scaled so that the camera's z component is 1."""
    k = camera.intrinsics
    local = np.ones((3, camera.height, camera.width))
    local[0] = (np.arange(camera.width) + 0.5 - k[0, 2]) / k[0, 0]
    local[1] = ((np.arange(camera.height) + 0.5 - k[1, 2]) / k[1, 1])[:, None]
    return (camera.camera_to_world[:3, :3] @ local.reshape(3, -1)).reshape(local.shape)


def _background(rays: np.ndarray, origin: np.ndarray, room, backdrop: Backdrop) -> np.ndarray:
    """Picture (H, W, 3) of floor, walls and ceiling from inside; of ground and sky when there is no room."""
    gain = backdrop.light.gain
    if room is None:
        shade = np.clip(0.75 + 0.25 * rays[2], 0.6, 1.0)[..., None]
        ground, sky = np.asarray(backdrop.floor) * shade, np.asarray(backdrop.wall) * shade
        return _bytes(np.where((rays[2] < -0.02)[..., None], ground, sky), gain)
    low, high = np.asarray(room[0], float) - origin, np.asarray(room[1], float) - origin
    positive = rays > 0
    with np.errstate(divide="ignore"):
        exits = np.abs(np.where(positive, _along(high, rays), _along(low, rays)) / rays)
    ahead = positive.view(np.uint8)  # side: 2 * axis, one more where the ray runs upwards along it
    side = np.where((exits[0] <= exits[1]) & (exits[0] <= exits[2]), ahead[0],
                    np.where(exits[1] <= exits[2], ahead[1] + np.uint8(2), ahead[2] + np.uint8(4)))
    palette = np.array([np.asarray(backdrop.wall) * shade for shade in _WALL_SHADE] + [backdrop.floor, backdrop.ceiling])
    if backdrop.wall_texture is None and backdrop.floor_texture is None:
        return _bytes(palette, gain)[side]
    color = palette[side]
    for texture, where in ((backdrop.wall_texture, side < 4), (backdrop.floor_texture, side == 4)):
        if texture is not None:
            x, y, z = _along(origin, rays[:, where]) + exits[:, where].min(0) * rays[:, where]
            upright = side[where] < 4  # along a wall: its horizontal axis, then z; on the floor: x, then y
            color[where] *= _pattern(texture, np.where(side[where] < 2, y, x), np.where(upright, z, y))[:, None]
    return _bytes(color, gain)


def _pattern(texture: Texture, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Factors (N,) of the colour, 1 - contrast to 1, at (a, b) metres on the surface."""
    i, j = a / texture.size, b / texture.size
    if texture.kind == "tiles":
        joint = (i % 1 < _JOINT) | (j % 1 < _JOINT)
        dark = np.where(joint, 1.0, 0.3 * _scatter(np.floor(i), np.floor(j)))
    elif texture.kind == "planks":
        row = np.floor(j)
        dark = _scatter(np.floor(i / _PLANK + _scatter(row, row)), row)
    elif texture.kind == "stripes":
        dark = (i % 1 < 0.5).astype(float)
    else:
        (i0, u), (j0, v) = ((np.floor(x), x - np.floor(x)) for x in (i, j))
        near, far = (_scatter(i0, j0 + dj) * (1 - u) + _scatter(i0 + 1, j0 + dj) * u for dj in (0, 1))
        dark = near * (1 - v) + far * v
    return 1.0 - texture.contrast * dark


def _scatter(i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """A fixed number in [0, 1) for every pair of whole numbers, without visible order."""
    i, j = (k.astype(np.int64).astype(np.uint32) for k in (i, j))
    h = i * np.uint32(0x9E3779B1) ^ j * np.uint32(0x85EBCA77)
    h = (h ^ h >> np.uint32(15)) * np.uint32(0x2C1B3C6D)
    return (h ^ h >> np.uint32(13)) / 2.0**32


def render(objects: Sequence[SceneObject], camera: Camera, room=None, backdrop: Backdrop = Backdrop()) -> Rendering:
    """Draw the solids of `objects` as `camera` sees them; `room` is the extent of `Scene.room` or None for open ground."""
    rays = _rays(camera)
    origin = camera.camera_to_world[:3, 3].astype(float)
    rgb = _background(rays, origin, room, backdrop)
    depth = np.full(rays.shape[1:], np.inf)
    instance = np.full(rays.shape[1:], -1, np.int32)
    ambient = backdrop.light.ambient
    light = np.array(backdrop.light.direction) / np.linalg.norm(backdrop.light.direction)
    solids = [(item.id, solid) for item in objects for solid in item.solids]
    for (id, solid), window in zip(solids, _windows([solid for _, solid in solids], camera)):
        if window is None:
            continue
        u0, v0, u1, v1 = window
        start, seen, half = _own(solid, origin, rays[:, v0:v1, u0:u1])
        t = _HITS[solid.kind](start, seen, half)
        nearer = np.flatnonzero(t < depth[v0:v1, u0:u1])
        t, pixels = t.reshape(-1)[nearer], (v0 + nearer // (u1 - u0)) * camera.width + u0 + nearer % (u1 - u0)
        normal = _NORMALS[solid.kind](start, seen.reshape(3, -1)[:, nearer], half, t)
        if solid.axes != ALIGNED:
            normal = np.asarray(solid.axes, float).T @ normal
        shade = ambient + (1 - ambient) * np.clip(_dot(normal, light) * 0.75 + 0.25, 0, 1)
        depth.reshape(-1)[pixels] = t
        instance.reshape(-1)[pixels] = id
        rgb.reshape(-1, 3)[pixels] = _bytes(np.asarray(solid.color) * shade[:, None], backdrop.light.gain)
    return Rendering(rgb, depth.astype(np.float32), instance)


def depth_alone(item: SceneObject, camera: Camera) -> np.ndarray:
    """Depth (H, W) float32 of one object with nothing else around, as in `Rendering`; no colour is computed."""
    rays = _rays(camera)
    origin = camera.camera_to_world[:3, 3].astype(float)
    depth = np.full(rays.shape[1:], np.inf)
    for solid, window in zip(item.solids, _windows(item.solids, camera)):
        if window is not None:
            u0, v0, u1, v1 = window
            here = depth[v0:v1, u0:u1]
            np.minimum(here, _HITS[solid.kind](*_own(solid, origin, rays[:, v0:v1, u0:u1])), out=here)
    return depth.astype(np.float32)


def _own(solid: Solid, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Origin (3,), rays (3, ...) and half sizes (3,) along the solid's own axes, seen from its middle."""
    start, half = origin - np.asarray(solid.center), np.asarray(solid.half, float)
    if solid.axes == ALIGNED:
        return start, rays, half
    axes = np.asarray(solid.axes, float)
    return axes @ start, np.tensordot(axes, rays, axes=1), half


def _bytes(color: np.ndarray, gain: float) -> np.ndarray:
    return np.clip(color * gain * 255 + 0.5, 0, 255).astype(np.uint8)

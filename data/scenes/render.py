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


def _window(solid: Solid, camera: Camera) -> tuple[int, int, int, int] | None:
    """Pixel rectangle (u0, v0, u1, v1) that can hold the solid, None when it is out of sight."""
    pixels, depth = project(corners(solid.center, 2 * np.asarray(solid.half), solid.axes), camera)
    if (depth < NEAR).all():
        return None
    if (depth < NEAR).any():
        return 0, 0, camera.width, camera.height
    u0, v0 = np.floor(pixels.min(axis=0)).astype(int) - 1
    u1, v1 = np.ceil(pixels.max(axis=0)).astype(int) + 1
    u0, v0, u1, v1 = max(u0, 0), max(v0, 0), min(u1, camera.width), min(v1, camera.height)
    return (u0, v0, u1, v1) if u0 < u1 and v0 < v1 else None


def _hit_box(origin: np.ndarray, rays: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1.0 / rays
        low, high = (-half - origin) * inverse, (half - origin) * inverse
    enter, leave = np.fmin(low, high), np.fmax(low, high)
    # Pairwise: numpy's reductions over an axis of three cost several times as much.
    t = np.maximum(np.maximum(enter[..., 0], enter[..., 1]), enter[..., 2])
    t_out = np.minimum(np.minimum(leave[..., 0], leave[..., 1]), leave[..., 2])
    normal = np.where(enter == t[..., None], -np.sign(rays), 0.0)
    return np.where((t <= t_out) & (t > NEAR), t, np.inf), normal


def _hit_ellipsoid(origin: np.ndarray, rays: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    o, d = origin / half, rays / half
    a, b, c = (d * d).sum(-1), (d * o).sum(-1), (o * o).sum() - 1.0
    disc = b * b - a * c
    t = np.where(disc >= 0, (-b - np.sqrt(np.maximum(disc, 0))) / a, np.inf)
    t = np.where(t > NEAR, t, np.inf)
    point = np.where(np.isfinite(t)[..., None], o + np.where(np.isfinite(t), t, 0)[..., None] * d, 1.0)
    normal = point / half
    return t, normal / np.linalg.norm(normal, axis=-1, keepdims=True)


def _hit_cylinder(origin: np.ndarray, rays: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    o, d = origin / half, rays / half
    a = (d[..., :2] ** 2).sum(-1)
    b, c = (d[..., :2] * o[:2]).sum(-1), (o[:2] ** 2).sum() - 1.0
    disc = b * b - a * c
    with np.errstate(divide="ignore", invalid="ignore"):
        side = (-b - np.sqrt(np.maximum(disc, 0))) / a
        cap = (-np.sign(d[..., 2]) - o[2]) / d[..., 2]
    on_side = (disc >= 0) & (np.abs(o[2] + side * d[..., 2]) <= 1) & (side > NEAR)
    at_cap = o[:2] + cap[..., None] * d[..., :2]
    on_cap = ((at_cap**2).sum(-1) <= 1) & (cap > NEAR)
    t_side, t_cap = np.where(on_side, side, np.inf), np.where(on_cap, cap, np.inf)
    t = np.minimum(t_side, t_cap)
    radial = np.concatenate([(o[:2] + np.where(on_side, side, 0)[..., None] * d[..., :2]) / half[:2],
                             np.zeros_like(side)[..., None]], -1)
    radial /= np.maximum(np.linalg.norm(radial, axis=-1, keepdims=True), 1e-9)
    upright = np.zeros_like(rays)
    upright[..., 2] = -np.sign(d[..., 2])
    return t, np.where((t_cap < t_side)[..., None], upright, radial)


_HITS = {"box": _hit_box, "ellipsoid": _hit_ellipsoid, "cylinder": _hit_cylinder}


def _rays(camera: Camera) -> np.ndarray:
    """World directions (H, W, 3) through pixel centres, scaled so that the camera's z component is 1."""
    k = camera.intrinsics
    u, v = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    local = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)], -1)
    return local @ camera.camera_to_world[:3, :3].T


def _background(rays: np.ndarray, origin: np.ndarray, room, backdrop: Backdrop) -> np.ndarray:
    """Colours (H, W, 3) of floor, walls and ceiling; of ground and sky when there is no room."""
    if room is None:
        below = rays[..., 2] < -0.02
        shade = np.clip(0.75 + 0.25 * rays[..., 2:3], 0.6, 1.0)
        return np.where(below[..., None], np.asarray(backdrop.floor) * shade, np.asarray(backdrop.wall) * shade)
    low, high = np.asarray(room[0], float), np.asarray(room[1], float)
    with np.errstate(divide="ignore", invalid="ignore"):
        exits = np.where(rays > 0, (high - origin) / rays, (low - origin) / rays)
    exits = np.where(np.isfinite(exits), exits, np.inf)
    axis = exits.argmin(-1)
    positive = np.take_along_axis(rays, axis[..., None], -1)[..., 0] > 0
    palette = np.array([np.asarray(backdrop.wall) * shade for shade in _WALL_SHADE] + [backdrop.floor, backdrop.ceiling])
    side = 2 * axis + positive
    color = palette[side]
    for texture, where in ((backdrop.wall_texture, side < 4), (backdrop.floor_texture, side == 4)):
        if texture is not None:
            hit = origin + exits[where].min(-1, keepdims=True) * rays[where]
            upright = side[where] < 4  # along a wall: its horizontal axis, then z; on the floor: x, then y
            along = np.where(axis[where] == 0, hit[:, 1], hit[:, 0])
            color[where] *= _pattern(texture, along, np.where(upright, hit[:, 2], hit[:, 1]))[:, None]
    return color


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
    color = _background(rays, origin, room, backdrop)
    depth = np.full(rays.shape[:2], np.inf)
    instance = np.full(rays.shape[:2], -1, np.int32)
    ambient = backdrop.light.ambient
    light = np.array(backdrop.light.direction) / np.linalg.norm(backdrop.light.direction)
    for item in objects:
        for solid in item.solids:
            window = _window(solid, camera)
            if window is None:
                continue
            u0, v0, u1, v1 = window
            t, normal = _hit(solid, origin, rays[v0:v1, u0:u1])
            nearer = t < depth[v0:v1, u0:u1]
            shade = ambient + (1 - ambient) * np.clip((normal[nearer] @ light) * 0.75 + 0.25, 0, 1)
            depth[v0:v1, u0:u1][nearer] = t[nearer]
            instance[v0:v1, u0:u1][nearer] = item.id
            color[v0:v1, u0:u1][nearer] = np.asarray(solid.color) * shade[:, None]
    rgb = np.clip(color * backdrop.light.gain * 255 + 0.5, 0, 255).astype(np.uint8)
    return Rendering(rgb, depth.astype(np.float32), instance)


def _hit(solid: Solid, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Multiples (h, w) of the rays at which they meet the solid, inf beside it, and its normals there, in the world."""
    half, start = np.asarray(solid.half, float), origin - np.asarray(solid.center)
    if solid.axes == ALIGNED:
        return _HITS[solid.kind](start, rays, half)
    axes = np.asarray(solid.axes, float)
    t, normal = _HITS[solid.kind](axes @ start, rays @ axes.T, half)
    return t, normal @ axes

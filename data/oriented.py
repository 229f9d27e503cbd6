"""Oriented boxes: the shortest vector between two of them.

What holds: exact up to rounding, no iteration. Two convex polyhedra that do not meet are closest between a corner of one
and the other, or between two edges; which is why 16 corners and 144 pairs of edges are all that is looked at. Whether
they meet is decided by the separating axis theorem (Gottschalk et al., OBBTree, 1996).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.scenes.render import corners
from data.scenes.types import ALIGNED, Axes, SceneObject, Vector

#: The two corners of each edge: they differ in one bit.
_EDGES = np.array([(i, i | bit) for bit in (1, 2, 4) for i in range(8) if not i & bit])
#: Two directions whose cross product is shorter (they are unit vectors) count as parallel.
_PARALLEL = 1e-9


@dataclass(frozen=True)
class OrientedBox:
    """`center` and full `dimensions` in metres; row i of `axes` is the unit direction of dimension i, in the world."""

    center: Vector
    dimensions: Vector
    axes: Axes = ALIGNED


Boxed = OrientedBox | SceneObject


def shortest_vector(a: Boxed, b: Boxed) -> np.ndarray:
    """From the closest point of `a` to that of `b`, (3,) metres along world x, y, z; zeros when they touch or overlap."""
    offset = np.subtract(b.center, a.center, dtype=float)
    if a.axes == b.axes:
        axes = np.array(a.axes)
        along = axes @ offset
        reach = np.add(a.dimensions, b.dimensions, dtype=float) / 2
        return (np.sign(along) * np.maximum(np.abs(along) - reach, 0.0)) @ axes
    if _overlap(a, b, offset):
        return np.zeros(3)
    first, second = (corners(box.center, box.dimensions, box.axes) for box in (a, b))
    candidates = np.concatenate([_to_box(first, b), -_to_box(second, a), _between_edges(first, second)])
    return candidates[(candidates**2).sum(axis=1).argmin()]


def closest_distance(a: Boxed, b: Boxed) -> float:
    """Metres between the closest points of two boxes; 0 when they touch or overlap."""
    return float(np.linalg.norm(shortest_vector(a, b)))


def _overlap(a: Boxed, b: Boxed, offset: np.ndarray) -> bool:
    """Whether no axis separates the boxes: the three of each, and the nine perpendicular to one edge of each."""
    first, second = np.array(a.axes), np.array(b.axes)
    across = np.cross(first[:, None], second[None]).reshape(9, 3)
    across = across[(across**2).sum(axis=1) > _PARALLEL**2]
    directions = np.concatenate([first, second, across])
    reach = np.abs(directions @ first.T) @ a.dimensions + np.abs(directions @ second.T) @ b.dimensions
    return bool((np.abs(directions @ offset) <= reach / 2).all())


def _to_box(points: np.ndarray, box: Boxed) -> np.ndarray:
    """Vectors (N, 3) from the points (N, 3) to their closest points of the box."""
    axes, half = np.array(box.axes), np.array(box.dimensions, float) / 2
    local = (points - box.center) @ axes.T
    return (np.clip(local, -half, half) - local) @ axes


def _between_edges(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Shortest vectors (K, 3) between edges of two boxes, given their corners (8, 3), that end inside both edges."""
    p, u = first[_EDGES[:, 0]][:, None], np.subtract(*first[_EDGES.T[::-1]])[:, None]
    q, v = second[_EDGES[:, 0]][None], np.subtract(*second[_EDGES.T[::-1]])[None]
    uu, vv, uv, w = (u * u).sum(-1), (v * v).sum(-1), (u * v).sum(-1), q - p
    spread = uu * vv - uv**2
    crossing = spread > _PARALLEL**2 * uu * vv
    safe = np.where(crossing, spread, 1.0)
    uw, vw = (u * w).sum(-1), (v * w).sum(-1)
    s, t = (uw * vv - vw * uv) / safe, (uw * uv - vw * uu) / safe
    inside = crossing & (s >= 0) & (s <= 1) & (t >= 0) & (t <= 1)
    return (w + t[..., None] * v - s[..., None] * u)[inside]

"""Outlines of objects: few points whose convex hull holds a thing more tightly than its box does.

What holds: a box around a real thing is mostly air, and its corners, which no part of the thing reaches, decide where the
box lands in a picture. Sources that know more, vertices or a second box, say so with an outline (`SceneObject.outline`).
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog
from scipy.spatial import ConvexHull, HalfspaceIntersection, QhullError

from data.oriented import OrientedBox
from data.scenes.types import Vector

#: Metres: two boxes that have less than a ball of this radius in common do not belong to one thing.
_LEAST_RADIUS = 1e-3


def hull_points(points: np.ndarray) -> tuple[Vector, ...]:
    """Corners of the convex hull of points (N, 3), e.g. an instance's vertices; empty where they span no volume."""
    try:
        return _vectors(points[ConvexHull(points).vertices])
    except (QhullError, ValueError):  # ValueError: no point at all
        return ()


def common_points(a: OrientedBox, b: OrientedBox) -> tuple[Vector, ...]:
    """Corners of what two boxes around the same thing have in common; empty where that is nothing or hardly anything."""
    planes = np.concatenate([_planes(a), _planes(b)])
    # The middle of the largest ball inside: the intersection starts from a point that is inside for certain.
    ball = linprog([0, 0, 0, -1], A_ub=np.c_[planes[:, :3], np.ones(len(planes))], b_ub=-planes[:, 3],
                   bounds=[(None, None)] * 3 + [(0, None)])
    if not ball.success or ball.x[3] < _LEAST_RADIUS:
        return ()
    return _vectors(np.unique(HalfspaceIntersection(planes, ball.x[:3]).intersections.round(9), axis=0))


def _planes(box: OrientedBox) -> np.ndarray:
    """Half spaces (6, 4): rows (n, d) with n . x + d <= 0 inside the box."""
    normals = np.concatenate([np.array(box.axes), -np.array(box.axes)])
    return np.c_[normals, -(normals @ box.center) - np.tile(box.dimensions, 2) / 2]


def _vectors(points: np.ndarray) -> tuple[Vector, ...]:
    return tuple(map(tuple, points.tolist()))

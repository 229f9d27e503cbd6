"""Outlines: hulls of vertices, and what two boxes have in common."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

from data.oriented import OrientedBox
from data.scenes.outlines import common_points, hull_points
from data.scenes.render import corners


def axes_of(yaw):
    return tuple(map(tuple, Rotation.from_euler("z", yaw).as_matrix().T.tolist()))


def test_a_hull_keeps_the_corners_and_drops_what_lies_inside():
    cube = corners((1, 2, 3), (1, 1, 1))
    inside = np.random.default_rng(0).uniform(-0.45, 0.45, (50, 3)) + (1, 2, 3)
    assert set(hull_points(np.concatenate([inside, cube]))) == set(map(tuple, cube.tolist()))
    assert hull_points(np.zeros((0, 3))) == hull_points(cube[:3]) == hull_points(cube[[0, 1, 2, 3]]) == ()


def inside(points, box):
    return (np.abs((points - box.center) @ np.array(box.axes).T) <= np.array(box.dimensions) / 2 + 1e-6).all(axis=1)


sizes, shifts = st.floats(0.3, 2), st.floats(-0.5, 0.5)


@settings(max_examples=40, deadline=None)
@given(*[st.tuples(sizes, sizes, sizes)] * 2, st.tuples(shifts, shifts, shifts), st.floats(-1.5, 1.5))
def test_common_points_are_the_corners_of_the_intersection(first, second, shift, yaw):
    a, b = OrientedBox((0, 0, 0), first), OrientedBox(shift, second, axes_of(yaw))
    points = np.array(common_points(a, b))
    samples = (np.random.default_rng(1).uniform(-0.5, 0.5, (20000, 3))) * first
    share = inside(samples, b).mean()
    if not len(points):
        assert share < 1e-3
        return
    assert inside(points, a).all() and inside(points, b).all()
    assert abs(ConvexHull(points).volume / np.prod(first) - share) < 0.02


def test_boxes_that_hardly_meet_have_no_outline():
    a = OrientedBox((0, 0, 0), (1, 1, 1))
    assert common_points(a, OrientedBox((3, 0, 0), (1, 1, 1))) == ()
    assert common_points(a, OrientedBox((0.999, 0, 0), (1, 1, 1))) == ()
    assert set(common_points(a, a)) == set(map(tuple, corners((0, 0, 0), (1, 1, 1)).tolist()))

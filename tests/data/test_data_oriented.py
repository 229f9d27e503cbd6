"""Distances between oriented boxes, against bounded least squares and dense points."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear
from scipy.spatial.transform import Rotation

from data.oriented import OrientedBox, closest_distance, shortest_vector
from data.scenes.types import ALIGNED

metres, sizes = st.floats(-3, 3), st.floats(0.05, 2.5)
turns = st.tuples(*[st.floats(-np.pi, np.pi)] * 3)
boxes = st.builds(lambda c, d, r: OrientedBox(c, d, axes_of(Rotation.from_euler("zyx", r))), st.tuples(*[metres] * 3),
                  st.tuples(*[sizes] * 3), turns | turns.map(lambda t: (t[0], 0.0, 0.0)))


def axes_of(rotation):
    return tuple(map(tuple, rotation.as_matrix().T.tolist()))


def by_least_squares(a, b):
    """min |x - y| over x in a, y in b, as a bounded linear least-squares problem in the boxes' own coordinates."""
    matrix = np.concatenate([np.array(a.axes).T, -np.array(b.axes).T], axis=1)
    limit = np.array([*a.dimensions, *b.dimensions]) / 2
    found = lsq_linear(matrix, np.subtract(b.center, a.center), (-limit, limit), method="bvls", tol=1e-14)
    return np.sqrt(2 * found.cost)


@settings(max_examples=150, deadline=None)
@given(boxes, boxes)
def test_the_distance_is_that_of_bounded_least_squares(a, b):
    expected = by_least_squares(a, b)
    assert closest_distance(a, b) == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(np.linalg.norm(shortest_vector(a, b)), np.linalg.norm(shortest_vector(b, a)), atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(boxes, boxes)
def test_no_two_points_of_the_boxes_are_closer(a, b):
    line = np.linspace(-0.5, 0.5, 9)
    grid = np.stack(np.meshgrid(line, line, line), -1).reshape(-1, 3)
    points = [(grid * box.dimensions) @ np.array(box.axes) + box.center for box in (a, b)]
    nearest = np.sqrt(((points[0][:, None] - points[1][None]) ** 2).sum(-1).min())
    step = sum(np.linalg.norm(box.dimensions) for box in (a, b)) / 16
    assert nearest - step - 1e-9 <= closest_distance(a, b) <= nearest + 1e-9


@settings(max_examples=40, deadline=None)
@given(boxes, boxes, turns, st.tuples(metres, metres, metres))
def test_a_rigid_motion_turns_the_vector_and_keeps_its_length(a, b, turn, shift):
    motion = Rotation.from_euler("zyx", turn)

    def moved(box):
        return OrientedBox(tuple(motion.apply(box.center) + shift), box.dimensions, axes_of(motion * rotation_of(box)))

    assert closest_distance(moved(a), moved(b)) == pytest.approx(closest_distance(a, b), abs=1e-7)


def rotation_of(box):
    return Rotation.from_matrix(np.array(box.axes).T)


def test_by_hand():
    a = OrientedBox((0, 0, 0), (2, 2, 2))
    np.testing.assert_allclose(shortest_vector(a, OrientedBox((4, -5, 1), (2, 2, 2))), (2, -3, 0))
    diagonal = axes_of(Rotation.from_euler("z", np.pi / 4))
    turned = OrientedBox((4, 0, 0), (2, 2, 2), diagonal)  # its edge points at a, sqrt(2) from its middle
    np.testing.assert_allclose(shortest_vector(a, turned), (3 - np.sqrt(2), 0, 0), atol=1e-12)
    beside = replace(turned, center=(4, 3, 0))  # 3 / sqrt(2) farther along both of its axes
    assert closest_distance(turned, beside) == pytest.approx(np.sqrt(2) * (3 / np.sqrt(2) - 2))


def test_edges_that_cross():
    """Two long sticks, one along x, one tilted, cross one above the other: closest inside an edge of each."""
    a = OrientedBox((0, 0, 0), (10, 0.2, 0.2), axes_of(Rotation.from_euler("x", np.pi / 4)))
    b = OrientedBox((0, 0, 2), (0.2, 10, 0.2), axes_of(Rotation.from_euler("y", np.pi / 4)))
    # Each stick shows the other an edge, sqrt(2) / 10 from its middle line.
    assert closest_distance(a, b) == pytest.approx(2 - 2 * np.sqrt(2) / 10)
    # Their middle lines cross inside: no corner lies in the other, and yet they overlap.
    assert closest_distance(a, replace(b, center=(0, 0, 0.2))) == 0


def test_touching_and_containing_boxes_are_at_no_distance():
    a = OrientedBox((0, 0, 0), (2, 2, 2))
    assert closest_distance(a, OrientedBox((2, 0, 0), (2, 2, 2))) == 0
    inner = OrientedBox((0.2, 0, 0), (0.3, 0.3, 0.3), axes_of(Rotation.from_euler("xyz", (0.3, 0.4, 0.5))))
    assert closest_distance(a, inner) == closest_distance(inner, a) == 0
    assert OrientedBox((0, 0, 0), (1, 1, 1)).axes == ALIGNED

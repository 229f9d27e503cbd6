"""The renderer: turned solids against turned cameras, and patterns and light that change no geometry."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data.scenes.render import corners, project, render
from data.scenes.types import ALIGNED, Backdrop, Camera, Light, SceneObject, Solid, Texture

K = np.array([[80.0, 0, 48], [0, 80, 40], [0, 0, 1]])
EYE = Camera(K, np.eye(4), 96, 80)
ROOM = ((-2.0, -2.0, -1.0), (3.0, 2.0, 4.0))


def turn(axis, degrees):
    """Rotation matrix (3, 3) about an axis of any length."""
    return Rotation.from_rotvec(np.radians(degrees) * np.asarray(axis) / np.linalg.norm(axis)).as_matrix()


def rows(matrix):
    return tuple(map(tuple, np.asarray(matrix).tolist()))


def item(kind="box", center=(0.1, -0.2, 3.0), size=(1.0, 0.6, 0.4), axes=ALIGNED):
    solid = Solid(kind, center, tuple(s / 2 for s in size), (0.5, 0.4, 0.3), axes)
    return SceneObject(4, "thing", center, size, (solid,), axes)


@pytest.mark.parametrize("kind", ["box", "ellipsoid", "cylinder"])
def test_a_turned_solid_is_an_aligned_one_seen_by_a_turned_camera(kind):
    rotation = turn((1, 2, -0.5), 37)
    assert np.linalg.det(rotation) == pytest.approx(1) and not np.allclose(rotation, np.eye(3))
    still = item(kind)
    turned = item(kind, center=tuple((rotation @ still.center).tolist()), axes=rows(rotation.T))  # axes: world of each side
    pose = np.eye(4)
    pose[:3, :3] = rotation
    one = render([still], EYE)
    two = render([turned], replace(EYE, camera_to_world=pose))
    assert (one.instance == 4).sum() > 200
    assert (one.instance != two.instance).sum() <= 2  # pixels on the very outline
    both = (one.instance == 4) & (two.instance == 4)
    np.testing.assert_allclose(one.depth[both], two.depth[both], atol=1e-5)


def test_corners_and_hull_of_a_turned_box_by_hand():
    half = np.sqrt(0.5)
    axes = ((half, half, 0.0), (-half, half, 0.0), (0.0, 0.0, 1.0))  # 45 degrees about z
    box = item(size=(2.0, 1.0, 3.0), center=(1.0, 1.0, 0.0), axes=axes)
    found = corners(box.center, box.dimensions, box.axes)
    assert found[7] == pytest.approx([1 + half - half / 2, 1 + half + half / 2, 1.5])
    assert found[4] - found[0] == pytest.approx(2 * np.array(axes[0]))
    assert found[2] - found[0] == pytest.approx(np.array(axes[1]))
    assert box.hull == pytest.approx((3 * half, 3 * half, 3.0))
    assert box.hull == pytest.approx(tuple(np.ptp(found, axis=0)))
    assert item().hull == (1.0, 0.6, 0.4)


def test_a_turned_box_covers_its_projected_corners():
    rng = np.random.default_rng(0)
    for _ in range(5):
        box = item(axes=rows(turn(rng.normal(size=3), rng.uniform(0, 180))))
        pixels, _ = project(corners(box.center, box.dimensions, box.axes), EYE)
        ys, xs = np.nonzero(render([box], EYE).instance == 4)
        drawn = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        np.testing.assert_allclose(drawn, [*pixels.min(0), *pixels.max(0)], atol=1.01)


@pytest.mark.parametrize("kind", ["tiles", "planks", "stripes", "noise"])
def test_patterns_darken_their_surface_alone(kind):
    plain = render([item()], EYE, ROOM, Backdrop())
    texture = Texture(kind, 0.4, 0.5)
    floor = render([item()], EYE, ROOM, Backdrop(floor_texture=texture))
    wall = render([item()], EYE, ROOM, Backdrop(wall_texture=texture))
    ceiling = np.abs(plain.rgb.astype(int) - np.array([0.95] * 3) * 255).max(-1) <= 1  # the camera looks straight up
    for drawn in (floor, wall):
        np.testing.assert_array_equal(drawn.depth, plain.depth)
        assert (drawn.rgb <= plain.rgb).all()
        for untouched in (ceiling, plain.instance == 4):
            assert untouched.any() and (drawn.rgb[untouched] == plain.rgb[untouched]).all()
    assert (wall.rgb[~ceiling] < plain.rgb[~ceiling]).any() and (floor.rgb == plain.rgb).all()
    assert (wall.rgb >= plain.rgb * 0.5 - 1).all()
    down = replace(EYE, camera_to_world=np.diag([1.0, -1, -1, 1]))
    assert (render([], down, ROOM, Backdrop(floor_texture=texture)).rgb < render([], down, ROOM).rgb).any()


def test_light_changes_colours_and_nothing_else():
    plain = render([item()], EYE, ROOM)
    dim = render([item()], EYE, ROOM, Backdrop(light=Light((0.35, -0.5, 0.79), 0.5, (0.5, 0.5, 0.25))))
    np.testing.assert_allclose(dim.rgb, plain.rgb * np.array([0.5, 0.5, 0.25]), atol=1)
    other = render([item()], EYE, ROOM, Backdrop(light=Light((0.0, 0.0, -1.0), 0.2)))
    mask = plain.instance == 4
    np.testing.assert_array_equal(other.depth, plain.depth)
    assert (other.rgb[~mask] == plain.rgb[~mask]).all() and (other.rgb[mask] != plain.rgb[mask]).any()

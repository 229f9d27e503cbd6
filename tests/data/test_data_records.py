"""Object records: projections worked out by hand, and what must not change them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import ConstructionConfig, RoomsConfig
from data.records import clipped_hull, frame_records, project_box, unrecorded
from data.scenes.furniture import place
from data.scenes.render import corners, render
from data.scenes.rooms import make_room
from data.scenes.types import Camera, Frame, Scene, SceneObject, Solid
from data.scenes.walk import look

K = np.array([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])
WORLD = Camera(K, np.eye(4), 100, 80)  # camera axes = world axes
NEAR = ConstructionConfig().near_plane
SOURCES = pytest.mark.parametrize("image", [None, "picture.jpg"], ids=["rendered", "real"])


def box(id, center, dimensions, label="thing"):
    solid = Solid("box", tuple(center), tuple(d / 2 for d in dimensions), (0.5, 0.5, 0.5))
    return SceneObject(id, label, tuple(center), tuple(dimensions), (solid,))


def records(objects, camera=WORLD, image=None):
    frame = Frame("000", camera, image)
    return frame_records(Scene("scene", tuple(objects), (frame,)), frame)


@SOURCES
def test_a_box_straight_ahead(image):
    (record,) = records([box(7, (0, 0, 2), (0.2, 0.4, 2), "table")], image=image)
    assert (record.scene_id, record.frame, record.object_id, record.label) == ("scene", "000", 7, "table")
    np.testing.assert_allclose(record.box2d, (40, 20, 60, 60))  # its front face is 1 m away: 100 pixels a metre
    assert record.center_world == record.center_camera == (0, 0, 2) and record.dimensions == (0.2, 0.4, 2)
    assert record.visibility == 1 and record.truncation == pytest.approx(0) and record.image_size == (100, 80)
    assert record.area == pytest.approx(20 * 40 / 8000)


@SOURCES
def test_camera_coordinates_of_a_posed_camera(image):
    camera = replace(WORLD, camera_to_world=look(np.array([1.0, 2.0, 1.5]), np.pi / 2, 0.0))
    (record,) = records([box(0, (1.3, 5.0, 1.0), (0.2, 1.0, 0.2))], camera, image)
    np.testing.assert_allclose(record.center_camera, (0.3, 0.5, 3.0), atol=1e-12)
    assert record.center_world == (1.3, 5.0, 1.0)
    near, far = 2.5, 3.5  # the left and the upper edge are those of the far face
    expected = (50 + 20 / far, 40 + 40 / far, 50 + 40 / near, 40 + 60 / near)
    np.testing.assert_allclose(record.box2d, expected, atol=1e-9 if image else 0.51)


@SOURCES
def test_a_box_half_outside(image):
    # its front, 1 m away, covers the pixels 80 to 120, its back 60 to 73
    (record,) = records([box(0, (0.5, 0, 2), (0.4, 0.4, 2))], image=image)
    assert record.truncation == pytest.approx(1 - 40 / 60)
    np.testing.assert_allclose(record.box2d, (60, 20, 100, 60), atol=1e-9)
    assert record.visibility == 1


def test_near_plane_clipping_by_hand():
    (record,) = records([box(0, (0.5, 0, 0), (0.2, 0.2, 4))], image="picture.jpg")
    # at z = 2 the inner face ends at pixel 70; it leaves the image (pixel 100) at z = 0.8, where 0.1 m are 12.5 pixels
    np.testing.assert_allclose(record.box2d, (70, 27.5, 100, 52.5))
    # unclipped, from z = 0.1 on: 70 to 650 and -60 to 140
    assert record.truncation == pytest.approx(1 - 30 * 80 / (580 * 200))


@SOURCES
def test_what_is_behind_beside_or_around_the_camera_has_no_record(image):
    assert records([box(0, (0, 0, -2), (1, 1, 1))], image=image) == []
    assert records([box(0, (5, 0, 2), (1, 1, 1))], image=image) == []
    assert records([box(0, (0, 0, 0.5), (1, 1, 1))], image=image) == []
    assert records([box(0, (0, 0, 0.5 + NEAR / 2), (1, 1, 1))], image=image) == []
    assert len(records([box(0, (0, 0, 0.5 + 2 * NEAR), (1, 1, 1))], image=image)) == 1


def left_out(objects, image):
    frame = Frame("000", WORLD, image)
    scene = Scene("scene", tuple(objects), (frame,))
    return [item.label for item in unrecorded(scene, frame, frame_records(scene, frame))]


@SOURCES
def test_what_shows_though_it_has_no_record_is_known(image):
    solid = Solid("box", (0.3, 0, 1.2), (0.1, 0.1, 0.1), (0.5, 0.5, 0.5))  # of a shelf that stands around the camera
    shelf = SceneObject(0, "shelf", (0, 0, 0.5), (2, 2, 2), (solid,))
    lamp = box(1, (0, 0, 3), (0.2, 0.4, 2), "lamp")
    beside, behind = box(2, (5, 0, 2), (1, 1, 1)), box(3, (0, 0, -2), (1, 1, 1))
    assert records([shelf], image=image) == [] and left_out([lamp, beside, behind], image) == []
    assert left_out([lamp, shelf, beside, behind], image) == ["shelf"]
    # Its one solid hidden by a wall: the picture of a room is known, of a real frame there are only boxes.
    wall = box(4, (0, 0, 0.8), (4, 4, 0.2), "wall")
    assert left_out([shelf, wall], image) == (["shelf"] if image else [])
    assert left_out([lamp, wall], image) == (["lamp"] if image else [])


@SOURCES
def test_occlusion_by_hand(image):
    target = box(0, (0, 0, 2.1), (1, 0.8, 0.2))  # front at 2 m: pixels 25 to 75
    wall = box(1, (0.5, 0, 1.1), (1, 2, 0.2))  # front at 1 m: pixels from 50 on (its inner side is seen edge on)
    hidden, half = records([target, wall], image=image)
    assert hidden.visibility == pytest.approx(0.5) and half.visibility == 1
    assert [r.object_id for r in records([wall, target], image=image)] == [1, 0]
    np.testing.assert_allclose(hidden.box2d, (25, 20, 75, 60))  # amodal: what hides it does not shrink its box
    whole = box(1, (0, 0, 1.1), (2, 2, 0.2))
    assert [r.object_id for r in records([target, whole], image=image)] == [1]


def test_boxes_of_real_scenes_do_not_hide_what_stands_in_them():
    table, sofa = box(0, (0, 0, 2.5), (0.5, 0.5, 0.5)), box(1, (0, 0, 2.5), (2, 2, 2))
    assert [r.visibility for r in records([table, sofa], image="picture.jpg")] == [1, 1]
    assert [r.object_id for r in records([table, sofa], image=None)] == [1]


def test_large_real_pictures_are_measured_at_reduced_size():
    camera = Camera(np.diag([13.0, 13.0, 1.0]) @ K, np.eye(4), 1300, 1040)
    target, wall = box(0, (0, 0, 2.1), (1, 0.8, 0.2)), box(1, (0.5, 0, 1.1), (1, 2, 0.2))
    hidden, _ = records([target, wall], camera, "picture.jpg")
    assert hidden.visibility == pytest.approx(0.5, abs=0.01)
    np.testing.assert_allclose(hidden.box2d, 13 * np.array((25, 20, 75, 60)))


def test_rendered_boxes_are_those_of_the_pixels():
    ball = Solid("ellipsoid", (0, 0, 3), (0.5, 0.5, 0.5), (1, 0, 0))
    item = SceneObject(4, "ball", (0, 0, 3), (1, 1, 1), (ball,))
    (record,) = records([item])
    radius = 100 * 0.5 / np.sqrt(9 - 0.25)  # tangent cone of a sphere, 16.9 pixels; the box's front face would be 20
    np.testing.assert_allclose(record.box2d, (50 - radius, 40 - radius, 50 + radius, 40 + radius), atol=0.5)
    ys, xs = np.nonzero(render([item], WORLD).instance == 4)
    assert record.box2d == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def test_visibility_of_a_room_is_that_of_its_picture():
    scene = make_room("room", RoomsConfig(image_size=112), np.random.default_rng(4))
    for frame in scene.frames[::3]:
        picture = render(scene.objects, frame.camera, scene.room).instance
        found = {r.object_id: r for r in frame_records(scene, frame)}
        assert set(found) == set(np.unique(picture)) - {-1}
        for item in scene.objects:
            alone = render([item], frame.camera).instance == item.id
            if item.id in found:
                assert found[item.id].visibility == pytest.approx((picture == item.id).sum() / alone.sum(), abs=1e-2)
                ys, xs = np.nonzero(alone)
                hull = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
                np.testing.assert_allclose(found[item.id].box2d, hull, atol=1)


metres = st.floats(-2, 2, allow_nan=False)


@settings(max_examples=25, deadline=None)
@given(st.tuples(metres, metres, st.floats(-0.5, 3)), st.tuples(*[st.floats(0.2, 2)] * 3), st.floats(-3, 3),
       st.floats(-0.6, 0.3))
def test_the_hull_agrees_with_dense_points_of_the_surface(center, dimensions, yaw, pitch):
    camera = Camera(K, look(np.array([0.1, -0.2, 1.4]), yaw, pitch), 100, 80)
    item = box(0, center, dimensions)
    if (np.abs(camera.camera_to_world[:3, 3] - center) <= np.array(dimensions) / 2 + NEAR).all():
        return
    line = np.linspace(-0.5, 0.5, 161)
    a, b = (g.ravel() for g in np.meshgrid(line, line))
    faces = [np.insert(np.stack([a, b], 1), axis, side, axis=1) for axis in range(3) for side in (-0.5, 0.5)]
    points = np.concatenate(faces) * dimensions + center
    local = (points - camera.camera_to_world[:3, 3]) @ camera.camera_to_world[:3, :3]
    pixels = (local[local[:, 2] >= NEAR] @ K.T)
    pixels = pixels[:, :2] / pixels[:, 2:]
    inside = pixels[((pixels >= 0) & (pixels <= (100, 80))).all(axis=1)]
    outline = project_box(item, camera)
    hull = None if outline is None else clipped_hull(outline, 100, 80)
    if len(inside) == 0:
        assert hull is None or min(hull[2] - hull[0], hull[3] - hull[1]) < 4  # thinner than the sampling
        return
    assert hull is not None
    found = np.r_[inside.min(axis=0), inside.max(axis=0)]
    assert (np.array(hull[:2]) <= found[:2] + 1e-9).all() and (np.array(hull[2:]) >= found[2:] - 1e-9).all()
    if local[:, 2].min() > 0.5:  # samples are dense enough there to reach the border of the hull
        np.testing.assert_allclose(hull, found, atol=4)


def moved(scene, frame, turns, shift):
    angle = np.pi / 2 * turns
    motion = np.eye(4)
    motion[:2, :2] = np.round([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    motion[:2, 3] = shift
    objects = []
    for item in scene.objects:
        at_origin = place(item, -item.center[0], -item.center[1], 0, item.id)
        x, y = motion[:2, :2] @ item.center[:2] + shift
        objects.append(place(at_origin, x, y, turns, item.id))
    camera = replace(frame.camera, camera_to_world=motion @ frame.camera.camera_to_world)
    return replace(scene, objects=tuple(objects)), replace(frame, camera=camera)


def same(first, second, pixels):
    assert [r.object_id for r in first] == [r.object_id for r in second]
    for a, b in zip(first, second):
        np.testing.assert_allclose(a.center_camera, b.center_camera, atol=1e-9)
        np.testing.assert_allclose(a.box2d, b.box2d, atol=pixels)
        assert a.truncation == pytest.approx(b.truncation, abs=1e-9)
        assert a.visibility == pytest.approx(b.visibility, abs=0.02)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 20), st.integers(0, 3), st.tuples(st.floats(-20, 20), st.floats(-20, 20)))
def test_moving_the_world_with_the_camera_changes_nothing(seed, turns, shift):
    scene = make_room("room", RoomsConfig(image_size=84, frames_per_room=8), np.random.default_rng(seed))
    for image, pixels in ((None, 1), ("picture.jpg", 1e-6)):
        frame = replace(scene.frames[seed % 8], image=image)
        large = [r.object_id for r in frame_records(scene, frame) if r.area > 0.01]
        views = ((scene, frame), moved(scene, frame, turns, shift))
        same(*([r for r in frame_records(*view) if r.object_id in large] for view in views), pixels)


@pytest.mark.parametrize("seed", range(3))
def test_a_mirrored_world_has_mirrored_boxes(seed):
    scene = make_room("room", RoomsConfig(image_size=84, frames_per_room=8), np.random.default_rng(seed))
    mirror = np.diag([-1.0, 1, 1, 1])

    def flip(point):
        return (-point[0], point[1], point[2])

    def flipped(item):
        solids = tuple(replace(solid, center=flip(solid.center)) for solid in item.solids)
        return replace(item, center=flip(item.center), solids=solids)

    objects = tuple(map(flipped, scene.objects))
    for frame in scene.frames[::2]:
        camera = replace(frame.camera, camera_to_world=mirror @ frame.camera.camera_to_world @ mirror)
        for image, pixels in ((None, 1), ("picture.jpg", 1e-6)):
            plain = [r for r in frame_records(scene, replace(frame, image=image)) if r.area > 0.01]
            kept = {r.object_id for r in plain}
            turned = replace(frame, camera=camera, image=image)
            other = [r for r in frame_records(replace(scene, objects=objects), turned) if r.object_id in kept]
            assert [r.object_id for r in other] == [r.object_id for r in plain]
            for a, b in zip(plain, other):
                x1, y1, x2, y2 = b.box2d
                np.testing.assert_allclose(a.box2d, (84 - x2, y1, 84 - x1, y2), atol=pixels)
                np.testing.assert_allclose(a.center_camera, flip(b.center_camera), atol=1e-9)
                assert a.visibility == pytest.approx(b.visibility, abs=0.02)


def test_records_repeat():
    scene = make_room("room", RoomsConfig(), np.random.default_rng(9))
    for frame in scene.frames[:4]:
        assert frame_records(scene, frame) == frame_records(scene, frame)
        for record in frame_records(scene, frame):
            x1, y1, x2, y2 = record.box2d
            assert 0 <= x1 < x2 <= 168 and 0 <= y1 < y2 <= 168
            assert 0 < record.visibility <= 1 and 0 <= record.truncation <= 1 and 0 < record.area <= 1


def test_hull_against_the_image_by_hand():
    triangle = np.array([[-10.0, 10], [30, 10], [30, 50]])  # its left corner is cut off at x = 0, y 10 to 20
    assert clipped_hull(triangle, 40, 40) == pytest.approx((0, 10, 30, 40))
    corner = np.array([[-30.0, 20], [20, -30], [-30, -30]])  # meets the image nowhere, its rectangle does
    assert clipped_hull(corner, 40, 40) is None
    assert clipped_hull(np.array([[5.0, 5], [5, 9]]), 40, 40) is None
    assert clipped_hull(corners((20, 20, 0), (200, 200, 1))[:, :2], 40, 30) == (0, 0, 40, 30)

"""Object records: projections worked out by hand, and what must not change them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from configs.data_schema import ConstructionConfig, RoomsConfig
from data.records import clipped_hull, frame_records, project_box, unrecorded
from data.scenes.depth import write_depth
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


def turned(item, yaw, about):
    """The box turned about one of its own axes; row i of `axes` is the direction of dimension i."""
    axes = tuple(map(tuple, Rotation.from_rotvec(yaw * np.eye(3)[about]).as_matrix().T.tolist()))
    return replace(item, axes=axes, solids=tuple(replace(solid, axes=axes) for solid in item.solids))


@SOURCES
def test_a_turned_box_shows_its_edge(image):
    (record,) = records([turned(box(0, (0, 0, 3), (1, 0.4, 1)), np.pi / 4, 1)], image=image)
    reach, near = np.sqrt(0.5), 3 - np.sqrt(0.5)  # its edges left and right lie at its middle, one points at the camera
    wide, high = 100 * reach / 3, 100 * 0.2 / near
    np.testing.assert_allclose(record.box2d, (50 - wide, 40 - high, 50 + wide, 40 + high), atol=1e-9 if image else 1)
    assert record.axes == record.box3d.axes and record.axes[0] == pytest.approx((reach, 0, -reach))
    assert record.dimensions == (1, 0.4, 1) and record.visibility == 1


def test_turned_boxes_hide_where_they_stand():
    """A wall that is turned edge on hides next to nothing; not turned, the middle half of what is behind it."""
    target, wall = box(0, (0, 0, 4), (4, 0.4, 0.2)), box(1, (0, 0, 2), (1, 2, 0.02))
    edge_on = turned(wall, np.pi / 2, 1)
    hidden, free = (records([target, other], image="picture.jpg")[0].visibility for other in (wall, edge_on))
    assert hidden == pytest.approx(0.5, abs=0.03) and free > 0.95


def test_around_a_turned_box():
    """The camera stands beside a plank that is turned away from it: inside its upright hull, not inside the plank."""
    plank = box(0, (1.0, 0, 1.0), (4, 0.4, 0.2))
    assert records([box(0, (1.0, 0, 1.0), (4, 0.4, 2.4))], image="picture.jpg") == []
    assert len(records([turned(plank, np.pi / 4, 1)], image="picture.jpg")) == 1


@pytest.fixture
def measured(tmp_path):
    """Records and what may show without one, given depth (40, 50) in metres behind a picture of 100 x 80 pixels."""
    def measure(objects, depth, **settings):
        write_depth(tmp_path / "depth.png", np.broadcast_to(depth, (40, 50)))
        frame = Frame("000", WORLD, "picture.jpg", str(tmp_path / "depth.png"))
        scene = Scene("scene", tuple(objects), (frame,))
        config = ConstructionConfig(**settings)
        found = frame_records(scene, frame, config)
        return {r.object_id: r.visibility for r in found}, [o.id for o in unrecorded(scene, frame, found, config)]
    return measure


TARGET = box(0, (0, 0, 2.1), (1, 0.8, 0.2))  # from 2.0 to 2.2 m: picture pixels 25 to 75, depth pixels 12.5 to 37.5
LEFT = np.arange(50) < 25


def test_measured_depth_says_what_covers_an_object(measured):
    assert measured([TARGET], 2.1) == ({0: 1.0}, [])
    assert measured([TARGET], np.where(LEFT, 1.0, 2.1)) == ({0: 0.5}, [])  # something without a box stands before it
    assert measured([TARGET], 1.0) == ({}, [])  # wholly covered: it does not show, for certain
    assert measured([TARGET], np.where(LEFT, 2.0 - 0.09, 2.2 + 0.09)) == ({0: 1.0}, [])  # within the tolerance
    assert measured([TARGET], np.where(LEFT, 2.0 - 0.11, 2.1)) == ({0: 0.5}, [])
    assert measured([TARGET], np.where(LEFT, 2.0 - 0.11, 2.1), depth_tolerance=0.2) == ({0: 1.0}, [])
    wall = box(1, (0.5, 0, 1.1), (1, 2, 0.2))  # its box would hide the right half, the depth knows better
    assert measured([TARGET, wall], 2.1)[0][0] == 1.0


def test_air_in_a_box_neither_covers_nor_shows(measured):
    rows = np.arange(40)[:, None]
    mixed = np.where(LEFT, np.where(rows < 20, 2.1, 5.0), 1.0)  # a quarter the object, a quarter air, a half covered
    assert measured([TARGET], mixed)[0][0] == pytest.approx(1 / 3)
    assert measured([TARGET], 5.0) == ({0: 1.0}, [])  # a glass table: the sensor sees what stands behind it
    assert measured([TARGET], np.where(LEFT, 1.0, 5.0))[0][0] == pytest.approx(0.5)


def test_where_too_little_is_measured_boxes_decide(measured):
    wall = box(1, (0.5, 0, 1.1), (1, 2, 0.2))
    assert measured([TARGET, wall], 0.0)[0][0] == pytest.approx(0.5)
    some = np.where(np.arange(50) < 20, 2.1, 0.0)  # 7.5 of its 25 columns
    assert measured([TARGET, wall], some)[0][0] == pytest.approx(0.5)
    assert measured([TARGET, wall], some, min_measured=0.2)[0][0] == 1.0
    whole = box(1, (0, 0, 1.1), (2, 2, 0.2))
    assert measured([TARGET, whole], 0.0) == ({1: 1.0}, [0])  # hidden by a box only: it may show


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
       st.floats(-0.6, 0.3), st.sampled_from([0.0, 0.4, -1.9]), st.integers(0, 2))
def test_the_hull_agrees_with_dense_points_of_the_surface(center, dimensions, yaw, pitch, turn, about):
    camera = Camera(K, look(np.array([0.1, -0.2, 1.4]), yaw, pitch), 100, 80)
    item = turned(box(0, center, dimensions), turn, about)
    offset = np.array(item.axes) @ (camera.camera_to_world[:3, 3] - center)
    if (np.abs(offset) <= np.array(dimensions) / 2 + NEAR).all():
        return
    line = np.linspace(-0.5, 0.5, 161)
    a, b = (g.ravel() for g in np.meshgrid(line, line))
    faces = [np.insert(np.stack([a, b], 1), axis, side, axis=1) for axis in range(3) for side in (-0.5, 0.5)]
    points = (np.concatenate(faces) * dimensions) @ np.array(item.axes) + center
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

"""Procedural rooms: what a room promises, measured on a handful of them."""

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from configs.data_schema import ConstructionConfig, DataConfig, RoomsConfig
from data.records import frame_records
from data.scenes.furniture import CATEGORIES
from data.scenes.posed_frames import PosedFrames
from data.scenes.render import render
from data.scenes.rooms import GAP, Rooms, backdrop, frame_picture, make_room
from data.scenes.scannet import ScanNet
from data.scenes.sources import open_source
from data.scenes.types import SceneError
from data.scenes.walk import CLEARANCE, look

CONFIG = RoomsConfig()


def poses(scene):
    return np.stack([frame.camera.camera_to_world for frame in scene.frames])


def bounds(item):
    center, half = np.array(item.center), np.array(item.dimensions) / 2
    return center - half, center + half


@pytest.fixture(scope="module")
def rooms():
    return [make_room(f"room{i:05d}", CONFIG, np.random.default_rng([11, i])) for i in range(12)]


def test_furniture_stands_on_the_floor_inside_the_room_and_apart(rooms):
    for scene in rooms:
        assert [item.id for item in scene.objects] == list(range(len(scene.objects)))
        assert CONFIG.objects[0] <= len(scene.objects) <= CONFIG.objects[1]
        assert {item.label for item in scene.objects} <= set(CATEGORIES)
        (x0, y0, z0), (x1, y1, z1) = scene.room
        assert (x0, y0, z0) == (0, 0, 0) and 3 <= x1 <= 6 and 3 <= y1 <= 6 and 2.4 < z1 < 2.8
        for index, item in enumerate(scene.objects):
            low, high = bounds(item)
            assert low[2] == pytest.approx(0, abs=1e-9)
            assert (low[:2] > 0).all() and (high < (x1, y1, z1)).all()
            for other in scene.objects[:index]:
                low2, high2 = bounds(other)
                assert np.maximum(low2 - high, low - high2)[:2].max() >= GAP - 1e-9


def test_a_box_is_the_box_of_its_solids(rooms):
    for item in rooms[0].objects + rooms[1].objects:
        low = np.min([np.subtract(s.center, s.half) for s in item.solids], axis=0)
        high = np.max([np.add(s.center, s.half) for s in item.solids], axis=0)
        np.testing.assert_allclose(bounds(item), (low, high), atol=1e-12)


def test_most_sofas_and_beds_have_their_back_to_a_wall():
    scenes = [make_room("room", RoomsConfig(frames_per_room=8), np.random.default_rng([12, i])) for i in range(24)]
    turns, at_wall = set(), []
    for scene in scenes:
        for item in scene.objects:
            if item.label in ("sofa", "bed"):
                back = np.subtract(item.solids[1].center, item.center)[:2]  # towards the backrest or the pillow
                axis = int(np.abs(back).argmax())
                low, high = bounds(item)
                gap = scene.room[1][axis] - high[axis] if back[axis] > 0 else low[axis]
                turns.add((axis, back[axis] > 0))
                at_wall.append(gap < 0.05)
    assert len(turns) == 4 and len(at_wall) > 15 and np.mean(at_wall) > 0.75


def test_categories_repeat_in_some_rooms_and_not_in_others(rooms):
    most = [max(Counter(item.label for item in scene.objects).values()) for scene in rooms]
    assert {1} < set(most) <= {1, 2, 3}


def test_cameras_stand_in_free_space_and_look_slightly_down(rooms):
    for scene in rooms:
        top = np.array(scene.room[1])
        for pose in poses(scene):
            position, rotation = pose[:3, 3], pose[:3, :3]
            np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
            assert np.linalg.det(rotation) == pytest.approx(1)
            assert rotation[2, 0] == pytest.approx(0, abs=1e-12) and rotation[2, 1] < 0  # no roll, y points down
            assert -32.01 <= np.degrees(np.arcsin(rotation[2, 2])) <= -5.99
            assert 1.2 <= position[2] <= 1.9
            assert (position[:2] > CLEARANCE).all() and (position[:2] < top[:2] - CLEARANCE).all()
            for item in scene.objects:
                low, high = bounds(item)
                outside = np.maximum(np.maximum(low - position, position - high)[:2], 0)
                assert np.linalg.norm(outside) > CLEARANCE


def test_the_walk_is_smooth_and_turns_one_way_round(rooms):
    for scene in rooms:
        every = poses(scene)
        steps = np.linalg.norm(np.diff(every[:, :3, 3], axis=0), axis=1)
        yaw = np.unwrap(np.arctan2(every[:, 1, 2], every[:, 0, 2]))
        assert steps.max() < 1.6 and np.median(steps) < 0.8
        assert np.degrees(np.abs(np.diff(yaw))).max() < 55
        assert 180 < np.degrees(abs(yaw[-1] - yaw[0])) < 460


def test_pictures_are_square_with_a_moderate_field_of_view(rooms):
    for scene in rooms:
        assert [frame.name for frame in scene.frames] == [f"{i:03d}" for i in range(CONFIG.frames_per_room)]
        for frame in scene.frames:
            camera = frame.camera
            assert frame.image is None and camera.width == camera.height == CONFIG.image_size
            assert 65 <= np.degrees(2 * np.arctan(camera.width / 2 / camera.intrinsics[0, 0])) <= 75
            assert camera.intrinsics[0, 2] == camera.intrinsics[1, 2] == camera.width / 2


def test_most_pictures_show_several_usable_objects(rooms):
    limits = ConstructionConfig()
    counts, seen, pieces = [], 0, 0
    for scene in rooms[:6]:
        found = set()
        for frame in scene.frames:
            usable = [r for r in frame_records(scene, frame) if r.visibility >= limits.min_visible
                      and r.area >= limits.min_area and r.truncation <= limits.max_truncation]
            counts.append(len(usable))
            found |= {r.object_id for r in usable}
        seen, pieces = seen + len(found), pieces + len(scene.objects)
    assert np.mean(counts) > 2 and np.mean(np.array(counts) >= 2) > 0.7
    assert seen / pieces > 0.85


def test_rooms_are_a_source_of_scenes_by_name():
    source = pickle.loads(pickle.dumps(Rooms(CONFIG.model_copy(update={"train_rooms": 3, "heldout_rooms": 2}), seed=7)))
    assert source.scene_ids() == ["train00000", "train00001", "train00002", "heldout00000", "heldout00001"]
    for split, index, name in ((0, 2, "train00002"), (1, 1, "heldout00001")):
        scene = source.load(name)
        same = make_room(name, CONFIG, np.random.default_rng([7, split, index]))
        assert scene.id == name and scene.objects == same.objects and (poses(scene) == poses(same)).all()
    with pytest.raises(SceneError, match=r"scene train00000: .*60 pieces of furniture do not fit") as caught:
        Rooms(RoomsConfig(objects=(60, 60)), 0).load("train00000")
    assert caught.value.field == "data.rooms.objects"
    for unknown in ("train00003", "heldout2", "train0", "train", "00001", "val00000", "train-0001"):
        with pytest.raises(KeyError):
            source.load(unknown)


def test_the_configuration_names_the_source(tmp_path):
    assert open_source(DataConfig(), 3) == Rooms(RoomsConfig(), 3)
    posed = open_source(DataConfig(source=str(tmp_path)), 3)
    assert posed == PosedFrames(str(tmp_path))
    scans = DataConfig(source="scans", source_format="scannet", scannet={"every_nth": 50})
    assert open_source(scans, 3) == ScanNet("scans", 50, scans.scannet.drop_labels)
    assert {"wall", "floor", "ceiling", "remove"} <= set(scans.scannet.drop_labels)


def test_a_room_is_a_function_of_its_generator():
    def numbers(seed, name="room00001"):
        scene = make_room(name, CONFIG, np.random.default_rng(seed))
        return scene.objects, poses(scene).tobytes()

    np.random.seed(1)
    first = numbers(5)
    np.random.seed(2)
    assert numbers(5, "another") == first
    assert numbers(6) != first


def test_pictures_repeat_and_differ_in_colour_by_scene(rooms):
    scene = rooms[0]
    one, two = frame_picture(scene, scene.frames[0]), frame_picture(scene, scene.frames[0])
    assert one.rgb.tobytes() == two.rgb.tobytes() and one.rgb.shape == (168, 168, 3)
    assert set(np.unique(one.instance)) <= {-1, *(item.id for item in scene.objects)}
    renamed = replace(scene, id="other")
    assert backdrop(renamed) != backdrop(scene)
    np.testing.assert_array_equal(frame_picture(renamed, scene.frames[0]).instance, one.instance)
    plain = render(scene.objects, scene.frames[0].camera, scene.room)
    np.testing.assert_array_equal(plain.instance, one.instance)


def test_other_sizes_and_counts():
    config = RoomsConfig(image_size=64, objects=(1, 2), frames_per_room=9)
    for seed in range(5):
        scene = make_room("small", config, np.random.default_rng(seed))
        assert len(scene.frames) == 9 and scene.frames[0].camera.width == 64 and len(scene.objects) in (1, 2)


def test_more_furniture_than_a_floor_holds_is_refused():
    with pytest.raises(ValueError, match=r"room full: 60 pieces .*lower data\.rooms\.objects"):
        make_room("full", RoomsConfig(objects=(60, 60)), np.random.default_rng(0))
    with pytest.raises(ValueError, match="fewest <= most"):
        make_room("odd", RoomsConfig(objects=(5, 3)), np.random.default_rng(0))


def test_look_by_hand():
    pose = look(np.array([1.0, 2.0, 1.5]), np.pi / 2, 0.0)  # along world +y
    expected = [[1, 0, 0, 1], [0, 0, 1, 2], [0, -1, 0, 1.5], [0, 0, 0, 1]]
    np.testing.assert_allclose(pose, expected, atol=1e-12)
    assert look(np.zeros(3), 0.0, -0.5)[2, 2] == pytest.approx(-np.sin(0.5))

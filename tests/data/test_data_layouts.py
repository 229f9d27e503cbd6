"""Layouts from VSI-Bench's meta-information: the boxes stay what they are, and cameras look at them."""

import copy
import gzip
import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from configs.data_schema import ConstructionConfig, DataConfig, LayoutsConfig
from data.facts import AreaFacts
from data.records import frame_records
from data.scenes.layouts import CEILING, MARGIN, Layouts
from data.scenes.render import corners
from data.scenes.rooms import frame_picture
from data.scenes.sources import open_source
from data.scene_questions import view_scene
from data.scenes.types import ALIGNED, SceneError, SourceError

META = Path(__file__).resolve().parents[3] / "shared" / "data" / "vsibench_meta" / "scannet_val.json.gz"
CONFIG = LayoutsConfig(image_size=112, frames_per_scene=8)
YAW = Rotation.from_euler("z", 25, degrees=True).as_matrix()
DROP = object()


def box(center, sizes, axes=np.eye(3)):
    return {"centroid": list(center), "axesLengths": list(sizes), "normalizedAxes": np.asarray(axes).ravel().tolist()}


def document():
    """A room of 4 x 3 m turned by 25 degrees: things in its four corners and a lamp whose box lies on its side."""
    places = {"cabinet": [(0.5, 0.5, 0.6)], "chair": [(3.5, 0.4, 0.5), (3.5, 2.6, 0.5)], "bed": [(0.7, 1.9, 0.25)]}
    sizes = {"cabinet": (1, 1, 1.2), "chair": (1, 0.8, 1), "bed": (1.4, 2.2, 0.5)}
    rows = YAW.T
    boxes = {label: [box(YAW @ place + (10, 20, -1), sizes[label], rows) for place in several]
             for label, several in places.items()}
    boxes["lamp"] = [box(YAW @ (2.0, 1.5, 0.8) + (10, 20, -1), (1.6, 0.3, 0.4), rows[[2, 0, 1]])]
    middle = YAW @ (2.0, 1.5, 1.0) + (10, 20, -1)
    return {"room_a": {"room_size": 11.5, "room_center": middle.tolist(), "object_bbox": boxes, "dataset": "own"},
            "big": {"room_size": 60.0, "room_center": middle.tolist(), "object_bbox": boxes}}


def write(folder, content, name="meta.json"):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(folder / name)


@pytest.mark.parametrize("name", ["meta.json", "meta.json.gz"])
def test_a_layout_lies_along_its_walls(tmp_path, name):
    source = pickle.loads(pickle.dumps(Layouts(write(tmp_path, document(), name), CONFIG, 0)))
    assert source.scene_ids() == ["big", "room_a"]
    scene = source.load("room_a")
    assert [(item.id, item.label) for item in scene.objects] == [
        (0, "cabinet"), (1, "chair"), (2, "chair"), (3, "bed"), (4, "lamp")]
    assert scene.room_area == 11.5
    np.testing.assert_allclose(scene.room, ((0, 0, 0), (4 + 2 * MARGIN, 3 + 2 * MARGIN, CEILING)), atol=1e-9)
    centers = np.array([item.center for item in scene.objects])
    expected = np.array([(0.5, 0.5, 0.6), (3.5, 0.4, 0.5), (3.5, 2.6, 0.5), (0.7, 1.9, 0.25), (2, 1.5, 0.8)])
    np.testing.assert_allclose(centers, expected + (MARGIN, MARGIN, 0), atol=1e-9)
    np.testing.assert_allclose([item.hull for item in scene.objects],
                               [(1, 1, 1.2), (1, 0.8, 1), (1, 0.8, 1), (1.4, 2.2, 0.5), (0.3, 0.4, 1.6)], atol=1e-9)
    assert scene.objects[4].dimensions == (1.6, 0.3, 0.4)  # the file's own order of sizes


def test_a_larger_room_gets_its_area_and_its_middle(tmp_path):
    scene = Layouts(write(tmp_path, document()), CONFIG, 0).load("big")
    (x, y, _) = scene.room[1]
    assert x * y == pytest.approx(60) == scene.room_area and x / y == pytest.approx(4.1 / 3.1)
    lamp = scene.objects[4]
    assert lamp.center[:2] == pytest.approx((x / 2, y / 2))


def test_the_area_is_asked_only_where_the_walls_show_it(tmp_path):
    """Of 11.5 m2 the drawn walls enclose more, as the real room has more corners; of 60 m2 as much."""
    source = Layouts(write(tmp_path, document()), CONFIG, 0)
    view = {name: view_scene(source.load(name), (), {}, ConstructionConfig()).room for name in source.scene_ids()}
    assert view == {"big": AreaFacts(60.0), "room_a": None}
    larger = ConstructionConfig(floor_tolerance=0.25)
    assert view_scene(source.load("room_a"), (), {}, larger).room == AreaFacts(11.5)


def test_solids_fill_the_boxes_upright_and_with_their_backs_outwards(tmp_path):
    scene = Layouts(write(tmp_path, document()), CONFIG, 0).load("room_a")
    for item in scene.objects:
        points = np.concatenate([corners(s.center, 2 * np.array(s.half), s.axes) for s in item.solids])
        local = (points - item.center) @ np.array(item.axes).T
        np.testing.assert_allclose([local.min(0), local.max(0)], np.array([[-0.5], [0.5]]) * item.dimensions, atol=1e-9)
        assert all(solid.axes[2] == pytest.approx((0, 0, 1)) for solid in item.solids)
    chair = scene.objects[1]
    back = max(chair.solids, key=lambda solid: solid.center[2])  # lower right corner of the room: the back looks down
    assert back.center[1] < chair.center[1] - 0.2 and back.center[0] == pytest.approx(chair.center[0])
    lamp = scene.objects[4]
    assert [s.kind for s in lamp.solids] == ["cylinder", "box", "cylinder"]
    assert lamp.solids[2].center[2] > lamp.center[2] > lamp.solids[0].center[2]


def test_cameras_are_a_function_of_seed_and_scene(tmp_path):
    path = write(tmp_path, document())
    first, again, other = (Layouts(path, CONFIG, seed).load("room_a") for seed in (0, 0, 1))
    assert len(first.frames) == 8 and [f.name for f in first.frames][:2] == ["000", "001"]
    poses = [np.stack([f.camera.camera_to_world for f in scene.frames]) for scene in (first, again, other)]
    assert (poses[0] == poses[1]).all() and (poses[0] != poses[2]).any()
    for frame in first.frames:
        assert frame.image is None and frame.camera.width == 112
        x, y, z = frame.camera.camera_to_world[:3, 3]
        assert 0 < x < first.room[1][0] and 0 < y < first.room[1][1] and 1.2 <= z <= 1.9
    drawn = frame_picture(first, first.frames[0])
    assert drawn.rgb.shape == (112, 112, 3) and (drawn.instance >= 0).any()
    assert open_source(DataConfig(source=path, source_format="layouts"), 4) == Layouts(path, LayoutsConfig(), 4)


FAULTS = [
    (("room_size",), DROP, "room_size", "missing"), (("room_size",), -3, "room_size", "square metres"),
    (("room_center",), [1, 2], "room_center", "3 finite numbers"),
    (("object_bbox",), DROP, "object_bbox", "missing"), (("object_bbox",), [], "object_bbox", "must map"),
    (("object_bbox",), {"chair": []}, "object_bbox", "has no boxes"),
    (("object_bbox", "chair"), {"0": 1}, "object_bbox", "must map"),
    (("object_bbox", "chair", 1), 5, "object_bbox.chair[1].normalizedAxes", "missing"),
    (("object_bbox", "chair", 1, "centroid"), DROP, "object_bbox.chair[1].centroid", "missing"),
    (("object_bbox", "chair", 1, "centroid", 0), float("nan"), "object_bbox.chair[1].centroid", "finite"),
    (("object_bbox", "chair", 1, "centroid", 0), "east", "object_bbox.chair[1].centroid", "finite"),
    (("object_bbox", "chair", 1, "axesLengths", 2), 0, "object_bbox.chair[1].axesLengths", "must be positive"),
    (("object_bbox", "chair", 1, "normalizedAxes", 0), 3.0, "object_bbox.chair[1].normalizedAxes", "perpendicular"),
]


@pytest.mark.parametrize("path, value, field, reason", FAULTS, ids=[f"{'.'.join(map(str, f[0]))} {f[3]}" for f in FAULTS])
def test_a_bad_scene_is_named_and_stands_alone(tmp_path, path, value, field, reason):
    content = copy.deepcopy(document())
    place = content["room_a"] = copy.deepcopy(content["room_a"])
    for key in path[:-1]:
        place = place[key]
    if value is DROP:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    source = Layouts(write(tmp_path, content), CONFIG, 0)
    with pytest.raises(SceneError) as caught:
        source.load("room_a")
    assert (caught.value.scene, str(caught.value.file), caught.value.field) == ("room_a", source.file, field)
    assert reason in caught.value.reason
    assert source.load("big").id == "big"
    with pytest.raises(KeyError):
        source.load("room_b")


def test_a_room_without_a_free_place(tmp_path):
    content = document()
    content["room_a"]["object_bbox"] = {"block": [box((0, 0, 1), (4, 3, 2))]}
    with pytest.raises(SceneError, match="no place for a camera"):
        Layouts(write(tmp_path, content), CONFIG, 0).load("room_a")


def test_scenes_that_cannot_name_a_folder(tmp_path):
    with pytest.raises(SourceError, match="'../up' cannot name a folder"):
        Layouts(write(tmp_path, {"../up": document()["big"]}), CONFIG, 0).scene_ids()


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b"\xff"])
def test_files_that_are_none(tmp_path, content):
    for name in ("a.json", "a.json.gz"):
        with pytest.raises(SourceError, match="Point data.source at"):
            Layouts(write(tmp_path, content, name), CONFIG, 0).scene_ids()
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b"{}" * 1000)[:-9])
    for path in ("cut.json.gz", "none.json"):
        with pytest.raises(SourceError, match="cannot be read"):
            Layouts(str(tmp_path / path), CONFIG, 0).scene_ids()


# The real file ----------------------------------------------------------------------------------------------------

meta = pytest.mark.skipif(not META.is_file(), reason="no VSI-Bench meta-information in ../shared/data/vsibench_meta")
#: (scene, label): the file's count, and the boxes that it lists.
DIFFERENT_COUNTS = {
    ("scene0050_01", "printer"): (1, 2), ("scene0077_01", "printer"): (3, 6), ("scene0144_00", "printer"): (1, 2),
    ("scene0207_02", "printer"): (1, 2), ("scene0378_01", "printer"): (1, 2), ("scene0462_00", "printer"): (1, 2),
    ("scene0474_04", "chair"): (3, 4), ("scene0500_00", "chair"): (38, 39), ("scene0500_00", "window"): (7, 5),
    ("scene0565_00", "printer"): (2, 4), ("scene0593_00", "printer"): (1, 2), ("scene0704_01", "printer"): (1, 2)}


@pytest.fixture(scope="module")
def real():
    source = Layouts(str(META), CONFIG, 0)
    with gzip.open(META) as file:
        raw = json.load(file)
    return raw, {name: source.load(name) for name in source.scene_ids()}


@meta
def test_every_scene_has_the_files_boxes_and_sizes(real):
    raw, scenes = real
    assert len(scenes) == 88 and sum(len(scene.objects) for scene in scenes.values()) == 1224
    for name, scene in scenes.items():
        boxes = [(label, entry) for label, entries in raw[name]["object_bbox"].items() for entry in entries]
        assert [item.label for item in scene.objects] == [label for label, _ in boxes]
        assert scene.room_area == raw[name]["room_size"]
        np.testing.assert_allclose([item.dimensions for item in scene.objects], [entry["axesLengths"] for _, entry in boxes])
        theirs = np.array([entry["centroid"] for _, entry in boxes])
        ours = np.array([item.center for item in scene.objects])
        for points in (theirs, ours):  # distances, heights above one another, and the sense of turning
            points -= points[0]
        apart = (np.linalg.norm(points[:, None] - points, axis=-1) for points in (ours, theirs))
        np.testing.assert_allclose(*apart)
        np.testing.assert_allclose(ours[:, 2], theirs[:, 2], atol=1e-9)
        turns = (np.multiply.outer(p[:, 0], p[:, 1]) - np.multiply.outer(p[:, 1], p[:, 0]) for p in (ours, theirs))
        np.testing.assert_allclose(*turns, atol=1e-9)
        upright = np.array([np.reshape(entry["normalizedAxes"], (3, 3))[:, 2] for _, entry in boxes])
        np.testing.assert_allclose([np.array(item.axes)[:, 2] for item in scene.objects], upright, atol=1e-9)


@meta
def test_the_counts_that_differ_are_known(real):
    raw, scenes = real
    found = {}
    for name, scene in scenes.items():
        listed = Counter(item.label for item in scene.objects)
        stated = raw[name]["object_counts"]
        found |= {(name, label): (stated.get(label, 0), listed[label]) for label in {*listed, *stated}
                  if stated.get(label, 0) != listed[label]}
    assert found == DIFFERENT_COUNTS


@meta
def test_real_rooms_hold_their_things_and_are_about_as_large_as_stated(real):
    _, scenes = real
    shares = []
    for scene in scenes.values():
        outline = np.concatenate([corners(item.center, item.dimensions, item.axes) for item in scene.objects])
        assert (outline.min(axis=0) >= (MARGIN - 1e-9, MARGIN - 1e-9, -1e-9)).all()
        assert outline[:, 2].min() == pytest.approx(0, abs=1e-9)
        assert (outline.max(axis=0)[:2] <= np.array(scene.room[1])[:2] - MARGIN + 1e-9).all()
        shares.append(scene.room_area / np.prod(scene.room[1][:2]))
        assert any(item.axes != ALIGNED for item in scene.objects)
    assert max(shares) <= 1 + 1e-9 and min(shares) > 0.55 and np.median(shares) > 0.8


@meta
def test_real_rooms_are_seen(real):
    _, scenes = real
    seen = []
    for scene in list(scenes.values())[::18]:
        clear = {r.object_id for frame in scene.frames for r in frame_records(scene, frame) if r.visibility > 0.3}
        seen.append(len(clear) / len(scene.objects))
    assert np.mean(seen) > 0.7

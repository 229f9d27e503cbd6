"""ScanNet's layout, read from a room written in it: boxes, poses, depth and floor against the room's own numbers."""

import json
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image
from scannet_cases import (
    AREA, BOXES, COLOR, COLOR_K, DEPTH, DEPTH_K, POSES, ROOM, SCENE, ply, shot, write_scene,
)

from data.records import frame_records
from data.scenes.depth import measured_depth
from data.scenes.floor import outline_area
from data.scenes.ply import read_vertices
from data.scenes.scannet import THINNEST, ScanNet, export_frames
from data.scenes.types import SceneError, SourceError

DROP = ("wall", "floor", "ceiling")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("scans")
    write_scene(root)
    assert list(export_frames(root, SCENE, 1)) == [0, 1, 3, 4]
    return root


@pytest.fixture(scope="module")
def scene(folder):
    return ScanNet(str(folder), 1, DROP).load(SCENE)


def test_boxes_are_the_hulls_of_the_aligned_vertices(scene):
    assert [item.id for item in scene.objects] == list(BOXES)
    for item in scene.objects:
        label, center, size = BOXES[item.id]
        assert item.label == label
        np.testing.assert_allclose(item.center, center, atol=1e-5)
        np.testing.assert_allclose(item.dimensions, np.maximum(size, THINNEST), atol=1e-5)
        assert item.solids[0].center == item.center and item.solids[0].half == tuple(s / 2 for s in item.dimensions)


def test_the_room_is_what_was_annotated(scene):
    np.testing.assert_allclose(scene.room, ROOM, atol=1e-5)
    assert scene.room_area == pytest.approx(AREA, rel=0.01)  # an L, not its hull of 20


def test_structure_is_dropped_by_its_label_in_any_case(folder):
    kept = ScanNet(str(folder), 1, ("CEILING", "Table")).load(SCENE)
    assert [item.label for item in kept.objects] == ["floor", "Wall", "office chair", "picture"]


def test_a_thing_that_is_annotated_twice_counts_once(folder, tmp_path):
    shutil.copytree(folder / SCENE, tmp_path / SCENE, ignore=shutil.ignore_patterns("*.sens"))
    document = json.loads((tmp_path / SCENE / AGGREGATION).read_text())
    document["segGroups"] += [group | {"objectId": group["objectId"] + 100} for group in document["segGroups"]]
    (tmp_path / SCENE / AGGREGATION).write_text(json.dumps(document))
    assert [item.id for item in ScanNet(str(tmp_path), 3, DROP).load(SCENE).objects] == list(BOXES)


def test_frames_are_aligned_and_those_without_a_pose_are_left_out(folder, scene):
    assert [frame.name for frame in scene.frames] == ["0", "1", "3", "4"]
    for frame in scene.frames:
        np.testing.assert_allclose(frame.camera.camera_to_world, POSES[int(frame.name)], atol=5e-6)
        np.testing.assert_allclose(frame.camera.intrinsics, COLOR_K)
        np.testing.assert_allclose(frame.depth_intrinsics, DEPTH_K)
        assert (frame.camera.width, frame.camera.height) == COLOR
        assert Image.open(frame.image).size == COLOR and Image.open(frame.depth).size == DEPTH
    every_third = ScanNet(str(folder), 3, DROP).load(SCENE)
    assert [frame.name for frame in every_third.frames] == ["0", "3"]


def export_of(folder, tmp_path, *numbers, lost=()):
    """A copy of the scene with pictures of these numbers only, whatever they show; `lost`: with a pose that is not finite."""
    place = tmp_path / SCENE
    shutil.copytree(folder / SCENE, place, ignore=shutil.ignore_patterns("*.sens", "depth", "[1-9].jpg", "[1-9].txt"))
    for number in numbers:
        shutil.copy(place / "color" / "0.jpg", place / "color" / f"{number}.jpg")
        shutil.copy(place / "pose" / "0.txt", place / "pose" / f"{number}.txt")
    for number in lost:
        (place / "pose" / f"{number}.txt").write_text("-inf " * 16)
    return tmp_path


def names(source, every_nth):
    return [int(frame.name) for frame in ScanNet(str(source), every_nth, DROP).load(SCENE).frames]


def test_frames_are_not_thinned_twice_in_silence(folder, tmp_path):
    source = export_of(folder, tmp_path, 4, 8, 12)
    assert names(source, 1) == names(source, 2) == names(source, 4) == [0, 4, 8, 12] and names(source, 8) == [0, 8]
    with pytest.raises(SceneError, match="3 of the 5 frames whose number is a multiple of 3 .*, frame 3 the first") as caught:
        names(source, 3)
    assert caught.value.file == source / SCENE / "color"
    assert "FOLDER --every 3`" in caught.value.action and "every_nth to 4, with" in caught.value.action


def test_a_folder_with_two_exports_is_thinned_by_what_one_of_them_has(folder, tmp_path):
    source = export_of(folder, tmp_path, *range(20, 241, 20), *range(30, 241, 30))
    assert names(source, 20) == list(range(0, 241, 20)) and names(source, 30) == list(range(0, 241, 30))
    assert names(source, 40) == list(range(0, 241, 40)) and names(source, 10)[:5] == [0, 20, 30, 40, 60]  # all there are
    with pytest.raises(SceneError, match="1 of the 5 frames .*, frame 50 the first"):  # 100, 150, 200 are
        names(source, 50)


def test_frames_that_are_lost_are_not_missed(folder, tmp_path):
    """Their pose says so. One frame of an export that stopped vouches for none of those behind it."""
    source = export_of(folder, tmp_path, *range(20, 201, 20), lost=[50, 150])
    assert names(source, 50) == [0, 100, 200]
    (source / SCENE / "pose" / "150.txt").unlink()
    with pytest.raises(SceneError, match="1 of the 5 frames .*, frame 150 the first"):
        names(source, 50)
    shutil.copy(source / SCENE / "pose" / "0.txt", source / SCENE / "pose" / "150.txt")  # tracked: its picture is missing
    with pytest.raises(SceneError, match="1 of the 5 frames .*, frame 150 the first"):
        names(source, 50)
    for part, name in (("pose", "{}.txt"), ("color", "{}.jpg")):
        shutil.copy(source / SCENE / part / name.format(0), source / SCENE / part / name.format(50))
    with pytest.raises(SceneError, match="1 of the 5 frames .*, frame 150 the first"):
        names(source, 50)


def test_pictures_named_by_the_time(folder, tmp_path):
    source = export_of(folder, tmp_path, 1305031102175, 1305031102195)
    with pytest.raises(SceneError, match="65251555109 of the 65251555110 frames .*, frame 20 the first"):
        names(source, 20)


def test_what_was_refused_is_read_after_the_export_that_was_asked_for(folder, tmp_path):
    shutil.copytree(folder / SCENE, tmp_path / SCENE)
    for part in ("color", "pose"):
        for path in [path for path in (tmp_path / SCENE / part).iterdir() if path.stem != "3"]:
            path.unlink()
    with pytest.raises(SceneError, match="`ladder data frames FOLDER --every 2`"):
        names(tmp_path, 2)
    assert list(export_frames(tmp_path, SCENE, 2)) == [0, 4]  # 2 is lost
    assert names(tmp_path, 2) == [0, 4]


def test_a_scene_without_any_pose(tmp_path):
    place = write_scene(tmp_path)
    list(export_frames(tmp_path, SCENE, 1))
    (place / "pose" / "0.txt").write_text("-inf " * 16)
    with pytest.raises(SceneError, match="none of the 1 frames whose number is a multiple of 9") as caught:
        ScanNet(str(tmp_path), 9, DROP).load(SCENE)
    assert caught.value.file == place / "pose"


def test_measured_depth_is_that_of_the_room(scene):
    for frame in scene.frames:
        found = measured_depth(frame, frame.camera)
        true = shot(int(frame.name), COLOR, COLOR_K)
        near = np.isfinite(found) & np.isfinite(true.depth)
        assert near.mean() > 0.05
        assert np.median(np.abs(found - true.depth)[near]) < 0.01
        assert (np.abs(found - true.depth)[near] < 0.05).mean() > 0.9  # the rest lies on outlines
        # Where the room's things are not, the capture knows nothing: the walls of the room are a backdrop.
        assert (np.isfinite(found) == np.isfinite(true.depth)).mean() > 0.95


def test_boxes_are_drawn_where_the_pictures_show_things(scene):
    compared = 0
    for frame in scene.frames:
        drawn = shot(int(frame.name), COLOR, COLOR_K).instance
        for record in frame_records(scene, frame):
            if record.truncation == 0 and record.visibility == 1:
                ys, xs = np.nonzero(drawn == record.object_id)
                np.testing.assert_allclose(record.box2d, (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1), atol=1.1)
                compared += 1
    assert compared == 3


def test_smaller_pictures_scale_the_intrinsics(tmp_path):
    place = write_scene(tmp_path)
    list(export_frames(tmp_path, SCENE, 1))
    for path in (place / "color").iterdir():
        Image.open(path).resize((48, 36)).save(path)
    (frame, *_) = ScanNet(str(tmp_path), 1, DROP).load(SCENE).frames
    np.testing.assert_allclose(frame.camera.intrinsics, np.diag([0.5, 0.5, 1]) @ COLOR_K)
    assert (frame.camera.width, frame.camera.height) == (48, 36)


def test_pictures_without_depth(tmp_path):
    place = write_scene(tmp_path)
    list(export_frames(tmp_path, SCENE, 1))
    (place / "depth").rename(place / "elsewhere")
    scene = ScanNet(str(tmp_path), 1, DROP).load(SCENE)
    assert len(scene.frames) == 4 and all(f.depth is None and f.depth_intrinsics is None for f in scene.frames)


def test_scenes_are_listed_without_being_read_and_one_bad_scene_stands_alone(folder, tmp_path):
    for name in ("scene0002_00", "scene0001_01", "notes", "scene0001_00.zip"):
        (tmp_path / name).mkdir()
    (tmp_path / SCENE).symlink_to(folder / SCENE)
    source = pickle.loads(pickle.dumps(ScanNet(str(tmp_path), 2, DROP)))
    assert source.scene_ids() == [SCENE, "scene0001_01", "scene0002_00"]
    assert [frame.name for frame in source.load(SCENE).frames] == ["0", "4"]
    with pytest.raises(SceneError, match="No such file") as caught:
        source.load("scene0001_01")
    error = pickle.loads(pickle.dumps(caught.value))
    assert error.scene == "scene0001_01" and error.file.name == "scene0001_01.txt" and error.field == "whole file"
    for unknown in ("scene0009_00", "notes", "../scans"):
        with pytest.raises(KeyError):
            source.load(unknown)
    with pytest.raises(SourceError, match="called like scene0000_00.*Point data.source at") as caught:
        ScanNet(str(tmp_path / "notes"), 1, DROP).scene_ids()
    assert f"ladder data frames {tmp_path / 'notes'} --every 1\n" in str(caught.value)
    with pytest.raises(SourceError):
        ScanNet(str(tmp_path / "nowhere"), 1, DROP).scene_ids()


def _text(edit):
    return lambda path: path.write_text(edit(path.read_text()))


def _json(edit):
    def change(path):
        document = json.loads(path.read_text())
        edit(document)
        path.write_text(json.dumps(document))
    return change


AGGREGATION, SEGS, MESH, TXT = (SCENE + end for end in (
    ".aggregation.json", "_vh_clean_2.0.010000.segs.json", "_vh_clean_2.ply", ".txt"))
FAULTS = [
    (TXT, lambda path: path.unlink(), "whole file", "No such file"),
    (TXT, _text(lambda text: text.replace("axisAlignment", "other")), "axisAlignment", "is missing"),
    (TXT, _text(lambda text: text.replace("axisAlignment = ", "axisAlignment = 1 ")), "axisAlignment", "not 4x4 numbers"),
    (TXT, _text(lambda text: text.replace("axisAlignment = ", "axisAlignment = 8")), "axisAlignment", "no rigid motion"),
    (TXT, _text(lambda text: text.replace("depthWidth", "width")), "depthWidth, depthHeight", "missing"),
    (AGGREGATION, _text(lambda text: text[:-2]), "whole file", "not JSON"),
    (AGGREGATION, _text(lambda text: "[]"), "whole file", "no JSON object"),
    (AGGREGATION, _json(lambda d: d.update(segGroups=[])), "segGroups", "at least one"),
    (AGGREGATION, _json(lambda d: d["segGroups"][2].update(label=None)), "segGroups[2]", "no label"),
    (AGGREGATION, _json(lambda d: d["segGroups"][2].update(segments=["1"])), "segGroups[2].segments", "whole numbers"),
    (AGGREGATION, _json(lambda d: d["segGroups"][3].update(segments=[5])), "segGroups[3].segments", "segment 5 of 'table'"),
    (AGGREGATION, _json(lambda d: d["segGroups"][3].update(objectId=3)), "segGroups[3].objectId", "3 is used twice"),
    (SEGS, _json(lambda d: d["segIndices"].pop()), "segIndices", "vertices of the mesh"),
    (SEGS, _json(lambda d: d.update(segIndices=[0.5] * len(d["segIndices"]))), "segIndices", "whole number"),
    (MESH, lambda path: path.write_bytes(path.read_bytes()[:-5000]), "whole file", "ends after"),
    (MESH, lambda path: path.write_bytes(path.read_bytes().replace(b"little", b"big", 1)), "whole file", "little_endian"),
    ("pose/3.txt", lambda path: path.unlink(), "whole file", "No such file"),
    ("pose/3.txt", lambda path: path.write_text("1 0 0"), "whole file", "not 4x4 numbers"),
    ("pose/3.txt", lambda path: path.write_text("2 " * 16), "whole file", "no rigid motion"),
    ("color/3.jpg", lambda path: path.write_bytes(path.read_bytes()[:900]), "whole file", "cannot be decoded"),
    ("color/3.jpg", lambda path: Image.new("RGB", (9, 9)).save(path), "size", "is (9, 9), that of 0.jpg is (96, 72)"),
    ("depth/4.png", lambda path: path.unlink(), "whole file", "cannot be decoded"),
    ("intrinsic/intrinsic_color.txt", lambda path: path.unlink(), "whole file", "No such file"),
    ("intrinsic/intrinsic_depth.txt", lambda path: path.write_text("0 " * 16), "whole file", "no pinhole matrix"),
    ("color", lambda path: path.rename(path.with_name("colour")), "folder", "no pictures"),
]


@pytest.mark.parametrize("file, damage, field, reason", FAULTS,
                         ids=[f"{fault[0].removeprefix(SCENE)} {fault[3][:24]}" for fault in FAULTS])
def test_faults_are_named_by_scene_file_and_reason(folder, tmp_path, file, damage, field, reason):
    shutil.copytree(folder / SCENE, tmp_path / SCENE, ignore=shutil.ignore_patterns("*.sens"))
    damage(tmp_path / SCENE / file)
    with pytest.raises(SceneError) as caught:
        ScanNet(str(tmp_path), 1, DROP).load(SCENE)
    error = caught.value
    assert (error.scene, error.file, error.field) == (SCENE, tmp_path / SCENE / file, field)
    assert reason in error.reason and error.action


def test_other_meshes(tmp_path):
    path = tmp_path / "a.ply"
    path.write_bytes(ply(np.array([[1.5, -2, 3], [4, 5, 6]])))
    assert read_vertices(path).tolist() == [[1.5, -2, 3], [4, 5, 6]]
    header = ("ply\nformat binary_little_endian 1.0\nelement vertex 1\n"
              "property {} z\nproperty double y\nproperty short x\nend_header\n")
    path.write_bytes(header.format("float32").encode() + np.float32(7).tobytes() + np.float64(0.1).tobytes() + b"\xfe\xff")
    assert read_vertices(path).tolist() == [[-2, 0.1, 7]]
    for content, reason in ((b"solid", "not a PLY"), (header.format("list uchar int").encode(), "not a plain number"),
                            (header.replace(" x", " w").format("float").encode(), "no x, y, z"),
                            (b"ply\nformat binary_little_endian 1.0\nelement face 1\nend_header\n", "does not begin")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            read_vertices(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_vertex_that_is_nowhere_is_refused_with_the_mesh(folder, tmp_path, value):
    shutil.copytree(folder / SCENE, tmp_path / SCENE, ignore=shutil.ignore_patterns("*.sens"))
    points = read_vertices(tmp_path / SCENE / MESH)
    points[-1, 2] = value  # of the last thing, the picture on the wall
    (tmp_path / SCENE / MESH).write_bytes(ply(points))
    with pytest.raises(SceneError, match=f"position of 1 of {len(points)} vertices is not finite") as caught:
        ScanNet(str(tmp_path), 1, DROP).load(SCENE)
    assert caught.value.file == tmp_path / SCENE / MESH


def test_the_outline_of_a_floor():
    square = np.stack(np.meshgrid(np.linspace(0, 3, 61), np.linspace(0, 2, 41)), -1).reshape(-1, 2)
    assert outline_area(square) == pytest.approx(6)
    hole = square[~((np.abs(square - (1.5, 1)) < 0.3).all(axis=1))]
    assert outline_area(hole) == pytest.approx(6)  # bridged: half a metre wide
    far = np.concatenate([square, square + (10, 0)])
    assert outline_area(far) == pytest.approx(12)
    assert outline_area(np.stack([np.linspace(0, 3, 50)] * 2, 1)) == 0
    assert outline_area(np.zeros((2, 2))) == 0
    turned = square @ np.array([[0.6, 0.8], [-0.8, 0.6]])
    assert outline_area(turned) == pytest.approx(6, rel=0.01)

"""Real scenes from scene.json: what is read, what is refused, and the ScanNet sample where it is at hand."""

import copy
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scene_cases import posed_scenes

from data.records import frame_records
from data.scenes.depth import measured_depth
from data.scenes.posed_frames import PosedFrames
from data.scenes.types import ALIGNED, SceneError, SourceError

SAMPLE = Path(__file__).resolve().parents[3] / "shared" / "data" / "scannet_sample"
EYE = np.eye(4).tolist()
DROP = object()


def document():
    pose = copy.deepcopy(EYE)
    pose[0][3] = 0.5
    return {"scene": "flat_00", "dataset": "own", "units": "metres", "image_width": 64, "image_height": 48,
            "intrinsics": [[50, 0, 32], [0, 50, 24], [0, 0, 1]], "axis_align": EYE,
            "frames": [{"file": "frames/0.png", "camera_to_world": EYE},
                       {"file": "frames/1.png", "camera_to_world": pose}],
            "objects": [{"id": 3, "label": "table", "aligned": {"center": [0, 0, 2], "dimensions": [1, 0.5, 0.5]}},
                        {"id": 8, "label": "chair", "aligned": {"center": [1, 0, 3], "dimensions": [0.5, 0.5, 0.5]}}]}


def write(folder, content):
    (folder / "frames").mkdir(parents=True, exist_ok=True)
    for name in ("0.png", "1.png"):
        Image.new("RGB", (64, 48)).save(folder / "frames" / name)
    (folder / "scene.json").write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def test_a_scene_is_read(tmp_path):
    (scene,) = posed_scenes(write(tmp_path, document()))
    assert scene.id == "flat_00" and scene.room is None
    assert [(o.id, o.label, o.center, o.dimensions) for o in scene.objects] == [
        (3, "table", (0, 0, 2), (1, 0.5, 0.5)), (8, "chair", (1, 0, 3), (0.5, 0.5, 0.5))]
    (solid,) = scene.objects[0].solids
    assert (solid.kind, solid.center, solid.half) == ("box", (0, 0, 2), (0.5, 0.25, 0.25))
    folder = (tmp_path / "frames").resolve()
    assert [(f.name, f.image) for f in scene.frames] == [(n, str(folder / f"{n}.png")) for n in "01"]
    camera = scene.frames[1].camera
    assert (camera.width, camera.height) == (64, 48) and camera.camera_to_world[0, 3] == 0.5
    assert camera.intrinsics.tolist() == [[50, 0, 32], [0, 50, 24], [0, 0, 1]]
    (table, _) = frame_records(scene, scene.frames[0])
    np.testing.assert_allclose(table.box2d, (32 - 25 / 1.75, 24 - 12.5 / 1.75, 32 + 25 / 1.75, 24 + 12.5 / 1.75))


def test_a_second_box_along_the_capture_frame_gives_an_outline(tmp_path):
    """Turned by 45 degrees about z, a square of side 1 and one of side 1.2 have an octagon in common."""
    content = document()
    half = np.sqrt(0.5)
    content["axis_align"] = [[half, -half, 0, 3], [half, half, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    content["objects"][0]["aligned"] = {"center": [3, 0, 2], "dimensions": [1, 1, 0.5]}
    content["objects"][0]["unaligned"] = {"center": [0, 0, 2.1], "dimensions": [1.2, 1.2, 0.5]}
    (scene,) = posed_scenes(write(tmp_path, content))
    cut = 1.2 * half - 0.5  # where the turned square's side crosses the straight one's
    corners = {(3 + x, y) for a, b in ((0.5, cut), (cut, 0.5)) for x in (-a, a) for y in (-b, b)}
    expected = sorted((x, y, z) for x, y in corners for z in (1.85, 2.25))
    np.testing.assert_allclose(sorted(scene.objects[0].outline), expected, atol=1e-6)
    assert scene.objects[0].dimensions == (1, 1, 0.5) and scene.objects[1].outline == ()
    content["objects"][0]["unaligned"]["center"] = [0, 0]
    with pytest.raises(SceneError) as caught:
        posed_scenes(write(tmp_path, content))
    assert caught.value.field == "objects[0].unaligned.center"
    content["objects"][0]["unaligned"] |= {"center": [0, 0, 2.1], "dimensions": [-1, 1, 0.5]}
    with pytest.raises(SceneError, match="must be positive"):
        posed_scenes(write(tmp_path, content))


def test_poses_are_aligned(tmp_path):
    content = document()
    quarter = [[0, -1, 0, 10], [1, 0, 0, 20], [0, 0, 1, 30], [0, 0, 0, 1]]  # a quarter turn about z, then a shift
    content["axis_align"] = quarter
    content["frames"][0]["camera_to_world"] = [[1, 0, 0, 1], [0, 1, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]]
    (scene,) = posed_scenes(write(tmp_path, content))
    expected = [[0, -1, 0, 8], [1, 0, 0, 21], [0, 0, 1, 33], [0, 0, 0, 1]]
    np.testing.assert_allclose(scene.frames[0].camera.camera_to_world, expected)
    assert scene.objects[0].center == (0, 0, 2)  # boxes are in the aligned frame already


def test_four_by_four_intrinsics_and_a_folder_of_scenes(tmp_path):
    for name in ("flat_b", "flat_a"):
        intrinsics = [[50, 0, 32, 0], [0, 50, 24, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
        content = document() | {"scene": name, "intrinsics": intrinsics}
        write(tmp_path / name, content)
    scenes = posed_scenes(tmp_path)
    assert [scene.id for scene in scenes] == ["flat_a", "flat_b"]
    assert scenes[0].frames[0].camera.intrinsics.shape == (3, 3)
    (tmp_path / "flat_b" / "scene.json").write_text(json.dumps(document() | {"scene": "flat_a"}))
    source = pickle.loads(pickle.dumps(PosedFrames(str(tmp_path))))
    assert source.scene_ids() == ["flat_a", "flat_b"] and source.load("flat_a").id == "flat_a"
    with pytest.raises(SceneError, match="Call the folder as its scene is called") as caught:
        source.load("flat_b")
    assert (caught.value.scene, caught.value.field) == ("flat_b", "scene")
    assert caught.value.file == (tmp_path / "flat_b" / "scene.json").resolve()
    for unknown in ("flat_c", "..", "flat_a/frames"):
        with pytest.raises(KeyError):
            source.load(unknown)


def test_the_example_of_the_documentation_is_a_scene(tmp_path):
    text = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```json\n(\{\n  \"scene\".*?)```", text, re.DOTALL)
    (tmp_path / "depth").mkdir()
    Image.fromarray(np.zeros((480, 640), np.uint16)).save(tmp_path / "depth" / "00000.png")
    write(tmp_path, example)
    Image.new("RGB", (1296, 968)).save(tmp_path / "frames" / "00000.jpg")
    (scene,) = posed_scenes(tmp_path)
    assert scene.id == "flat_03" and scene.room_area == 18.4 and scene.frames[0].depth_intrinsics[0, 0] == 577.9
    (record,) = frame_records(scene, scene.frames[0])
    assert record.label == "table" and 2 < record.center_camera[2] < 3


def test_one_scene_is_called_as_it_says(tmp_path):
    source = PosedFrames(str(write(tmp_path, document())))
    assert source.scene_ids() == ["flat_00"] and source.load("flat_00").id == "flat_00"
    with pytest.raises(KeyError):
        source.load(tmp_path.name)


def test_depth_boxes_that_are_turned_and_the_room(tmp_path):
    content = document()
    folder = write(tmp_path, content)
    Image.fromarray(np.full((24, 32), 2500, np.uint16)).save(tmp_path / "frames" / "d0.png")
    content["frames"][0]["depth"] = "frames/d0.png"
    content["depth_intrinsics"] = [[25, 0, 16], [0, 25, 12], [0, 0, 1]]
    content["objects"][1]["aligned"]["axes"] = [[0.6, 0.8, 0], [-0.8, 0.6, 0], [0, 0, 1]]
    content["room"], content["room_area"] = {"low": [-2, -1, 0], "high": [3, 2, 2.5]}, 13.5
    write(tmp_path, content)
    (scene,) = posed_scenes(folder)
    assert scene.room == ((-2, -1, 0), (3, 2, 2.5)) and scene.room_area == 13.5
    table, chair = scene.objects
    assert table.axes == ALIGNED and chair.axes == ((0.6, 0.8, 0), (-0.8, 0.6, 0), (0, 0, 1)) == chair.solids[0].axes
    assert chair.hull == pytest.approx((0.7, 0.7, 0.5))
    first, second = scene.frames
    assert second.depth is None and second.depth_intrinsics is None
    assert first.depth == str((tmp_path / "frames" / "d0.png").resolve())
    np.testing.assert_allclose(measured_depth(first, first.camera), np.full((48, 64), 2.5))


def test_a_folder_without_scene(tmp_path):
    with pytest.raises(SourceError, match="neither .* has a scene.json.*Point data.source at"):
        posed_scenes(tmp_path)
    with pytest.raises(SourceError, match="nowhere: does not exist"):
        posed_scenes(tmp_path / "nowhere")
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(SourceError, match="meta.json: is a file, not a folder.*source_format"):
        posed_scenes(tmp_path / "meta.json")


def test_a_folder_without_its_scene_is_bad_not_unseen(tmp_path):
    write(tmp_path / "flat_00", document())
    (tmp_path / "flat_01" / "frames").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "built").mkdir()
    (tmp_path / "built" / "manifest.json").write_text("{}")
    source = PosedFrames(str(tmp_path))
    assert source.scene_ids() == ["flat_00", "flat_01"]
    assert source.load("flat_00").id == "flat_00"
    with pytest.raises(SceneError, match="flat_01/scene.json.*is missing"):
        source.load("flat_01")
    for other in (".hidden", "built", "flat_02", "../up"):
        with pytest.raises(KeyError):
            source.load(other)


def skewed(k=((50, 1, 32), (0, 50, 24), (0, 0, 1))):
    return [list(row) for row in k]


BAD = [
    (("scene",), DROP, "scene"), (("scene",), "", "scene"), (("scene",), "../up", "scene"),
    (("units",), DROP, "units"), (("units",), "mm", "units"),
    (("image_width",), DROP, "image_width"), (("image_width",), 64.5, "image_width"),
    (("image_height",), True, "image_height"),
    (("image_width",), 1296, "frames[0].file"),
    (("intrinsics",), DROP, "intrinsics"), (("intrinsics",), [[50, 0, 32], [0, 50, 24]], "intrinsics"),
    (("intrinsics",), [[0, 0, 32], [0, 50, 24], [0, 0, 1]], "intrinsics"), (("intrinsics",), skewed(), "intrinsics"),
    (("intrinsics", 0, 0), "50", "intrinsics"), (("intrinsics", 0), [50, 0], "intrinsics"),
    (("axis_align",), DROP, "axis_align"), (("axis_align",), np.eye(3).tolist(), "axis_align"),
    (("axis_align",), np.diag([1.0, 1, -1, 1]).tolist(), "axis_align"),
    (("axis_align",), np.diag([1000.0, 1000, 1000, 1]).tolist(), "axis_align"),
    (("frames",), DROP, "frames"), (("frames",), [], "frames"), (("frames",), {}, "frames"),
    (("frames", 1), "0.png", "frames[1]"),
    (("frames", 1, "file"), DROP, "frames[1].file"), (("frames", 1, "file"), "frames/2.png", "frames[1].file"),
    (("frames", 1, "file"), "../flat/frames/0.png", "frames[1].file"),
    (("frames", 1, "file"), "/etc/hostname", "frames[1].file"),
    (("frames", 1, "file"), "frames/0.png", "frames[1].file"),
    (("frames", 1, "file"), "scene.json", "frames[1].file"),
    (("frames", 1, "camera_to_world"), DROP, "frames[1].camera_to_world"),
    (("frames", 1, "camera_to_world"), EYE[:3], "frames[1].camera_to_world"),
    (("frames", 1, "camera_to_world", 0, 3), float("-inf"), "frames[1].camera_to_world"),
    (("frames", 1, "camera_to_world", 2, 3), float("nan"), "frames[1].camera_to_world"),
    (("frames", 1, "camera_to_world", 2, 3), 10**400, "frames[1].camera_to_world"),
    (("frames", 1, "camera_to_world", 3, 0), 0.5, "frames[1].camera_to_world"),
    (("frames", 1, "camera_to_world", 0, 0), None, "frames[1].camera_to_world"),
    (("objects",), DROP, "objects"), (("objects",), [], "objects"),
    (("objects", 1, "id"), DROP, "objects[1].id"), (("objects", 1, "id"), 3, "objects[1].id"),
    (("objects", 1, "id"), -1, "objects[1].id"),
    (("objects", 1, "label"), 5, "objects[1].label"), (("objects", 1, "aligned"), DROP, "objects[1].aligned"),
    (("objects", 1, "aligned"), [1, 2], "objects[1].aligned"),
    (("objects", 1, "aligned", "center"), [1, 2], "objects[1].aligned.center"),
    (("objects", 1, "aligned", "center", 1), float("nan"), "objects[1].aligned.center"),
    (("objects", 1, "aligned", "dimensions"), [1, 0, 1], "objects[1].aligned.dimensions"),
    (("objects", 1, "aligned", "axes"), [[1, 0, 0], [0, 1, 0]], "objects[1].aligned.axes"),
    (("objects", 1, "aligned", "axes"), [[1, 0, 0], [0, 1, 0], [0, 0, -1]], "objects[1].aligned.axes"),
    (("frames", 1, "depth"), "frames/2.png", "frames[1].depth"), (("frames", 1, "depth"), 7, "frames[1].depth"),
    (("frames", 1, "depth"), "frames/0.png", "frames[1].depth"), (("frames", 1, "depth"), "scene.json", "frames[1].depth"),
    (("depth_intrinsics",), [[1, 0], [0, 1]], "depth_intrinsics"), (("depth_intrinsics",), skewed(), "depth_intrinsics"),
    (("room",), {"low": [0, 0, 0]}, "room.high"), (("room",), {"low": [0, 0, 0], "high": [1, 0, 1]}, "room"),
    (("depth_intrinsic",), EYE, "depth_intrinsic"), (("romo_area",), 9.0, "romo_area"),
    (("frames", 1, "dept"), "d", "frames[1].dept"), (("objects", 1, "aligned", "axis"), EYE, "objects[1].aligned.axis"),
    (("objects", 1, "unalined"), {}, "objects[1].unalined"),
    (("room",), 5, "room"), (("room_area",), -1, "room_area"), (("room_area",), [1], "room_area"),
]


def name_of(case):
    path, value, _ = case
    return f"{'.'.join(map(str, path))}={'missing' if value is DROP else str(value)[:20]}"


@pytest.mark.parametrize("path, value, field", BAD, ids=map(name_of, BAD))
def test_bad_scenes_are_refused_by_file_and_field(tmp_path, path, value, field):
    content = copy.deepcopy(document())
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is DROP:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    folder = write(tmp_path / "flat", content)
    with pytest.raises(SceneError) as caught:
        posed_scenes(folder)
    error = caught.value
    assert error.field == field and error.file == folder / "scene.json" and error.reason and error.action
    assert all(part in str(error) for part in (str(error.file), field, error.reason, error.action))


@pytest.mark.parametrize("content", ["{", "[1, 2]", "\"text\""])
def test_a_file_that_is_no_scene(tmp_path, content):
    with pytest.raises(SceneError) as caught:
        posed_scenes(write(tmp_path, content))
    assert caught.value.field == "whole file"


def test_pictures_that_ask_to_be_turned_are_refused(tmp_path):
    folder = write(tmp_path, document())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(folder / "frames" / "1.png", exif=exif)
    with pytest.raises(SceneError, match="EXIF orientation 6") as caught:
        posed_scenes(folder)
    assert caught.value.field == "frames[1].file"


def test_a_picture_that_was_cut_is_refused(tmp_path):
    content = document()
    content["frames"][1]["file"] = "frames/1.jpg"
    folder = write(tmp_path, content)
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "frames" / "1.jpg")
    assert len(posed_scenes(folder)[0].frames) == 2
    whole = (folder / "frames" / "1.jpg").read_bytes()
    (folder / "frames" / "1.jpg").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(SceneError, match=r"1\.jpg cannot be decoded .*truncated.*Replace it or drop") as caught:
        posed_scenes(folder)
    assert caught.value.field == "frames[1].file"


sample = pytest.mark.skipif(not SAMPLE.is_dir(), reason="no ScanNet sample in ../shared/data/scannet_sample")


@sample
def test_the_scannet_sample():
    (scene,) = posed_scenes(SAMPLE)
    assert scene.id == "scene0000_00" and [f.name for f in scene.frames] == ["00000", "00011", "00102"]
    assert len(scene.objects) == 27 and sum(o.label == "cabinet" for o in scene.objects) == 7
    well_visible = {"00000": {15: "table", 19: "cabinet"}, "00011": {6: "desk", 11: "garbagebin"},
                    "00102": {12: "sofa", 14: "table"}}
    for frame in scene.frames:
        assert (frame.camera.width, frame.camera.height) == (1296, 968)
        found = {r.object_id: r for r in frame_records(scene, frame)}
        for identity, label in well_visible[frame.name].items():
            record = found[identity]
            assert record.label == label and record.visibility > 0.9
            assert record.truncation < 0.5 and record.area > 0.04
            assert 1 < record.center_camera[2] < 5
    desk = {r.object_id: r for r in frame_records(scene, scene.frames[1])}[6]
    np.testing.assert_allclose(desk.box2d, (106, 41, 1008, 758), atol=1)  # drawn over the picture and looked at
    garbage = {r.object_id: r for r in frame_records(scene, scene.frames[1])}[11]
    np.testing.assert_allclose(garbage.box2d, (195, 518, 396, 797), atol=1)


@sample
def test_the_sample_projects_as_its_readme_says():
    raw = json.loads((SAMPLE / "scene.json").read_text())
    (scene,) = posed_scenes(SAMPLE)
    for frame, entry in zip(scene.frames, raw["frames"]):
        for item in scene.objects:
            point = np.array([*item.center, 1.0])
            pose = np.array(raw["axis_align"]) @ np.array(entry["camera_to_world"])
            p = np.array(raw["intrinsics"]) @ np.linalg.inv(pose) @ point
            q = np.linalg.inv(frame.camera.camera_to_world) @ point
            k = frame.camera.intrinsics @ q[:3]
            np.testing.assert_allclose(k[:2] / k[2], p[:2] / p[2], rtol=1e-9)

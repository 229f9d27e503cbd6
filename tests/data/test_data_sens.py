"""SensorData files, version 4: read and exported, and what is wrong with broken ones."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from scannet_cases import COLOR, COLOR_K, DEPTH, DEPTH_K, SCENE, raw_pose, write_scene, write_sens

from data.scenes.depth import read_depth
from data.scenes.scannet import export_frames
from data.scenes.sens import SensError, export, read_frames, read_header
from data.scenes.types import SceneError


def test_header_and_frames(tmp_path):
    capture = write_sens(tmp_path / "a.sens")
    with open(tmp_path / "a.sens", "rb") as file:
        header = read_header(file)
        assert (header.color_size, header.depth_size, header.frames) == (COLOR, DEPTH, 6)
        assert header.depth_unit == pytest.approx(0.001)
        np.testing.assert_allclose(header.matrices["intrinsic_color"][:3, :3], COLOR_K)
        np.testing.assert_allclose(header.matrices["intrinsic_depth"][:3, :3], DEPTH_K)
        frames = list(read_frames(file, header))
    assert [frame.index for frame in frames] == [0, 1, 3, 4]  # 2 and 5 have no pose
    for frame in frames:
        assert frame.jpeg == capture.jpegs[frame.index]
        np.testing.assert_array_equal(frame.depth, capture.depths[frame.index])
        np.testing.assert_allclose(frame.camera_to_world, raw_pose(frame.index), atol=1e-6)


def test_every_nth_counts_frames_of_the_capture(tmp_path):
    write_sens(tmp_path / "a.sens")
    assert list(export(tmp_path / "a.sens", tmp_path / "out", 2)) == [0, 4]
    assert sorted(path.name for path in (tmp_path / "out" / "color").iterdir()) == ["0.jpg", "4.jpg"]


def test_export_writes_what_scannet_exports(tmp_path):
    capture = write_sens(tmp_path / "a.sens", shift=500.0)  # two millimetres a unit
    out = tmp_path / "out"
    assert list(export(tmp_path / "a.sens", out, 1)) == [0, 1, 3, 4]
    assert (out / "color" / "3.jpg").read_bytes() == capture.jpegs[3]
    np.testing.assert_allclose(np.nan_to_num(read_depth(str(out / "depth" / "3.png"))), capture.depths[3] * 0.002, atol=1e-6)
    np.testing.assert_allclose(np.loadtxt(out / "pose" / "3.txt"), raw_pose(3), atol=1e-6)
    assert np.isinf(np.loadtxt(out / "pose" / "2.txt")).all()  # lost: a reader can tell it from one that was not exported
    assert sorted(path.name for path in (out / "depth").iterdir()) == ["0.png", "1.png", "3.png", "4.png"]
    np.testing.assert_allclose(np.loadtxt(out / "intrinsic" / "intrinsic_depth.txt")[:3, :3], DEPTH_K)
    assert sorted(path.name for path in (out / "intrinsic").iterdir()) == [
        f"{what}_{kind}.txt" for what in ("extrinsic", "intrinsic") for kind in ("color", "depth")]
    with Image.open(io.BytesIO(capture.jpegs[0])) as picture:
        assert picture.size == COLOR


def test_an_interrupted_export_goes_on(tmp_path):
    write_sens(tmp_path / "a.sens")
    out = tmp_path / "out"
    run = export(tmp_path / "a.sens", out, 1)
    assert [next(run), next(run)] == [0, 1]
    run.close()
    before = (out / "color" / "1.jpg").stat().st_mtime_ns
    (out / "color" / "3.jpg").write_bytes(b"half")  # was not finished: its pose is missing
    assert list(export(tmp_path / "a.sens", out, 1)) == [3, 4]
    assert (out / "color" / "1.jpg").stat().st_mtime_ns == before and (out / "color" / "3.jpg").stat().st_size > 100
    assert list(export(tmp_path / "a.sens", out, 1)) == []
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


def test_a_pose_alone_is_no_export(tmp_path):
    """Poses may come from elsewhere, all of them, with pictures of a few."""
    write_sens(tmp_path / "a.sens")
    out = tmp_path / "out"
    list(export(tmp_path / "a.sens", out, 1))
    lost = (out / "pose" / "2.txt").stat().st_mtime_ns
    for part in ("color/3.jpg", "depth/3.png"):
        (out / part).unlink()
        assert list(export(tmp_path / "a.sens", out, 1)) == [3] and (out / part).exists()
    assert (out / "pose" / "2.txt").stat().st_mtime_ns == lost


def test_of_a_lost_frame_nothing_but_the_pose_is_read(tmp_path):
    depth = zlib.compress(write_sens(tmp_path / "a.sens").depths[2].tobytes())
    whole = (tmp_path / "a.sens").read_bytes()
    assert depth in whole
    (tmp_path / "a.sens").write_bytes(whole.replace(depth, bytes(len(depth))))
    assert list(export(tmp_path / "a.sens", tmp_path / "out", 1)) == [0, 1, 3, 4]
    assert (tmp_path / "out" / "pose" / "2.txt").exists()


def damaged(change):
    def write(path):
        write_sens(path)
        data = bytearray(path.read_bytes())
        path.write_bytes(bytes(change(data)))
    return write


def put(offset, data):
    return damaged(lambda whole: whole[:offset] + data + whole[offset + len(data):])


COMPRESSIONS = 4 + 8 + 15 + 4 * 64
FIRST = COMPRESSIONS + 36


@pytest.mark.parametrize("write, reason", [
    (lambda path: write_sens(path, version=5), "is version 5 of the format, 4 is known"),
    (put(4, struct.pack("<Q", 10**9)), "a name of 1000000000 bytes"),
    (put(COMPRESSIONS, struct.pack("<i", 1)), "compresses colour as 1 and depth as 1"),
    (put(COMPRESSIONS + 24, struct.pack("<f", 0)), "0.0 units of depth"),
    (put(COMPRESSIONS + 16, struct.pack("<I", 65)), r"has 6144 bytes, 65 x 48 need 6240"),
    (damaged(lambda data: data[:100]), "ends in extrinsic_color|ends in intrinsic_color"),
    (damaged(lambda data: data[:-300]), "ends in frame 5 of 6"),
    (damaged(lambda data: data[:FIRST + 20]), "ends in frame 0"),
    (damaged(lambda data: data[:2]), "ends in the header"),
], ids=["version", "name", "compression", "unit", "size", "matrices", "cut", "cut in a pose", "empty"])
def test_broken_files(tmp_path, write, reason):
    path = tmp_path / SCENE / f"{SCENE}.sens"
    path.parent.mkdir()
    write(path)
    with pytest.raises(SensError, match=reason):
        list(export(path, tmp_path / "out", 1))
    with pytest.raises(SceneError, match=reason) as caught:
        list(export_frames(tmp_path, SCENE, 1))
    assert caught.value.scene == SCENE and caught.value.file == path


def test_depth_that_is_not_compressed(tmp_path):
    place = write_scene(tmp_path)
    path = place / f"{SCENE}.sens"
    data = path.read_bytes()
    header = FIRST + 64 + 16
    color = struct.unpack_from("<Q", data, header)[0]
    start = FIRST + 96 + color
    path.write_bytes(data[:start] + b"\0\0\0\0" + data[start + 4:])
    with pytest.raises(SceneError, match="the depth of frame 0 cannot be decompressed"):
        list(export_frames(tmp_path, SCENE, 1))


def test_no_capture(tmp_path):
    place = write_scene(tmp_path, capture=False)
    with pytest.raises(SceneError, match="No such file"):
        list(export_frames(tmp_path, SCENE, 1))
    assert not (place / "depth").exists()  # an empty one would say that every frame has its depth
    with pytest.raises(SceneError, match="No such file"):
        list(export_frames(tmp_path, "scene9999_99", 1))
    assert not (tmp_path / "scene9999_99").exists()

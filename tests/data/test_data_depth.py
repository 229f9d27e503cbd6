"""Depth pictures: units, unknown pixels, and which depth pixel a colour pixel finds."""

import numpy as np
import pytest
from PIL import Image

from data.scenes.depth import measured_depth, read_depth, write_depth
from data.scenes.types import Camera, Frame

K = np.array([[100.0, 0, 8], [0, 100, 6], [0, 0, 1]])


def frame(path, intrinsics=None):
    return Frame("0", Camera(K, np.eye(4), 16, 12), "0.jpg", str(path), intrinsics)


def test_millimetres_and_unknown(tmp_path):
    path = str(tmp_path / "d.png")
    Image.fromarray(np.array([[0, 1], [1234, 65535]], np.uint16)).save(path)
    np.testing.assert_allclose(read_depth(path), [[np.nan, 0.001], [1.234, 65.535]], rtol=1e-6)
    write_depth(path, np.array([[np.inf, 0.0006], [2.0, 70.0], [-1.0, np.nan]]))
    assert np.asarray(Image.open(path)).tolist() == [[0, 1], [2000, 0], [0, 0]]


def test_other_pictures_are_refused(tmp_path):
    Image.new("L", (4, 4), 9).save(tmp_path / "grey.png")
    with pytest.raises(ValueError, match="is PNG L, not PNG with one channel of 16 bits"):
        read_depth(str(tmp_path / "grey.png"))
    with pytest.raises(ValueError, match="no depth picture"):
        measured_depth(Frame("7", Camera(K, np.eye(4), 16, 12)), Camera(K, np.eye(4), 16, 12))


def test_the_ratio_of_sizes_finds_the_pixel(tmp_path):
    values = np.arange(1, 6 * 8 + 1, dtype=np.uint16).reshape(6, 8)
    Image.fromarray(values).save(tmp_path / "d.png")
    shot = frame(tmp_path / "d.png")
    np.testing.assert_allclose(measured_depth(shot, shot.camera) * 1000, np.kron(values, np.ones((2, 2))), rtol=1e-6)
    half = Camera(np.diag([0.5, 0.5, 1]) @ K, np.eye(4), 8, 6)
    np.testing.assert_allclose(measured_depth(shot, half) * 1000, values, rtol=1e-6)
    cropped = Camera(K - [[0, 0, 4], [0, 0, 2], [0, 0, 0]], np.eye(4), 6, 4)
    whole = measured_depth(shot, shot.camera)
    np.testing.assert_array_equal(measured_depth(shot, cropped), whole[2:6, 4:10])


def test_its_own_intrinsics_find_the_pixel(tmp_path):
    values = np.arange(1, 6 * 8 + 1, dtype=np.uint16).reshape(6, 8)
    Image.fromarray(values).save(tmp_path / "d.png")
    narrow = np.array([[100.0, 0, 4], [0, 100, 3], [0, 0, 1]])  # the same focal length on half the pixels: the middle only
    seen = measured_depth(frame(tmp_path / "d.png", narrow), Camera(K, np.eye(4), 16, 12)) * 1000
    np.testing.assert_allclose(seen[3:9, 4:12], values, rtol=1e-6)
    outside = np.ones((12, 16), bool)
    outside[3:9, 4:12] = False
    assert np.isnan(seen[outside]).all()

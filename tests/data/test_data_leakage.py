"""Scenes and places by the path of a picture."""

import pytest

from data.leakage import place_of, scene_of, scenes_of, shared_places
from data.types import Example


@pytest.mark.parametrize("picture, scene", [
    ("scene0000_00/820.jpg", "scene0000_00"),
    ("scannet/scene0011_01/color/0.jpg", "scene0011_01"),
    ("scene0011_01/scene0012_00/0.jpg", "scene0012_00"),
    ("train00003/f.png", "train00003"),
    ("arkit/41069025/f.png", "arkit/41069025"),
    ("scene12_00/f.png", "scene12_00"),
    ("820.jpg", None),
])
def test_the_scene_of_a_picture(picture, scene):
    assert scene_of(f"/data/scene9999_00/train/images/{picture}", "/data/scene9999_00/train/images") == scene


def test_scans_of_one_place_are_one_place():
    assert place_of("scene0000_00") == place_of("scene0000_01") == "scene0000"
    assert place_of("scene0000_001") == "scene0000_001" and place_of("train00003") == "train00003"
    assert place_of("kitchen_01") == "kitchen_01" and place_of("scene12_00") == "scene12_00"
    ours, theirs = ["scene0001_02", "scene0000_00", "scene0001_00"], ["scene0001_01", "scene0010_00"]
    assert shared_places(ours, theirs) == {"scene0001": (["scene0001_00", "scene0001_02"], ["scene0001_01"])}


def test_rows_by_scene():
    rows = [Example("a", 0, "video", "?", "room size", ("/r/x/0", "/r/x/1", "/r/y/0")),
            Example("b", 1, "single_image", "?", "room size", ("/r/x/0",)),
            Example("c", 2, "single_image", "?", "room size", ("/r/0",))]
    assert scenes_of(rows, "/r") == {"x": ["a", "b"], "y": ["a"]}

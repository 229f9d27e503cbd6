"""`ladder data frames`: every capture is exported, and one that is broken stops nothing."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
from scannet_cases import SCENE, write_scene, write_sens  # noqa: E402

from launch.cli import main  # noqa: E402


@pytest.fixture
def scans(tmp_path):
    write_scene(tmp_path)
    for name in ("scene0001_00", "scene0002_00"):
        (tmp_path / name).mkdir()
    write_sens(tmp_path / "scene0002_00" / "scene0002_00.sens")
    return tmp_path


def test_all_captures_are_exported_but_the_broken_one(scans, capsys):
    assert main(["data", "frames", str(scans), "--every", "2"]) == 1
    said = capsys.readouterr().out
    assert f"{SCENE} (1/3): 2 frames written" in said and "scene0002_00 (3/3): 2 frames written" in said
    assert "not exported: scene scene0001_00" in said and "2 of 3 scenes are exported" in said
    assert "data.scannet.every_nth=2, or a multiple" in said
    assert sorted(path.name for path in (scans / "scene0002_00" / "pose").iterdir()) == ["0.txt", "2.txt", "4.txt"]  # 2 is lost


def test_one_scene_again(scans, capsys):
    arguments = ["data", "frames", str(scans), "--every", "3", "--scene", SCENE]
    assert main(arguments) == 0 and "2 frames written" in capsys.readouterr().out
    assert main(arguments) == 0 and "0 frames written" in capsys.readouterr().out
    assert not (scans / "scene0002_00" / "pose").exists()


def test_what_is_refused(tmp_path, capsys):
    assert main(["data", "frames", str(tmp_path), "--every", "0"]) == 2
    for folder, reason in ((tmp_path, "has no folder called like scene0000_00"), (tmp_path / "nowhere", "")):
        assert main(["data", "frames", str(folder)]) == 2
        told = capsys.readouterr().err
        assert str(folder) in told and reason in told and "a folder SCENE with SCENE.sens in it" in told

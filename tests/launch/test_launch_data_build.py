"""`ladder data build` as users start it: here and on a cluster of its own the same bytes; refused with one message."""

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
SMALL = ["--set", f"model.path={PROJECT / 'models' / 'tiny_base'}", "--set", "data.rooms.image_size=56",
         "--set", "data.rooms.frames_per_room=8", "--set", "data.rooms.train_rooms=3", "--set", "data.rooms.heldout_rooms=1"]


def build(folder, *arguments):
    dropped = ("RAY_ADDRESS", "LADDER_HOME")
    environment = {k: v for k, v in os.environ.items() if k not in dropped} | {"PYTHONPATH": str(PROJECT)}
    return subprocess.run([sys.executable, "-m", "launch", "data", "build", *arguments], cwd=folder, env=environment,
                          capture_output=True, text=True, timeout=240)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_named_folder_by_default_and_the_same_on_a_cluster(tmp_path):
    (tmp_path / "c.yaml").write_text("name: rooms\n")
    here = build(tmp_path, "c.yaml", *SMALL)
    assert here.returncode == 0, here.stderr
    assert "data: 4/4 scenes, " in here.stdout and "Ray" not in here.stdout
    ray = build(tmp_path, "c.yaml", *SMALL, "--workers", "2", "--out", "again")
    assert ray.returncode == 0, ray.stderr
    assert "Ray is up" in ray.stdout and "data: 4/4 scenes, " in ray.stdout
    assert files(tmp_path / "datasets" / "rooms") == files(tmp_path / "again")


def test_refusals(tmp_path):
    (tmp_path / "c.yaml").write_text("name: rooms\n")
    refused = build(tmp_path, "c.yaml", *SMALL, "--workers", "0")
    assert refused.returncode == 2 and "--workers must be at least 1" in refused.stderr
    half = build(tmp_path, "c.yaml", *SMALL, "--set", "data.build.train_list=train.txt")
    assert half.returncode == 2 and "give both, or neither" in half.stderr

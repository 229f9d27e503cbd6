"""Scenes built on Ray Data: the same bytes as in this process, a scene that kills its worker costs only itself."""

import hashlib
import os
import signal
import sys
from dataclasses import dataclass

import pytest
import ray
from ray import cloudpickle

from configs.data_schema import DataConfig, RoomsConfig
from data.build import build_data
from data.scene_build import SceneJob
from data.scene_runs import DIED, run_on_ray
from data.scenes.rooms import Rooms

ROOMS = RoomsConfig(train_rooms=20, heldout_rooms=3, image_size=56, frames_per_room=8)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find this module
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    ray.shutdown()


def hashes(folder):
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def half(size):
    return size[0] // 2, size[1] // 2


def test_two_workers_write_the_same_bytes_as_one(tmp_path):
    lines = []
    one = build_data(DataConfig(rooms=ROOMS), tmp_path / "one", 7, half, workers=1)
    two = build_data(DataConfig(rooms=ROOMS), tmp_path / "two", 7, half, lines.append, workers=2)
    assert one == two and hashes(tmp_path / "one") == hashes(tmp_path / "two") and len(hashes(tmp_path / "one")) > 100
    assert any(line.startswith("data: 23/23 scenes, ") for line in lines)


@dataclass(frozen=True)
class Deadly:
    """Rooms, one of which kills whoever builds it."""

    rooms: Rooms
    deadly: str

    def scene_ids(self):
        return self.rooms.scene_ids()

    def load(self, scene_id):
        if scene_id == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.rooms.load(scene_id)


def test_a_scene_that_kills_its_process_is_given_up_alone(tmp_path):
    config = DataConfig(rooms=ROOMS)
    names = [f"train{number:05d}" for number in range(20)]
    source = Deadly(Rooms(ROOMS, 0), "train00003")
    job = SceneJob(source, dict.fromkeys(names, "train"), 0.2, 0, ROOMS, config.construction, str(tmp_path))
    outcomes = {outcome.scene: outcome for outcome in run_on_ray(job, names, workers=1)}
    assert sorted(outcomes) == names
    bad = {name: outcome.reason for name, outcome in outcomes.items() if outcome.reason}
    assert list(bad) == ["train00003"] and bad["train00003"].startswith(DIED)
    finished = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert finished == set(names) - {"train00003"}

